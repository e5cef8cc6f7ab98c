"""The folder of results: what is written comes back, exactly and at any moment."""

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.common import results
from benchmarks.common.cli import UsageError
from benchmarks.compare.run import TRAINING_CODE

CURVATURE = {"loss": 0.1, "trace": 7.0}


def run(method="sgd", seed=0, epochs=3, **changed):
    curve = [{"step": 28 * (i + 1), "train_loss": 1 / (i + 3)} for i in range(epochs)]
    curve[-1]["curvature"] = CURVATURE
    measured = {"test_accuracy": 0.1 + 0.2, "weights": 26122, "trace": math.nan}
    record = {"method": method, "seed": seed, "diverged": False, "curve": curve}
    return record | {"measured": measured, "revision": "123456789012"} | changed


def record(runs=(), **changed):
    return {
        "command": "python -m benchmarks.compare",
        "configuration": {"methods": ["sgd", "sam"], "seeds": 2, "rate": 0.1},
        "dataset": {"classes": 10},
        "measurement": {"rho": 0.05},
        "code": "cafe",
        "environment": {"jax": "0.10"},
        "runs": list(runs),
    } | changed


def round_trip(path, runs):
    results.save(path, record(runs))
    return results.read(path)["runs"]


def test_results_are_read_as_they_were_saved(tmp_path):
    saved = record([run(), run("sam:rho=0.1", 1)], answer="yes", lists=[{"a": [1, 2.5, None]}])
    results.save(tmp_path, saved)
    np.testing.assert_equal(results.read(tmp_path), saved)


def test_floats_ints_and_texts_keep_type_and_value(tmp_path):
    values = {
        "tenth": 0.1,
        "third": 1 / 3,
        "smallest": 5e-324,
        "whole": 2.0,
        "count": 2,
        "large": 1e300,
        "infinite": math.inf,
        "negative": -math.inf,
        "flag": True,
        "digits": "0012",
        "exponent": "1e5",
        "comma": 'a, "b"\nλ',
        "nothing": None,
    }
    (found,) = round_trip(tmp_path, [values])
    assert found == values
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in values.items()
    }


def test_one_column_can_hold_ints_and_floats(tmp_path):
    found = [one["cost"] for one in round_trip(tmp_path, [{"cost": 2}, {"cost": 2.0}])]
    assert [type(one) for one in found] == [int, float]


def test_numpy_numbers_and_arrays_become_python_values(tmp_path):
    values = {"number": np.float32(0.1), "short": np.array([1.5, 2]), "long": np.arange(20)}
    (found,) = round_trip(tmp_path, [values])
    assert found == {"number": float(np.float32(0.1)), "short": [1.5, 2.0], "long": [*range(20)]}


def test_a_diverged_run_has_no_measurements(tmp_path):
    runs = [run(measured=None, diverged=True, epochs=1), run("sam")]
    np.testing.assert_equal(round_trip(tmp_path, runs), runs)
    np.testing.assert_equal(round_trip(tmp_path, runs[:1]), runs[:1])


def test_curves_can_hold_numbers_that_are_not_finite(tmp_path):
    curve = [{"loss": 1.0}, {"loss": math.inf}, {"loss": math.nan}, {"loss": 1e300}]
    runs = [{"curve": curve, "values": [math.nan, *range(20)]}]
    np.testing.assert_equal(round_trip(tmp_path, runs), runs)


def test_short_and_long_lists_of_numbers(tmp_path):
    radii = {"certified": [0.5, math.nan], "curve": list(np.linspace(1, 0, 61))}
    runs = [{"measured": radii}, {"measured": radii | {"certified": [0.5]}}, {"measured": None}]
    np.testing.assert_equal(round_trip(tmp_path, runs), runs)


def test_an_entry_that_only_some_runs_have_is_none(tmp_path):
    assert round_trip(tmp_path, [{"a": 1}, {"a": 2, "b": {"c": 3}}]) == [
        {"a": 1, "b": None},
        {"a": 2, "b": {"c": 3}},
    ]


