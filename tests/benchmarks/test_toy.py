"""PACGen's toy problem: the two minima are what they are called; the bound prefers the flat one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from benchmarks.toy.__main__ import main
from benchmarks.toy.problem import EDGE, sharp_and_flat
from tests.support import commands


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        loss_fn, sharp, flat = sharp_and_flat()
        yield jax.jit(loss_fn), sharp, flat


@pytest.mark.nightly
@pytest.mark.parametrize("which", [1, 2], ids=["sharp", "flat"])
def test_each_minimum_is_stationary_with_positive_curvature(found, which):
    """The gradient vanishes, and the smallest eigenvalue of the dense Hessian is positive."""
    loss_fn, minimum = found[0], found[which]
    with jax.enable_x64(True):
        assert np.linalg.norm(jax.grad(loss_fn)(minimum.w)) < 1e-9
        eigenvalues = np.linalg.eigvalsh(jax.jacfwd(jax.jacrev(loss_fn))(jnp.asarray(minimum.w)))
    assert eigenvalues[0] > 0
    np.testing.assert_allclose(minimum.eigenvalues, eigenvalues, rtol=1e-8)


@pytest.mark.slow
def test_the_sharp_minimum_is_global(found):
    """It lies below the flat minimum and below all minima that L-BFGS-B finds from 20 starts."""
    loss_fn, sharp, flat = found
    assert sharp.loss < flat.loss
    assert sharp.eigenvalues[-1] > 20 * flat.eigenvalues[-1]
    starts = np.random.default_rng(0).uniform(-EDGE, EDGE, (20, 2))
    with jax.enable_x64(True):
        bounds = [(-EDGE, EDGE)] * 2
        lowest = min(minimize(loss_fn, w, jac=jax.grad(loss_fn), bounds=bounds).fun for w in starts)
    assert lowest >= sharp.loss - 1e-9


@pytest.mark.slow
def test_metric_and_bound_prefer_the_flat_minimum(found):
    _, sharp, flat = found
    assert flat.metric < sharp.metric
    assert flat.bound < sharp.bound
    assert flat.fresh_loss < sharp.fresh_loss


@pytest.mark.slow
def test_the_command_draws_and_prints_both_minima(tmp_path, capsys):
    assert main([f"--out={tmp_path / 'toy.png'}", "--points=3"]) == 0
    assert commands.is_png(tmp_path / "toy.png")
    printed = capsys.readouterr().out
    assert "sharp, global" in printed
    assert "flat, local" in printed
