"""How the figures of the benchmarks look."""

import io
from pathlib import Path
from typing import IO, Any

from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

PLAIN = "#555555"  # the color of the plain optimizer, or of what others are compared with
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EBEBEB",
    "grid.linewidth": 0.7,
    "savefig.dpi": 100,
}


def new_figure(width: float, height: float) -> Figure:
    """Returns a figure of a size in inches that is independent of pyplot and of any display."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, file: Path | IO[bytes]) -> None:
    """Writes a figure as a PNG of 256 colors, which has a third of the size of a full PNG."""
    full = io.BytesIO()
    figure.savefig(full, format="png")
    image = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(file, format="png", optimize=True)


def plain_numbers(axis: Axis) -> None:
    """Labels a logarithmic axis with plain numbers instead of powers of ten.

    The ticks stand at powers of ten; at 2 and 5 times them too if the axis covers less than a
    factor of 300.
    """
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
