"""The table of `python -m benchmarks.lipschitz`."""

from collections.abc import Sequence
from typing import Any

from benchmarks.common.statistics.estimates import Estimate
from benchmarks.common.table import Cell, Table
from benchmarks.lipschitz import measuring
from benchmarks.lipschitz.options import LipschitzOptions
from benchmarks.lipschitz.summary import MethodSummary, certified_at


def table(
    summaries: Sequence[MethodSummary],
    options: LipschitzOptions,
    dataset: dict[str, Any],
    answer: str | None,
) -> Table:
    """Returns the table of all methods.

    Args:
      summaries: one row per method.
      options: the options of the command.
      dataset: the description of the data set.
      answer: the last line of the caption, or None.
    """
    headings = [
        "method",
        "time\n/ plain",
        f"{options.evaluate_on}\naccuracy, %",
        f"accuracy, %,\nnoise {options.noise:g}",
        "Lipschitz\nconstant ≥",
        "\n≤",
        *(f"certified, %,\nr = {radius:g}" for radius in options.radii),
        *(f"by √2·L,\nr = {radius:g}" for radius in options.radii),
    ]
    title = f"{options.data}, {options.model}: {dataset['train_examples']} training examples"
    caption = "\n".join([*_caption(options), *([answer] if answer else [])])
    return Table(title, headings, [_cells(one) for one in summaries], caption)


def _cells(one: MethodSummary) -> list[Cell]:
    measured = one.measured
    certified = (
        Cell(_percent(value), certified_at(i) in one.best) for i, value in enumerate(one.certified)
    )
    return [
        Cell(one.method.label),
        Cell(one.time.text(".2f")),
        Cell(_percent(measured["accuracy"]), "accuracy" in one.best),
        Cell(_percent(measured["noise_accuracy"]), "noise_accuracy" in one.best),
        Cell(f"{measured['lower'].mean:.3g}"),
        Cell(f"{measured['upper'].mean:.3g}"),
        *certified,
        *(Cell(f"{100 * value.mean:.1f}") for value in one.certified_plainly),
    ]


def _percent(share: Estimate) -> str:
    return share.scaled(100).text(".2f")


def _caption(options: LipschitzOptions) -> list[str]:
    seeds = (
        f"Mean ± standard error over {options.seeds} seeds; {{best}} marks the best mean and the "
        "means that are within one standard error of it, paired by seed."
        if options.seeds > 1
        else "One seed; {best} marks the best value."
    )
    return [
        seeds,
        "Time: an epoch relative to the plain epoch of the same round, without compilation; the "
        "median over all rounds and its 95% interval.",
        "Lipschitz constant of the logits in the 2-norm: at least the slope at the steepest input "
        f"that {measuring.ASCENT} steps of ascent from {measuring.STARTS} examples find, and at "
        "most a certified upper bound.",
        "Certified: the share of examples for which the network is correct and provably stays so "
        "within distance r of the input, by the bounds of pairs of logits and by √2 times the "
        "Lipschitz bound L of all logits.",
        f"Noise: N(0, {options.noise:g}²) on each input, {measuring.DRAWS} draws.",
        "The number after a method is its strength: for normalization and projection the bound c "
        "on the norm of every kernel, otherwise the weight λ. input_gradient_penalty is "
        "λ·mean ‖∇ₓ loss‖² over the batch (target 0); margin_gradient_penalty is the same for the "
        "margin, the lead of the label's logit over the best other logit.",
    ]
