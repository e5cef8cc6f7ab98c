"""The format of recorded results: a manifest, one row per run, and curves.

A command writes its results to a folder of up to three files:

    manifest.json   the commands, a hash of the code, the versions, the configuration
    runs.csv        one row per run: the method, the seed and all single numbers of the run
    curves.npz      what is recorded several times per run, such as the loss after each epoch

In Python, the results are one dictionary, which `save` writes and `read` returns:

    {
        "command": "python -m benchmarks.compare --seeds 2",
        "configuration": {"seeds": 2, ...},
        "runs": [
            {
                "method": "sam",
                "seed": 0,
                "measured": {"test_accuracy": 0.9, "certified": [0.8, 0.7]},
                "curve": [{"step": 28, "train_loss": 1.5}, ...],
            },
            ...
        ],
    }

The runs go to runs.csv and curves.npz; everything else goes to manifest.json as it is.

- `runs.csv`: A column is named by the path of its value: `measured.test_accuracy`. A list of at
  most 8 numbers has one column per number: `measured.certified[0]`. An empty cell is None. Numbers
  are written exactly, and can be `nan`, `inf` or `-inf`. `columns` in the manifest has the type of
  each column: text, bool or number. A number without a point or an exponent is an int.
- `curves.npz`: Each other list is a table with one array per column. `curve.run` is the number of
  the run, as in the first column of runs.csv, and `curve.train_loss` a value of that run. The rows
  of a run are in the order of the list. A list of plain numbers has the column `value`. If the
  entries of a list contain a dictionary, for example the curvature after some of the epochs, then
  this is a table too: `curve.curvature.trace` is a value of the run `curve.curvature.run`, and
  `curve.curvature.entry` is the position in the list of that run, counted from 0.

The folder is written again after each run, every file in one step and runs.csv last. If the process
is killed at any moment, all finished runs are there, and `--resume` trains only the missing ones.
"""

import csv
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import flatreg
from benchmarks.common.cli import UsageError, flag

ROOT = pathlib.Path(__file__).parents[2]
MANIFEST, RUNS, CURVES = FILES = ("manifest.json", "runs.csv", "curves.npz")
# Options that may differ when a command resumes: they add runs, and the finished ones stay valid.
MAY_GROW = ("methods", "seeds", "networks", "devices", "layouts")
SHORT = 8  # the length of the longest list of numbers that goes to runs.csv
INDEX, VALUE = ("run", "entry"), "value"  # columns of the tables in curves.npz
TYPES = {bool: "bool", str: "text", int: "number", float: "number"}  # of the columns of runs.csv
DERIVED = ("columns", "revisions")  # entries of the manifest that are computed from the runs

Results = dict[str, Any]
Tables = dict[str, dict[str, list[Any]]]  # table: column: values


def environment() -> dict[str, str]:
    """Returns the versions and the device, on which the numbers depend."""
    packages = ("jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "flatreg": flatreg.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
    }


def machine() -> str:
    """Returns a name of this machine, which says whether times can be compared."""
    found = environment()
    name = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
    return f"{found['platform']}, {found['device']}, {name}"


def training_code(patterns: Iterable[str]) -> str:
    """Returns a hash of the source code that decides the numbers of a run.

    It is the same on every machine and for every version of Python. Runs with the same hash can be
    put into one folder.

    Args:
      patterns: glob patterns of the files, relative to the root of the repository.

    Raises:
      ValueError: if a pattern matches no file, for example after a folder was renamed.
    """
    found, paths = hashlib.sha256(), set()
    for one in patterns:
        matching = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(one)}
        if not matching:
            raise ValueError(f"The pattern {one!r} of the training code matches no file in {ROOT}.")
        paths |= matching
    for path in sorted(paths):
        source = (ROOT / path).read_bytes().replace(b"\r\n", b"\n")
        found.update(path.encode() + b"\0" + source + b"\0")
    return found.hexdigest()[:16]


