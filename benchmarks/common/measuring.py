"""Measures a trained network: loss, accuracy, gradient norm, flatness, robustness to weight noise.

Everything is measured in eval mode (BatchNorm with running statistics, no dropout) and in full
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

from flatreg import measures

CURVATURE_EXAMPLES = 1024  # training examples for the measures of flatness
CHUNK = 2048  # examples per call, which bounds the memory
CURVATURE_CHUNK = 256  # fewer for Hessian-vector products, which need more memory per example
NOISE = 0.5  # standard deviation of the noise on a weight, relative to the weight
NOISE_DRAWS = 10
PROBES = 64  # random vectors for the trace and for the diagonal
SPECTRUM_PROBES = 16  # for the trace if it is measured without the other measures
RHO = 0.05  # radius of the ball of R⁰ and R¹
# Steps from each start: the gradient, ± the top eigenvector, and for R¹ also the maximizer of R⁰.
ASCENT_STEPS = 20
HESSIAN_RADIUS = 0.1  # radius of the ball in which the Hessian's Lipschitz constant is estimated
SETTINGS = {
    "curvature_examples": CURVATURE_EXAMPLES,
    "weight_noise": NOISE,
    "weight_noise_draws": NOISE_DRAWS,
    "probes": PROBES,
    "rho": RHO,
    "ascent_steps": ASCENT_STEPS,
    "hessian_radius": HESSIAN_RADIUS,
}

Examples = tuple[jax.Array, jax.Array]  # inputs and labels


class Evaluation(NamedTuple):
    """The evaluation of a network on some examples.

    Attributes:
      loss: the mean cross-entropy.
      other_loss: the mean cross-entropy that is expected if each label is replaced by one of the
        other classes at random.
      accuracy: the fraction of correct predictions.
    """

    loss: float
    other_loss: float
    accuracy: float


class Measurement(NamedTuple):
    """The final measurements of one run; NaN for measures of flatness that were not asked for.

    Attributes:
      train_loss: the mean cross-entropy of the training set.
      train_accuracy: the accuracy on the training set.
      test_loss: the mean cross-entropy of the evaluation set.
      test_accuracy: the accuracy on the evaluation set.
      generalization_gap: the loss on fresh examples minus the training loss; see `measure`.
      gradient_norm: the 2-norm of the gradient of the training loss.
      weight_norm: the 2-norm of the parameters.
      weights: the number of parameters.
      noise_accuracy: the mean accuracy under multiplicative noise on the weights.
      lambda_max: the largest eigenvalue of the Hessian of the training loss.
      lambda_max_residual: the norm of the residual of that eigenpair.
      trace: the estimated trace of the Hessian.
      trace_standard_error: its standard error over the probes.
      zeroth_order_flatness: R⁰, the largest increase of the loss that was found in the ball.
      first_order_flatness: R¹, ρ times the largest gradient norm that was found in the ball.
      pacgen: PACGen's metric Ψ.
      pacgen_active: the fraction of the weights to whose term curvature contributes.
    """

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
    """Evaluates the network on all examples, in chunks."""
    sums = [_evaluate(model, variables, *chunk) for chunk in _chunks(x, y)]
    return Evaluation(*(float(total) / y.size for total in np.sum(jax.device_get(sums), axis=0)))


def correctness(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> np.ndarray:
    """Returns for each label whether the network predicts it, as `measure` does, as a vector."""
    with jax.default_matmul_precision("highest"):
        found = [_correct(model, variables, *chunk) for chunk in _chunks(x, y)]
    return np.concatenate(jax.device_get(found)).ravel()


def measure(
    model: nn.Module,
    variables: Any,
    train: Examples,
    test: Examples,
    label_noise: float,
    seed: int,
    *,
    flatness: str = "end",
) -> Measurement:
    """Measures a trained network.

    The generalization gap is the loss on fresh examples minus the training loss. If training labels
    are noisy, the expected loss under the same noise on the fresh labels counts; otherwise the
    noise, which no network can predict, would show up as a negative gap.

    Args:
      model: the network.
      variables: its parameters and BatchNorm statistics.
      train: the training examples with the labels that the network was trained on.
      test: the examples for evaluation.
      label_noise: the fraction of wrong training labels.
      seed: the seed of starts, probes and weight noise.
      flatness: `no`, `lambda_max` (the largest Hessian eigenvalue only), `spectrum` (that and the
        trace), or `end` or `along` for all measures of flatness.
    """
    (x, y), (x_test, y_test) = train, test
    some = slice(CURVATURE_EXAMPLES)
    with jax.default_matmul_precision("highest"):  # GPUs round float32 products to TF32
        on_train = evaluate(model, variables, x, y)
        on_test = evaluate(model, variables, x_test, y_test)
        found = {}
        if flatness != "no":
            amount = flatness if flatness in ("lambda_max", "spectrum") else "all"
            found = _flatness(model, amount, variables, (x[some], y[some]), jax.random.key(seed))
        gradient = _full_gradient(model, variables, x, y)
        noisy = [
            evaluate(model, _perturbed(variables, key), x_test[some], y_test[some])
            for key in jax.random.split(jax.random.key(seed), NOISE_DRAWS)
        ]
    fresh_loss = (1 - label_noise) * on_test.loss + label_noise * on_test.other_loss
    return Measurement(
        train_loss=on_train.loss,
        train_accuracy=on_train.accuracy,
        test_loss=on_test.loss,
        test_accuracy=on_test.accuracy,
        generalization_gap=fresh_loss - on_train.loss,
        gradient_norm=float(optax.tree.norm(gradient)),
        weight_norm=float(optax.tree.norm(variables["params"])),
        weights=sum(w.size for w in jax.tree.leaves(variables["params"])),
        noise_accuracy=float(np.mean([draw.accuracy for draw in noisy])),
        **{name: float(value) for name, value in found.items()},
    )


def curvature(model: nn.Module, variables: Any, train: Examples, seed: int) -> dict[str, float]:
    """Measures loss, ‖∇L‖, ‖w‖, λ_max and trace during training.

    The examples are those on which `measure` measures flatness. To save time, λ_max comes from 10
    Lanczos steps and the trace from 16 probes.
    """
    examples = train[0][:CURVATURE_EXAMPLES], train[1][:CURVATURE_EXAMPLES]
    with jax.default_matmul_precision("highest"):
        found = _curvature(model, variables, examples, jax.random.key(seed))
    return {name: float(value) for name, value in found.items()}


@partial(jax.jit, static_argnums=0)
def _curvature(
    model: nn.Module, variables: Any, examples: Examples, key: jax.Array
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


def _dataset_loss(model: nn.Module, variables: Any, examples: Examples) -> measures.LossFn:
    def batch_loss(params: Any, batch: Examples) -> jax.Array:
        return _loss(model, variables, *batch, params)

    return measures.dataset_loss(batch_loss, examples, batch_size=CURVATURE_CHUNK)


@partial(jax.jit, static_argnums=0)
def _correct(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, x, train=False)
    return logits.argmax(-1) == y


@partial(jax.jit, static_argnums=0)
def _evaluate(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, x, train=False)
    log_probabilities = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_probabilities, y[..., None], axis=-1)[..., 0]
    other_loss = (-log_probabilities.sum(-1) - loss) / (log_probabilities.shape[-1] - 1)
    correct = log_probabilities.argmax(-1) == y
    return jnp.stack([loss.sum(), other_loss.sum(), correct.sum()])


def _loss(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array, params: Any) -> jax.Array:
    logits: Any = model.apply({**variables, "params": params}, x, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@partial(jax.jit, static_argnums=0)
def _gradient(model: nn.Module, variables: Any, x: jax.Array, y: jax.Array) -> Any:
    return jax.grad(partial(_loss, model, variables, x, y))(variables["params"])


@partial(jax.jit, static_argnums=(0, 1))
def _flatness(
    model: nn.Module,
    amount: str,
    variables: Any,
    examples: Examples,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """λ_max of the loss on the examples (`lambda_max`), also its trace (`spectrum`), or `all`."""
    loss_fn, params = _dataset_loss(model, variables, examples), variables["params"]
    keys = jax.random.split(key, 5)
    pairs = measures.top_eigenpairs(loss_fn, params, keys[0])
    top = {"lambda_max": pairs.values[0], "lambda_max_residual": pairs.residuals[0]}
    if amount == "lambda_max":
        return top
    probes = SPECTRUM_PROBES if amount == "spectrum" else PROBES
    trace = measures.trace(loss_fn, params, keys[1], probes=probes)
    top |= {"trace": trace.value, "trace_standard_error": trace.standard_error}
    if amount == "spectrum":
        return top
    ball: dict[str, Any] = {"rho": RHO, "steps": ASCENT_STEPS, "random_starts": 0}
    diagonal = measures.diagonal(loss_fn, params, keys[2], probes=PROBES)
    change = measures.hessian_lipschitz(
        loss_fn, params, keys[3], HESSIAN_RADIUS, starts=1, steps=10
    )
    pacgen = measures.pacgen(params, diagonal.value, change.value)
    zeroth, first = measures.zeroth_and_first_order_flatness(loss_fn, params, keys[4], **ball)
    return top | {
        "zeroth_order_flatness": zeroth.value,
        "first_order_flatness": first.value,
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
    """Multiplies each weight by 1 + NOISE·ε with ε ~ N(0, 1)."""
    params = variables["params"]
    noise = optax.tree.random_like(key, params)
    return {**variables, "params": jax.tree.map(lambda w, e: w * (1 + NOISE * e), params, noise)}


def _chunks(x: jax.Array, y: jax.Array) -> list[Examples]:
    return [(x[i : i + CHUNK], y[i : i + CHUNK]) for i in range(0, len(x), CHUNK)]
