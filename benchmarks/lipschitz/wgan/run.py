"""Trains the critics of `_lipschitz_wgan.py` in turns and lays out what they saw."""

import pathlib
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console

from benchmarks.common import progress as _progress
from benchmarks.common import results as _results
from benchmarks.common.summary import estimate
from benchmarks.compare import report as _report
from benchmarks.compare.report import Cell, Report
from benchmarks.lipschitz.options import Options
from benchmarks.lipschitz.wgan import plots as _lipschitz_wgan_plots
from benchmarks.lipschitz.wgan.training import (
    CRITIC_STEPS,
    CRITICS,
    MEASURED,
    compiled,
    distances,
    fake,
    measure,
    real,
    wasserstein,
)

RECORDS = 25  # measurements in the course of a training
FLOOR = 10  # pairs of real minibatches


def run(folder: pathlib.Path, record: _results.Results, options: Options, console: Console) -> None:
    """Trains all critics in turns, a part of their steps each, and reports."""
    with console.status("Compiling"):
        programs = {name: compiled(kind) for name, kind in CRITICS.items()}
    record["runs"] = []
    parts = min(RECORDS, options.steps)
    with _progress.reporting(console, options.seeds, options.seeds * parts) as reporter:
        for seed in range(options.seeds):
            key = jax.random.key(seed)
            states = {name: program.init(key) for name, program in programs.items()}
            for part in range(parts):
                of_part = jax.random.fold_in(key, part + 1)
                steps = np.diff(np.linspace(0, options.steps, parts + 1).astype(int))[part]
                keys = list(jax.random.split(of_part, steps))
                for name in np.random.default_rng([seed, part]).permutation(list(CRITICS)).tolist():
                    begin = time.perf_counter()
                    for one in keys:
                        states[name] = programs[name].step(states[name], one)
                    jax.block_until_ready(states[name])
                    seconds = (time.perf_counter() - begin) / len(keys)
                    critic = programs[name].critic(states[name])
                    found = measure(critic, states[name].generator, of_part)
                    record["runs"].append(
                        {"critic": name, "seed": seed, "part": part, "seconds_a_step": seconds}
                        | distances(jax.device_get(found))
                    )
                reporter.working(f"{len(CRITICS)} critics", 1)
            if seed == 0:
                samples = [np.asarray(fake(states[name].generator, key, 500)) for name in CRITICS]
            _results.save(folder, record)
            reporter.finished(f"seed {seed}, {len(CRITICS)} critics")
    report = _table(record["runs"], parts, options)
    (folder / "table.md").write_text(_report.markdown(report, record["command"]), encoding="utf-8")
    plot = _lipschitz_wgan_plots.draw(
        folder,
        record["runs"],
        dict(zip(CRITICS, samples, strict=True)),
        np.asarray(real(key, 500)),
        options,
    )
    _report.show(console, report)
    console.print(f"Written to {folder}: {_results.FILE}, table.md, {plot}", soft_wrap=True)


def _table(runs: list[dict[str, Any]], parts: int, options: Options) -> Report:
    last = parts - max(1, parts // 5)  # single minibatches are noisy

    def cells(name: str) -> list[Cell]:
        own = [run for run in runs if run["critic"] == name]

        def cell(quantity: str) -> Cell:
            late = [
                [r[quantity] for r in own if r["seed"] == s and r["part"] >= last]
                for s in range(options.seeds)
            ]
            mean, error = estimate(np.mean(late, 1))
            return Cell(f"{mean:.3g} ± {error:.2g}" if np.isfinite(error) else f"{mean:.3g}")

        milliseconds = 1e3 * float(np.median([run["seconds_a_step"] for run in own]))
        columns = ("lower", "upper", "exact", "apart", "certified")
        return [Cell(name), Cell(f"{milliseconds:.2f}"), *map(cell, columns)]

    pairs = jax.random.split(jax.random.key(0), (FLOOR, 2))
    floor = np.mean([wasserstein(*(np.asarray(real(k, MEASURED)) for k in two)) for two in pairs])
    headings = [
        "critic",
        "ms a step",
        "Lipschitz\nconstant ≥",
        "\n≤",
        "W₁,\nexact",
        "mean f(x)\n− mean f(x̃)",
        "the same\n/ constant",
    ]
    seeds = f"Mean ± standard error over {options.seeds} seeds" if options.seeds > 1 else "One seed"
    caption = (
        f"{seeds}, of the last fifth of the measurements "
        f"along {options.steps} steps; a step is {CRITIC_STEPS} of the critic and one of the "
        f"generator, its time the median of all parts. Minibatches of {MEASURED} fresh examples: "
        "the exact W₁ between them is that of the cheapest assignment, the critic's estimate the "
        "difference of its means, which divided by the upper bound of its Lipschitz constant is "
        f"proven to be at most W₁. Two minibatches of real examples are {floor:.3f} apart."
    )
    return Report(
        "Wasserstein GAN, eight Gaussians", headings, [cells(name) for name in CRITICS], caption
    )