def revision() -> str | None:
    """Returns the commit of this code, with a `+` if the code has changed since then.

    The result is None if the code is not in a clone of the repository.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed.returncode)


def folder(out: str | None, name: str, resume: bool) -> pathlib.Path:
    """Returns the folder for the results of a command.

    Args:
      out: the folder that the user asked for, which is returned as it is.
      name: if `out` is None, the folder is `results/name`, or `results/name-2`, `results/name-3`, …
        if there are results in it.
      resume: if `out` is None, return the newest of these folders that has results, if any.
    """
    if out is not None:
        return pathlib.Path(out)
    paths = [pathlib.Path("results", name)]
    while exist(paths[-1]):
        paths.append(pathlib.Path("results", f"{name}-{len(paths) + 1}"))
    return paths[-2] if resume and len(paths) > 1 else paths[-1]


def name_of(data: str, model: str) -> str:
    """Returns the name of a folder for results of a data set and a network."""
    return f"{pathlib.Path(data).stem}-{model.replace(':', '-')}"


def exist(path: pathlib.Path) -> bool:
    """Returns whether the folder `path` has results."""
    return (path / MANIFEST).exists()


def fresh(command: str, configuration: Mapping[str, Any], **more: Any) -> Results:
    """Returns the results of a command before its first run.

    Args:
      command: the command line that is recorded.
      configuration: the options of the command.
      **more: what else the command records, or what replaces an entry.
    """
    return {
        "command": command,
        "revision": revision(),
        "configuration": dict(configuration),
        "environment": environment(),
        **more,
        "runs": [],
    }


def start(path: pathlib.Path, fresh: Results, resume: bool) -> Results:
    """Returns the results to add runs to, and writes them if they are new.

    Args:
      path: the folder for the results.
      fresh: the results of a command that has not made any runs.
      resume: whether to continue the results in the folder, if there are any.

    Returns:
      The fresh results, with the runs that are in the folder. The configuration has the methods,
      networks, devices and layouts of both, and the larger number of seeds. Runs of other machines
      and versions may be among them; `earlier_environments` in the results names these.

    Raises:
      UsageError: if the folder has results and `resume` is False, or if they were made with another
        configuration, data set, measurement or training code.
    """
    if not exist(path):
        save(path, fresh)
        return fresh
    if not resume:
        raise UsageError(
            f"{path} already has results. Add --resume to continue them, or name another folder "
            "with --out."
        )
    asked = fresh["configuration"]
    try:
        kept = read(path)
        differing = [
            f"{_name(section, key)} was {kept[section].get(key)!r} and is now {value!r}"
            for section in ("configuration", "dataset", "measurement")
            for key, value in fresh[section].items()
            if key not in MAY_GROW and kept[section].get(key) != value
        ]
        if kept.get("code") != fresh.get("code"):
            differing.append(
                f"the training code had the hash {kept.get('code')} and now has {fresh.get('code')}"
            )
        grown = {
            name: _grown(name, kept["configuration"][name], asked[name])
            for name in MAY_GROW
            if name in asked
        }
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path} does not hold results of this command ({type(error).__name__}: {error}). "
            "Name another folder with --out."
        ) from error
    if differing:
        raise UsageError(
            f"Cannot resume {path}: {'; '.join(differing)}. Use the settings of the command "
            f"that made it ({kept.get('command')}), or name another folder with --out."
        )
    earlier = [*kept.get("earlier_commands", []), kept["command"]]
    commands = [one for one in dict.fromkeys(earlier) if one != fresh["command"]]
    others: list[dict[str, str]] = []
    for one in (*kept.get("earlier_environments", []), kept["environment"]):
        if one != fresh["environment"] and one not in others:
            others.append(one)
    return fresh | {
        "earlier_commands": commands,
        **({"earlier_environments": others} if others else {}),
        "configuration": asked | grown,
        "runs": kept["runs"],
    }


def _grown(name: str, kept: Any, asked: Any) -> Any:
    """Returns an option that may grow, with the values of both commands."""
    if isinstance(asked, dict):
        for key in kept.keys() & asked.keys():
            if kept[key] != asked[key]:
                raise UsageError(
                    f"Cannot resume: {key} in {flag(name)} was {kept[key]!r} and is now "
                    f"{asked[key]!r}. Use another name, or another folder with --out."
                )
        return kept | asked
    if isinstance(asked, int):
        return max(kept, asked)
    return list(dict.fromkeys([*kept, *asked]))


def configuration(path: pathlib.Path) -> dict[str, Any]:
    """Returns the configuration of the results in the folder `path`.

    Raises:
      UsageError: if the results cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads((path / MANIFEST).read_text())["configuration"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"Cannot read the results in {path} ({error}). Name a folder that was written by "
            "python -m benchmarks.compare --save-models --out FOLDER."
        ) from error
    return found


