"""What the compare command says to a mistake: one paragraph, with what to write instead."""

import importlib.util

import numpy as np
import pytest

from benchmarks.compare.__main__ import main


def assert_usage_error(arguments, expected, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert message.count("\n") == 1, "one paragraph"


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
        (["--methods=sam:every=0"], "every must be a whole number from 1"),
        (["--methods=sam:after=0.5"], "after must be a whole number from 0"),
        (["--methods=sam:ascent_fraction=2"], "ascent_fraction"),
        (["--methods=gam:ascent_fraction=0.1"], "sam and asam can, alone"),
        (
            ["--methods=sam:every=5:ascent_fraction=0.1"],
            "sam and asam can, alone",
        ),
        (["--methods=sam+gam:ascent_fraction=0.1"], "sam and asam can, alone"),
        (
            ["--methods=sam:rho=0.1+gam:ascent_fraction=0.1"],
            "sam and asam can, alone",
        ),
        (["--methods=sma:ascent_fraction=0.1"], "Unknown method 'sma'"),
        (["--methods=sam:ascent_fraction=0.1:every=5"], "ascent_fraction stands last"),
        (["--methods=sgd:ascent_fraction=0.1"], "sgd is the plain gradient of the whole batch"),
        (["--methods=sgd:rho=0.1"], "sgd is the plain gradient of the whole batch"),
        (["--methods=sgd", "--optimizer=adamw"], "adamw (the plain gradient)"),
        (["--epochs=0"], "--epochs 0"),
        (["--seeds=0"], "--seeds 0"),
        (["--seeds=two"], "--seeds"),
        (["--label-noise=1"], "--label-noise 1.0"),
        (["--label-noise=-0.1"], "--label-noise -0.1"),
        (["--learning-rate=nan"], "--learning-rate nan"),
        (["--train-size=100000"], "--train-size 1437"),
        (["--train-size=3"], "--train-size of 10"),
        (["--batch-size=2000"], "--batch-size 1437"),
        (["--data=imagenet"], "Unknown data set"),
        (["--data=nowhere.npz"], "No file at nowhere.npz"),
        (["--data=mnist", "--data-dir=nowhere"], "nowhere/mnist.npz"),
        (["--data=cifar10", "--data-dir=nowhere"], "nowhere/cifar10/train_*.npz"),
        (["--out=/dev/null/results"], "/dev/null/results"),
        (["--model=vgg"], "take one of mlp, cnn, resnet18, vit"),
        (["--model=mlp:depth=3"], "mlp cannot take 'depth=3'"),
        (["--model=cnn:dropout=2"], "dropout in [0, 1)"),
        (["--model=mlp:width=0"], "whole numbers from 1"),
        (["--model=vit:width=48:heads=5"], "a multiple of the heads"),
        (["--warmup-epochs=50"], "less than the 40 epochs"),
        (["--flatness=always"], "--flatness"),
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


def test_a_damaged_results_file_is_not_resumed(tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"runs": [')
    assert_usage_error([f"--out={tmp_path}", "--resume"], "no results file", capsys)
