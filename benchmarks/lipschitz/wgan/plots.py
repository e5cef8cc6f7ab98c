"""The figure of `python -m benchmarks.lipschitz --wgan`, with one column per critic.

Above: the exact distance of real and generated minibatches along training, and the critic's
estimate of it. Below: real and generated points.
"""

import pathlib
from typing import Any

import matplotlib
import numpy as np

from benchmarks.common.plotting import PLAIN, STYLE, new_figure, save
from flatreg.plots import COLORS

FILE = "wgan.png"


def draw(
    folder: pathlib.Path,
    runs: list[dict[str, Any]],
    samples: dict[str, np.ndarray],
    real: np.ndarray,
    steps: int,
) -> str:
    """Writes the figure into the folder and returns its name.

    Args:
      folder: where the figure is written.
      runs: the measurements, of all critics, seeds and parts.
      samples: generated points of each critic.
      real: real points.
      steps: the number of generator steps of a training run.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.6 * len(samples) + 0.4, 6.8)
        axes = figure.subplots(2, len(samples), sharex="row", sharey="row", squeeze=False)
        for column, (name, made) in enumerate(samples.items()):
            above, below = axes[:, column]
            color = COLORS[column]
            curves = {
                "exact $W_1$": ("exact", PLAIN, "-"),
                "estimate of the critic": ("apart", color, "--"),
                "estimate / Lipschitz bound": ("certified", color, "-"),
            }
            for label, (quantity, shade, style) in curves.items():
                mean = _curve(runs, name, quantity)
                at = steps * np.arange(1, len(mean) + 1) / len(mean)
                above.plot(at, mean, style, color=shade, linewidth=1.6, label=label)
            above.set_title(name, color=color, weight="bold")
            above.set_xlabel("generator step")
            above.axhline(0, color=PLAIN, linewidth=0.7)
            above.legend(frameon=False, fontsize=8)
            below.scatter(*real.T, s=5, color=PLAIN, alpha=0.35, linewidths=0, label="real")
            below.scatter(*made.T, s=5, color=color, alpha=0.6, linewidths=0, label="generated")
            below.set_aspect("equal")
            below.legend(frameon=False, fontsize=8, markerscale=2)
        axes[0, 0].set_ylabel("distance of real and generated minibatch")
        axes[1, 0].set_ylabel("samples after training, seed 0")
        save(figure, folder / FILE)
    return FILE


def _curve(runs: list[dict[str, Any]], name: str, quantity: str) -> np.ndarray:
    """Returns the mean over the seeds at each measurement."""
    own = [run for run in runs if run["critic"] == name]
    parts = 1 + max(run["part"] for run in own)
    return np.array([np.mean([r[quantity] for r in own if r["part"] == p]) for p in range(parts)])
