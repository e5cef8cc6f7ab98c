"""The usage errors of the compare command: each says what is wrong and what to write instead."""

import importlib.util

import numpy as np
import pytest

from benchmarks.common import results
from benchmarks.compare.__main__ import main
from tests.support.commands import usage_error


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
def test_an_invalid_file_is_described(expected, arrays, tmp_path, capsys):
    BROKEN[expected](arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    assert expected in usage_error(main, [f"--data={tmp_path}/data.npz"], capsys)


USAGE_ERRORS = {
    "--methods=sgd,sma": "Unknown method 'sma'",
    "--methods=sam:r=0.1": "'r=0.1' is not a valid setting of sam",
    "--methods=sam:rho=big": "'big' is not a finite number",
    "--methods=sam:rho=-1": "rho",
    "--methods=sgd,sgd": "twice",
    "--methods=sam:every=0": "every must be a whole number of at least 1",
    "--methods=sam:after=0.5": "after must be a whole number of at least 0",
    "--methods=sam:ascent_fraction=2": "ascent_fraction",
    "--methods=gam:ascent_fraction=0.1": "Only sam and asam do, if used alone",
    "--methods=sam:every=5:ascent_fraction=0.1": "Only sam and asam do, if used alone",
    "--methods=sam+gam:ascent_fraction=0.1": "Only sam and asam do, if used alone",
    "--methods=sam:rho=0.1+gam:ascent_fraction=0.1": "Only sam and asam do, if used alone",
    "--methods=sma:ascent_fraction=0.1": "Unknown method 'sma'",
    "--methods=sam:ascent_fraction=0.1:every=5": "ascent_fraction must come last",
    "--methods=sgd:ascent_fraction=0.1": "sgd is the plain gradient of the whole batch",
    "--methods=sgd:rho=0.1": "sgd is the plain gradient of the whole batch",
    "--methods=sgd --optimizer=adamw": "adamw (the plain gradient)",
    "--epochs=0": "--epochs 0",
    "--seeds=0": "--seeds 0",
    "--seeds=two": "--seeds",
    "--label-noise=1": "--label-noise 1.0",
    "--label-noise=-0.1": "--label-noise -0.1",
    "--learning-rate=nan": "--learning-rate nan",
    "--train-size=100000": "--train-size 1437",
    "--train-size=3": "--train-size of 10",
    "--batch-size=2000": "--batch-size 1437",
    "--data=imagenet": "Unknown data set",
    "--data=nowhere.npz": "No file at nowhere.npz",
    "--data=mnist --data-dir=nowhere": "nowhere/mnist.npz",
    "--data=cifar10 --data-dir=nowhere": "nowhere/cifar10/train_*.npz",
    "--out=/dev/null/results": "/dev/null/results",
    "--model=vgg": "Choose one of mlp, cnn, resnet18, vit",
    "--model=mlp:depth=3": "'depth=3' is not a valid setting of mlp",
    "--model=cnn:dropout=2": "dropout is in [0, 1)",
    "--model=mlp:width=0": "whole numbers of at least 1",
    "--model=vit:width=48:heads=5": "a multiple of heads",
    "--warmup-epochs=50": "less than the 40 epochs",
    "--flatness=always": "--flatness",
    "--dtype=float16": "--dtype",
    "--speed=fast": "--help",
}


@pytest.mark.parametrize("arguments", USAGE_ERRORS)
def test_a_usage_error_says_what_to_write(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the default folder of results, without data
    assert USAGE_ERRORS[arguments] in usage_error(main, arguments.split(), capsys)


@pytest.mark.parametrize("option", ["--model=cnn", "--model=resnet18", "--model=vit", "--augment"])
def test_options_for_images_refuse_tables(option, arrays, tmp_path, capsys):
    arrays |= {name: arrays[name].reshape(20, -1) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "data.npz", **arrays)
    options = [f"--data={tmp_path}/data.npz", "--batch-size=10", option]
    needed = f"{option.replace('=', ' ')} needs images"
    assert needed in usage_error(main, options, capsys)


@pytest.mark.parametrize("model", ["resnet18", "vit"])
def test_too_small_images_are_refused(model, arrays, tmp_path, capsys):
    np.savez(tmp_path / "data.npz", **arrays)
    options = [f"--data={tmp_path}/data.npz", "--batch-size=10", f"--model={model}"]
    assert "4×4. Give --model cnn" in usage_error(main, options, capsys)


def test_augmentation_names_the_missing_package(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install dm-pix" in usage_error(main, ["--augment"], capsys)


def test_damaged_results_are_not_resumed(tmp_path, capsys):
    (tmp_path / results.MANIFEST).write_text('{"configuration": [')
    message = usage_error(main, [f"--out={tmp_path}", "--resume"], capsys)
    assert "does not hold results of this command" in message
