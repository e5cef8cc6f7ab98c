"""Float64 by request: a test that takes ``x64`` runs in double precision."""

import jax
import pytest


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
