"""A small regression problem in any dtype, and all methods for the tests of Optax's conventions.

``METHODS`` contains the registry, and variants with schedules, other Hessian-vector products and
combinators. Each entry is a function that makes the transformation. ``OPTIONS`` contains the
options of ``value_and_grad_fn`` that an entry needs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.cases import CASES

ramp = optax.linear_schedule(0.1, 0.4, 3)


def averaging_sam(rho: float = 0.3, decay: float = 0.9):
    """A method with a state: SAM along a moving average of the gradients."""

    def direction(grad_fn, params, g, average, *, rho):
        average = optax.tree.update_moment(g, average, decay, 1)
        return grad_fn(optax.tree.add_scale(params, rho, average)), average

    return flatreg.from_stateful_direction(optax.tree.zeros_like, direction, rho=rho)


METHODS: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    **{case.name: case.make for case in CASES},
    "sam_scheduled": lambda: flatreg.sam(ramp),
    "gam_scheduled": lambda: flatreg.gam(0.3, ramp),
    "gam_forward": lambda: flatreg.gam(0.3, 0.5, hvp=flatreg.forward_hvp),
    "gam_reverse": lambda: flatreg.gam(0.3, 0.5, hvp=flatreg.reverse_hvp),
    "gam_difference": lambda: flatreg.gam(0.3, 0.5, ascent_hvp=flatreg.finite_difference_hvp(0.05)),
    "every": lambda: flatreg.every(flatreg.sam(ramp), 2),
    "after": lambda: flatreg.after(flatreg.gam(0.3, 0.5), 1),
    "randomly": lambda: flatreg.randomly(flatreg.sam(0.3), 0.5, jax.random.key(1)),
    "nested": lambda: flatreg.combine(flatreg.sam(ramp), flatreg.every(flatreg.asam(0.3), 2)),
    "perturbed_normal": lambda: flatreg.perturbed_gradient(
        jax.random.key(1), ramp, distribution="normal"
    ),
    "perturbed_curvature": lambda: flatreg.perturbed_gradient(
        jax.random.PRNGKey(1), 0.3, curvature=flatreg.CurvatureScale(interval=2, rho=0.1)
    ),
    "when_sharp": lambda: flatreg.when_sharp(flatreg.sam(ramp), ramp),
    "sam_loss_increase": lambda: flatreg.sam(0.5, loss_increase=ramp),
    "friendly_sam_scheduled": lambda: flatreg.friendly_sam(ramp, 1.0),
    "looksam_skipping": lambda: flatreg.looksam(ramp, 2),
    "averaging": lambda: averaging_sam(ramp),
    "observe": lambda: flatreg.observe(flatreg.sam(0.3)),
    "per_shard": lambda: flatreg.per_shard(flatreg.sam(ramp)),
}
OPTIONS: dict[str, dict[str, int]] = {"per_shard": {"shards": 2}}
VARIANTS = {case.name for case in CASES if case.variant} | {
    "sam_scheduled",
    "gam_scheduled",
    "gam_forward",
    "gam_reverse",
    "perturbed_normal",
    "gam_difference",
    "nested",
    "randomly",
}

every_method = pytest.mark.parametrize("name", METHODS)


def every_kind_of(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrizes an expensive test over methods. Variants of another method are nightly tests."""
    nightly = pytest.mark.nightly
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=[nightly] if n in VARIANTS else []) for n in names]
    )


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Mean squared error of a tanh network."""
    x, y = batch
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def tanh_net(dtype: Any = jnp.float32, seed: int = 0) -> tuple[Any, Any]:
    """Parameters and a batch of 16 examples for ``loss_fn``."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (4, 8), dtype), "bias": jnp.ones(8, dtype)},
        "out": jax.random.normal(keys[1], (8,), dtype),
    }
    batch = jax.random.normal(keys[2], (16, 4), dtype), jax.random.normal(keys[3], (16,), dtype)
    return params, batch


def training_step(tx: Any, loss_fn: Any = loss_fn, **options: Any) -> Any:
    """A step ``(params, opt_state), batch -> (params, opt_state), loss``."""

    def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        loss, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn, **options)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        return (optax.apply_updates(params, updates), opt_state), loss

    return step


def chained(name: str, **options: Any) -> tuple[Any, Any]:
    """The method followed by SGD with momentum, and a training step of this chain."""
    tx = optax.chain(METHODS[name](), optax.sgd(0.1, momentum=0.9))
    return tx, training_step(tx, **OPTIONS.get(name, {}) | options)


def direction(tx: Any, params: Any, batch: Any, state: Any = None, **options: Any) -> Any:
    """The output of the transformation for the gradient of the loss, and its new state."""
    _, grads, grad_fn = flatreg.value_and_grad_fn(loss_fn, **options)(params, batch)
    return tx.update(grads, tx.init(params) if state is None else state, params, grad_fn=grad_fn)


def assert_close(actual: Any, expected: Any, rtol: float = 1e-5) -> None:
    """Equal structures, and leaves equal up to ``rtol`` of their largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * (np.abs(y).max() + 1e-3))


def assert_equal(actual: Any, expected: Any) -> None:
    """Equal structures, dtypes and bits."""
    assert avals(actual) == avals(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def avals(tree: Any) -> Any:
    """Shapes, dtypes and weak types."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