def test_pandas_reads_the_rows_and_the_curves(tmp_path):
    results.save(tmp_path, record([run(), run("sam", 1)]))
    table = pd.read_csv(tmp_path / "runs.csv", dtype={"revision": str})
    assert list(table.columns) == [
        "run",
        "method",
        "seed",
        "diverged",
        "measured.test_accuracy",
        "measured.weights",
        "measured.trace",
        "revision",
    ]
    assert list(table["method"]) == ["sgd", "sam"]
    assert table["measured.weights"].dtype == int
    arrays = np.load(tmp_path / "curves.npz")
    names = ("curve.run", "curve.step", "curve.train_loss")
    curves = pd.DataFrame({name: arrays[name] for name in names})
    assert list(curves.groupby("curve.run")["curve.step"].max()) == [84, 84]
    assert list(arrays["curve.curvature.entry"]) == [2, 2]


def test_the_manifest_has_revisions_and_column_types(tmp_path):
    results.save(tmp_path, record([run()]))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["revisions"] == ["123456789012"]
    columns = manifest["columns"]
    assert columns["method"] == columns["revision"] == "text"
    assert columns["diverged"] == "bool"
    assert columns["measured.weights"] == columns["measured.test_accuracy"] == "number"
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["run", *columns]


def test_only_the_chosen_curves_are_kept(tmp_path):
    saved = [run(), run("sam")]
    results.save(tmp_path, record(saved), lambda name: name.startswith("curve.curvature."))
    found, _ = results.read(tmp_path)["runs"]
    assert found["curve"] == [{}, {}, {"curvature": CURVATURE}]
    results.save(tmp_path, record(saved), lambda name: False)
    assert not (tmp_path / "curves.npz").exists()
    found, _ = results.read(tmp_path)["runs"]
    assert "curve" not in found


def test_runs_can_join_those_whose_curves_were_not_kept(tmp_path):
    def keep(name):
        return name == "curve.curvature.trace"

    results.save(tmp_path, record([run()]), keep)
    first = results.read(tmp_path)["runs"]
    results.save(tmp_path, record([*first, run(seed=1)]), keep)
    both = results.read(tmp_path)["runs"]
    assert both[0]["curve"] == first[0]["curve"]
    assert both[1]["curve"] == both[0]["curve"]


def test_the_summary_is_not_written(tmp_path):
    results.save(tmp_path, record([run()], summary=[1]))
    assert "summary" not in results.read(tmp_path)


def test_a_folder_without_runs(tmp_path):
    results.save(tmp_path, record())
    assert results.read(tmp_path) == record()
    assert not (tmp_path / "runs.csv").exists()


@pytest.mark.parametrize("calls", range(4))
def test_a_kill_while_saving_leaves_the_finished_runs(tmp_path, monkeypatch, calls):
    finished = [run(), run("sam")]
    results.save(tmp_path, record(finished))
    replace, made = results.os.replace, []

    def killed(part, file):
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(file)
        replace(part, file)

    monkeypatch.setattr(results.os, "replace", killed)
    new = [*finished, run("gam", epochs=9, extra=1)]
    if calls < 3:
        with pytest.raises(KeyboardInterrupt):
            results.save(tmp_path, record(new))
        expected = finished
    else:
        results.save(tmp_path, record(new))
        expected = [one | {"extra": one.get("extra")} for one in new]
    np.testing.assert_equal(results.read(tmp_path)["runs"], expected)


def test_start_resumes_with_more_methods_and_seeds(tmp_path):
    results.start(tmp_path, record(), resume=False)
    results.save(tmp_path, record([run()]))
    more = {"methods": ["gam", "sgd"], "seeds": 3, "rate": 0.1}
    found = results.start(tmp_path, record(command="again", configuration=more), resume=True)
    assert found["configuration"] == more | {"methods": ["sgd", "sam", "gam"]}
    assert found["earlier_commands"] == ["python -m benchmarks.compare"]
    np.testing.assert_equal(found["runs"], [run()])


