"""Train and evaluation steps for Flax NNX.

The loss is a short function of the model. A train step updates the model and the optimizer in
place::

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

In a train step of your own, ``value_and_grad_fn`` computes the loss, the gradient and the oracle
for a stock ``nnx.Optimizer``::

    loss, grads, grad_fn = value_and_grad_fn(loss_fn)(model, batch)
    optimizer.update(model, grads, grad_fn=grad_fn)

All passes of a step use the same dropout masks. The metrics, and the new values of BatchNorm
statistics, dropout counts and all other Variables, come from the clean pass only, so a step with
two passes updates them once. The steps work with all methods and all types of Variables. Graph mode
and tree mode (Flax ≥ 0.12.8) give the same results.
"""

try:
    import flax as _flax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'flatreg.nnx needs Flax: pip install "flatreg[flax]".', name="flax"
    ) from error

from flatreg._flax.metrics import Metrics
from flatreg.nnx._optimizer import Optimizer
from flatreg.nnx._spectral_norm import SpectralNorm
from flatreg.nnx._steps import LossFn, classification_loss, make_eval_step, make_train_step
from flatreg.nnx._value_and_grad import value_and_grad_fn

__all__ = [
    "LossFn",
    "Metrics",
    "Optimizer",
    "SpectralNorm",
    "classification_loss",
    "make_eval_step",
    "make_train_step",
    "value_and_grad_fn",
]
