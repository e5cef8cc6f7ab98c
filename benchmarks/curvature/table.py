"""The table of `python -m benchmarks.curvature`, computed from the runs of the results."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.table import Table

HEADINGS = (
    "estimate",
    "seconds",
    "compilation,\nseconds",
    "temporary\nMB",
    "error\nof λ",
    "trace",
)


class EstimateSummary(NamedTuple):
    """One estimate over its runs. What it does not measure is None.

    Attributes:
      name: the estimate.
      seconds: the median time.
      compile_seconds: the time for compiling.
      temporary_bytes: the temporary memory that XLA reports.
      eigenvalue_error: the largest |λᵢ − λᵢ*|/λ₁* over all runs.
      trace: the median of the traces.
      standard_error: the median of their standard errors.
    """

    name: str
    seconds: float
    compile_seconds: float | None
    temporary_bytes: int | None
    eigenvalue_error: float | None
    trace: float | None
    standard_error: float | None


def summarize(record: dict[str, Any]) -> list[EstimateSummary]:
    """Returns the summaries of all estimates of the results."""
    return [
        _summary([run for run in record["runs"] if run["row"] == name], record)
        for name in dict.fromkeys(run["row"] for run in record["runs"])
    ]


def table(record: dict[str, Any]) -> Table:
    """Returns the table of all estimates, with the reference in its caption."""
    configuration, exact = record["configuration"], record["reference"]
    examples = record["dataset"]["test_examples"]
    title = (
        f"Curvature of an MLP with {record['weights']} weights on "
        f"{min(configuration['examples'] or examples, examples)} test examples of "
        f"{configuration['data']}"
    )
    values = ", ".join(f"{value:.6g}" for value in exact["eigenvalues"])
    memory = record["temporary_bytes_over_examples"].items()
    sizes = ", ".join(f"{size / 1e6:.1f} MB for {n} examples" for n, size in memory)
    caption = [
        "Seconds and trace: medians over the runs.",
        "Error of λ: the largest |λᵢ − λᵢ*|/λ₁* over all runs.",
        f"Reference: λ* = {values} by ARPACK in float64; trace {exact['trace']:.4g} ± "
        f"{exact['standard_error']:.2g} by a long run.",
        f"Temporary memory for the eigenvalues: {sizes}.",
    ]
    return Table(title, HEADINGS, [_cells(one) for one in summarize(record)], "\n".join(caption))


def _summary(runs: list[dict[str, Any]], record: dict[str, Any]) -> EstimateSummary:
    name, first = runs[0]["row"], runs[0]
    compiled = record["compiled"].get(name, {})
    error = trace = standard_error = None
    if first.get("eigenvalues") is not None:
        exact = np.array(record["reference"]["eigenvalues"])
        difference = np.array([run["eigenvalues"] for run in runs]) - exact
        error = float(np.abs(difference).max() / exact[0])
    if first.get("trace") is not None:
        trace, standard_error = (
            float(np.median([run[quantity] for run in runs]))
            for quantity in ("trace", "standard_error")
        )
    return EstimateSummary(
        name,
        float(np.median([run["seconds"] for run in runs])),
        compiled.get("compile_seconds"),
        compiled.get("temporary_bytes"),
        error,
        trace,
        standard_error,
    )


def _cells(one: EstimateSummary) -> list[str]:
    return [
        one.name,
        f"{one.seconds:.2f}",
        "" if one.compile_seconds is None else f"{one.compile_seconds:.1f}",
        "" if one.temporary_bytes is None else f"{one.temporary_bytes / 1e6:.0f}",
        "" if one.eigenvalue_error is None else f"{one.eigenvalue_error:.1g}",
        "" if one.trace is None else f"{one.trace:.4g} ± {one.standard_error:.2g}",
    ]
