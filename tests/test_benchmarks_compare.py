"""The compare command from outside: its files, resuming, its errors, and what it measures."""

import functools
import importlib.util
import json
import pathlib
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks import _augment, _convolution, _data, _measure, _methods, _models
from benchmarks.compare import main

ROOT = pathlib.Path(__file__).parents[1]
TINY = ("--train-size=200", "--epochs=2", "--seeds=2", "--methods=sgd,sam:rho=0.1")


def results_of(out):
    return json.loads((out / "results.json").read_text())


def numbers_of(out):
    """All that was measured but the time it took, as pytest compares it up to rounding."""
    numbers = {}
    for run in results_of(out)["runs"]:
        for i, epoch in enumerate((*run["curve"], run["measured"])):
            for name, value in epoch.items():
                if name not in ("seconds_a_step", "lambda_max_residual"):
                    numbers[run["method"], run["seed"], i, name] = value
    return numbers


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert main([*TINY, f"--out={out}"]) == 0
    return out


def test_writes_results_table_and_plots(finished):
    results = results_of(finished)
    assert {(run["method"], run["seed"]) for run in results["runs"]} == {
        (method, seed) for method in ("sgd", "sam:rho=0.1") for seed in (0, 1)
    }
    for run in results["runs"]:
        assert not run["diverged"]
        assert len(run["curve"]) == 2
        assert np.isfinite(list(run["measured"].values())).all()
    assert results["configuration"]["learning_rate"] == 0.1
    assert results["environment"].keys() >= {"python", "jax", "jaxlib", "optax", "flax", "device"}
    assert [row["label"] for row in results["summary"]] == ["sgd", "sam:rho=0.1"]
    assert "| sam:rho=0.1 | 2 |" in (finished / "table.md").read_text()
    for plot in ("curves.png", "flatness.png"):
        assert (finished / plot).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_job_resumes_to_the_same_numbers(finished, tmp_path):
    command = [sys.executable, "-m", "benchmarks.compare", *TINY, f"--out={tmp_path}"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in job.stdout:
        if line.startswith("[1/4]"):
            job.send_signal(signal.SIGTERM)
            break
    rest = job.stdout.read()
    assert job.wait() == 130
    assert "--resume" in rest
    assert 1 <= len(results_of(tmp_path)["runs"]) < 4
    assert main([*TINY, f"--out={tmp_path}", "--resume"]) == 0
    assert numbers_of(tmp_path) == pytest.approx(numbers_of(finished), rel=1e-4)


@pytest.mark.slow
def test_resuming_may_add_methods_and_seeds_and_keeps_what_is_there(finished, tmp_path):
    out = tmp_path / "grown"
    assert main([*TINY, f"--out={out}", "--seeds=1", "--methods=sam:rho=0.1"]) == 0
    assert main([*TINY, f"--out={out}", "--resume"]) == 0
    assert main([*TINY, f"--out={out}", "--resume", "--methods=sgd"]) == 0  # nothing is left to do
    assert set(results_of(out)["configuration"]["methods"]) == {"sgd", "sam:rho=0.1"}
    assert numbers_of(out) == pytest.approx(numbers_of(finished), rel=1e-4)


def test_results_are_never_overwritten(finished, tmp_path, capsys, monkeypatch):
    before = results_of(finished)
    assert main([*TINY, f"--out={finished}"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*TINY, f"--out={finished}", "--resume", "--epochs=3"]) == 2
    assert "--epochs was 2 and is now 3" in capsys.readouterr().err
    assert results_of(finished) == before
    monkeypatch.chdir(tmp_path)
    for folder in ("digits-mlp", "digits-mlp-2"):
        assert main([*TINY, "--methods=sgd", "--seeds=1", "--epochs=1"]) == 0
        assert (tmp_path / "results" / folder / "results.json").exists()


def test_a_diverged_run_is_reported(tmp_path):
    assert main([*TINY, f"--out={tmp_path}", "--methods=sgd", "--learning-rate=1e9"]) == 0
    assert all(run["diverged"] for run in results_of(tmp_path)["runs"])
    assert "2 of 2 seeds diverged" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_equal_gradient_budget_gives_dearer_methods_fewer_steps(tmp_path):
    assert main([*TINY, f"--out={tmp_path}", "--seeds=1", "--budget=gradients"]) == 0
    ends = {run["method"]: run["curve"][-1] for run in results_of(tmp_path)["runs"]}
    assert ends["sgd"]["step"] == 2 * ends["sam:rho=0.1"]["step"]
    assert ends["sgd"]["gradients"] == ends["sam:rho=0.1"]["gradients"]


@pytest.mark.slow
def test_cnn_with_adamw_label_noise_and_a_cheap_ascent(tmp_path):
    options = ("--model=cnn", "--optimizer=adamw", "--label-noise=0.4", "--evaluate-on=validation")
    methods = "--methods=sam:rho=0.1:ascent_fraction=0.1"
    assert main([*TINY, *options, methods, f"--out={tmp_path}", "--seeds=1", "--epochs=1"]) == 0
    assert results_of(tmp_path)["summary"][0]["gradients_a_step"] == pytest.approx(1.1)


SIZES = {
    "resnet18": {"widths": (4, 8), "blocks": 1},
    "vit": {"width": 8, "depth": 1, "heads": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("model", SIZES)
def test_image_models_train_in_bfloat16_and_are_measured_in_float32(model, tmp_path, monkeypatch):
    small = functools.partial(_models.build, **SIZES[model])
    monkeypatch.setattr(_models, "build", small)
    measured_in = []

    def flatness(model, *_):  # whose own compilation takes half a minute
        measured_in.append(model.dtype)
        return dict.fromkeys(_measure.Measurement._fields[7:-1], 1.0)

    monkeypatch.setattr(_measure, "_flatness", flatness)
    options = (f"--model={model}", "--dtype=bfloat16", "--augment", "--methods=sam:rho=0.1")
    assert main([*TINY, *options, f"--out={tmp_path}", "--seeds=1", "--epochs=1"]) == 0
    results = results_of(tmp_path)
    assert results["configuration"]["dtype"] == "bfloat16"
    assert results["configuration"]["augment"]
    assert np.isfinite(list(results["runs"][0]["measured"].values())).all()
    assert measured_in == [None], "the dtype of the data, float32"


@pytest.mark.parametrize("model", _models.NAMES)
@pytest.mark.parametrize("size", [8, 11])
def test_models_compute_in_their_dtype_with_parameters_in_float32(model, size):
    x = np.zeros((2, size, size, 3), np.float32)
    network = _models.build(model, _data.Dataset(x, np.zeros(2), x, np.zeros(2), 5))
    for dtype in (jnp.bfloat16, jnp.float32):
        own = network.clone(dtype=dtype)
        init, apply = (functools.partial(f, train=False) for f in (own.init, own.apply))
        variables = jax.eval_shape(init, jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        logits = jax.eval_shape(apply, variables, x)
        assert (logits.shape, logits.dtype) == ((2, 5), dtype)


def test_augmentation_shifts_and_mirrors_each_image_on_its_own():
    image = jnp.arange(1.0, 8 * 16 + 1).reshape(8, 16, 1)
    augment = jax.jit(_augment.crop_and_flip)
    found = np.asarray(augment(jax.random.key(0), jnp.tile(image, (400, 1, 1, 1))))
    padded = np.pad(image, ((1, 1), (2, 2), (0, 0)))
    crops = [padded[i : i + 8, j : j + 16] for i in range(3) for j in range(5)]
    expected = {crop.tobytes() for one in crops for crop in (one, one[:, ::-1])}
    assert {one.tobytes() for one in found} == expected


@pytest.fixture
def arrays():
    x, y = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y}


BROKEN = {
    "lacks y_test": lambda a: a.pop("y_test"),
    "Object arrays": lambda a: a.update(x_train=np.array([None, "x"], dtype=object)),
    "out of range": lambda a: a.update(y_test=a["y_test"] + 1),
    "runs from -1": lambda a: a.update(y_train=a["y_train"] - 1),
    "integers": lambda a: a.update(y_train=a["y_train"] + 0.5),
    "the same shape": lambda a: a.update(x_test=np.zeros((20, 5, 5))),
    "same number": lambda a: a.update(y_train=a["y_train"][1:]),
    "numeric array": lambda a: a.update(x_train=np.full((20, 4), "a")),
    "NaN": lambda a: a.update(x_train=np.full((20, 4, 4), np.nan)),
}


@pytest.mark.parametrize("expected", BROKEN)
def test_a_broken_file_says_what_is_wrong(expected, arrays, tmp_path, capsys):
    BROKEN[expected](arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    assert_usage_error([f"--data={tmp_path}/data.npz"], expected, capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods=sgd,sma"], "Unknown method 'sma'"),
        (["--methods=sam:r=0.1"], "sam cannot take 'r=0.1'"),
        (["--methods=sam:rho=big"], "'big' is no finite number"),
        (["--methods=sam:rho=-1"], "rho"),
        (["--methods=sgd,sgd"], "twice"),
        (["--methods=sam:every=0"], "every"),
        (["--methods=sam:ascent_fraction=2"], "ascent_fraction"),
        (["--methods=sgd", "--optimizer=adamw"], "adamw (the plain gradient)"),
        (["--epochs=0"], "--epochs 0"),
        (["--seeds=0"], "--seeds 0"),
        (["--seeds=two"], "--seeds"),
        (["--label-noise=1"], "--label-noise 1.0"),
        (["--label-noise=-0.1"], "--label-noise -0.1"),
        (["--learning-rate=nan"], "--learning-rate nan"),
        (["--ascent-fraction=0"], "--ascent-fraction 0.0"),
        (["--train-size=100000"], "--train-size 1437"),
        (["--train-size=3"], "--train-size of 10"),
        (["--batch-size=2000"], "--batch-size 1437"),
        (["--data=imagenet"], "Unknown data set"),
        (["--data=nowhere.npz"], "No file at nowhere.npz"),
        (["--data=mnist", "--data-dir=nowhere"], "nowhere/mnist.npz"),
        (["--data=cifar10", "--data-dir=nowhere"], "nowhere/cifar10/train_*.npz"),
        (["--out=/dev/null/results"], "/dev/null/results"),
        (["--model=vgg"], "--model"),
        (["--dtype=float16"], "--dtype"),
        (["--speed=fast"], "--help"),
    ],
)
def test_a_mistake_of_usage_says_what_to_write(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where results go by default, and where there are no data
    assert_usage_error(arguments, expected, capsys)


@pytest.mark.parametrize("option", ["--model=cnn", "--model=resnet18", "--model=vit", "--augment"])
def test_a_table_is_no_image(option, arrays, tmp_path, capsys):
    arrays |= {name: arrays[name].reshape(20, -1) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "data.npz", **arrays)
    options = [f"--data={tmp_path}/data.npz", "--batch-size=10", option]
    assert_usage_error(options, f"{option.replace('=', ' ')} needs images", capsys)


@pytest.mark.parametrize("model", ["resnet18", "vit"])
def test_an_image_may_be_too_small(model, arrays, tmp_path, capsys):
    np.savez(tmp_path / "data.npz", **arrays)
    options = [f"--data={tmp_path}/data.npz", "--batch-size=10", f"--model={model}"]
    assert_usage_error(options, "4×4. Take --model cnn", capsys)


def test_augmentation_names_the_pip_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_usage_error(["--augment"], "pip install dm-pix", capsys)


def assert_usage_error(arguments, expected, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert message.count("\n") == 1, "one paragraph"


def test_a_damaged_results_file_is_not_resumed(tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"runs": [')
    assert_usage_error([f"--out={tmp_path}", "--resume"], "no results file", capsys)


@pytest.mark.parametrize(
    ("spec", "label", "cost"),
    [
        ("sgd", "sgd", 1),
        ("sam", "sam", 2),
        (" sam:rho=0.20 ", "sam:rho=0.2", 2),
        ("sam:rho=0.2:every=5", "sam:rho=0.2:every=5", 1.2),
        ("gradient_norm_penalty:penalty=0.1:ord=1", "gradient_norm_penalty:penalty=0.1:ord=1", 3),
        ("gam", "gam", 6),  # what it needs has a value to begin with
        ("sam:rho=0.1+gam:rho=0.1:alpha=1", "sam:rho=0.1+gam:rho=0.1:alpha=1", 7),
        ("sam:rho=0.4:ascent_fraction=0.1", "sam:rho=0.4:ascent_fraction=0.1", 1.1),
    ],
)
def test_grammar_of_methods(spec, label, cost):
    (method,) = _methods.parse(spec, "sgd", 1.0)
    assert method.label == label
    assert method.cost == pytest.approx(cost)


def test_label_noise_replaces_the_fraction_by_other_classes():
    labels = np.arange(1000, dtype=np.int32) % 10
    noisy = _data.with_label_noise(labels, 10, 0.4, seed=0)
    assert (noisy != labels).sum() == 400
    assert set(noisy) == set(range(10))
    np.testing.assert_array_equal(noisy, _data.with_label_noise(labels, 10, 0.4, seed=0))
    assert (noisy != _data.with_label_noise(labels, 10, 0.4, seed=1)).any()


def test_validation_examples_come_out_of_the_training_set():
    test, validation = (_data.load("digits", None, 500, name) for name in ("test", "validation"))
    assert len(validation.x_train) == len(test.x_train) == 500
    pixels = {x.tobytes() for x in validation.x_test.astype(np.float16)}
    assert len(validation.x_test) == 287
    assert not pixels & {x.tobytes() for x in validation.x_train.astype(np.float16)}


def test_flatness_is_that_of_the_dense_hessian():
    model = _models.Mlp((5,), 3)
    keys = jax.random.split(jax.random.key(0), 2)
    x, labels = jax.random.normal(keys[0], (40, 4)), jnp.arange(40) % 3
    variables = model.init(keys[1], x, train=False)
    flat, unravel = ravel_pytree(variables)

    def loss(flat):
        logits = model.apply(unravel(flat), x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found = _measure._flatness(model, variables, (x, labels), jax.random.key(0))
    eigenvalues = np.linalg.eigvalsh(jax.hessian(loss)(flat))
    assert found["lambda_max"] == pytest.approx(eigenvalues[-1], rel=1e-3)
    error = found["trace"] - eigenvalues.sum()
    assert abs(error) < 4 * found["trace_standard_error"]
    slope = np.linalg.norm(jax.grad(loss)(flat))
    rho = _measure.RHO
    second_order = rho * slope + rho**2 * eigenvalues[-1] / 2  # at most, up to the third order
    assert rho * slope < found["zeroth_order_flatness"] < 1.01 * second_order
    assert found["zeroth_order_flatness"] <= found["first_order_flatness"]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 2), (1, 0))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_convolution_by_patches_is_xlas(padding, strides):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 9, 8, 3))
    layers = [
        nn.Conv(4, (3, 2), strides, padding, conv_general_dilated=convolve)
        for convolve in (None, _convolution.by_patches)
    ]
    params = layers[0].init(keys[1], x)
    expected, found = (layer.apply(params, x) for layer in layers)
    np.testing.assert_allclose(found, expected, atol=1e-5)