def save(
    path: pathlib.Path, results: Results, keep: Callable[[str], bool] = lambda name: True
) -> None:
    """Writes results to the folder `path`.

    Args:
      path: the folder, which is created if needed.
      results: the results, as described at the top of this module. A `summary` of the runs is not
        written, because the command computes it from the runs.
      keep: which columns of curves.npz to write, for example
        `lambda name: name.startswith("curve.curvature.")`; all by default. Where a column is
        dropped, the entries that `read` returns lack it.

    Raises:
      UsageError: if the folder cannot be written to.
    """
    rows, tables = _split(results.get("runs", []))
    columns = _columns(rows)
    manifest = {key: value for key, value in results.items() if key not in ("runs", "summary")}
    if rows:
        made_at = dict.fromkeys(row["revision"] for row in rows if row.get("revision"))
        manifest |= ({"revisions": list(made_at)} if made_at else {}) | {"columns": columns}
    arrays = _arrays(tables, keep)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
            _replace(path / CURVES, buffer.getvalue())
        else:
            (path / CURVES).unlink(missing_ok=True)
        write_json(path / MANIFEST, manifest)
        if rows:
            _replace(path / RUNS, _csv(rows, columns).encode())
    except OSError as error:
        raise UsageError(
            f"Cannot write results to {path} ({error}). Name a folder for them with --out."
        ) from error


def read(path: pathlib.Path) -> Results:
    """Returns the results in the folder `path`, as they were passed to `save`.

    These are the only differences:

    - An entry that some of the runs have is None in the others. An empty list is missing.
    - A number in the manifest that is not finite is None.
    - If a column of curves.npz has both ints and floats, all of them are floats.

    Raises:
      OSError: if the folder does not contain results.
    """
    results: Results = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    columns, _ = (results.pop(name, {}) for name in DERIVED)
    runs: dict[int, dict[str, Any]] = {}
    if (path / RUNS).exists():
        with (path / RUNS).open(encoding="utf-8", newline="") as file:
            runs = {int(row["run"]): _nested(row, columns) for row in csv.DictReader(file)}
    if (path / CURVES).exists():
        with np.load(path / CURVES) as arrays:
            _add_lists(runs, {name: arrays[name].tolist() for name in arrays.files})
    return results | {"runs": list(runs.values())}


