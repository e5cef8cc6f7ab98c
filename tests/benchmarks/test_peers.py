"""What the peers of the benchmarks compute in PyTorch is what flatreg computes in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import flatreg
from benchmarks.common.models.build import Mlp
from benchmarks.curvature import peers as _curvature_peers
from benchmarks.step_cost import measuring as _step_cost
from benchmarks.step_cost import peers as _step_cost_peers
from flatreg import measures

pytestmark = pytest.mark.slow


def problem():
    keys = jax.random.split(jax.random.key(0), 2)
    x, y = jax.random.normal(keys[0], (60, 6)), jnp.arange(60) % 3
    model = Mlp(hidden=(5,), num_classes=3)
    params = model.init(keys[1], x, train=False)["params"]

    def loss_fn(params):
        logits = model.apply({"params": params}, x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return model, (x, y), params, loss_fn


def test_eigenvalues_and_trace_of_the_peers_are_those_of_the_dense_hessian_and_ours():
    for package in _curvature_peers.PACKAGES:
        pytest.importorskip(package)
    _, (x, y), params, loss_fn = problem()
    w, unravel = ravel_pytree(params)
    spectrum = np.linalg.eigvalsh(jax.hessian(lambda w: loss_fn(unravel(w)))(w))
    top = spectrum[::-1][:2]
    ours = measures.top_eigenpairs(loss_fn, params, jax.random.key(2), k=2)
    np.testing.assert_allclose(ours.values, top, rtol=1e-3)
    for name, run in _curvature_peers.contestants(
        params, np.array(x), np.array(y), k=2, probes=100, batch_size=20, threads=1
    ).items():
        found = run()
        if "trace" in found:
            error = abs(found["trace"] - spectrum.sum())
            assert error <= 5 * found["standard_error"], name
        else:
            # PyHessian stops its power iteration by the change of the estimate.
            rtol = 1e-3 if "SciPy" in name else 0.05
            np.testing.assert_allclose(found["eigenvalues"], top, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("optimizer", _step_cost.OPTIMIZERS)
def test_a_step_of_the_peers_is_ours(optimizer, monkeypatch):
    for package in _step_cost_peers.PACKAGES:
        pytest.importorskip(package)
    import torch

    networks = []

    class Recorded(torch.nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            networks.append(self)

    monkeypatch.setattr(torch.nn, "Sequential", Recorded)
    model, batch, params, loss_fn = problem()
    peers = _step_cost_peers.contestants(model, batch, optimizer)
    for network, peer in zip(networks, peers, strict=True):
        weights = [w.T for dense in params.values() for w in (dense["kernel"], dense["bias"])]
        for weight, start in zip(network.parameters(), weights, strict=True):
            weight.data = torch.tensor(np.array(start))
        peer.run(2)
        method = flatreg.sam(0.05) if peer.name == _step_cost_peers.SAM else optax.identity()
        tx = optax.chain(method, _step_cost.OPTIMIZERS[optimizer]())
        moved, state, grad_fn = params, tx.init(params), jax.grad(loss_fn)
        for _ in range(2):
            updates, state = tx.update(grad_fn(moved), state, moved, grad_fn=grad_fn)
            moved = optax.apply_updates(moved, updates)
        expected = [w.T for dense in moved.values() for w in (dense["kernel"], dense["bias"])]
        for weight, start, right in zip(network.parameters(), weights, expected, strict=True):
            step = weight.detach().numpy() - start
            np.testing.assert_allclose(step, right - start, rtol=1e-3, atol=1e-6)
