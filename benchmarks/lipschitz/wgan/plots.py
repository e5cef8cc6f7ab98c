"""The distance that each critic sees and the one that there is, and what its generator makes."""

import pathlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.compare.plots import PLAIN, STYLE
from benchmarks.lipschitz.options import Options
from flatreg.plots import COLORS

FILE = "wgan.png"


def draw(
    folder: pathlib.Path,
    runs: list[dict[str, Any]],
    samples: dict[str, np.ndarray],
    real: np.ndarray,
    options: Options,
) -> str:
    """Writes the plot into the folder and returns its name; a column a critic."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(samples) + 0.4, 6.8))
        axes = figure.subplots(2, len(samples), sharex="row", sharey="row", squeeze=False)
        for column, (name, made) in enumerate(samples.items()):
            above, below = axes[:, column]
            color = COLORS[column]
            curves = {
                "exact $W_1$": ("exact", PLAIN, "-"),
                "the critic's estimate": ("apart", color, "--"),
                "the same / Lipschitz bound": ("certified", color, "-"),
            }
            for label, (quantity, shade, style) in curves.items():
                mean = _curve(runs, name, quantity)
                steps = options.steps * np.arange(1, len(mean) + 1) / len(mean)
                above.plot(steps, mean, style, color=shade, linewidth=1.6, label=label)
            above.set_title(name, color=color, weight="bold")
            above.set_xlabel("step of the generator")
            above.axhline(0, color=PLAIN, linewidth=0.7)
            above.legend(frameon=False, fontsize=8)
            below.scatter(*real.T, s=5, color=PLAIN, alpha=0.35, linewidths=0, label="real")
            below.scatter(*made.T, s=5, color=color, alpha=0.6, linewidths=0, label="generated")
            below.set_aspect("equal")
            below.legend(frameon=False, fontsize=8, markerscale=2)
        axes[0, 0].set_ylabel("distance of two minibatches")
        axes[1, 0].set_ylabel("samples at the end, seed 0")
        figure.savefig(folder / FILE)
    return FILE


def _curve(runs: list[dict[str, Any]], name: str, quantity: str) -> np.ndarray:
    """Mean over the seeds, a value a measurement."""
    own = [run for run in runs if run["critic"] == name]
    parts = 1 + max(run["part"] for run in own)
    return np.array([np.mean([r[quantity] for r in own if r["part"] == p]) for p in range(parts)])
