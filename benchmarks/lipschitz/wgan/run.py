"""Trains the GANs of all critics in turns, prints the table and writes the results."""

import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console

from benchmarks.common import progress, results
from benchmarks.lipschitz.options import LipschitzOptions
from benchmarks.lipschitz.wgan import plots
from benchmarks.lipschitz.wgan.table import table
from benchmarks.lipschitz.wgan.training import (
    CRITICS,
    CompiledGan,
    GanState,
    compiled,
    distances,
    fake,
    measure,
    real,
)

WIDTH = 120  # of the table where the output does not go to a terminal
RECORDS = 25  # measurements in the course of a training run
DRAWN = 500  # points of the figure


def run(options: LipschitzOptions, folder: pathlib.Path, *, command: str = "") -> results.Results:
    """Trains a GAN with each critic, part by part in turns, and reports.

    Args:
      options: the number of steps and seeds.
      folder: where the results go. Nothing in it is deleted.
      command: the command line that is recorded.

    Returns:
      The results as they are written to the folder, with one run per critic, seed and part.
    """
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    record = results.fresh(command, options._asdict())
    results.start(folder, record, resume=False)
    with console.status("Compiling"):
        programs = {name: compiled(kind) for name, kind in CRITICS.items()}
    parts = min(RECORDS, options.steps)
    samples: dict[str, np.ndarray] = {}
    with progress.reporting(console, options.seeds, options.seeds * parts) as reporter:
        for seed in range(options.seeds):
            key = jax.random.key(seed)
            states = {name: program.init(key) for name, program in programs.items()}
            for part in range(parts):
                record["runs"] += _part(programs, states, seed, part, parts, options.steps)
                reporter.working(f"{len(CRITICS)} critics", 1)
            if seed == 0:
                samples = {
                    name: np.asarray(fake(states[name].generator, key, DRAWN)) for name in CRITICS
                }
            results.save(folder, record)
            reporter.finished(f"seed {seed}, {len(CRITICS)} critics")
    report = table(record["runs"], parts, options.steps, options.seeds)
    report.write(folder, command)
    plot = plots.draw(folder, record["runs"], samples, np.asarray(real(key, DRAWN)), options.steps)
    report.print(console)
    written = ", ".join([results.MANIFEST, results.RUNS, "table.md", plot])
    console.print(f"Written to {folder}: {written}", soft_wrap=True, highlight=False)
    return record


def _part(
    programs: dict[str, CompiledGan],
    states: dict[str, GanState],
    seed: int,
    part: int,
    parts: int,
    steps: int,
) -> list[dict[str, Any]]:
    """Trains every critic for one part of the steps and measures it; updates the states."""
    key = jax.random.fold_in(jax.random.key(seed), part + 1)
    count = np.diff(np.linspace(0, steps, parts + 1).astype(int))[part]
    keys = list(jax.random.split(key, count))
    runs = []
    for name in np.random.default_rng([seed, part]).permutation(list(CRITICS)).tolist():
        begin = time.perf_counter()
        for one in keys:
            states[name] = programs[name].step(states[name], one)
        jax.block_until_ready(states[name])
        seconds = (time.perf_counter() - begin) / len(keys)
        found = measure(programs[name].critic(states[name]), states[name].generator, key)
        runs.append(
            {"critic": name, "seed": seed, "part": part, "seconds_per_step": seconds}
            | distances(jax.device_get(found))
        )
    return runs
