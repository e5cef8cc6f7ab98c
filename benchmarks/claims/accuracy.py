"""Claims about accuracy and cost. Each function returns the effects that one claim predicts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.effects import flatter, gain, log_ratio, more_accurate
from benchmarks.claims.experiments import Experiments, MissingRunsError
from benchmarks.claims.grids import (
    DROPOUT,
    LENGTHS,
    NOISE,
    PGN,
    SAM,
    SAM_FINE,
    SCALED_NOISE,
    SPECTRAL,
)
from benchmarks.claims.verdict import Check, Effect, above, missing, within
from benchmarks.common.statistics.confidence import diverged_as_worst

NOISY = {"label_noise": 0.4}
LARGE = 8  # steps per epoch with a large batch
SHARE = 0.25  # of SAM's gain: a difference that counts as equal
TWICE = -1.0  # log₂ of the ratio of λ_max, if that of a variant is twice as large


def below_sgd(experiments: Experiments, options: Mapping[str, Any]) -> list[Effect]:
    """SAM and PGN have a lower test error than SGD."""
    best = experiments.tuned({"sam": SAM_FINE, "pgn": PGN}, options)
    runs = experiments.compare(["sgd", *best.values()], options)
    return [above(more_accurate(label, "sgd"), gain(runs, label, "sgd")) for label in best.values()]


def below_sam(experiments: Experiments, options: Mapping[str, Any]) -> list[Effect]:
    """PGN has a lower test error than SAM."""
    best = experiments.tuned({"sam": SAM_FINE, "pgn": PGN}, options)
    sam, pgn = best["sam"], best["pgn"]
    runs = experiments.compare(["sgd", sam, pgn], options)
    return [above(more_accurate(pgn, sam), gain(runs, pgn, sam))]


def partial_penalty(experiments: Experiments) -> list[Effect]:
    """PGN with the best α between 0 and 1, at the most accurate radius of SAM, against α = 1."""
    sam, alphas = _alphas(experiments)
    best = experiments.tuned({"alpha": alphas[1:-1]}, NOISY)["alpha"]
    runs = experiments.compare(["sgd", *alphas, sam], NOISY)
    return [above(more_accurate(best, "alpha=1"), gain(runs, best, alphas[-1]))]


def ends_of_the_penalty(experiments: Experiments) -> list[Check]:
    """PGN with α = 0 against SGD, and with α = 1 against SAM: the formulas are the same."""
    sam, alphas = _alphas(experiments)
    runs = experiments.compare(["sgd", *alphas, sam], NOISY)
    found = []
    for alpha, same, method in ((0, "sgd", alphas[0]), (1, "sam", alphas[-1])):
        reference = "sgd" if same == "sgd" else sam
        first, second = (runs.of(label, "test_accuracy") for label in (method, reference))
        value = 100 * float(np.abs(first - second).max())
        what = f"largest difference in accuracy of alpha={alpha} and {same}, points"
        found.append(Check(what, value, "≤ 0.1", value <= 0.1))
    return found


def _alphas(experiments: Experiments) -> tuple[str, list[str]]:
    (sam,) = experiments.tuned({"sam": SAM}, NOISY).values()
    r = sam.rpartition("=")[2]
    alphas = (0, 0.2, 0.4, 0.6, 0.8, 1)
    return sam, [f"penalized_gradient:r={r}:alpha={alpha}" for alpha in alphas]


def zero_warmup(experiments: Experiments) -> list[Effect]:
    """PGN with AdamW and a warmup over a fifth of the training, with the penalty during it or not.

    The step at which the penalty starts differs between tuning and test, because the validation
    split leaves four fifths of the examples for training.
    """
    recipe = experiments.recipe()
    options = {"optimizer": "adamw", "warmup_epochs": recipe.epochs / 5}
    start, start_in_tuning = (
        int(recipe.epochs / 5 * (size // recipe.batch_size))
        for size in (recipe.examples, recipe.examples * 4 // 5)
    )
    late_grid = [f"{method}:after={start_in_tuning}" for method in PGN]
    best = experiments.tuned({"early": PGN, "late": late_grid}, options)
    early, late = best["early"], f"{best['late'].rpartition(':')[0]}:after={start}"
    runs = experiments.compare(["adamw", early, late], options)
    return [
        above(more_accurate("adamw", early), gain(runs, "adamw", early)),
        above(more_accurate(late, early), gain(runs, late, early)),
        above(more_accurate(late, "adamw"), gain(runs, late, "adamw")),
        *_against_rivals(experiments, "adamw", [late], options),
    ]


def perturbed(experiments: Experiments) -> list[Effect]:
    """Noise on the weights against SGD and its tuned rivals; 40% of the labels wrong."""
    best = experiments.tuned({"noise": NOISE, "scaled": SCALED_NOISE}, NOISY)
    runs = experiments.compare(["sgd", *best.values()], NOISY)
    return [
        *(above(more_accurate(label, "sgd"), gain(runs, label, "sgd")) for label in best.values()),
        *_against_rivals(experiments, "sgd", list(best.values()), NOISY),
    ]


def _against_rivals(
    experiments: Experiments, plain: str, labels: Sequence[str], options: Mapping[str, Any]
) -> list[Effect]:
    """Methods against the plain optimizer with the best dropout and with the best length.

    A shorter training with its own schedule is what stopping early can gain.
    """
    model, epochs = experiments.setting.model, experiments.recipe().epochs
    rates = [{"model": f"{model}:dropout={rate}"} for rate in DROPOUT]
    counts = dict.fromkeys(max(1, round(share * epochs)) for share in LENGTHS)
    lengths = [
        {"epochs": count, **({"warmup_epochs": count / 5} if "warmup_epochs" in options else {})}
        for count in counts
    ]
    effects = []
    for name, grid in (("dropout", rates), ("epochs", lengths)):
        try:
            best = experiments.tuned_options(plain, grid, options)
            rival = experiments.compare([plain], {**options, **best})
            runs = experiments.compare([plain, *labels], options)
        except MissingRunsError:
            what = f"accuracy minus that of {plain} with the best {name}, points"
            effects.append(missing(what, "runs are missing"))
            continue
        value = best["model"].rpartition("=")[2] if name == "dropout" else best["epochs"]
        suffix = f" with {name} {value}"
        both = runs._replace(records=runs.records | rival.renamed(suffix))
        other = plain + suffix
        effects += [above(more_accurate(one, other), gain(both, one, other)) for one in labels]
    return effects


def cheap_ascent(experiments: Experiments, options: Mapping[str, Any]) -> list[Effect]:
    """SAM whose ascent gradient uses a part of the batch, against SAM."""
    fractions = (0.02, 0.05, 0.1, 0.25)
    return _cheaper_sam(experiments, options, [f"ascent_fraction={part}" for part in fractions])


def rare_ascent(experiments: Experiments, options: Mapping[str, Any]) -> list[Effect]:
    """SAM on some of the steps, against SAM on all of them."""
    return _cheaper_sam(experiments, options, ["every=2", "every=5"])


def _cheaper_sam(
    experiments: Experiments, options: Mapping[str, Any], variants: Sequence[str]
) -> list[Effect]:
    """Each variant of SAM, with its own radius: equal accuracy, at most twice the λ_max."""
    grids = {variant: [f"{method}:{variant}" for method in SAM] for variant in variants}
    best = experiments.tuned({"sam": SAM} | grids, options)
    runs = experiments.compare(["sgd", *best.values()], options, flatness="lambda_max")
    full = best.pop("sam")
    time = {label: f"{runs.time_ratio(label, 'sgd'):.2f}" for label in (full, *best.values())}
    gained = gain(runs, full, "sgd")
    # A share of a gain that is not above zero is not a margin.
    margin = SHARE * gained.mean if gained.interval()[0] > 0 else math.nan
    share = f"{SHARE:.0%} of SAM's gain over sgd, {gained.mean:.2g} points"
    effects = []
    for label in best.values():
        costs = f"(step time {time[label]} × sgd)"
        reference = f"(step time {time[full]} × sgd)"
        effects += [
            within(
                more_accurate(f"{label} {costs}", f"{full} {reference}"),
                gain(runs, label, full),
                margin,
                share,
            ),
            above(log_ratio("λ_max", full, label), flatter(runs, label, full, "lambda_max"), TWICE),
        ]
    return effects


def large_batch(experiments: Experiments) -> list[Effect]:
    """The spectral norm penalty where an epoch has few steps."""
    size = experiments.recipe().examples // LARGE
    options = {"batch_size": size, "learning_rate": 0.2}
    (best,) = experiments.tuned({"spectral": SPECTRAL}, options).values()
    runs = experiments.compare(["sgd", best], options)
    wide, narrow = diverged_as_worst(
        *(runs.of(label, "generalization_gap") for label in ("sgd", best)), good=-1
    )
    return [
        above(f"generalization gap of sgd minus that of {best}, batch size {size}", wide - narrow),
        above(more_accurate(best, "sgd"), gain(runs, best, "sgd")),
    ]


def epoch_time(experiments: Experiments) -> list[Effect]:
    """The time of an epoch with the input-gradient penalty and with spectral normalization.

    The former differentiates twice; the latter takes one power iteration per step.
    """
    slow, fast = "input_gradient_penalty", "spectral_normalization"
    runs = experiments.lipschitz([slow, fast])
    seconds = {
        name: [
            [epoch["seconds_per_step"] for epoch in run["epochs"]]
            for run in runs
            if run["method"].startswith(name)
        ]
        for name in (slow, fast)
    }
    ratios = np.median(np.log2(np.divide(seconds[slow], seconds[fast])), axis=1)
    return [above(log_ratio("epoch time", slow, fast), ratios)]
