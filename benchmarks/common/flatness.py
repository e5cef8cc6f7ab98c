"""What `python -m benchmarks.measure` measures, and how it tells it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatreg import measures

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of noise relative to the weights
POSITIONS = np.linspace(-1, 1, 41)  # along a slice, whose unit is the length of the weights
GRID = np.linspace(-1, 1, 21)  # along each side of a surface

Measure = Callable[[measures.LossFn, Any, jax.Array], Any]


class Settings(NamedTuple):
    """How much of everything."""

    eigenvalues: int
    steps: int
    probes: int
    ascent_steps: int
    rho: float


def plan(settings: Settings) -> dict[str, Measure]:
    """The measures by name, each a function of loss, parameters and key."""
    k, steps, probes, ascent_steps, rho = settings
    ball = {"rho": rho, "steps": ascent_steps}
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
    """Lines of (what, value) for the screen."""
    if name == "values":
        yield "loss", f"{found['loss']:.4g}"
        yield "‖∇L‖", f"{found['gradient_norm']:.3g}"
    elif name == "eigenpairs":
        for i, pair in enumerate(zip(found.values, found.residuals, found.converged, strict=True)):
            value, residual, converged = pair
            remark = "" if converged else ", not converged: give more --steps"
            yield f"λ{i + 1}", f"{value:.5g}, residual {residual:.1g}{remark}"
    elif name == "trace":
        yield "trace", f"{found.value:.4g} ± {found.standard_error:.2g}"
    elif name in ("R⁰", "R¹"):
        spread = f"the starts reach {min(found.values):.3g} to {max(found.values):.3g}"
        yield name, f"at least {found.value:.4g}; {spread}"
        if name == "R¹" and found.gradient_ratio > 0.05:
            yield "‖∇L‖/(ρλ)", f"{found.gradient_ratio:.2g}: no minimum, so R¹/ρ² is not λ_max"
    elif name == "noise":
        for sigma, value, error in zip(SIGMAS, found.value, found.standard_error, strict=True):
            yield f"loss, {sigma:.0%} weight noise", f"{value:.4g} ± {error:.2g}"


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """What was found as lists and floats, without what is as large as the network or a plot."""
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
    """Along the top eigenvector and a random direction, and over two random ones."""
    keys = jax.random.split(key, 3)
    vectors = measures.top_eigenpairs(loss_fn, params, keys[0]).vectors
    top = jax.tree.map(lambda v: v[0] * optax.tree.norm(params) / 10, vectors)
    first, second = (measures.filter_normalized(params, key) for key in keys[1:])
    along, side = jnp.asarray(POSITIONS), jnp.asarray(GRID)
    return {
        "top eigenvector": measures.loss_slice(loss_fn, params, (top, along)),
        "random": measures.loss_slice(loss_fn, params, (first, along)),
        "surface": measures.loss_slice(loss_fn, params, (first, side), (second, side)),
    }


def _absolute(params: Any) -> Any:
    return jax.tree.map(jnp.abs, params)
