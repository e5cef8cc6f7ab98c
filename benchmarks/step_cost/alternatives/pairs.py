"""The pairs of functions that compute the same: flatreg's, and one that uses JAX's or Optax's."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatreg
from benchmarks.common.models.convolution import by_patches
from flatreg import measures

PARTS = 4  # microbatches


class Sizes(NamedTuple):
    """How large the compared programs are.

    Attributes:
      widths: the widths of an MLP, from the inputs to the classes.
      examples: the number of examples in a batch.
      channels: the channels of a convolutional network, from the images.
      image: the height and the width of an image.
      steps: the numbers of steps of Lanczos iterations, which are the sizes of their matrices.
      rounds: how often each program is timed.
    """

    widths: tuple[int, ...]
    examples: int
    channels: tuple[int, ...]
    image: int
    steps: tuple[int, ...]
    rounds: int


LARGE = Sizes((256, 512, 512, 10), 128, (3, 32, 64), 32, (20, 60), 40)
SMALL = Sizes((8, 8, 4), 8, (3, 4), 6, (6,), 2)


class Pair(NamedTuple):
    """A computation, and the ways to do it.

    Attributes:
      name: what is computed.
      ways: the functions, by name.
      args: their arguments.
      error: the error of an output.
    """

    name: str
    ways: dict[str, Callable[..., Any]]
    args: tuple[Any, ...]
    error: Callable[[Any], float]


def pairs(sizes: Sizes) -> Iterator[Pair]:
    """Yields what is compared."""
    for dtype in (jnp.float32, jnp.bfloat16):
        args = _problem(sizes, dtype)
        exact = _in_float64(_gradient, args)
        ways = {"flatreg": _microbatches, "optax.microbatch": _optax_microbatches}
        name = f"{jnp.dtype(dtype).name}, {PARTS} microbatches"
        yield Pair(f"gradient, {name}", ways, args, _relative_to(exact))
        products = {name: _product(way) for name, way in ways.items()}
        exact = _in_float64(_product(_gradient), args)
        yield Pair(f"HVP, {name}", products, args, _relative_to(exact))
    # Gradients with the mean 1000 and the standard deviation 0.01.
    x = 1000 + 0.01 * jax.random.normal(jax.random.key(0), (sizes.examples,))
    for name, loss_fn, args in (
        ("of an MLP", _loss, _problem(sizes, jnp.float32)),
        ("of 1000 ± 0.01", lambda w, x, _: jnp.mean((w - x) ** 2) / 2, (jnp.zeros(()), x, x)),
    ):
        ways = {"flatreg": _statistics(loss_fn), "optax micro_grad": _optax_statistics(loss_fn)}
        exact = _in_float64(_variance(loss_fn), args)
        yield Pair(f"variance of the gradients {name}", ways, args, _relative_to(exact))
    args = _images(sizes)
    convolutions: dict[str, Callable[..., Any]] = {
        "patches": by_patches,
        "XLA": jax.lax.conv_general_dilated,
    }
    gradients = {name: _gradient_with(one) for name, one in convolutions.items()}
    for name, ways in (
        ("gradient", gradients),
        ("HVP", {name: _product(way) for name, way in gradients.items()}),
    ):
        exact = _in_float64(ways["XLA"], args)
        yield Pair(f"{name}, convolutions", ways, args, _relative_to(exact))
        in_branch = {name: _in_branch(way) for name, way in ways.items()}
        yield Pair(f"{name}, convolutions in a cond", in_branch, args, _relative_to(exact))
    for steps in sizes.steps:
        solvers = {"jnp.linalg.eigh": _dense, "jax eigh_tridiagonal": _tridiagonal}
        for name, diagonal, off in (
            ("of a second difference", jnp.full(steps, 2.0), jnp.full(steps - 1, -1.0)),
            ("of zero", jnp.zeros(steps), jnp.zeros(steps - 1)),
        ):
            error = _residual(diagonal, off)
            yield Pair(f"eigenvectors {name}, {steps}×{steps}", solvers, (diagonal, off), error)


def _loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    *hidden, last = params
    for w in hidden:
        x = jax.nn.gelu(x @ w)
    logits = jnp.astype(x @ last, jnp.promote_types(x.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _problem(sizes: Sizes, dtype: Any) -> tuple[Any, ...]:
    """Returns the parameters of an MLP, its inputs and labels."""
    *keys, key = jax.random.split(jax.random.key(0), len(sizes.widths))
    shapes = zip(keys, itertools.pairwise(sizes.widths), strict=True)
    params = [jax.random.normal(k, shape, dtype) / shape[0] ** 0.5 for k, shape in shapes]
    x = jax.random.normal(key, (sizes.examples, sizes.widths[0]), dtype)
    return params, x, jnp.arange(sizes.examples) % sizes.widths[-1]


def _gradient(params: Any, *batch: Any) -> Any:
    return jax.grad(_loss)(params, *batch)


def _microbatches(params: Any, *batch: Any) -> Any:
    f = flatreg.value_and_grad_fn(_loss, batch_argnums=(1, 2), microbatches=PARTS)
    return f(params, *batch)[1]


def _optax_microbatches(params: Any, *batch: Any) -> Any:
    size = len(batch[0]) // PARTS
    mean = optax.microbatching.AccumulationType.MEAN
    return optax.microbatch(jax.grad(_loss), (1, 2), size, mean)(params, *batch)


def _product(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that computes Hg, with g the gradient in every way's own rounding."""

    def product(params: Any, *batch: Any) -> Any:
        g, times = jax.linearize(lambda p: gradient(p, *batch), params)
        return times(g)

    return product


