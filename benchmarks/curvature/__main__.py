"""Top eigenvalues and trace of one trained network's Hessian: how exact, how fast, how much memory.

    python -m benchmarks.curvature --data fashion_mnist --peers

Trains an MLP for a few epochs and measures the curvature of its loss over the whole test set by
`flatreg.measures`, with `--peers` also by PyHessian and curvlinops on the same weights. The error
of the eigenvalues is the largest |λᵢ − λᵢ*|/λ₁*, λ* by SciPy's ARPACK on products in float64; that
of the trace is its standard error, beside the distance from a long run. All take turns, so that a
busy machine slows down all of them alike. Writes results.json and prints its table.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import data as _data
from benchmarks.common import results as _results
from benchmarks.common import saved_models as _saved_models
from benchmarks.common.cli import Parser, UsageError, exit_code
from benchmarks.common.models import build as _models
from benchmarks.curvature import measuring as _curvature
from benchmarks.curvature import peers as _curvature_peers
from flatreg import measures

PAUSE = 0.3  # seconds between runs, in which one framework's threads stop spinning
QUICK = {"train_size": 300, "examples": 200, "epochs": 5, "repeats": 2, "probes": 8}
FULL = {"train_size": None, "examples": None, "epochs": 2, "repeats": 5, "probes": 64}
LEAST = {"examples": 1, "epochs": 1, "repeats": 1, "probes": 2, "eigenvalues": 1, "batch_size": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after a mistake of usage, or 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: run(_parse(argv), argv))


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Trains, measures in turns, prints and writes."""
    if args.peers:
        _curvature_peers.check_installed()
    console = Console(soft_wrap=True)
    data = _data.load(args.data, args.data_dir, args.train_size, "test")
    x, y = data.x_test[: args.examples], data.y_test[: args.examples]
    threads = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    folder = _results.folder(args.out, f"curvature-{pathlib.Path(args.data).stem}", resume=False)
    record: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.curvature", *command]),
        "revision": _results.revision(),
        "configuration": {k: v for k, v in vars(args).items() if k not in ("out", "data_dir")},
        "dataset": data.description(),
        "environment": _results.environment() | {"threads": threads},
        "runs": [],
    }
    _results.start(folder, record, resume=False)
    model = _models.build("mlp", data)
    with console.status("Training"):
        params = _curvature.trained(model, data, args.data, args.epochs)
    _saved_models.save(folder, "sgd", 0, {"params": params})
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(f"{args.data}: MLP of {size} weights, loss over {len(x)} test examples")

    def loss_of(examples: int) -> measures.LossFn:
        batch_loss = partial(_curvature.loss, model)
        some = x[:examples], y[:examples]
        return measures.dataset_loss(batch_loss, some, batch_size=args.batch_size)

    with jax.default_matmul_precision("highest"):  # GPUs would round a float32 product to TF32
        plan = _curvature.plan(args.eigenvalues, args.probes)
        with console.status("Compiling"):
            ready = {n: _curvature.compiled(m, loss_of(len(x)), params) for n, m in plan.items()}
            top = next(iter(plan.values()))
            sizes = sorted({min(m * args.batch_size, len(x)) for m in (1, 2, 4, len(x))})
            memory = {
                n: _curvature.compiled(top, loss_of(n), params).temporary_bytes for n in sizes
            }
        with console.status("Reference: ARPACK in float64, and a long run for the trace"):
            reference = _curvature.reference(
                loss_of(len(x)), params, args.eigenvalues, 8 * args.probes
            )
        rows: dict[str, Callable[[], dict[str, Any]]] = {n: one.run for n, one in ready.items()}
        if args.peers:
            record["environment"] |= _curvature_peers.versions()
            rows |= _curvature_peers.contestants(
                params, x, y, args.eigenvalues, args.probes, args.batch_size, threads
            )
        runs = _in_turns(rows, args.repeats, console)
    record |= {"reference": reference, "runs": runs, "temporary_bytes_over_examples": memory}
    record["table"] = [_row(n, runs, reference, ready.get(n)) for n in rows]
    _results.save(folder, record)
    _show(record, console)
    title = f"Curvature of an MLP of {size} weights on {len(x)} test examples of {args.data}"
    (folder / "table.md").write_text(_markdown(record, title), encoding="utf-8")
    console.print(f"Written to {folder}: {_results.FILE}, table.md and the network")


