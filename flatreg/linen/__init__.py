"""Train states and train steps for Flax Linen.

The loss is a short function of a model that is ready to be called::

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

``apply`` is the model with the parameters of the current pass, the BatchNorm statistics and the
dropout keys filled in. All passes of a step use the same dropout keys. The metrics and the
BatchNorm statistics come from the clean pass only, so a step with two passes updates the statistics
once. With ``dynamic_scale``, the step scales the loss for float16.
"""

try:
    import flax as _flax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'flatreg.linen needs Flax: pip install "flatreg[flax]".', name="flax"
    ) from error

from flatreg._flax.metrics import Metrics
from flatreg.linen._apply import Apply
from flatreg.linen._spectral_norm import SpectralNorm
from flatreg.linen._state import TrainState
from flatreg.linen._steps import LossFn, classification_loss, make_eval_step, make_train_step

__all__ = [
    "Apply",
    "LossFn",
    "Metrics",
    "SpectralNorm",
    "TrainState",
    "classification_loss",
    "make_eval_step",
    "make_train_step",
]
