"""The measures of `python -m benchmarks.measure`, and how they are printed and stored."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.models import kernels
from flatreg import measures

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # standard deviations of the noise, per |weight|
POSITIONS = np.linspace(-1, 1, 41)  # along a slice, in units of the norm of the weights
GRID = np.linspace(-1, 1, 21)  # along each side of a surface
GRADIENT_RATIO = 0.05  # above it, the gradient is too large for R¹/ρ² to be close to λ_max

Measure = Callable[[measures.LossFn, Any, jax.Array], Any]


class Settings(NamedTuple):
    """The precision of the measures.

    Attributes:
      eigenvalues: the number of eigenvalues.
      steps: the number of steps of the Lanczos iteration.
      probes: the number of random vectors for the trace.
      ascent_steps: the number of steps of the search for R⁰ and R¹.
      rho: the radius of the ball for R⁰ and R¹.
    """

    eigenvalues: int
    steps: int
    probes: int
    ascent_steps: int
    rho: float


def plan(settings: Settings) -> dict[str, Measure]:
    """Returns the measures by name, as functions of the loss, the parameters and a key."""
    k, steps, probes, ascent_steps, rho = settings
    ball: dict[str, Any] = {"rho": rho, "steps": ascent_steps}
    noise = partial(measures.noise_robustness, sigmas=jnp.array(SIGMAS), scale=_absolute)
    return {
        "values": _values,
        "eigenpairs": partial(measures.top_eigenpairs, k=k, steps=steps),
        "trace": partial(measures.trace, probes=probes),
        "R⁰": partial(measures.zeroth_order_flatness, **ball),
        "R¹": partial(measures.first_order_flatness, **ball),
        "noise": noise,
        "slices": _slices,
        "density": measures.spectral_density,
    }


def describe(name: str, found: Any) -> Iterator[tuple[str, str]]:
    """Yields the lines that are printed for a measure: pairs of a quantity and its value."""
    if name == "values":
        yield "loss", f"{found['loss']:.4g}"
        yield "‖∇L‖", f"{found['gradient_norm']:.3g}"
    elif name == "eigenpairs":
        for i, pair in enumerate(zip(found.values, found.residuals, found.converged, strict=True)):
            value, residual, converged = pair
            remark = "" if converged else ", not converged: increase --steps"
            yield f"λ{i + 1}", f"{value:.5g}, residual {residual:.1g}{remark}"
    elif name == "trace":
        yield "trace", f"{found.value:.4g} ± {found.standard_error:.2g}"
    elif name in ("R⁰", "R¹"):
        spread = f"the searches reach {min(found.values):.3g} to {max(found.values):.3g}"
        yield name, f"at least {found.value:.4g}; {spread}"
        if name == "R¹" and found.gradient_ratio > GRADIENT_RATIO:
            yield "‖∇L‖/(ρλ)", f"{found.gradient_ratio:.2g}: not a minimum, so R¹/ρ² is not λ_max"
    elif name == "noise":
        for sigma, value, error in zip(SIGMAS, found.value, found.standard_error, strict=True):
            yield f"loss, {sigma:.0%} weight noise", f"{value:.4g} ± {error:.2g}"


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """Returns what was found as lists and floats.

    Vectors as large as the network, and the data of the figures, are left out.
    """
    left_out = ("vectors", "perturbation")
    named = {
        name: out._asdict() if hasattr(out, "_asdict") else out
        for name, out in found.items()
        if name not in ("slices", "density")
    }
    return {
        name: {k: np.asarray(x).tolist() for k, x in out.items() if k not in left_out}
        for name, out in named.items()
    }


def _values(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> dict[str, jax.Array]:
    return {"loss": loss_fn(params), "gradient_norm": measures.gradient_norm(loss_fn, params)}


def _slices(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Returns the loss along the top eigenvector, along a random direction, and over a plane.

    Two random directions span the plane. All random directions are filter-normalized.
    """
    keys = jax.random.split(key, 3)
    vectors = measures.top_eigenpairs(loss_fn, params, keys[0]).vectors
    top = jax.tree.map(lambda v: v[0] * optax.tree.norm(params) / 10, vectors)
    maps = kernels.operators(params)
    first, second = (measures.filter_normalized(params, k, operators=maps) for k in keys[1:])
    along, side = jnp.asarray(POSITIONS), jnp.asarray(GRID)
    return {
        "top eigenvector": measures.loss_slice(loss_fn, params, (top, along)),
        "random": measures.loss_slice(loss_fn, params, (first, along)),
        "surface": measures.loss_slice(loss_fn, params, (first, side), (second, side)),
    }


def _absolute(params: Any) -> Any:
    """Returns |w|, which makes the noise of a weight proportional to it."""
    return jax.tree.map(jnp.abs, params)
