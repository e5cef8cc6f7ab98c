"""`results.json`: what was asked for, where it ran, and every finished run.

The file is rewritten in one piece after each run, so that a process which is killed at any moment
leaves all that was finished, and `--resume` trains only what is missing.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

import flatreg
from benchmarks.common.cli import UsageError
from benchmarks.common.options import flag

FILE = "results.json"
# A run is one method from one seed, so more of them leave the finished runs valid.
MAY_GROW = ("methods", "seeds")

Results = dict[str, Any]


def environment() -> dict[str, str]:
    """The versions and the device on which the numbers depend."""
    packages = ("jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "flatreg": flatreg.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
    }


def revision() -> str | None:
    """The commit of this code, with a + if the code was changed since; None outside of a clone."""
    here = pathlib.Path(__file__).parents[2]
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed.returncode)


def folder(out: str | None, name: str, resume: bool) -> pathlib.Path:
    """The folder of the results: `out`, or a numbered one in `results/`, the next or the newest."""
    if out is not None:
        return pathlib.Path(out)
    paths = [pathlib.Path("results", name)]
    while (paths[-1] / FILE).exists():
        paths.append(pathlib.Path("results", f"{name}-{len(paths) + 1}"))
    return paths[-2] if resume and len(paths) > 1 else paths[-1]


def start(path: pathlib.Path, fresh: Results, resume: bool) -> Results:
    """Returns the results to add runs to: the fresh ones, or those in the folder `path`.

    Raises:
      UsageError: if the folder has results and `resume` is not given, or they do not match.
    """
    file = path / FILE
    if not file.exists():
        save(path, fresh)
        return fresh
    if not resume:
        raise UsageError(
            f"{file} exists. Add --resume to go on with it, or name another folder with --out."
        )
    asked = fresh["configuration"]
    try:
        kept = json.loads(file.read_text())
        differing = [
            f"{_name(section, key)} was {kept[section].get(key)!r} and is now {value!r}"
            for section in ("configuration", "dataset", "measurement", "environment")
            for key, value in fresh[section].items()
            if key not in MAY_GROW and kept[section].get(key) != value
        ]
        methods = list(dict.fromkeys([*kept["configuration"]["methods"], *asked["methods"]]))
        seeds = max(kept["configuration"]["seeds"], asked["seeds"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} is no results file of this command ({type(error).__name__}: {error}). Name "
            "another folder with --out."
        ) from error
    if differing:
        raise UsageError(
            f"Cannot resume {file}: {'; '.join(differing)}. Give the settings it was started with "
            f"({kept.get('command')}), or name another folder with --out."
        )
    grown = asked | {"methods": methods, "seeds": seeds}
    earlier = [*kept.get("earlier_commands", []), kept["command"]]
    commands = [one for one in dict.fromkeys(earlier) if one != fresh["command"]]
    return fresh | {"earlier_commands": commands, "configuration": grown, "runs": kept["runs"]}


def configuration(path: pathlib.Path) -> dict[str, Any]:
    """The configuration of the results in the folder `path`."""
    try:
        found: dict[str, Any] = json.loads((path / FILE).read_text())["configuration"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path / FILE} cannot be read ({error}). Name a folder that python -m "
            "benchmarks.compare --save-models --out FOLDER has written."
        ) from error
    return found


def save(path: pathlib.Path, results: Results, file: str = FILE) -> None:
    """Writes the results in one piece; numbers that are not finite become null."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        part = path / f"{file}.part"
        text = json.dumps(_finite(results), indent=1, allow_nan=False)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path / file)
    except OSError as error:
        raise UsageError(
            f"Cannot write results to {path} ({error}). Name a folder for them with --out."
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _name(section: str, key: str) -> str:
    return flag(key) if section == "configuration" else f"the {section}'s {key}"
