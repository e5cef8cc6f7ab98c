"""PACGen's toy: the two optima are what they are called, and the bound prefers the flat one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from benchmarks.toy import __main__ as toy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        loss_fn, sharp, flat = toy.sharp_and_flat()
        yield jax.jit(loss_fn), sharp, flat


@pytest.mark.parametrize("which", [1, 2], ids=["sharp", "flat"])
def test_an_optimum_is_stationary_and_a_minimum(found, which):
    loss_fn, optimum = found[0], found[which]
    with jax.enable_x64(True):
        assert np.linalg.norm(jax.grad(loss_fn)(optimum.w)) < 1e-9
        eigenvalues = np.linalg.eigvalsh(jax.jacfwd(jax.jacrev(loss_fn))(jnp.asarray(optimum.w)))
    assert eigenvalues[0] > 0
    np.testing.assert_allclose(optimum.eigenvalues, eigenvalues, rtol=1e-8)


def test_the_sharp_one_is_the_lower_and_no_search_from_elsewhere_gets_below_it(found):
    loss_fn, sharp, flat = found
    assert sharp.loss < flat.loss
    assert sharp.eigenvalues[-1] > 20 * flat.eigenvalues[-1]
    starts = np.random.default_rng(0).uniform(-toy.EDGE, toy.EDGE, (20, 2))
    with jax.enable_x64(True):
        bounds = [(-toy.EDGE, toy.EDGE)] * 2
        lowest = min(minimize(loss_fn, w, jac=jax.grad(loss_fn), bounds=bounds).fun for w in starts)
    assert lowest >= sharp.loss - 1e-9


def test_metric_and_bound_prefer_the_flat_one(found):
    _, sharp, flat = found
    assert flat.metric < sharp.metric
    assert flat.bound < sharp.bound
    assert flat.fresh_loss < sharp.fresh_loss


def test_the_command_draws_and_tells_both(tmp_path, capsys):
    assert toy.main([f"--out={tmp_path / 'toy.png'}", "--points=3"]) == 0
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "sharp, global" in printed
    assert "flat, local" in printed
