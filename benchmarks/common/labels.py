"""Puts labels beside the points of a plot so that they overlap neither points nor one another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

Spot = tuple[float, float, str, str]
# Offsets in points and alignments to try, the first ones preferred.
SPOTS: list[Spot] = [
    (x * reach, y * reach, side, height)
    for reach in (1, 2, 3.5)
    for x, y, side, height in (
        (9, 0, "left", "center"),
        (-9, 0, "right", "center"),
        (0, 9, "center", "bottom"),
        (0, -9, "center", "top"),
        (7, 7, "left", "bottom"),
        (7, -7, "left", "top"),
        (-7, 7, "right", "bottom"),
        (-7, -7, "right", "top"),
    )
]


class Label(NamedTuple):
    """A text in its color, and the point that it belongs to, in data coordinates."""

    text: str
    color: str
    point: tuple[float, float]


def place(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes each label next to its point, clear of all scattered points where there is room."""
    axes.figure.canvas.draw()  # settles the layout, without which no extent is known
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent()
    taken = [
        Bbox.from_extents(x - size, y - size, x + size, y + size)
        for dots in axes.collections
        for size in (np.sqrt(dots.get_sizes()[0]),)
        for x, y in axes.transData.transform(dots.get_offsets())
    ]
    for text, color, point in labels:
        label = axes.annotate(
            text,
            point,
            (0, 0),
            textcoords="offset points",
            color=color,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkB": 4},
        )
        label.set_in_layout(False)

        def cost(spot: Spot, label: Annotation = label) -> float:
            extent = _moved(label, spot, renderer)
            overlaps = [Bbox.intersection(extent, other) for other in taken]
            covered = sum(overlap.width * overlap.height for overlap in overlaps if overlap)
            inside = Bbox.intersection(extent, frame)
            outside = extent.width * extent.height - (inside.width * inside.height if inside else 0)
            return covered + outside

        taken.append(_moved(label, min(SPOTS, key=cost), renderer))  # the first cheapest spot


def _moved(label: Annotation, spot: Spot, renderer: RendererBase) -> Bbox:
    """Moves the label and returns the extent of its text, without the line to the point."""
    x, y, side, height = spot
    label.set(position=(x, y), horizontalalignment=side, verticalalignment=height)
    label.update_positions(renderer)
    return Text.get_window_extent(label, renderer)
