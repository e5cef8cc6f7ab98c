"""The Lipschitz command from outside: its files, its errors, and what certificates satisfy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common import data as _data
from benchmarks.lipschitz import __main__ as lipschitz
from benchmarks.lipschitz import methods as _lipschitz_methods
from benchmarks.lipschitz import options as _lipschitz_options
from benchmarks.lipschitz import report as _lipschitz_report
from benchmarks.lipschitz import training as _lipschitz_train
from benchmarks.lipschitz.wgan import training as _lipschitz_wgan
from flatreg.lipschitz import lipschitz_bound

pytestmark = pytest.mark.slow

TINY = ("--train-size=150", "--epochs=3", "--seeds=2", "--radii=0.1,0.2")
METHODS = ("spectral_normalization:1.5", "input_gradient_penalty:0.1")
GELU = 1.1289931


def results_of(out):
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("classifier")
    assert lipschitz.main([*TINY, f"--methods={','.join(METHODS)}", f"--out={out}"]) == 0
    return out


def test_a_result_says_how_it_was_made(written):
    results = results_of(written)
    assert results["command"].startswith("python -m benchmarks.lipschitz --train-size=150")
    assert results["configuration"]["learning_rate"] == 0.1
    assert {"jax", "flatreg", "device"} <= set(results["environment"])
    assert results["methods"] == ["plain", *METHODS]
    assert [(run["method"], run["seed"]) for run in results["runs"]] == [
        (method, seed) for seed in (0, 1) for method in ("plain", *METHODS)
    ]
    assert "| spectral_normalization:1.5 |" in (written / "table.md").read_text()
    assert (written / "lipschitz.png").read_bytes().startswith(b"\x89PNG")


def test_certified_accuracy_falls_from_the_accuracy_and_pairs_certify_more(written):
    for run in results_of(written)["runs"]:
        measured = run["measured"]
        curve = np.array(measured["curve"])
        assert curve[0] == pytest.approx(measured["accuracy"])
        assert (np.diff(curve) <= 0).all()
        assert curve[-1] < curve[0]
        assert (np.array(measured["certified"]) >= measured["certified_plainly"]).all()


def test_the_intervals_hold_and_normalized_kernels_bound_the_network(written):
    uppers = {}
    for run in results_of(written)["runs"]:
        measured = run["measured"]
        assert 0 < measured["lower"] <= measured["upper"] * (1 + 1e-5)
        uppers.setdefault(run["method"], []).append(measured["upper"])
    assert max(uppers["spectral_normalization:1.5"]) <= 1.5**3 * GELU**2 * 1.2  # σ from below
    assert min(uppers["plain"]) > 1.5**3 * GELU**2


def test_the_claim_is_answered_by_the_measured_times(written):
    results = results_of(written)
    seconds = {
        method: np.array(
            [
                [epoch["seconds_a_step"] for epoch in run["epochs"]]
                for run in results["runs"]
                if run["method"] == method
            ]
        )
        for method in METHODS
    }
    ratio = np.median(seconds["input_gradient_penalty:0.1"] / seconds["spectral_normalization:1.5"])
    assert f"median of 6 pairs of epochs: {ratio:.2f}" in results["answer"]


def run_of(method, accuracy, noise_accuracy, curve):
    measured = {"accuracy": accuracy, "noise_accuracy": noise_accuracy, "curve": curve}
    measured |= {"lower": 1.0, "upper": 2.0, "certified": [0.5], "certified_plainly": [0.5]}
    epochs = [{"seconds_a_step": 1.0, "train_loss": 0.0}]
    return {"method": method, "seed": 0, "epochs": epochs, "measured": measured}


def test_a_sweep_chooses_what_reaches_its_aim_without_losing_a_point_of_accuracy():
    runs = [
        run_of("plain", 0.95, 0.5, [0.9, 0.1]),
        run_of("projection:1", 0.90, 0.9, [0.9, 0.9]),
        run_of("projection:2", 0.945, 0.6, [0.9, 0.5]),
        run_of("projection:4", 0.95, 0.8, [0.9, 0.2]),
        run_of("input_gradient_penalty:0.1", 0.95, 0.8, [0.9, 0.0]),
        run_of("input_gradient_penalty:0.01", 0.95, 0.6, [0.9, 0.1]),
    ]
    methods = _lipschitz_methods.parse(",".join(run["method"] for run in runs), "mlp", True)
    chosen = _lipschitz_report.choice(_lipschitz_report.summarize(runs, methods))
    assert chosen == {"projection": 2, "input_gradient_penalty": 0.1}


def test_a_sweep_never_looks_at_the_test_set():
    assert _lipschitz_options.parse(["--sweep"])[0].evaluate_on == "validation"


def test_the_bound_of_the_cnn_is_that_of_the_network_that_is_trained():
    data = _data.load("digits", None, 100, "test")
    network = _lipschitz_train.network("cnn", data)
    x = jnp.asarray(data.x_test)
    params = network.init(jax.random.key(0))
    logits = network.logits(params, x)
    np.testing.assert_allclose(logits, network.transparent_logits(params, x), atol=1e-5)
    upper = jax.jit(lambda p: lipschitz_bound(network.transparent_logits, p, x).upper)(params)
    apart = jnp.linalg.norm(logits - logits[::-1], axis=1)
    distance = jnp.linalg.norm((x - x[::-1]).reshape(len(x), -1), axis=1)
    assert jnp.all(apart <= upper * distance)


def test_the_margin_is_the_lead_over_the_best_other_logit():
    logits = jnp.array([[3.0, 1.0, 2.0], [0.0, 1.0, -5.0]])
    margins = _lipschitz_methods.margins(logits, jnp.array([0, 0]))
    np.testing.assert_array_equal(margins, [1, -1])


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    out = tmp_path_factory.mktemp("wgan")
    assert lipschitz.main(["--wgan", "--steps=2", "--seeds=1", f"--out={out}"]) == 0
    return out


def test_no_critic_proves_more_than_the_exact_distance(generated):
    runs = results_of(generated)["runs"]
    assert {run["critic"] for run in runs} == set(_lipschitz_wgan.CRITICS)
    for run in runs:
        assert run["certified"] <= run["exact"] * (1 + 1e-5)
        assert run["lower"] <= run["upper"] * (1 + 1e-5)
        if run["critic"] == "projection, upper bound":
            assert run["upper"] <= 1 + 1e-5
    assert (generated / "wgan.png").read_bytes().startswith(b"\x89PNG")
    assert "| spectral normalization |" in (generated / "table.md").read_text()


def test_the_distance_of_a_shifted_sample_is_the_shift():
    x = np.random.default_rng(0).normal(size=(50, 2))
    shuffled = x[::-1] + np.array([3, 4])
    assert _lipschitz_wgan.wasserstein(x, shuffled) == pytest.approx(5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods=gap"], "Unknown method 'gap' in --methods. Choose plain, weight_decay"),
        (["--methods=projection:0"], "the strength must be a positive number, such as projection:"),
        (["--methods=projection:a"], "the strength must be a positive number, such as projection:"),
        (["--radii=0.1,x"], "--radii 0.1,x must be positive numbers"),
        (["--noise=-1"], "--noise -1.0 is out of range: it must be 0 or a positive number"),
        (["--seeds=0"], "--seeds 0 is out of range: it must be at least 1"),
        (["--batch-size=5000"], "--batch-size 5000 is more than the 1437 training examples"),
        (["--sweep", "--wgan"], "--sweep is for the classifier"),
        (["--wgan", "--epochs=7", "--data=mnist"], "--data, --epochs is for the classifier"),
        (["--steps=7"], "--steps is for the GAN: add --wgan"),
        (["--sweep", "--evaluate-on=test"], "which the test set must not decide"),
        (["--data=nothing"], "Unknown data set 'nothing'"),
        (["--rows=1"], "unrecognized arguments: --rows=1"),
    ],
)
def test_a_mistake_of_usage_says_what_to_write(arguments, expected, capsys):
    assert lipschitz.main(arguments) == 2
    (paragraph,) = capsys.readouterr().err.splitlines()
    assert paragraph.startswith("error: ")
    assert expected in paragraph