def _statistics(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    def variance(params: Any, *batch: Any) -> Any:
        of_pair = lambda p, pair: loss_fn(p, *pair)  # noqa: E731
        return measures.gradient_statistics(of_pair, params, batch).variance

    return variance


def _optax_statistics(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    def with_square(g: Any) -> Any:
        return g, optax.tree.norm(g, squared=True)

    def variance(params: Any, *batch: Any) -> Any:
        f = optax.microbatching.micro_grad(
            loss_fn,
            batch_argnums=(1, 2),
            microbatch_size=1,
            accumulator=optax.microbatching.AccumulationType.MEAN,
            transform_fn=with_square,
        )
        (g, square), _ = f(params, *batch)
        return square - optax.tree.norm(g, squared=True)

    return variance


def _variance(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    def variance(params: Any, *batch: Any) -> Any:
        """Keeps the gradients of all examples."""
        of_one = lambda *pair: jax.grad(loss_fn)(params, *(x[None] for x in pair))  # noqa: E731
        return sum(jnp.var(g, axis=0).sum() for g in jax.tree.leaves(jax.vmap(of_one)(*batch)))

    return variance


def _images(sizes: Sizes) -> tuple[Any, ...]:
    """Returns the kernels of a convolutional network and a batch of images."""
    *keys, key = jax.random.split(jax.random.key(0), len(sizes.channels))
    shapes = zip(keys, itertools.pairwise(sizes.channels), strict=True)
    kernels = [jax.random.normal(k, (3, 3, *shape)) / (9 * shape[0]) ** 0.5 for k, shape in shapes]
    shape = sizes.examples, sizes.image, sizes.image, sizes.channels[0]
    return kernels, jax.random.normal(key, shape)


def _gradient_with(convolve: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the gradient of the mean square of a convolutional network's outputs."""

    def loss(kernels: Any, x: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = jax.nn.gelu(
                convolve(
                    x,
                    kernel,
                    (2, 2),
                    "SAME",
                    lhs_dilation=(1, 1),
                    rhs_dilation=(1, 1),
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    feature_group_count=1,
                )
            )
        return jnp.mean(x**2)

    return jax.grad(loss)


def _in_branch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same function inside a `lax.cond`, whose branch XLA cannot know."""

    def either(params: Any, *batch: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        compute = lambda params: function(params, *batch)  # noqa: E731
        return jax.lax.cond(params[0].sum() < jnp.inf, compute, lambda params: zeros, params)

    return either


def _dense(diagonal: jax.Array, off: jax.Array) -> Any:
    return jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))


def _tridiagonal(diagonal: jax.Array, off: jax.Array) -> Any:
    return jax.scipy.linalg.eigh_tridiagonal(diagonal, off)


def _in_float64(function: Callable[..., Any], args: Any) -> Any:
    with jax.enable_x64(True):
        wide = lambda x: x.astype(jnp.float64) if jnp.isdtype(x.dtype, "real floating") else x  # noqa: E731
        return jax.device_get(function(*jax.tree.map(wide, args)))


def _relative_to(exact: Any) -> Callable[[Any], float]:
    """Returns a function for the largest error of a tree, relative to the largest entry."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(exact))

    def error(found: Any) -> float:
        both = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
        return max(float(np.abs(np.float64(a) - np.float64(b)).max()) for a, b in both) / largest

    return error


def _residual(diagonal: jax.Array, off: jax.Array) -> Callable[[Any], float]:
    """Returns a function for the largest entry of TV − VΛ and of VᵀV − 1."""
    t = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)

    def error(found: Any) -> float:
        values, vectors = (np.asarray(x, np.float64) for x in found)
        differences = t @ vectors - vectors * values, vectors.T @ vectors - np.eye(len(t))
        return max(float(np.abs(x).max()) for x in differences)

    return error
