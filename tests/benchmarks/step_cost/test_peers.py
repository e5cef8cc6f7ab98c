"""The steps and estimates in PyTorch compute the same as those of flatreg in JAX."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import flatreg
from benchmarks.common.models.mlp import Mlp
from benchmarks.curvature import peers as curvature_peers
from benchmarks.curvature.__main__ import main as curvature
from benchmarks.step_cost import peers as step_cost_peers
from benchmarks.step_cost.__main__ import main as step_cost
from benchmarks.step_cost.contestants import OPTIMIZERS
from flatreg import measures
from tests.support import commands


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (curvature, "pip install torch pyhessian curvlinops-for-pytorch"),
        (step_cost, "pip install torch pytorch_optimizer"),
    ],
    ids=["curvature", "step_cost"],
)
def test_missing_peers_are_named_with_their_pip_command(command, expected, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert expected in commands.usage_error(command, ["--peers"], capsys)


def problem():
    keys = jax.random.split(jax.random.key(0), 2)
    x, y = jax.random.normal(keys[0], (60, 6)), jnp.arange(60) % 3
    model = Mlp(hidden=(5,), num_classes=3)
    params = model.init(keys[1], x, train=False)["params"]

    def loss_fn(params):
        logits = model.apply({"params": params}, x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return model, (x, y), params, loss_fn


@pytest.mark.slow
def test_curvature_of_the_peers_is_that_of_the_dense_hessian():
    """Their eigenvalues and traces agree with the dense Hessian, and so do those of flatreg."""
    for package in curvature_peers.PACKAGES:
        pytest.importorskip(package)
    _, (x, y), params, loss_fn = problem()
    w, unravel = ravel_pytree(params)
    spectrum = np.linalg.eigvalsh(jax.hessian(lambda w: loss_fn(unravel(w)))(w))
    top = spectrum[::-1][:2]
    ours = measures.top_eigenpairs(loss_fn, params, jax.random.key(2), k=2)
    np.testing.assert_allclose(ours.values, top, rtol=1e-3)
    for name, run in curvature_peers.estimates(
        params, np.array(x), np.array(y), k=2, probes=100, batch_size=20, threads=1
    ).items():
        found = run()
        if "trace" in found:
            error = abs(found["trace"] - spectrum.sum())
            assert error <= 5 * found["standard_error"], name
        else:
            # PyHessian stops when the estimate changes little, which does not bound its error.
            rtol = 1e-3 if "SciPy" in name else 0.05
            np.testing.assert_allclose(found["eigenvalues"], top, rtol=rtol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_the_peers_is_the_step_of_flatreg(optimizer, monkeypatch):
    """Two steps in PyTorch move the weights as two steps in Optax do, with and without SAM."""
    for package in step_cost_peers.PACKAGES:
        pytest.importorskip(package)
    import torch

    networks = []

    class Recorded(torch.nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            networks.append(self)

    monkeypatch.setattr(torch.nn, "Sequential", Recorded)
    model, batch, params, loss_fn = problem()
    peers = step_cost_peers.contestants(model, batch, optimizer)
    for network, peer in zip(networks, peers, strict=True):
        weights = [w.T for dense in params.values() for w in (dense["kernel"], dense["bias"])]
        for weight, start in zip(network.parameters(), weights, strict=True):
            weight.data = torch.tensor(np.array(start))
        peer.run(2)
        method = flatreg.sam(0.05) if peer.name == step_cost_peers.SAM else optax.identity()
        tx = optax.chain(method, OPTIMIZERS[optimizer]())
        moved, state, grad_fn = params, tx.init(params), jax.grad(loss_fn)
        for _ in range(2):
            updates, state = tx.update(grad_fn(moved), state, moved, grad_fn=grad_fn)
            moved = optax.apply_updates(moved, updates)
        expected = [w.T for dense in moved.values() for w in (dense["kernel"], dense["bias"])]
        for weight, start, right in zip(network.parameters(), weights, expected, strict=True):
            step = weight.detach().numpy() - start
            np.testing.assert_allclose(step, right - start, rtol=1e-3, atol=1e-6)
