"""What a run ended with: losses, accuracies, gradient, flatness, robustness to weight noise.

Everything is measured in eval mode (BatchNorm by its running statistics, no dropout) and in full
float32 precision, in the same way for every method.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.data import Dataset
from flatreg import measures

CURVATURE_EXAMPLES = 1024  # of the training set, for the measures of flatness
CHUNK = 2048  # examples a call, which bounds the memory
CURVATURE_CHUNK = 256  # likewise for products with the Hessian, which store more of a large network
NOISE = 0.5  # the standard deviation of a weight's noise, relative to the weight
NOISE_DRAWS = 10
PROBES = 64  # for the trace and for the diagonal
RHO = 0.05  # radius of the ball of R⁰ and R¹
ASCENT_STEPS = 20  # from the gradient, ± the top eigenvector, and for R¹ towards R⁰'s maximizer
HESSIAN_RADIUS = 0.1  # of the ball in which the Hessian's Lipschitz constant is looked for
SETTINGS = {
    "curvature_examples": CURVATURE_EXAMPLES,
    "weight_noise": NOISE,
    "weight_noise_draws": NOISE_DRAWS,
    "probes": PROBES,
    "rho": RHO,
    "ascent_steps": ASCENT_STEPS,
    "hessian_radius": HESSIAN_RADIUS,
}


class Evaluation(NamedTuple):
    """Mean loss, mean loss if each label were another class drawn at random, and accuracy."""

    loss: float
    other_loss: float
    accuracy: float


class Measurement(NamedTuple):
    """The final numbers of one run; those of its flatness are NaN where they were not asked for."""

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    generalization_gap: float
    gradient_norm: float
    weight_norm: float
    weights: int
    noise_accuracy: float
    lambda_max: float = math.nan
    lambda_max_residual: float = math.nan
    trace: float = math.nan
    trace_standard_error: float = math.nan
    zeroth_order_flatness: float = math.nan
    first_order_flatness: float = math.nan
    pacgen: float = math.nan
    pacgen_active: float = math.nan


def evaluate(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> Evaluation:
    """Evaluates the model on all examples."""
    sums = [_evaluate(model, variables, *chunk) for chunk in _chunks(x, y)]
    return Evaluation(*(float(total) / len(x) for total in np.sum(jax.device_get(sums), axis=0)))


def measure(
    model: nn.Module,
    variables: Any,
    data: Dataset,
    label_noise: float,
    seed: int,
    *,
    flatness: str = "end",
) -> Measurement:
    """Measures a trained model, and of its minimum what `--flatness` names.

    The generalization gap is the loss on fresh examples minus the training loss. Where training
    labels are noisy, the fresh ones are too, in expectation: else the noise, which no model can
    predict, would pass for a negative gap.
    """
    x, y = data.x_train, data.y_train
    some = slice(CURVATURE_EXAMPLES)
    with jax.default_matmul_precision("highest"):  # GPUs would round a float32 product to TF32
        train = evaluate(model, variables, x, y)
        test = evaluate(model, variables, data.x_test, data.y_test)
        found = {}
        if flatness != "no":
            whole = flatness != "lambda_max"
            found = _flatness(model, whole, variables, (x[some], y[some]), jax.random.key(seed))
        gradient = _full_gradient(model, variables, x, y)
        noisy = [
            evaluate(model, _perturbed(variables, key), data.x_test[some], data.y_test[some])
            for key in jax.random.split(jax.random.key(seed), NOISE_DRAWS)
        ]
    fresh_loss = (1 - label_noise) * test.loss + label_noise * test.other_loss
    return Measurement(
        train_loss=train.loss,
        train_accuracy=train.accuracy,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        generalization_gap=fresh_loss - train.loss,
        gradient_norm=float(optax.tree.norm(gradient)),
        weight_norm=float(optax.tree.norm(variables["params"])),
        weights=sum(w.size for w in jax.tree.leaves(variables["params"])),
        noise_accuracy=float(np.mean([draw.accuracy for draw in noisy])),
        **{name: float(value) for name, value in found.items()},
    )


def curvature(model: nn.Module, variables: Any, data: Dataset, seed: int) -> dict[str, float]:
    """Loss, ‖∇L‖, λ_max and trace on the examples that flatness is measured on: for on the way.

    Half as exact as in the end: 10 products for λ_max, 16 probes for the trace.
    """
    examples = data.x_train[:CURVATURE_EXAMPLES], data.y_train[:CURVATURE_EXAMPLES]
    with jax.default_matmul_precision("highest"):
        found = _curvature(model, variables, examples, jax.random.key(seed))
    return {name: float(value) for name, value in found.items()}


@partial(jax.jit, static_argnums=0)
def _curvature(
    model: nn.Module, variables: Any, examples: tuple[jax.Array, jax.Array], key: jax.Array
) -> dict[str, jax.Array]:
    loss_fn, params = _dataset_loss(model, variables, examples), variables["params"]
    eigenvalue_key, trace_key = jax.random.split(key)
    return {
        "loss": loss_fn(params),
        "gradient_norm": measures.gradient_norm(loss_fn, params),
        "weight_norm": optax.tree.norm(params),
        "lambda_max": measures.top_eigenpairs(loss_fn, params, eigenvalue_key, steps=10).values[0],
        "trace": measures.trace(loss_fn, params, trace_key, probes=16).value,
    }


def _dataset_loss(
    model: nn.Module, variables: Any, examples: tuple[jax.Array, jax.Array]
) -> measures.LossFn:
    def batch_loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _loss(model, variables, *batch, params)

    return measures.dataset_loss(batch_loss, examples, batch_size=CURVATURE_CHUNK)


@partial(jax.jit, static_argnums=0)
def _evaluate(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(model.apply(variables, x, train=False))
    loss = -jnp.take_along_axis(log_probabilities, y[:, None], axis=1)[:, 0]
    other_loss = (-log_probabilities.sum(1) - loss) / (log_probabilities.shape[1] - 1)
    correct = log_probabilities.argmax(1) == y
    return jnp.stack([loss.sum(), other_loss.sum(), correct.sum()])


def _loss(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array, params: Any) -> jax.Array:
    logits = model.apply({**variables, "params": params}, x, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@partial(jax.jit, static_argnums=0)
def _gradient(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> Any:
    return jax.grad(partial(_loss, model, variables, x, y))(variables["params"])


@partial(jax.jit, static_argnums=(0, 1))
def _flatness(
    model: nn.Module,
    whole: bool,
    variables: Any,
    examples: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> dict[str, jax.Array]:
    """λ_max of the loss on some examples, or the whole of the measures; compiled once for all."""
    loss_fn, params = _dataset_loss(model, variables, examples), variables["params"]
    keys = jax.random.split(key, 6)
    pairs = measures.top_eigenpairs(loss_fn, params, keys[0])
    top = {"lambda_max": pairs.values[0], "lambda_max_residual": pairs.residuals[0]}
    if not whole:
        return top
    ball = {"rho": RHO, "steps": ASCENT_STEPS, "random_starts": 0}
    trace = measures.trace(loss_fn, params, keys[1], probes=PROBES)
    diagonal = measures.diagonal(loss_fn, params, keys[2], probes=PROBES)
    change = measures.hessian_lipschitz(
        loss_fn, params, keys[3], HESSIAN_RADIUS, starts=1, steps=10
    )
    pacgen = measures.pacgen(params, diagonal.value, change.value)
    return top | {
        "trace": trace.value,
        "trace_standard_error": trace.standard_error,
        "zeroth_order_flatness": measures.zeroth_order_flatness(
            loss_fn, params, keys[4], **ball
        ).value,
        "first_order_flatness": measures.first_order_flatness(
            loss_fn, params, keys[5], **ball
        ).value,
        "pacgen": pacgen.value,
        "pacgen_active": pacgen.active,
    }


def _full_gradient(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> Any:
    total = optax.tree.zeros_like(variables["params"])
    for chunk in _chunks(x, y):
        weight = len(chunk[0]) / len(x)
        total = optax.tree.add_scale(total, weight, _gradient(model, variables, *chunk))
    return total


@jax.jit
def _perturbed(variables: Any, key: jax.Array) -> Any:
    """Each weight times 1 + NOISE·ε with ε ~ N(0, 1)."""
    params = variables["params"]
    noise = optax.tree.random_like(key, params)
    return {**variables, "params": jax.tree.map(lambda w, e: w * (1 + NOISE * e), params, noise)}


def _chunks(x: jax.Array, y: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    return [(x[i : i + CHUNK], y[i : i + CHUNK]) for i in range(0, len(x), CHUNK)]