def test_start_resumes_on_another_machine(tmp_path):
    """The same code gives runs that belong together; the results name every environment once."""
    results.save(tmp_path, record([run()]))
    for jax in ("0.11", "0.12", "0.12", "0.11"):
        found = results.start(tmp_path, record(environment={"jax": jax}), resume=True)
        results.save(tmp_path, found)
    assert found["environment"] == {"jax": "0.11"}
    assert found["earlier_environments"] == [{"jax": "0.10"}, {"jax": "0.12"}]


def test_the_hash_of_the_code_follows_its_source(tmp_path, monkeypatch):
    """Other files and the ends of lines do not matter; a file that moves does."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    source = tmp_path / "flatreg" / "methods" / "sam.py"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"rho = 0.05\nscale = None\n")
    before = results.training_code(["flatreg/**/*.py"])
    source.write_bytes(b"rho = 0.05\r\nscale = None\r\n")
    (tmp_path / "flatreg" / "notes.txt").write_text("rho")
    assert results.training_code(["flatreg/**/*.py"]) == before
    source.write_bytes(b"rho = 0.06\nscale = None\n")
    assert results.training_code(["flatreg/**/*.py"]) != before
    source.write_bytes(b"rho = 0.05\nscale = None\n")
    source.rename(source.with_name("asam.py"))
    assert results.training_code(["flatreg/**/*.py"]) != before


def test_a_pattern_without_files_is_an_error():
    with pytest.raises(ValueError, match=r"'flatreg/none/\*\.py' .* matches no file"):
        results.training_code(["flatreg/methods/*.py", "flatreg/none/*.py"])


def test_the_training_code_covers_what_decides_a_number():
    found = [path for one in TRAINING_CODE for path in results.ROOT.glob(one)]
    assert {path.relative_to(results.ROOT).as_posix() for path in found} >= {
        "flatreg/methods/_sam.py",
        "flatreg/linen/_steps.py",
        "flatreg/wrappers/_revisit.py",
        "benchmarks/common/training.py",
        "benchmarks/common/measuring.py",
        "benchmarks/common/methods.py",
        "benchmarks/common/data/label_noise.py",
        "benchmarks/common/models/mlp.py",
        "benchmarks/compare/run.py",
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"configuration": {"methods": [], "seeds": 1, "rate": 0.2}}, "--rate was 0.1 and is now"),
        ({"code": "feed"}, "the training code had the hash cafe and now has feed"),
    ],
)
def test_start_does_not_resume_with_other_settings(tmp_path, changed, message):
    results.save(tmp_path, record([run()]))
    with pytest.raises(UsageError, match=message):
        results.start(tmp_path, record(**changed), resume=True)


def test_start_does_not_overwrite_results(tmp_path):
    results.save(tmp_path, record([run()]))
    with pytest.raises(UsageError, match="--resume"):
        results.start(tmp_path, record(), resume=False)
    results.write_json(tmp_path / "manifest.json", {"networks": []})
    with pytest.raises(UsageError, match="does not hold results of this command"):
        results.start(tmp_path, record(), resume=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a.b": 1}, "'a.b' cannot be a name"),
        ({"curve": [{"run": 1}]}, "'run' cannot be a name"),
        ({"curve": [{"x": 1}, {"y": 1}]}, "must all have the same names"),
        ({"curve": [{"x": "text"}]}, "must hold numbers"),
        ({"object": {1, 2}}, "must have values of one type"),
    ],
)
def test_what_the_files_cannot_hold_is_an_error(tmp_path, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        results.save(tmp_path, record([wrong]))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Name a folder for them with --out"):
        results.save(tmp_path / "file", record())
