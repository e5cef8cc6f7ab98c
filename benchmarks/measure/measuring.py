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
HESSIAN_RADIUS = 0.1  # of the ball in which the Hessian's Lipschitz constant is estimated
GRADIENT_RATIO = 0.05  # above it, the gradient is too large for R¹/ρ² to be close to λ_max

Measure = Callable[[measures.LossFn, Any, jax.Array], Any]


class Settings(NamedTuple):
    """The precision of the measures.

    Attributes:
      eigenvalues: the number of eigenvalues.
      steps: the number of steps of the Lanczos iteration.
      probes: the number of random vectors for the trace.
      ascent_steps: the number of steps of the search for R⁰ and R¹.
      curve_steps: the number of training steps of the curve between two networks.
      rho: the radius of the ball for R⁰ and R¹.
    """

    eigenvalues: int
    steps: int
    probes: int
    ascent_steps: int
    curve_steps: int
    rho: float


class Momentum(NamedTuple):
    """Stochastic gradient descent with momentum, which has trained the network.

    Attributes:
      learning_rate: its largest learning rate.
      momentum: its momentum.
      weight_decay: the weight decay, which it adds to the gradient.
    """

    learning_rate: float
    momentum: float
    weight_decay: float


def plan(settings: Settings) -> dict[str, Measure]:
    """Returns the measures by name, as functions of the loss, the parameters and a key."""
    k, steps, probes, ascent_steps, _, rho = settings
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


def plan_of_report(settings: Settings, optimizer: Momentum | None) -> dict[str, Measure]:
    """Returns the measures that only the report contains.

    Args:
      settings: the precision of the measures.
      optimizer: what has trained the network. None leaves out the stability, because AdamW's
        threshold depends on second moments, which are not saved.
    """
    found: dict[str, Measure] = {"pacgen": partial(_pacgen, probes=settings.probes)}
    if optimizer is not None:
        found["stability"] = partial(_stability, optimizer=optimizer)
    return found


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
    elif name == "pacgen":
        yield "Ψ", f"{found['value']:.5g}, of which curvature contributes {found['curvature']:.3g}"
        yield "active weights", f"{found['active']:.2%}: curvature contributes to their terms"
        yield "Lipschitz constant of H", f"at least {found['hessian_lipschitz']:.3g}"
    elif name == "stability":
        yield "λ with weight decay", f"{found.sharpness:.4g}, residual {found.residual:.1g}"
        yield "threshold (2 + 2β)/η", f"{found.threshold:.4g}"
        yield "λ / threshold", f"{found.ratio:.3g}"
    elif name in ("segment", "curve"):
        error = f"± {found.standard_error:.2g}"
        yield f"barrier, {name}", f"{found.value:.4g} {error} at position {found.position:.2f}"


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """Returns what was found as lists and floats.

    Vectors as large as the network, and the data of the figures, are left out.
    """
    left_out = ("vectors", "vector", "perturbation", "control")
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


def _pacgen(
    loss_fn: measures.LossFn, params: Any, key: jax.Array, *, probes: int
) -> dict[str, jax.Array]:
    keys = jax.random.split(key)
    diagonal = measures.diagonal(loss_fn, params, keys[0], probes=probes)
    change = measures.hessian_lipschitz(
        loss_fn, params, keys[1], HESSIAN_RADIUS, starts=1, steps=10
    )
    found = measures.pacgen(params, diagonal.value, change.value)
    return {
        "value": found.value,
        "curvature": found.curvature,
        "active": found.active,
        "hessian_lipschitz": change.value,
    }


def _stability(
    loss_fn: measures.LossFn, params: Any, key: jax.Array, *, optimizer: Momentum
) -> measures.Stability:
    """Returns the stability of the loss with weight decay at the largest learning rate."""
    rate, momentum, decay = optimizer

    def decayed(params: Any) -> jax.Array:
        return loss_fn(params) + decay / 2 * optax.tree.norm(params, squared=True)

    return measures.stability(decayed, params, key, learning_rate=rate, momentum=momentum)


def _absolute(params: Any) -> Any:
    """Returns |w|, which makes the noise of a weight proportional to it."""
    return jax.tree.map(jnp.abs, params)
