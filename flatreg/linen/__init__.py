"""Training states and steps for Flax Linen in which BatchNorm, dropout and loss scaling are right.

A loss is a short function of a model that is ready to be called::

    def loss_fn(apply, batch, train):
        x, y = batch
        logits = apply(x, train=train)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, {"accuracy": jnp.mean(logits.argmax(-1) == y)}

    tx = optax.chain(flatreg.sam(0.05), optax.sgd(0.1, momentum=0.9))
    state = TrainState.init(model, tx, jax.random.key(0), x[:1], train=False)
    train_step = jax.jit(make_train_step(loss_fn), donate_argnums=0)
    for batch in batches:
        state, metrics = train_step(state, batch)

``apply`` brings the parameters of the pass, the statistics and the dropout keys itself. Every pass
of a step has the same keys; only the clean pass's statistics and metrics are kept.
"""

try:
    import flax as _flax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'flatreg.linen needs Flax: pip install "flatreg[flax]".', name="flax"
    ) from error

from flatreg.linen._apply import Apply as Apply
from flatreg.linen._spectral_norm import SpectralNorm as SpectralNorm
from flatreg.linen._state import TrainState as TrainState
from flatreg.linen._steps import LossFn as LossFn
from flatreg.linen._steps import Metrics as Metrics
from flatreg.linen._steps import classification_loss as classification_loss
from flatreg.linen._steps import make_eval_step as make_eval_step
from flatreg.linen._steps import make_train_step as make_train_step
