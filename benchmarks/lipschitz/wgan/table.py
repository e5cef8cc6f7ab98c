"""The table of `python -m benchmarks.lipschitz --wgan`."""

from typing import Any

import jax
import numpy as np

from benchmarks.common.statistics.estimates import estimate
from benchmarks.common.table import Table
from benchmarks.lipschitz.wgan.training import CRITIC_STEPS, CRITICS, MEASURED, real, wasserstein

FLOOR = 10  # pairs of real minibatches, whose mean distance is what a perfect generator reaches


def table(runs: list[dict[str, Any]], parts: int, steps: int, seeds: int) -> Table:
    """Returns the table with one row per critic.

    Args:
      runs: the measurements, of all critics, seeds and parts.
      parts: the number of measurements in the course of a training run.
      steps: the number of generator steps of a training run.
      seeds: the number of seeds.
    """
    late = parts - max(1, parts // 5)  # several measurements, because one minibatch is noisy
    pairs = jax.random.split(jax.random.key(0), (FLOOR, 2))
    floor = np.mean([wasserstein(*(np.asarray(real(k, MEASURED)) for k in two)) for two in pairs])
    headings = [
        "critic",
        "ms\nper step",
        "Lipschitz\nconstant ≥",
        "\n≤",
        "W₁,\nexact",
        "mean f(x)\n− mean f(x̃)",
        "the same\n/ constant",
    ]
    over = f"Mean ± standard error over {seeds} seeds" if seeds > 1 else "One seed"
    caption = [
        f"{over}, from the last fifth of the measurements along {steps} steps.",
        f"A step has {CRITIC_STEPS} updates of the critic and one of the generator. Its time is "
        "the median over all parts of the training.",
        f"W₁, exact: the distance between a real and a generated minibatch of {MEASURED} fresh "
        "examples each, from an assignment of minimal cost. Between two real minibatches it is "
        f"{floor:.3f}.",
        "mean f(x) − mean f(x̃): the critic's estimate of this distance. Divided by the upper bound "
        "on the critic's Lipschitz constant, it is provably at most W₁.",
    ]
    return Table(
        "Wasserstein GAN, eight Gaussians",
        headings,
        [_cells([run for run in runs if run["critic"] == name], name, late) for name in CRITICS],
        "\n".join(caption),
    )


def _cells(runs: list[dict[str, Any]], name: str, late: int) -> list[str]:
    """Returns the row of one critic, from the measurements number `late` and later."""

    def mean(quantity: str) -> str:
        by_seed: dict[int, list[float]] = {}
        for run in runs:
            if run["part"] >= late:
                by_seed.setdefault(run["seed"], []).append(run[quantity])
        return estimate([np.mean(values) for values in by_seed.values()]).text(".3g", ".2g")

    milliseconds = 1e3 * float(np.median([run["seconds_per_step"] for run in runs]))
    quantities = ("lower", "upper", "exact", "apart", "certified")
    return [name, f"{milliseconds:.2f}", *map(mean, quantities)]
