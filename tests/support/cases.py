"""The registry of methods: a new method is one row here, and every property test runs on it.

A row names the method, its factory and hyperparameters, the surrogate loss whose gradient it must
return, and what a step costs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatreg
from tests.support import surrogates
from tests.support.surrogates import Loss, Surrogate


class Case(NamedTuple):
    """One method and what is known about it.

    Attributes:
      name: what the tests call it.
      factory: makes the method from ``scalars``; takes ``hvp=`` as well if ``uses_hvp``.
      surrogate_of: makes the surrogate from ``scalars``.
      scalars: hyperparameters far from neutral; each also takes a schedule.
      zero: the changes of ``scalars`` that leave the plain gradient.
      calls: of ``grad_fn`` in one step, beyond the caller's clean pass.
      isotropic: whether the method commutes with rotations of the parameters.
      uses_hvp: whether the method differentiates ``grad_fn``.
      uses_clean: whether the direction depends on the gradient that came down the chain.
    """

    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    surrogate_of: Callable[..., Surrogate]
    scalars: dict[str, float]
    zero: dict[str, float]
    calls: int
    isotropic: bool = True
    uses_hvp: bool = False
    uses_clean: bool = True

    def make(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        """The method, with some arguments changed."""
        return self.factory(**self.scalars | changes)

    def neutral(self) -> optax.GradientTransformationExtraArgs:
        """The method with its radius or penalty at zero."""
        return self.make(**self.zero)

    def surrogate(self, loss: Loss, w: jax.Array, **changes: float) -> jax.Array:
        """The loss that the method descends, at the vector w."""
        return self.surrogate_of(**self.scalars | changes)(loss, w)


def absolute(w: Any) -> Any:
    """T = |w| + 0.1, for trees and vectors."""
    return jax.tree.map(lambda x: jnp.abs(x) + 0.1, w)


def sam_and_gam(rho: Any, radius: Any, alpha: Any, **kwargs: Any) -> Any:
    return flatreg.combine(flatreg.sam(rho), flatreg.gam(radius, alpha, **kwargs))


NOISE = 0.75
KEY = np.zeros(2, np.uint32)  # Raw, so that importing this starts no backend.


def same_noise(key: Any, shape: Any, dtype: Any) -> jax.Array:
    """z that depends neither on the key nor on how the weights lie in the tree."""
    return jnp.full(shape, NOISE, dtype)


PGN = {"r": 0.3, "alpha": 0.8}
ACCELERATED = {"rho": 0.2, "rho_prime": 0.1, "alpha": 0.6, "beta": 0.5, "gamma": 0.3}
NO_RADIUS = {"rho": 0.0, "rho_prime": 0.0, "gamma": 0.0}
partial = functools.partial

CASES = [
    Case("sam", flatreg.sam, surrogates.sam, {"rho": 0.3}, {"rho": 0.0}, calls=1),
    Case(
        "sam_scaled",
        partial(flatreg.sam, scale=absolute),
        partial(surrogates.sam, scale=absolute),
        {"rho": 0.3},
        {"rho": 0.0},
        calls=1,
        isotropic=False,
    ),
    Case(
        "asam",
        flatreg.asam,
        surrogates.asam,
        {"rho": 0.3, "eta": 0.1},
        {"rho": 0.0},
        calls=1,
        isotropic=False,
    ),
    Case(
        "penalized_gradient",
        flatreg.penalized_gradient,
        surrogates.penalized_gradient,
        PGN,
        {"r": 0.0},
        calls=1,
    ),
    Case(
        "penalized_gradient_scaled",
        partial(flatreg.penalized_gradient, scale=absolute),
        partial(surrogates.penalized_gradient, scale=absolute),
        PGN,
        {"alpha": 0.0},
        calls=1,
        isotropic=False,
    ),
    Case(
        "penalized_gradient_unit",
        partial(flatreg.penalized_gradient, normalize_clean=True),
        surrogates.penalized_gradient_unit,
        PGN,
        {"r": 0.0, "alpha": 1.0},
        calls=1,
    ),
    *(
        Case(
            f"gradient_norm_penalty_{p}",
            partial(flatreg.gradient_norm_penalty, ord=p),
            partial(surrogates.gradient_norm_penalty, p=p),
            {"penalty": 0.2},
            {"penalty": 0.0},
            calls=1,
            isotropic=p == 2,
            uses_hvp=True,
        )
        for p in (1, 1.5, 2, 3, 4)
    ),
    Case(
        "gradient_regularization",
        flatreg.gradient_regularization,
        surrogates.gradient_regularization,
        {"mu": 0.1},
        {"mu": 0.0},
        calls=1,
        uses_hvp=True,
    ),
    Case(
        "gam",
        flatreg.gam,
        surrogates.gam,
        {"rho": 0.3, "alpha": 0.5},
        {"alpha": 0.0},
        calls=2,
        uses_hvp=True,
    ),
    Case(
        "gam_accelerated",
        flatreg.gam_accelerated,
        surrogates.gam_accelerated,
        ACCELERATED,
        NO_RADIUS,
        calls=3,
    ),
    Case(
        "gam_accelerated_authors",
        partial(flatreg.gam_accelerated, scale=absolute),
        partial(surrogates.gam_accelerated, scale=absolute),
        ACCELERATED | {"clean_weight": 1.0},
        NO_RADIUS,
        calls=3,
        isotropic=False,
    ),
    Case(
        "combine",
        sam_and_gam,
        surrogates.sam_and_gam,
        {"rho": 0.3, "radius": 0.2, "alpha": 0.5},
        {"rho": 0.0, "radius": 0.0},
        calls=3,
        uses_hvp=True,
    ),
    Case(
        "perturbed_gradient",
        partial(flatreg.perturbed_gradient, KEY, distribution=same_noise),
        partial(surrogates.perturbed_gradient, z=NOISE),
        {"sigma": 0.3},
        {"sigma": 0.0},
        calls=1,
        isotropic=False,
        uses_clean=False,
    ),
    Case(
        "perturbed_gradient_antithetic",
        partial(
            flatreg.perturbed_gradient,
            KEY,
            distribution=same_noise,
            antithetic=True,
        ),
        partial(surrogates.perturbed_gradient_antithetic, z=NOISE),
        {"sigma": 0.3},
        {"sigma": 0.0},
        calls=2,
        isotropic=False,
        uses_clean=False,
    ),
]
