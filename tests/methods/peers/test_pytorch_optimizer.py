"""Twenty steps in float64 against pytorch_optimizer's own GSAM, Friendly SAM and LookSAM.

Its trajectories are in ``trajectories.json``, which ``trajectories.py`` makes.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.methods.peers import trajectories
from tests.methods.peers.trajectories import ALPHA, FEATURES, PERIOD, RATES, RHO, RHO_MIN, SIGMA
from tests.support.losses import logistic_loss

RECORDED = json.loads(trajectories.FILE.read_text(encoding="utf-8"))
pytestmark = pytest.mark.usefixtures("x64")


def train(method, base):
    """The parameters after each step with flatreg, as ``trajectories.train`` returns them."""
    x, y, start = map(jnp.asarray, trajectories.problem())
    rate = RATES[base]
    if method == "gsam":
        peak, rate = rate, optax.cosine_decay_schedule(rate, trajectories.STEPS)
        rho = flatreg.radius_schedule(rate, RHO, RHO_MIN, learning_rate_max=peak)
        link = flatreg.gsam(rho, ALPHA)
    elif method == "friendly_sam":
        link = flatreg.friendly_sam(RHO, SIGMA)
    else:
        link = flatreg.looksam(RHO, k=PERIOD)
    optimizers = {
        "momentum": lambda: optax.sgd(rate, momentum=0.9),
        "adamw": lambda: optax.adamw(rate, weight_decay=0.1),
    }
    tx = optax.chain(link, optimizers[base]())
    params = {"bias": start[FEATURES], "weights": start[:FEATURES]}

    def step(carry, batch):
        params, state = carry
        grad_fn = jax.grad(lambda params: logistic_loss(params, batch))
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.append(params["weights"], params["bias"])

    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), (x, y))[1])()


def looksam_of_pytorch_optimizer(base, tensors):
    """LookSAM written out with the two differences that its docstring in flatreg names."""
    x, y, params = trajectories.problem()
    cuts = [] if tensors == "one_tensor" else [FEATURES]
    tx = {
        "momentum": optax.sgd(RATES["momentum"], momentum=0.9),
        "adamw": optax.adamw(RATES["adamw"], weight_decay=0.1),
    }[base]
    state, points, components = tx.init(jnp.asarray(params)), [], None

    def gradient(w, t):
        inputs = np.column_stack([x[t], np.ones(len(x[t]))])
        return -(y[t] / (1 + np.exp(y[t] * (inputs @ w)))) @ inputs / len(inputs)

    for t in range(trajectories.STEPS):
        g = gradient(params, t)
        parts = np.split(g, cuts)
        if t % PERIOD == 0:
            d = gradient(params + RHO * g / np.linalg.norm(g), t)
            units = [part / np.linalg.norm(part) for part in parts]
            pairs = zip(np.split(d, cuts), units, strict=True)
            components = [part - (part @ unit) * unit for part, unit in pairs]
        else:
            d = np.concatenate(
                [
                    part + 0.7 * np.linalg.norm(part) / (np.linalg.norm(stored) + 1e-8) * stored
                    for part, stored in zip(parts, components, strict=True)
                ]
            )
        updates, state = tx.update(jnp.asarray(d), state, jnp.asarray(params))
        params = params + np.asarray(updates)
        points.append(params)
    return np.array(points)


def recorded(case, kind="float64_norm"):
    return np.array(RECORDED[kind]["-".join(case)])


@pytest.mark.nightly_except("*-momentum-*")
@pytest.mark.parametrize("case", trajectories.CASES[:4], ids="-".join)
def test_twenty_steps_equal_those_of_pytorch_optimizer(case):
    found = train(*case[:2])
    np.testing.assert_allclose(found, recorded(case), rtol=1e-9)
    np.testing.assert_allclose(found, recorded(case, "as_it_is"), rtol=1e-5, atol=1e-7)


@pytest.mark.nightly_except("*-momentum-*")
@pytest.mark.parametrize("case", trajectories.CASES[4:], ids="-".join)
def test_looksam_there_differs_in_two_points(case):
    """With both of them, its trajectory is reproduced. The second one is small."""
    _, base, tensors = case
    expected = recorded(case)
    np.testing.assert_allclose(looksam_of_pytorch_optimizer(base, tensors), expected, rtol=1e-9)
    found = train("looksam", base)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-9)  # a step of SAM
    if tensors == "one_tensor":
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-6)
    else:
        assert np.max(np.abs(found - expected)) > 0.1


@pytest.mark.nightly
@pytest.mark.parametrize("case", trajectories.CASES, ids="-".join)
def test_the_installed_pytorch_optimizer_does_the_same(case):
    for package in trajectories.PACKAGES:
        pytest.importorskip(package)
    np.testing.assert_allclose(trajectories.train(*case), recorded(case, "as_it_is"), rtol=1e-6)