def write_json(file: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one piece; numbers that are not finite become null."""
    text = json.dumps(_finite(value), indent=1, allow_nan=False, ensure_ascii=False)
    _replace(file, f"{text}\n".encode())


def _replace(file: pathlib.Path, data: bytes) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(data)
    os.replace(part, file)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _name(section: str, key: str) -> str:
    return flag(key) if section == "configuration" else f"the {section}'s {key}"


# Writing: from nested runs to the rows of runs.csv and the tables of curves.npz.


def _split(runs: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Tables]:
    """Returns the values of each run by their paths, and the tables of all runs."""
    rows: list[dict[str, Any]] = []
    tables: Tables = {}
    for number, run in enumerate(runs):
        row: dict[str, Any] = {}
        for name, value in _leaves(run):
            if not isinstance(value, list):
                row[name] = value
            elif len(value) <= SHORT and not any(isinstance(one, dict) for one in value):
                row |= {f"{name}[{i}]": _number(one) for i, one in enumerate(value)}
            else:
                _add_rows(tables, name, number, value)
        rows.append(row)
    return rows, tables


def _leaves(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of each leaf of a nested dictionary; arrays as lists."""
    for key, item in value.items():
        if re.search(r"[.\[\]]", key):
            raise ValueError(f"{key!r} cannot be a name in a run, because of its . or [ or ].")
        if isinstance(item, dict):
            yield from _leaves(item, f"{path}{key}.")
        elif isinstance(item, np.ndarray | np.generic):
            yield path + key, item.tolist()
        else:
            yield path + key, list(item) if isinstance(item, tuple) else item


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _add_rows(tables: Tables, name: str, number: int, entries: list[Any]) -> None:
    """Adds the list `name` of the run with this number to its tables."""
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            _add_row(tables, name, {"run": number, VALUE: entry})
            continue
        groups: dict[str, dict[str, Any]] = {name: {"run": number}}
        for path, value in _leaves(entry):
            group, _, key = f"{name}.{path}".rpartition(".")
            if key in (*INDEX, VALUE):
                raise ValueError(f"{key!r} cannot be a name in the entries of {name}.")
            groups.setdefault(group, {"run": number, "entry": position})[key] = value
        for group, row in groups.items():
            _add_row(tables, group, row)


def _add_row(tables: Tables, name: str, row: dict[str, Any]) -> None:
    table = tables.setdefault(name, {key: [] for key in row})
    for dropped in [key for key in table if key not in row]:
        del table[dropped]  # `save` did not keep it before
    for key in table:
        table[key].append(row[key])


def _arrays(tables: Tables, keep: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Returns the columns to keep, with the index of their tables and of the lists around them."""
    data = [
        f"{table}.{name}"
        for table, columns in tables.items()
        for name in columns
        if name not in INDEX and keep(f"{table}.{name}")
    ]
    return {
        f"{table}.{name}": _array(values)
        for table, columns in tables.items()
        if any(path.startswith(f"{table}.") for path in data)
        for name, values in columns.items()
        if name in INDEX or f"{table}.{name}" in data
    }


def _array(values: Sequence[Any]) -> np.ndarray:
    """Returns numbers as an array of the smallest type of ints, or of floats, that is exact."""
    array = np.array([_number(value) for value in values])
    if array.ndim != 1 or array.dtype.kind not in "if":
        raise TypeError(f"A list in a run must hold numbers or dictionaries of numbers: {values}")
    if array.dtype.kind == "i":
        return array.astype(np.result_type(*map(np.min_scalar_type, (array.min(), array.max()))))
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    return single if np.array_equal(single, array, equal_nan=True) else array


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns the type of each column of runs.csv.

    If a value is None in some runs and a dictionary or list in others, only the latter has columns.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    groups = {parent for name in names for parent in _parents(name)}
    return {
        name: _type(name, [row[name] for row in rows if row.get(name) is not None])
        for name in names
        if name not in groups
    }


def _parents(name: str) -> list[str]:
    """Returns the dictionaries and lists that contain a path: `a` and `a.b` for `a.b[0]`."""
    return [name[: match.start()] for match in re.finditer(r"[.\[]", name)]


def _type(name: str, values: Sequence[Any]) -> str:
    found = {TYPES.get(type(value), type(value).__name__) for value in values}
    if not found:
        return "text"
    if len(found) > 1 or not found <= set(TYPES.values()):
        raise TypeError(f"The column {name} must have values of one type: {sorted(found)}.")
    return found.pop()


def _csv(rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *columns])
    for number, row in enumerate(rows):
        writer.writerow([number, *(row.get(name) for name in columns)])  # floats by their repr
    return text.getvalue()


# Reading: from rows and tables back to nested runs.


def _nested(row: dict[str, str], columns: dict[str, str]) -> dict[str, Any]:
    """Returns the run in a row. A dictionary or list is None if all of its cells are empty."""
    values = {
        name: _value(cell, columns.get(name, "text")) for name, cell in row.items() if name != "run"
    }
    filled = {
        parent for name, value in values.items() if value is not None for parent in _parents(name)
    }
    run: dict[str, Any] = {}
    for name, value in values.items():
        empty = next((parent for parent in _parents(name) if parent not in filled), None)
        path, _, index = (empty or name).partition("[")
        group, key = _group(run, path)
        if not index:
            group[key] = value
        elif value is not None:  # None: the list of this run is shorter than that of another run
            group.setdefault(key, []).append(value)
    return run


def _value(cell: str, type_: str) -> Any:
    if not cell:
        return None
    if type_ == "text":
        return cell
    if type_ == "bool":
        return cell == "True"
    return int(cell) if re.fullmatch(r"-?\d+", cell) else float(cell)


def _group(run: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Returns the dictionary inside a run that contains the last key of a path, and that key."""
    *parents, key = path.split(".")
    for parent in parents:
        run = run.setdefault(parent, {})
    return run, key


def _add_lists(runs: dict[int, dict[str, Any]], arrays: dict[str, list[Any]]) -> None:
    """Adds the tables of curves.npz to the runs."""
    tables: Tables = {}
    for path, values in arrays.items():
        table, _, name = path.rpartition(".")
        tables.setdefault(table, {})[name] = values
    inner = {name: columns.pop("entry", None) for name, columns in tables.items()}
    for name in sorted(tables, key=lambda name: inner[name] is not None):
        columns, positions = tables[name], inner[name]
        for i, number in enumerate(columns.pop("run")):
            if number not in runs:  # the process was killed before it wrote runs.csv
                continue
            entry = {key: values[i] for key, values in columns.items()}
            if positions is None:
                group, key = _group(runs[number], name)
                group.setdefault(key, []).append(entry.get(VALUE, entry))
            else:
                _add_inside(runs[number], name, positions[i], entry, inner)


def _add_inside(
    run: dict[str, Any], name: str, position: int, entry: dict[str, Any], inner: dict[str, Any]
) -> None:
    """Adds a dictionary to the entry of a list that contains it."""
    lists = [one for one in inner if inner[one] is None and name.startswith(f"{one}.")]
    outer = max(lists, key=len)
    holder, key = _group(run, outer)
    group, key = _group(holder[key][position], name.removeprefix(f"{outer}."))
    group.setdefault(key, {}).update(entry)
