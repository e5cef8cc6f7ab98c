"""Train and evaluation steps for Flax NNX: any method, any Variable, nothing to split by hand.

A loss is a short function of the model, and a step updates model and optimizer in place::

    def loss_fn(model, batch):
        x, y = batch
        logits = model(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, {"accuracy": jnp.mean(logits.argmax(-1) == y)}

    tx = optax.chain(flatreg.sam(0.05), optax.sgd(0.1, momentum=0.9))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    train_step = nnx.jit(make_train_step(loss_fn), donate_argnums=(0, 1))
    for batch in batches:
        metrics = train_step(model, optimizer, batch)

Every pass of a step has the same dropout masks; only what the clean pass does to BatchNorm
statistics, dropout counts and other Variables is kept. Graph mode and tree mode (Flax ≥ 0.12.8)
give the same.
"""

try:
    import flax as _flax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'flatreg.nnx needs Flax: pip install "flatreg[flax]".', name="flax"
    ) from error

from flatreg.nnx._optimizer import Optimizer as Optimizer
from flatreg.nnx._spectral_norm import SpectralNorm as SpectralNorm
from flatreg.nnx._steps import LossFn as LossFn
from flatreg.nnx._steps import Metrics as Metrics
from flatreg.nnx._steps import classification_loss as classification_loss
from flatreg.nnx._steps import make_eval_step as make_eval_step
from flatreg.nnx._steps import make_train_step as make_train_step
