"""The table: in the terminal by rich, in `table.md` as Markdown, from the same cells."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.common import measuring as _measure
from benchmarks.common.summary import Estimate, Row

COST_AND_FIT = 5  # columns, the first half of the table; the second is about the minimum
UNMEASURED = {"no": slice(8, -1), "lambda_max": slice(9, -1)}  # columns, by --flatness


class Cell(NamedTuple):
    """A number as written, and whether it is one of the best in its column."""

    text: str
    best: bool = False


class Report(NamedTuple):
    """A table with its title and with a paragraph that says what the numbers mean."""

    title: str
    headings: list[str]
    rows: list[list[Cell]]
    caption: str


def report(rows: list[Row], configuration: dict[str, Any], dataset: dict[str, Any]) -> Report:
    """Lays the summary out as a table."""
    plain, evaluated = configuration["optimizer"], configuration["evaluate_on"]
    noise = configuration["label_noise"]
    headings = [
        "method",
        "gradients\na step",
        f"time\n/ {plain}",
        "train\nloss",
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
    written = [_cells(row) for row in rows]
    for line in (headings, *written):
        del line[UNMEASURED.get(configuration["flatness"], slice(0))]
    return Report(title, headings, written, _caption(rows, configuration))


def show(console: Console, report: Report) -> None:
    """Prints the table, in two halves if the terminal is narrow; the best values are starred."""
    whole, half = range(1, len(report.headings)), COST_AND_FIT
    tables = [_table(report, whole)]
    unlimited = console.options.update(max_width=1000)
    if console.measure(tables[0], options=unlimited).maximum > console.width:
        tables = [_table(report, whole[:half]), _table(report, whole[half:])]
    tables[0].title = report.title
    for table in tables:
        console.print(table)
    console.print(report.caption)


def _table(report: Report, columns: Sequence[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column(report.headings[0], overflow="fold", min_width=12)
    for column in columns:
        table.add_column(report.headings[column], justify="right", no_wrap=True)
    for cells in report.rows:
        # a long label may break at its colons
        written = [
            f"[bold]{cells[column].text} *[/]" if cells[column].best else cells[column].text
            for column in columns
        ]
        table.add_row(cells[0].text.replace(":", " "), *written)
    return table


def markdown(report: Report, command: str) -> str:
    """Writes the table as a Markdown document; the best values are bold."""
    rows = [[f"**{c.text}**" if c.best else c.text for c in cells] for cells in report.rows]
    rule = ["---", *["---:"] * (len(report.headings) - 1)]
    headings = [heading.replace("\n", " ") for heading in report.headings]
    lines = [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]
    caption = report.caption.replace("*", "bold")
    return "\n".join([f"# {report.title}", "", f"    {command}", "", *lines, "", caption, ""])


def _cells(row: Row) -> list[Cell]:
    def cell(name: str, text: str) -> Cell:
        return Cell(text, name in row.best)

    estimates = row.measured
    note = f" ({row.diverged} of {row.seeds} seeds diverged)" if row.diverged else ""
    return [
        Cell(row.label + note),
        Cell(f"{row.gradients_a_step:.3g}"),
        Cell(_written("{:.2f}", row.time_ratio)),
        cell("train_loss", _written("{:.3g}", estimates["train_loss"].mean)),
        cell("test_accuracy", percent(estimates["test_accuracy"])),
        cell("generalization_gap", _written("{:.3g}", estimates["generalization_gap"].mean)),
        cell("gradient_norm", _written("{:.2g}", estimates["gradient_norm"].mean)),
        cell("weight_norm", _written("{:.1f}", estimates["weight_norm"].mean)),
        cell("lambda_max", _curvature(estimates, "lambda_max", "lambda_max_residual")),
        cell("trace", _curvature(estimates, "trace", "trace_standard_error")),
        cell("zeroth_order_flatness", _written("{:.3g}", estimates["zeroth_order_flatness"].mean)),
        cell("first_order_flatness", _written("{:.3g}", estimates["first_order_flatness"].mean)),
        cell("pacgen", _written("{:.0f}", estimates["pacgen"].mean)),
        cell("noise_accuracy", percent(estimates["noise_accuracy"])),
    ]


def percent(estimate: Estimate) -> str:
    """A share and its standard error, as percentages."""
    return _with_error(Estimate(*(100 * value for value in estimate)), decimals=2)


def _curvature(estimates: dict[str, Estimate], name: str, own_error: str) -> str:
    """With two digits of the error over the seeds, or of the own one of a single seed."""
    mean, error = estimates[name]
    if not math.isfinite(error):
        error = estimates[own_error].mean
    known = math.isfinite(error) and error > 0
    decimals = max(0, 1 - math.floor(math.log10(error))) if known else 3
    return _with_error(Estimate(mean, error), min(decimals, 4))


def _with_error(estimate: Estimate, decimals: int) -> str:
    mean, error = (_written(f"{{:.{decimals}f}}", value) for value in estimate)
    return f"{mean} ± {error}" if math.isfinite(estimate.standard_error) else mean


def _written(form: str, value: float) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _caption(rows: list[Row], configuration: dict[str, Any]) -> str:
    plain, seeds = configuration["optimizer"], max(row.seeds for row in rows)
    noisy = " with as many wrong labels" if configuration["label_noise"] else ""
    statistics = (
        f"Mean ± standard error over {seeds} seeds; * marks the best mean, and what is within one "
        "standard error of it, paired over the seeds."
        if seeds > 1
        else "A single seed, so what errors there are come from measuring (the residual of "
        "λ_max, the probes' standard error of the trace); * marks the best value."
    )
    flatness = _about_flatness(rows, configuration["flatness"])
    return (
        f"{statistics} Gradients a step as declared: an exact Hessian-vector product counts as "
        "two, a clean pass on a part of the batch as that part. "
        f"Time: a step of the fastest epoch against {plain}'s. Generalization gap: loss on "
        f"{configuration['evaluate_on']} examples{noisy} minus training loss. ‖∇L‖ of the whole "
        f"training loss in eval mode. {flatness}Weight noise: each weight "
        f"times 1 + {_measure.NOISE:g}ε, ε ~ N(0, 1), {_measure.NOISE_DRAWS} draws."
    )


def _about_flatness(rows: list[Row], measured: str) -> str:
    """What the measures of flatness are, on what, and how exactly they are known."""
    examples = f"likewise, on at most {_measure.CURVATURE_EXAMPLES} training examples"
    largest = f"(each run's own to {_worst(rows, 'lambda_max_residual', 'lambda_max')}, by its "
    if measured == "no":
        return ""
    if measured == "lambda_max":
        return f"λ_max of the Hessian {examples} {largest}residual, relatively). "
    active = [row.measured["pacgen_active"].mean for row in rows]
    most_active = max((value for value in active if math.isfinite(value)), default=math.nan)
    return (
        f"Flatness {examples}: λ_max and trace of the Hessian {largest}residual, and "
        f"{_worst(rows, 'trace_standard_error', 'trace')}, by the standard error of "
        f"{_measure.PROBES} probes, relatively); R⁰ and R¹, the largest rise and ρ times the "
        f"largest gradient found within ρ = {_measure.RHO:g}; PACGen's Ψ, to which curvature "
        f"contributes in {_written('{:.1%}', most_active)} of the weights at most. "
    )


def _worst(rows: list[Row], error: str, name: str) -> str:
    """The error of a run's own measurement relative to the value, at worst over the methods."""
    ratios = [row.measured[error].mean / (abs(row.measured[name].mean) or math.nan) for row in rows]
    return _written("{:.1g}", max(filter(math.isfinite, ratios), default=math.nan))
