"""The table of a comparison."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.common import measuring
from benchmarks.common.statistics.estimates import Estimate, written
from benchmarks.common.table import Cell, Table
from benchmarks.compare.summary import MethodResult

UNMEASURED = {"no": slice(8, -1), "lambda_max": slice(9, -1)}  # columns, by --flatness


def comparison_table(
    rows: Sequence[MethodResult], configuration: dict[str, Any], dataset: dict[str, Any]
) -> Table:
    """Returns the table of the summarized methods.

    Args:
      rows: one summary per method.
      configuration: the options of the comparison.
      dataset: the description of the data set.
    """
    plain, evaluated = configuration["optimizer"], configuration["evaluate_on"]
    noise = configuration["label_noise"]
    headings = [
        "method",
        "gradients\nper step",
        f"time\n/ {plain}",
        "training\nloss",
        f"{evaluated}\naccuracy, %",
        "generalization\ngap",
        "‖∇L‖",
        "‖w‖",
        "λ_max",
        "trace",
        "R⁰",
        "R¹",
        "PACGen",
        "accuracy, %,\nnoisy weights",
    ]
    title = f"{configuration['data']}: {dataset['train_examples']} training examples" + (
        f", {noise:.0%} of the labels wrong" if noise else ""
    )
    cells = [_cells(row) for row in rows]
    unmeasured = UNMEASURED.get(configuration["flatness"], slice(0))
    del headings[unmeasured]
    for line in cells:
        del line[unmeasured]
    return Table(title, headings, cells, _caption(rows, configuration))


def _cells(row: MethodResult) -> list[Cell]:
    def cell(name: str, text: str) -> Cell:
        return Cell(text, name in row.best)

    def mean(name: str, form: str) -> Cell:
        return cell(name, written(row.measured[name].mean, form))

    def percent(name: str) -> Cell:
        return cell(name, row.measured[name].scaled(100).text(".2f"))

    note = f" ({row.diverged} of {row.seeds} seeds diverged)" if row.diverged else ""
    return [
        Cell(row.label + note),
        Cell(f"{row.gradients_per_step:.3g}"),
        Cell(written(row.time_ratio, ".2f")),
        mean("train_loss", ".3g"),
        percent("test_accuracy"),
        mean("generalization_gap", ".3g"),
        mean("gradient_norm", ".2g"),
        mean("weight_norm", ".1f"),
        cell("lambda_max", _curvature(row.measured, "lambda_max", "lambda_max_residual")),
        cell("trace", _curvature(row.measured, "trace", "trace_standard_error")),
        mean("zeroth_order_flatness", ".3g"),
        mean("first_order_flatness", ".3g"),
        mean("pacgen", ".0f"),
        percent("noise_accuracy"),
    ]


def _curvature(measured: dict[str, Estimate], name: str, error: str) -> str:
    """The estimate with two digits of its standard error.

    For a single seed, the error is that of the measurement instead.
    """
    estimate = measured[name]
    if not math.isfinite(estimate.standard_error):
        estimate = estimate._replace(standard_error=measured[error].mean)
    known = math.isfinite(estimate.standard_error) and estimate.standard_error > 0
    decimals = max(0, 1 - math.floor(math.log10(estimate.standard_error))) if known else 3
    return estimate.text(f".{min(decimals, 4)}f")


def _caption(rows: Sequence[MethodResult], configuration: dict[str, Any]) -> str:
    plain, seeds = configuration["optimizer"], max(row.seeds for row in rows)
    statistics = (
        f"Mean ± standard error over {seeds} seeds; {{best}} marks the best mean and those within "
        "one standard error of it, paired by seed."
        if seeds > 1
        else "A single seed: errors after ± are those of the measurement (the residual of λ_max, "
        "the standard error of the trace over its probes); {best} marks the best value."
    )
    fresh = " with as many wrong labels" if configuration["label_noise"] else ""
    return "\n".join(
        [
            statistics,
            "gradients per step: an exact Hessian-vector product counts as two gradients, a "
            "gradient on a part of the batch as that part.",
            f"time: a step of the fastest epoch, divided by that of {plain}.",
            f"generalization gap: loss on {configuration['evaluate_on']} examples{fresh} minus "
            "training loss.",
            "‖∇L‖, ‖w‖: norms of the gradient of the training loss, in eval mode, and of the "
            "parameters.",
            *_about_flatness(rows, configuration["flatness"]),
            f"noisy weights: each weight times 1 + {measuring.NOISE:g}ε with ε ~ N(0, 1), mean of "
            f"{measuring.NOISE_DRAWS} draws.",
        ]
    )


def _about_flatness(rows: Sequence[MethodResult], measured: str) -> list[str]:
    """What the measures of flatness are, on which examples, and how exact they are."""
    examples = f"on at most {measuring.CURVATURE_EXAMPLES} training examples in eval mode"
    residual = f"relative residual at most {_worst(rows, 'lambda_max_residual', 'lambda_max')}"
    if measured == "no":
        return []
    if measured == "lambda_max":
        return [f"λ_max: largest eigenvalue of the Hessian {examples}; {residual}."]
    active = [row.measured["pacgen_active"].mean for row in rows]
    most_active = max((value for value in active if math.isfinite(value)), default=math.nan)
    return [
        f"λ_max, trace: largest eigenvalue ({residual}) and trace of the Hessian (relative "
        f"standard error of a run's {measuring.PROBES} probes at most "
        f"{_worst(rows, 'trace_standard_error', 'trace')}), {examples}, as are R⁰, R¹ and PACGen.",
        "R⁰, R¹: the largest increase of the loss, and ρ times the largest gradient norm, that "
        f"were found within ρ = {measuring.RHO:g}.",
        "PACGen: the metric Ψ, to which curvature contributes in at most "
        f"{written(most_active, '.1%')} of the weights.",
    ]


def _worst(rows: Sequence[MethodResult], error: str, name: str) -> str:
    """The mean error of a run's own measurement relative to the mean, maximal over the methods."""
    ratios = [row.measured[error].mean / (abs(row.measured[name].mean) or math.nan) for row in rows]
    return written(max(filter(math.isfinite, ratios), default=math.nan), ".1g")
