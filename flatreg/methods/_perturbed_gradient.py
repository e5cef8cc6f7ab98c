"""Perturbed optimization: the gradient at a random point near the parameters.

d = ∇L(θ + u) with uᵢ = σᵢ zᵢ, where z is uniform on (−1, 1), truncated normal or normal

Each step draws a new z. In expectation d is the gradient of E_u L(θ + u).

A PAC-Bayes bound weighs the loss under noise against log(1/σᵢ). The noise that minimizes it is
larger where the loss is flatter: σᵢ = min(√(c / (hᵢ/3 + ρ‖κ‖/9)), κᵢ) with h = diag ∇²L and
κᵢ = γ|θᵢ| + ε. Here c = σ².

A step costs one gradient, or two with antithetic pairs. Estimating h adds one Hessian-vector
product every few steps.

Wang, Keskar, Xiong and Socher, 'Identifying Generalization Properties in Neural Networks', 2018,
arXiv 1809.07402.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import (
    check_between,
    check_key,
    check_nonnegative,
    check_period,
    check_scale,
    checked_scale,
    is_scalar,
    static_args,
)
from flatreg._core.directions import from_stateful_direction
from flatreg._core.hvp import resolve_hvp
from flatreg._core.tree import mix, norm, scaled, widened
from flatreg.typing import (
    GradFn,
    Grads,
    Hvp,
    Method,
    Params,
    Sampler,
    Scalar,
    ScalarOrSchedule,
    Scale,
)

Distribution: TypeAlias = Literal["uniform", "truncated_normal", "normal"]


class CurvatureScale(NamedTuple):
    r"""Settings that make the noise of :func:`perturbed_gradient` larger where the loss is flatter.

    The size of the noise on weight i is σᵢ = min(σ / √(hᵢ/3 + ρ‖κ‖/9), κᵢ). Here h estimates the
    diagonal of the Hessian. It is a running mean of Hutchinson's probes v⊙∇²L v with random signs
    v = ±1. Negative hᵢ count as zero. κᵢ = γ|θᵢ| + ε is the largest noise that is allowed.

    Attributes:
      interval: the number of steps from one probe to the next, at least 1. No Hessian-vector
        product is computed on the steps in between.
      decay: the decay rate of the running mean, in [0, 1]. The k-th probe has the weight
        max(1 − decay, 1/k), so the estimate is a plain mean of the first probes and an exponential
        moving average later.
      rho: the Lipschitz constant ρ ≥ 0 of the Hessian. Zero treats the loss as a quadratic. Larger
        values give noise that is smaller and more even.
      gamma: the coefficient γ ≥ 0 in κᵢ, relative to the size of the weight.
      eps: the constant ε ≥ 0 in κᵢ, in units of the weights. A weight without curvature gets
        σᵢ = κᵢ if σ > 0 and ρ = 0.
      hvp: how to compute Hessian-vector products; None means :func:`flatreg.exact_hvp`.

    Examples:
      >>> import jax, flatreg
      >>> curvature = flatreg.CurvatureScale(interval=20, rho=0.1)
      >>> tx = flatreg.perturbed_gradient(jax.random.key(0), sigma=0.1, curvature=curvature)
    """

    interval: int | jax.Array = 10
    decay: Scalar = 0.99
    rho: Scalar = 0.0
    gamma: Scalar = 0.1
    eps: Scalar = 0.1
    hvp: Hvp | None = None


class CurvatureState(NamedTuple):
    """State of :func:`perturbed_gradient` with a :class:`CurvatureScale`.

    Attributes:
      diagonal: the estimate of diag ∇²L, a tree like the parameters in float32.
    """

    diagonal: Params


def perturbed_gradient(
    key: jax.Array,
    sigma: ScalarOrSchedule = 0.01,
    *,
    distribution: Distribution | Sampler = "uniform",
    antithetic: bool = False,
    curvature: CurvatureScale | None = None,
    scale: Scale | None = None,
) -> Method:
    r"""Perturbed optimization: replaces g by ∇L(θ + u), an unbiased estimate of ∇E_u L(θ + u).

    The noise is uᵢ = Tᵢ σ zᵢ. Step t draws z with the key ``fold_in(key, t)``, so runs are
    reproducible, and a restored run continues with the same noise. With ``curvature``, each weight
    has its own σᵢ instead of σ. The method descends E_u L(θ + u), where T and σᵢ are treated as
    constants in differentiation.

    The gradient g itself is not used. If a jitted step needs only the value and the metrics of the
    clean pass, XLA removes the backward pass of the clean pass, and the step costs about 1.4
    gradients in total. A step that also needs g (to report its norm, or in
    :func:`flatreg.combine`) costs two gradients.

    The paper does not specify some details. This implementation makes these choices:

    1. c = σ², so that σ is the noise of a weight with curvature 3, and one schedule scales both
       kinds of noise.
    2. h is estimated with Hutchinson's probes at θ, on the batch of the step.
    3. Entries of a probe that are not finite are left out of the mean.
    4. ``scale`` multiplies the noise, with and without ``curvature``.

    Args:
      key: a random key, typed or raw.
      sigma: the size σ ≥ 0 of the noise, a number or a schedule: the half-width of the uniform
        distribution, half the cut-off of the truncated normal distribution, or the standard
        deviation of the normal distribution. With ``curvature`` it is √c. Small networks tolerate
        ten times the default.
      distribution: the distribution of z. ``"uniform"`` on (−1, 1) has variance 1/3,
        ``"truncated_normal"`` on (−2, 2) has variance 0.774, and ``"normal"`` has variance 1. It
        can also be a function ``(key, shape, dtype) -> z`` that is symmetric about 0, such as
        ``jax.random.rademacher``.
      antithetic: whether to return the mean of ∇L(θ + u) and ∇L(θ − u), which is exact on
        quadratics.
      curvature: a ``flatreg.CurvatureScale(...)``, which gives each weight its own σᵢ; None means
        the same σ for all weights.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf; None means
        T = 1. Leaves with a factor of zero are not perturbed.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn``. A step costs one gradient
      in addition to the clean pass, or two if ``antithetic``. ``curvature`` adds one
      Hessian-vector product every ``interval`` steps. The product is skipped on the other steps
      (``lax.cond``), except under ``vmap``, which computes it on every step.

    Raises:
      ValueError: if a number is out of its range, or if ``distribution`` is not one of the names.
      TypeError: if ``key`` is not a random key, ``curvature`` is not a :class:`CurvatureScale`, or
        ``scale`` is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
      >>> w, key = jnp.array([3.0, 4.0]), jax.random.key(0)
      >>> tx = flatreg.perturbed_gradient(key, optax.linear_schedule(0.1, 0.0, 1000))
      >>> d, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> print(bool(jnp.all(jnp.abs(d - w) <= 0.1)))
      True
      >>> curvature = flatreg.CurvatureScale(interval=10)
      >>> tx = flatreg.perturbed_gradient(key, sigma=0.1, antithetic=True, curvature=curvature)
      >>> d, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> print(d, optax.tree.get(state, "diagonal"))
      [3. 4.] [1. 1.]

    References:
      Wang et al., `Identifying Generalization Properties in Neural Networks
      <https://arxiv.org/abs/1809.07402>`_, 2018.
    """
    check_nonnegative(sigma=sigma)
    check_key(key, "flatreg.perturbed_gradient(jax.random.key(0), 0.01)")
    check_scale(scale)
    sampler = _resolve_sampler(distribution)
    if curvature is not None:
        _check_curvature(curvature)
        linearize = resolve_hvp(curvature.hvp)

    def init(params: Params) -> Any:
        if curvature is None:
            return optax.EmptyState()
        return CurvatureState(optax.tree.zeros_like(params, dtype=jnp.float32))

    def direction(
        grad_fn: GradFn, params: Params, g: Grads, state: Any, *, sigma: Scalar, step: jax.Array
    ) -> tuple[Grads, Any]:
        del g  # The method uses only gradients at perturbed parameters.
        key_of_z, key_of_v = jax.random.split(jax.random.fold_in(key, step))
        sizes = jax.tree.map(lambda w: sigma, params)
        if curvature is not None:
            weight = jnp.maximum(1 - curvature.decay, 1 / (1 + step // curvature.interval))
            state = jax.lax.cond(
                step % curvature.interval == 0,
                lambda: _probe(state, linearize(grad_fn, params)[1], key_of_v, weight),
                lambda: state,
            )
            sizes = _noise_sizes(state.diagonal, params, sigma, curvature)
        z = optax.tree.random_like(key_of_z, mix((1, params)), sampler)
        u = scaled(checked_scale(scale, params), optax.tree.mul(sizes, z))  # uᵢ = Tᵢ σᵢ zᵢ
        ahead = grad_fn(_move(params, 1, u))
        if not antithetic:
            return ahead, state  # ∇L(θ + u)
        behind = grad_fn(_move(params, -1, u))
        return mix((0.5, ahead), (0.5, behind)), state  # ½∇L(θ + u) + ½∇L(θ − u)

    return from_stateful_direction(init, direction, sigma=sigma, step=lambda count: count)


def _move(params: Params, sign: int, u: Grads) -> Params:
    """θ ± u in the parameters' dtypes."""
    return optax.tree.cast_like(mix((1, params), (sign, u)), params)


