"""Compiles and times the functions of each pair in turns."""

import time
from typing import Any

import jax
import optax
from rich.console import Console

from benchmarks.common.table import Table
from benchmarks.step_cost.alternatives.pairs import Pair, Sizes, pairs

HEADINGS = ("computation", "by", "compilation,\nCPU s", "memory,\nMB", "CPU time,\nms", "error")


def compare(sizes: Sizes) -> None:
    """Prints what compiling and running each function takes, and its error."""
    console = Console()
    with console.status("compiling"):
        rows = [row for pair in pairs(sizes) for row in _rows(pair, sizes.rounds)]
    Table(
        f"flatreg and its alternatives, with JAX {jax.__version__} and Optax {optax.__version__}",
        HEADINGS,
        rows,
        "Memory: temporary memory of the compiled program, as XLA reports it. CPU time: the "
        "shortest of all runs. Error: for gradients, products and variances relative to the "
        "largest entry; for eigenvectors the largest entry of TV − VΛ or VᵀV − 1.",
        align="llrrrr",
    ).print(console)


def _rows(pair: Pair, rounds: int) -> list[list[str]]:
    compiled: dict[str, Any] = {}
    compilation, seconds = {}, {name: float("inf") for name in pair.ways}
    for name, function in pair.ways.items():
        begin = time.process_time()
        compiled[name] = jax.jit(function).lower(*pair.args).compile()
        compilation[name] = time.process_time() - begin
    outputs = {name: jax.block_until_ready(run(*pair.args)) for name, run in compiled.items()}
    for _ in range(rounds):
        for name, run in compiled.items():
            begin = time.process_time()  # which other work on the machine changes little
            jax.block_until_ready(run(*pair.args))
            seconds[name] = min(seconds[name], time.process_time() - begin)
    return [
        [
            pair.name,
            name,
            f"{compilation[name]:.2f}",
            f"{run.memory_analysis().temp_size_in_bytes / 1e6:.3g}",
            f"{1e3 * seconds[name]:.3g}",
            f"{pair.error(outputs[name]):.1e}",
        ]
        for name, run in compiled.items()
    ]
