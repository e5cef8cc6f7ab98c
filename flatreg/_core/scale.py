"""Scales that restrict the perturbation of a method to some of the leaves."""

import jax
import jax.numpy as jnp

from flatreg._core.checks import static_args
from flatreg._core.tree import map_named, named_leaves
from flatreg.typing import Params, Predicate, Scale


def on(predicate: Predicate) -> Scale:
    r"""Makes a scale that perturbs only the leaves whose path satisfies a predicate.

    The factor of a leaf is T = 1 if its path satisfies the predicate, and T = 0 otherwise. Leaves
    with T = 0 are still trained, but their perturbation is exactly zero. Pass the result as the
    ``scale`` argument of a method.

    Args:
      predicate: a function from the path of a leaf to a bool. A path consists of dictionary keys,
        indices of lists and tuples, and names of attributes, separated by slashes:
        ``"params/Dense_0/kernel"`` or ``"layers/0/bias"``.

    Returns:
      A function ``scale(params) -> T`` with one factor per leaf.

    Raises:
      TypeError: if ``predicate`` is not a function.
      ValueError: when the scale is evaluated, if no leaf satisfies the predicate. The error lists
        the paths.

    Examples:
      Perturb only the scales and biases of the normalization layers:

      >>> import jax, jax.numpy as jnp, flatreg
      >>> params = {"BatchNorm_0": {"scale": jnp.ones(2)}, "Dense_0": {"kernel": jnp.ones(2)}}
      >>> scale = flatreg.on(lambda path: "BatchNorm" in path)
      >>> print(scale(params))
      {'BatchNorm_0': {'scale': 1.0}, 'Dense_0': {'kernel': 0.0}}
      >>> tx = flatreg.sam(rho=0.05, scale=scale)
    """
    if not callable(predicate):
        raise TypeError(
            f"flatreg.on takes a function path -> bool, got {predicate!r}: for example, write "
            "flatreg.on(lambda path: 'BatchNorm' in path)."
        )

    def scale(params: Params) -> Params:
        if getattr(params, "shape", None) == () and jnp.issubdtype(params.dtype, jnp.integer):
            raise TypeError(f"the scale of flatreg.on got a step count. {static_args('scale')}")
        factors = map_named(lambda path, _: 1.0 if predicate(path) else 0.0, params)
        if jax.tree.leaves(factors) and not any(jax.tree.leaves(factors)):
            paths = ", ".join(map(repr, named_leaves(params)))
            raise ValueError(
                "flatreg.on found no leaf whose path satisfies the predicate, so nothing would be "
                f"perturbed. The paths are: {paths}."
            )
        return factors

    return scale
