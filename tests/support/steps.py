"""Set-up that the tests of Linen and NNX train steps share: cases, batches and chains."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.support.cases import CASES

CLASSES = 3
STEPS = 20

x64 = pytest.mark.usefixtures("x64")


def only_cases(*names: str, nightly: Collection[str] = ()) -> pytest.MarkDecorator:
    """Parametrizes a test over some of the cases, by name. Those in ``nightly`` run every night."""
    chosen = [
        pytest.param(
            case, id=case.name, marks=[pytest.mark.nightly] if case.name in nightly else []
        )
        for case in CASES
        if case.name in names
    ]
    assert len(chosen) == len(names)
    return pytest.mark.parametrize("case", chosen)


def examples(dtype: Any = jnp.float32, count: int = 16, seed: int = 0) -> tuple[Any, Any]:
    """A batch of inputs with four features, and labels."""
    x = jax.random.normal(jax.random.key(seed), (count, 4), dtype)
    return x, jnp.arange(count) % CLASSES


def float64_batches() -> list[Any]:
    """One batch per step of a long run."""
    return [examples(jnp.float64, seed=seed) for seed in range(STEPS)]


def chain(method: Any) -> optax.GradientTransformation:
    """The method, followed by SGD with momentum."""
    return optax.chain(method, optax.sgd(0.1, momentum=0.9))
