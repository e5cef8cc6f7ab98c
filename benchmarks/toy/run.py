"""Finds the two minima, measures both over the plane, draws the figure and prints the table."""

import pathlib
from functools import partial

import jax
import numpy as np
from rich.console import Console

from benchmarks.common.table import Table
from benchmarks.toy import plots
from benchmarks.toy.problem import (
    EDGE,
    SAMPLES,
    Minimum,
    logits,
    measured,
    over_plane,
    samples,
    sharp_and_flat,
)


def run(file: pathlib.Path, points: int) -> None:
    """Compares the sharp and the flat minimum of the toy problem.

    Args:
      file: where the figure is written.
      points: the number of grid points along each axis of the surfaces.
    """
    with jax.enable_x64(True):
        loss_fn, sharp, flat = sharp_and_flat()
        minima = {"sharp, global": sharp, "flat, local": flat}
        side = np.linspace(-EDGE, EDGE, points)
        surfaces = over_plane(partial(measured, loss_fn), side)
        plots.draw(file, side, surfaces, minima, samples(SAMPLES), jax.jit(logits))
    table = Table(
        title="",
        headings=("minimum", "loss", "λ_max", "metric Ψ", "bound", "loss on\nfresh samples"),
        rows=[[label, *_numbers(at)] for label, at in minima.items()],
        caption="λ_max: the largest eigenvalue of the Hessian of the training loss.\nBound: an "
        "estimate of the PAC-Bayes bound E L̂(w+u) + KL/√n.",
    )
    console = Console()
    table.print(console)
    console.print(f"Figure written to {file}", soft_wrap=True, highlight=False)


def _numbers(at: Minimum) -> list[str]:
    numbers = (at.loss, at.eigenvalues[-1], at.metric, at.bound, at.fresh_loss)
    return [f"{number:.3g}" for number in numbers]
