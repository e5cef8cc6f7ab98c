"""Compiles all programs, writes each result when it is finished, and prints the tables."""

import importlib.metadata
import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console

from benchmarks.common import results
from benchmarks.common.cli import UsageError
from benchmarks.scale import devices, steps, tables
from benchmarks.scale.networks import Sizes

WIDTH = 120  # of the tables where the output does not go to a terminal
CODE = (
    *(f"benchmarks/scale/{name}.py" for name in ("devices", "hlo", "layout", "networks", "steps")),
    *(f"benchmarks/common/models/{name}.py" for name in ("decoder", "resnet")),
    *(f"flatreg/{name}/*.py" for name in ("_core", "_flax", "linen", "methods", "wrappers")),
)


class ScaleOptions(NamedTuple):
    """What to compile: every method for every network, layout and slice of devices.

    Attributes:
      networks: the sizes of the networks by their names.
      devices: names such as `cpu:8` and `v5e:4x4`.
      layouts: `data`, `fsdp` or both.
      methods: methods as `benchmarks.compare` names them, and `revisit`.
    """

    networks: Mapping[str, Sizes]
    devices: Sequence[str]
    layouts: Sequence[str]
    methods: Sequence[str]


def run(
    options: ScaleOptions, folder: pathlib.Path, *, resume: bool = False, command: str = ""
) -> results.Results:
    """Compiles the programs that are not in the results yet.

    Args:
      options: what to compile.
      folder: where the results go. Nothing in it is deleted.
      resume: whether to continue the results in the folder, if there are any. The programs may
        be others than before.
      command: the command line that is recorded.

    Returns:
      The results as they are written to the folder: one run per program.
    """
    for method in options.methods:
        steps.check(method)
    for name in options.devices:
        devices.check(name)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    jax.config.update("jax_platforms", devices.CPU)  # no TPU or GPU is used, if there is one
    devices.start(list(options.devices))
    slices = [devices.chips(name) for name in _compilable(options.devices, console)]
    record = results.start(folder, _fresh(options, command), resume)
    done = {_key(run) for run in record["runs"]}
    for (name, sizes), chips, layout, method in itertools.product(
        options.networks.items(), slices, options.layouts, options.methods
    ):
        case = {"network": name, "devices": chips.name, "layout": layout, "method": method}
        if _key(case) in done:
            continue
        with console.status(", ".join(case.values())):
            record["runs"].append(case | steps.measure(sizes, chips, layout, method))
        results.save(folder, record)
        report(folder, record)
        console.print(f"[dim]{tables.line(record['runs'][-1])}[/dim]", highlight=False)
    for table in tables.tables(record):
        table.print(console)
    console.print(f"Written to {folder}: {results.MANIFEST}, {results.RUNS}, table.md")
    return record


def report(folder: pathlib.Path, record: results.Results) -> None:
    """Writes the tables of finished results to the folder."""
    (folder / "table.md").write_text(tables.markdown(record), encoding="utf-8")


def _compilable(names: Sequence[str], console: Console) -> list[str]:
    """Returns the devices that this machine can compile for, and says which ones it leaves out."""
    if devices.has_tpu_compiler():
        return list(names)
    found = [name for name in names if name.startswith(devices.CPU)]
    left_out = [name for name in names if name not in found]
    text = f"Left out: {', '.join(left_out)}, because libtpu, the TPU's compiler, is not installed."
    if left_out and not found:
        raise UsageError(f"{text} {devices.INSTALL}, or give --devices cpu:8.")
    if left_out:
        console.print(f"{text} {devices.INSTALL}.", highlight=False, markup=False)
    return found


def _fresh(options: ScaleOptions, command: str) -> results.Results:
    """Returns the results before the first program."""
    libtpu = {}
    if devices.has_tpu_compiler():
        libtpu = {"libtpu": importlib.metadata.version("libtpu")}
    return {
        "command": command,
        "revision": results.revision(),
        "code": results.training_code(CODE),
        "configuration": options._asdict() | {"networks": dict(options.networks)},
        "dataset": {},
        "measurement": {},
        "environment": results.environment() | libtpu,
        "runs": [],
    }


def _key(run: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(run[name] for name in ("network", "devices", "layout", "method"))
