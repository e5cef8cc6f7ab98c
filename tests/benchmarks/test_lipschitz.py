"""The Lipschitz command: its results, its errors, and the properties of its certificates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common import results
from benchmarks.common.data.preparation import load
from benchmarks.lipschitz.__main__ import main, parse
from benchmarks.lipschitz.methods import margins
from benchmarks.lipschitz.network import network
from benchmarks.lipschitz.options import parse_methods
from benchmarks.lipschitz.summary import choice, summarize
from benchmarks.lipschitz.wgan.training import CRITICS, wasserstein
from flatreg.lipschitz import lipschitz_bound
from tests.support import commands

pytestmark = pytest.mark.slow

TINY = ("--train-size=150", "--epochs=3", "--seeds=2", "--radii=0.1,0.2")
METHODS = ("spectral_normalization:1.5", "input_gradient_penalty:0.1")
GELU = 1.1289931


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("classifier")
    commands.run(main, [*TINY, f"--methods={','.join(METHODS)}"], out)
    return out


def test_the_results_say_how_they_were_made(written):
    found = results.read(written)
    assert found["command"].startswith("python -m benchmarks.lipschitz --train-size=150")
    assert found["configuration"]["learning_rate"] == 0.1
    assert {"jax", "flatreg", "device"} <= set(found["environment"])
    assert found["methods"] == ["plain", *METHODS]
    assert [(run["method"], run["seed"]) for run in found["runs"]] == [
        (method, seed) for seed in (0, 1) for method in ("plain", *METHODS)
    ]
    assert "| spectral_normalization:1.5 |" in (written / "table.md").read_text()
    assert commands.is_png(written / "lipschitz.png")


def test_certified_accuracy_falls_from_the_clean_accuracy(written):
    """It starts at the accuracy and never rises; the bounds of pairs certify at least as much."""
    for run in results.read(written)["runs"]:
        measured = run["measured"]
        curve = np.array(measured["curve"])
        assert curve[0] == pytest.approx(measured["accuracy"])
        assert (np.diff(curve) <= 0).all()
        assert curve[-1] < curve[0]
        assert (np.array(measured["certified"]) >= measured["certified_plainly"]).all()


def test_lower_bounds_are_below_upper_bounds(written):
    """Normalized kernels also bound the network: by 1.5³, times GELU's constant per layer."""
    uppers = {}
    for run in results.read(written)["runs"]:
        measured = run["measured"]
        assert 0 < measured["lower"] <= measured["upper"] * (1 + 1e-5)
        uppers.setdefault(run["method"], []).append(measured["upper"])
    assert max(uppers["spectral_normalization:1.5"]) <= 1.5**3 * GELU**2 * 1.2  # σ from below
    assert min(uppers["plain"]) > 1.5**3 * GELU**2


def test_the_measured_times_answer_the_claim(written):
    found = results.read(written)
    seconds = {
        method: np.array(
            [
                [epoch["seconds_per_step"] for epoch in run["epochs"]]
                for run in found["runs"]
                if run["method"] == method
            ]
        )
        for method in METHODS
    }
    ratio = np.median(seconds["input_gradient_penalty:0.1"] / seconds["spectral_normalization:1.5"])
    assert f"median of 6 pairs of epochs: {ratio:.2f}" in found["answer"]


def run_of(method, accuracy, noise_accuracy, curve):
    measured = {"accuracy": accuracy, "noise_accuracy": noise_accuracy, "curve": curve}
    measured |= {"lower": 1.0, "upper": 2.0, "certified": [0.5], "certified_plainly": [0.5]}
    epochs = [{"seconds_per_step": 1.0, "train_loss": 0.0}]
    return {"method": method, "seed": 0, "epochs": epochs, "measured": measured}


def test_a_sweep_chooses_the_best_accurate_strength():
    """The most successful strength is chosen among those that lose at most a point of accuracy."""
    runs = [
        run_of("plain", 0.95, 0.5, [0.9, 0.1]),
        run_of("projection:1", 0.90, 0.9, [0.9, 0.9]),
        run_of("projection:2", 0.945, 0.6, [0.9, 0.5]),
        run_of("projection:4", 0.95, 0.8, [0.9, 0.2]),
        run_of("input_gradient_penalty:0.1", 0.95, 0.8, [0.9, 0.0]),
        run_of("input_gradient_penalty:0.01", 0.95, 0.6, [0.9, 0.1]),
    ]
    methods = parse_methods(",".join(run["method"] for run in runs), "mlp", True)
    chosen = choice(summarize(runs, methods))
    assert chosen == {"projection": 2, "input_gradient_penalty": 0.1}


def test_a_sweep_evaluates_on_the_validation_split():
    assert parse(["--sweep"]).evaluate_on == "validation"


def test_the_bound_of_the_cnn_holds_for_the_trained_form():
    """The form for training and the form that is bounded compute the same logits."""
    data = load("digits", None, 100, "test")
    net = network("cnn", data)
    x = jnp.asarray(data.x_test)
    params = net.init(jax.random.key(0))
    logits = net.logits(params, x)
    np.testing.assert_allclose(logits, net.transparent_logits(params, x), atol=1e-5)
    upper = jax.jit(lambda p: lipschitz_bound(net.transparent_logits, p, x).upper)(params)
    apart = jnp.linalg.norm(logits - logits[::-1], axis=1)
    distance = jnp.linalg.norm((x - x[::-1]).reshape(len(x), -1), axis=1)
    assert jnp.all(apart <= upper * distance)


def test_the_margin_is_the_lead_over_the_best_other_logit():
    logits = jnp.array([[3.0, 1.0, 2.0], [0.0, 1.0, -5.0]])
    np.testing.assert_array_equal(margins(logits, jnp.array([0, 0])), [1, -1])


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    out = tmp_path_factory.mktemp("wgan")
    commands.run(main, ["--wgan", "--steps=2", "--seeds=1"], out)
    return out


@pytest.mark.nightly
def test_no_critic_proves_more_than_the_exact_distance(generated):
    runs = results.read(generated)["runs"]
    assert {run["critic"] for run in runs} == set(CRITICS)
    for run in runs:
        assert run["certified"] <= run["exact"] * (1 + 1e-5)
        assert run["lower"] <= run["upper"] * (1 + 1e-5)
        if run["critic"] == "projection, upper bound":
            assert run["upper"] <= 1 + 1e-5
    assert commands.is_png(generated / "wgan.png")
    assert "| spectral normalization |" in (generated / "table.md").read_text()


def test_the_distance_to_a_shifted_sample_is_the_shift():
    x = np.random.default_rng(0).normal(size=(50, 2))
    shuffled = x[::-1] + np.array([3, 4])
    assert wasserstein(x, shuffled) == pytest.approx(5)