def _noise_sizes(
    diagonal: Params, params: Params, sigma: Scalar, curvature: CurvatureScale
) -> Params:
    """σᵢ = min(σ / √(max(hᵢ, 0)/3 + ρ‖κ‖/9), κᵢ), in float32 or wider."""
    kappa = jax.tree.map(lambda w: curvature.gamma * jnp.abs(w) + curvature.eps, mix((1, params)))
    cubic = curvature.rho * norm(kappa) / 9

    def size(h: jax.Array, largest: jax.Array) -> jax.Array:
        denominator = jnp.maximum(h, 0) / 3 + cubic
        return jnp.minimum(sigma * jax.lax.rsqrt(jnp.maximum(denominator, 1e-37)), largest)

    return jax.tree.map(size, diagonal, kappa)


def _probe(
    state: CurvatureState, hessian: Callable[[Grads], Grads], key: jax.Array, weight: jax.Array
) -> CurvatureState:
    """h + weight (v⊙Hv − h) with v = ±1; entries that are not finite keep their old value."""
    draw = optax.tree.random_like(key, state.diagonal, _uniform)
    v = jax.tree.map(lambda x: jnp.where(x < 0, -1, 1).astype(x.dtype), draw)

    def updated(h: jax.Array, v: jax.Array, product: jax.Array) -> jax.Array:
        new = (h + weight * (v * widened(product) - h)).astype(h.dtype)
        return jnp.where(jnp.isfinite(new), new, h)

    return CurvatureState(jax.tree.map(updated, state.diagonal, v, hessian(v)))


