"""The report of `python -m benchmarks.measure --report`: one page that needs no other file."""

import base64
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.measure import plots
from benchmarks.measure.measuring import describe

STYLE = """
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 3rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 0.5rem; }
section { border-top: 1px solid #ddd; margin-top: 1.75rem; padding-top: 1.25rem; }
p { max-width: 46rem; margin: 0.5rem 0; }
.panels { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0.75rem 0 0; max-width: 40rem; }
img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; margin: 0.75rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 1.25rem 0.25rem 0; border-bottom: 1px solid #eee; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; min-width: 7rem; }
.unbroken { white-space: nowrap; }
footer { color: #555; font-size: 0.9rem; }
code { font-size: 0.85em; overflow-wrap: anywhere; }
"""

Rows = Sequence[tuple[str, str]]  # pairs of a quantity and its value


class Section(NamedTuple):
    """A section of the report.

    Attributes:
      heading: its heading.
      text: how to read the numbers.
      measures: the measures whose numbers it shows.
      panels: the figures that it shows, with their descriptions.
    """

    heading: str
    text: str
    measures: tuple[str, ...]
    panels: Mapping[str, str] = {}


SECTIONS = (
    Section(
        "Spectrum of the Hessian",
        "The eigenvalues are the curvatures of the training loss. An eigenvalue lies within the "
        "residual of each value, and the error of the trace is a standard error.",
        ("eigenpairs", "trace"),
        {
            "eigenvalues": "Bars: the largest eigenvalues of the Hessian.",
            "density": "Curve: the density of the eigenvalues of the Hessian.",
        },
    ),
    Section(
        "Slices of the loss",
        "The random directions are filter-normalized: each filter has the length of the network's "
        "own filter. The step along the top eigenvector is ten times smaller.",
        (),
        {
            "directions": "Curves: the training loss along two directions.",
            "surface": "Contours: the training loss over a plane.",
        },
    ),
    Section(
        "Noise on the weights",
        "Each weight is multiplied by 1 + σu with u ~ N(0, 1).",
        ("noise",),
        {"noise": "Curve: the training loss against the size of the noise."},
    ),
    Section(
        "Worst case in a ball",
        "R⁰ is the largest increase of the loss in a ball of radius ρ around the weights. R¹ is ρ "
        "times the largest gradient norm in it. Both are found by searches, so they are lower "
        "bounds.",
        ("R⁰", "R¹"),
    ),
    Section(
        "PACGen's metric Ψ",
        "Ψ ranks networks of the same shape: a smaller value is meant to indicate better "
        "generalization. It is not a bound. Where no curvature contributes, Ψ depends only on the "
        "sizes of the weights.",
        ("pacgen",),
    ),
    Section(
        "Stability of the optimizer",
        "Gradient descent with momentum β diverges on a quadratic loss if the largest eigenvalue "
        "exceeds (2 + 2β)/η. Here η is the largest learning rate of the training. With minibatches "
        "and a learning rate that decreases to zero, a trained network can be on either side.",
        ("stability",),
    ),
    Section(
        "Connectivity",
        "The barrier is the largest height of the loss above the line between the losses of the "
        "two networks, with its standard error over the examples. Statistics of BatchNorm are "
        "computed again at every position.",
        ("segment", "curve"),
        {"path": "Curves: the training loss between the two networks."},
    ),
)


def page(title: str, facts: Rows, found: dict[str, Any], footer: Rows) -> str:
    """Returns the report as HTML. Sections whose measures are missing are left out.

    Args:
      title: the heading of the page.
      facts: what was measured.
      found: the measures by name.
      footer: how it was measured.
    """
    sections = "\n".join(
        _section(section, found) for section in SECTIONS if all(m in found for m in _needs(section))
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{_table([*facts, *describe("values", found["values"])])}
{sections}
<section>
<h2>How this was measured</h2>
<footer>
{_table(footer)}
</footer>
</section>
</body>
</html>
"""


def _needs(section: Section) -> tuple[str, ...]:
    return section.measures or ("slices",)


def _section(section: Section, found: dict[str, Any]) -> str:
    rows = [row for name in section.measures for row in describe(name, found[name])]
    figures = "\n".join(_figures(section, found))
    return f"""<section>
<h2>{html.escape(section.heading)}</h2>
<p>{html.escape(section.text)}</p>
{_table(rows)}
<div class="panels">
{figures}
</div>
</section>"""


def _figures(section: Section, found: dict[str, Any]) -> Iterator[str]:
    for name, description in section.panels.items():
        picture = base64.b64encode(plots.panel(name, found)).decode()
        source = f"data:image/png;base64,{picture}"
        yield f'<figure><img src="{source}" alt="{html.escape(description)}"></figure>'


def _table(rows: Rows) -> str:
    cells = "\n".join(
        f'<tr><th scope="row">{html.escape(quantity)}</th><td>{_unbroken(value)}</td></tr>'
        for quantity, value in rows
    )
    return f"<table>\n{cells}\n</table>" if rows else ""


def _unbroken(value: str) -> str:
    """Returns the text as HTML that keeps options, exponents and standard errors on one line."""
    return re.sub(r"\S+ ± \S+|--[\w-]+", r'<span class="unbroken">\g<0></span>', html.escape(value))