def _in_turns(
    rows: dict[str, Callable[[], dict[str, Any]]], repeats: int, console: Console
) -> list[dict[str, Any]]:
    """Every row once, then every row again."""
    runs = []
    for repeat in range(repeats):
        for name, measure in rows.items():
            time.sleep(PAUSE)
            with console.status(f"{name}, run {repeat + 1} of {repeats}"):
                begin = time.perf_counter()
                found = measure()
                seconds = time.perf_counter() - begin
            runs.append({"row": name, "seconds": seconds, **found})
            console.print(f"[dim]{name}: {seconds:.2f} s[/dim]", highlight=False)
    return runs


def _row(
    name: str,
    runs: list[dict[str, Any]],
    reference: dict[str, Any],
    ready: _curvature.Compiled | None,
) -> dict[str, Any]:
    """Medians over the runs; of the eigenvalues' error the worst."""
    own = [one for one in runs if one["row"] == name]
    row: dict[str, Any] = {"row": name, "seconds": float(np.median([o["seconds"] for o in own]))}
    if ready is not None:
        row |= {"compile_seconds": ready.compile_seconds, "temporary_bytes": ready.temporary_bytes}
    if "eigenvalues" in own[0]:
        exact = np.array(reference["eigenvalues"])
        off = np.array([one["eigenvalues"] for one in own]) - exact
        row["eigenvalue_error"] = float(np.abs(off).max() / exact[0])
    if "trace" in own[0]:
        row |= {k: float(np.median([o[k] for o in own])) for k in ("trace", "standard_error")}
    return row


def _lines(record: dict[str, Any]) -> list[list[str]]:
    """The table: a heading, and a line a row."""
    lines = [["", "seconds", "compiling", "temporary MB", "error of λ", "trace"]]
    for row in record["table"]:
        cells = [
            row["row"],
            f"{row['seconds']:.2f}",
            f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "",
            f"{row['temporary_bytes'] / 1e6:.0f}" if "temporary_bytes" in row else "",
            f"{row['eigenvalue_error']:.1g}" if "eigenvalue_error" in row else "",
            f"{row['trace']:.4g} ± {row['standard_error']:.2g}" if "trace" in row else "",
        ]
        lines.append(cells)
    return lines


def _caption(record: dict[str, Any]) -> list[str]:
    exact = record["reference"]
    values = ", ".join(f"{value:.6g}" for value in exact["eigenvalues"])
    memory = record["temporary_bytes_over_examples"].items()
    sizes = ", ".join(f"{size / 1e6:.1f} MB for {n} examples" for n, size in memory)
    return [
        f"Reference: λ = {values}; trace {exact['trace']:.4g} ± {exact['standard_error']:.2g}.",
        f"Temporary memory of the eigenvalues: {sizes}.",
    ]


def _show(record: dict[str, Any], console: Console) -> None:
    heading, *lines = _lines(record)
    table = Table(*heading, box=None)
    for cells in lines:
        table.add_row(*cells)
    console.print(table)
    for line in _caption(record):
        console.print(line, highlight=False)


def _markdown(record: dict[str, Any], title: str) -> str:
    heading, *lines = _lines(record)
    rule = ["---", *["---:"] * (len(heading) - 1)]
    rows = [f"| {' | '.join(cells)} |" for cells in (heading, rule, *lines)]
    return "\n\n".join(
        [f"# {title}", f"    {record['command']}", "\n".join(rows), " ".join(_caption(record)), ""]
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.curvature",
        description=(__doc__ or "").split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--data", default="digits", help="as for benchmarks.compare (digits)")
    parser.add_argument("--data-dir", help="as for benchmarks.compare")
    parser.add_argument("--train-size", type=int, help="examples to train on (all)")
    parser.add_argument("--epochs", type=int, help=f"of training ({FULL['epochs']})")
    parser.add_argument("--examples", type=int, help="of the test set (all)")
    parser.add_argument("--batch-size", type=int, default=1000, help="examples in memory (1000)")
    parser.add_argument("--eigenvalues", type=int, default=5, help="how many (5)")
    parser.add_argument("--probes", type=int, help=f"for the trace ({FULL['probes']})")
    parser.add_argument("--repeats", type=int, help=f"of each run ({FULL['repeats']})")
    parser.add_argument("--peers", action="store_true", help="also PyHessian and curvlinops")
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    parser.add_argument("--out", help="folder for the results (default: a new one)")
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {value} is out of range: at least {least}.")
    return args


if __name__ == "__main__":
    sys.exit(main())