_uniform = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)


def _truncated_normal(key: Any, shape: Any, dtype: Any, *, out_sharding: Any = None) -> jax.Array:
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype, out_sharding=out_sharding)


def _resolve_sampler(distribution: Distribution | Sampler) -> Sampler:
    """Returns the sampler with the given name, or the function itself."""
    samplers: dict[Any, Sampler] = {
        "uniform": _uniform,
        "truncated_normal": _truncated_normal,
        "normal": jax.random.normal,
    }
    if isinstance(distribution, str) and distribution in samplers:
        return samplers[distribution]
    if not callable(distribution):
        raise ValueError(
            f"distribution must be one of {', '.join(map(repr, get_args(Distribution)))}, or a "
            f"function (key, shape, dtype) -> z, got {distribution!r}: for example, write "
            f"distribution='normal'. {static_args('distribution')}"
        )
    return distribution


def _check_curvature(curvature: Any) -> None:
    """Checks the type of ``curvature`` and that each setting is a scalar in its range."""
    if not isinstance(curvature, CurvatureScale):
        raise TypeError(
            "curvature must be a flatreg.CurvatureScale or None, got "
            f"{curvature!r}: write curvature=flatreg.CurvatureScale(interval=10)."
        )
    for name, value in curvature._asdict().items():
        if name != "hvp" and not is_scalar(value):
            raise TypeError(
                f"{name} must be a number, got {value!r}: write flatreg.CurvatureScale({name}="
                f"{CurvatureScale._field_defaults[name]}). Only sigma can be a schedule."
            )
    check_period(interval=curvature.interval)
    check_between(0, 1, decay=curvature.decay)
    check_nonnegative(rho=curvature.rho, gamma=curvature.gamma, eps=curvature.eps)
