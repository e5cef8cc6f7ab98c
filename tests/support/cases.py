"""The registry of methods. A new method is one row here, and every property test runs on it.

A row contains the method's name, its factory and hyperparameters, the surrogate loss whose gradient
it must return, and the cost of a step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support import surrogates
from tests.support.surrogates import Loss, Surrogate


class Case(NamedTuple):
    """One method and its properties.

    Attributes:
      name: the name of the case in the tests.
      factory: makes the method from ``scalars``. It also takes ``hvp`` if ``uses_hvp``.
      surrogate_of: makes the surrogate from ``scalars``.
      scalars: hyperparameters with a clear effect. Each of them can also be a schedule.
      zero: the changes of ``scalars`` for which the method returns the plain gradient.
      calls: the number of calls of ``grad_fn`` per step, not counting the caller's clean pass.
      isotropic: whether the method commutes with rotations of the parameters.
      uses_hvp: whether the method differentiates ``grad_fn``.
      uses_clean: whether the direction depends on the gradient that came down the chain.
      variant: whether it uses the oracle in the same way as another case, so that expensive
        properties of oracles, steps and devices need it only in the nightly tests.
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
    variant: bool = False

    def make(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        """The method with the given changes of its arguments."""
        return self.factory(**self.scalars | changes)

    def neutral(self) -> optax.GradientTransformationExtraArgs:
        """The method with a radius or penalty of zero."""
        return self.make(**self.zero)

    def surrogate(self, loss: Loss, w: jax.Array, **changes: float) -> jax.Array:
        """The loss that the method descends, at the vector w."""
        return self.surrogate_of(**self.scalars | changes)(loss, w)

    def scaled(self) -> "Case":
        """The same method with the scale T = |w| + 0.1, which rotations do not preserve."""
        return self._replace(
            name=f"{self.name}_scaled",
            factory=functools.partial(self.factory, scale=absolute),
            surrogate_of=functools.partial(self.surrogate_of, scale=absolute),
            isotropic=False,
            variant=True,
        )


def absolute(w: Any) -> Any:
    """The scale T = |w| + 0.1, for trees and vectors."""
    return jax.tree.map(lambda x: jnp.abs(x) + 0.1, w)


def sam_and_gam(rho: Any, radius: Any, alpha: Any, **kwargs: Any) -> Any:
    return flatreg.combine(flatreg.sam(rho), flatreg.gam(radius, alpha, **kwargs))


NOISE = 0.75
KEY = np.zeros(2, np.uint32)  # A raw key, because a typed one would start a backend at import.


def same_noise(key: Any, shape: Any, dtype: Any) -> jax.Array:
    """A constant z, which depends neither on the key nor on the structure of the tree."""
    return jnp.full(shape, NOISE, dtype)


PGN = {"r": 0.3, "alpha": 0.8}
ALGORITHM_1 = {"rho": 0.3, "alpha": 0.5}
ACCELERATED = {"rho": 0.2, "rho_prime": 0.1, "alpha": 0.6, "beta": 0.5, "gamma": 0.3}
partial = functools.partial

SAM = Case("sam", flatreg.sam, surrogates.sam, {"rho": 0.3}, {"rho": 0.0}, calls=1)
ASAM = Case(
    "asam",
    flatreg.asam,
    surrogates.asam,
    {"rho": 0.3, "eta": 0.1},
    {"rho": 0.0},
    calls=1,
    variant=True,
)
PENALIZED_GRADIENT = Case(
    "penalized_gradient",
    flatreg.penalized_gradient,
    surrogates.penalized_gradient,
    PGN,
    zero={"r": 0.0},
    calls=1,
)
UNIT_PENALIZED_GRADIENT = Case(
    "penalized_gradient_unit",
    partial(flatreg.penalized_gradient, normalize_clean=True),
    surrogates.penalized_gradient_unit,
    PGN,
    zero={"r": 0.0, "alpha": 1.0},
    calls=1,
    variant=True,
)
GRADIENT_NORM_PENALTIES = {
    p: Case(
        f"gradient_norm_penalty_{p}",
        partial(flatreg.gradient_norm_penalty, ord=p),
        partial(surrogates.gradient_norm_penalty, p=p),
        {"penalty": 0.2},
        zero={"penalty": 0.0},
        calls=1,
        isotropic=p == 2,
        uses_hvp=True,
        variant=p != 2,
    )
    for p in (1, 1.5, 2, 3, 4)
}
GRADIENT_REGULARIZATION = Case(
    "gradient_regularization",
    flatreg.gradient_regularization,
    surrogates.gradient_regularization,
    {"mu": 0.1},
    zero={"mu": 0.0},
    calls=1,
    uses_hvp=True,
    variant=True,
)
GAM = Case("gam", flatreg.gam, surrogates.gam, ALGORITHM_1, {"alpha": 0.0}, 2, uses_hvp=True)
GAM_ACCELERATED = Case(
    "gam_accelerated",
    flatreg.gam_accelerated,
    surrogates.gam_accelerated,
    ACCELERATED,
    zero={"rho": 0.0, "rho_prime": 0.0, "gamma": 0.0},
    calls=3,
)
SAM_AND_GAM = Case(
    "combine",
    sam_and_gam,
    surrogates.sam_and_gam,
    {"rho": 0.3, "radius": 0.2, "alpha": 0.5},
    zero={"rho": 0.0, "radius": 0.0},
    calls=3,
    uses_hvp=True,
)
PERTURBED_GRADIENT = Case(
    "perturbed_gradient",
    partial(flatreg.perturbed_gradient, KEY, distribution=same_noise),
    partial(surrogates.perturbed_gradient, z=NOISE),
    {"sigma": 0.3},
    zero={"sigma": 0.0},
    calls=1,
    isotropic=False,
    uses_clean=False,
)
ANTITHETIC = PERTURBED_GRADIENT._replace(
    name="perturbed_gradient_antithetic",
    factory=partial(PERTURBED_GRADIENT.factory, antithetic=True),
    surrogate_of=partial(surrogates.perturbed_gradient_antithetic, z=NOISE),
    calls=2,
    variant=True,
)
AUTHORS_GAM = GAM_ACCELERATED.scaled()._replace(
    name="gam_accelerated_authors", scalars=ACCELERATED | {"clean_weight": 1.0}
)

GSAM = SAM._replace(
    name="gsam",
    factory=flatreg.gsam,
    surrogate_of=surrogates.gsam,
    scalars={"rho": 0.3, "alpha": 0.4},
    variant=True,
)
STABLE_SAM = SAM._replace(
    name="stable_sam",
    factory=flatreg.stable_sam,
    surrogate_of=surrogates.stable_sam,
    variant=True,
)
# The first step of friendly_sam and of looksam is SAM's. test_family.py follows the later steps.
LOOKSAM = SAM._replace(
    name="looksam",
    factory=partial(flatreg.looksam, k=1),
    surrogate_of=surrogates.sam_on_the_first_step,
    scalars={"rho": 0.3, "alpha": 0.7},
)
FRIENDLY_SAM = LOOKSAM._replace(
    name="friendly_sam",
    factory=partial(flatreg.friendly_sam, decay=0.6),
    scalars={"rho": 0.3, "sigma": 0.5},
    variant=True,
)

CASES = [
    SAM,
    SAM.scaled(),
    ASAM._replace(isotropic=False),
    PENALIZED_GRADIENT,
    PENALIZED_GRADIENT.scaled(),
    UNIT_PENALIZED_GRADIENT,
    *GRADIENT_NORM_PENALTIES.values(),
    GRADIENT_NORM_PENALTIES[3].scaled(),
    GRADIENT_REGULARIZATION,
    GRADIENT_REGULARIZATION.scaled(),
    GAM,
    GAM.scaled(),
    GAM_ACCELERATED,
    AUTHORS_GAM,
    SAM_AND_GAM,
    PERTURBED_GRADIENT,
    PERTURBED_GRADIENT.scaled(),
    ANTITHETIC,
    GSAM,
    GSAM.scaled(),
    STABLE_SAM,
    FRIENDLY_SAM,
    LOOKSAM,
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# For expensive properties: every case, but the variants only in the nightly tests.
every_kind = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.nightly] if case.variant else [])
        for case in CASES
    ],
)
