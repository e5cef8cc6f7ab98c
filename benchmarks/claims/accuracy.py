"""Claims about accuracy and cost. Each function returns the effects that one claim predicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.effects import (
    ACCURACY,
    MARGIN,
    flatter,
    gain,
    log_ratio,
    more_accurate,
    points,
)
from benchmarks.claims.experiments import Experiments
from benchmarks.claims.grids import DROPOUT, NOISE, PGN, SAM, SAM_FINE, SCALED_NOISE, SPECTRAL
from benchmarks.claims.verdict import Effect, effect

NOISY = {"label_noise": 0.4}
LARGE = 8  # steps per epoch with a large batch


def below_sgd(experiments: Experiments, options: Mapping[str, Any]) -> list[Effect]:
    """SAM and PGN have a lower test error than SGD."""
    best = experiments.tuned({"sam": SAM_FINE, "pgn": PGN}, options)
    runs = experiments.compare(["sgd", *best.values()], options)
    return [
        effect(more_accurate(label, "sgd"), gain(runs, label, "sgd")) for label in best.values()
    ]


def below_sam(experiments: Experiments, options: Mapping[str, Any]) -> list[Effect]:
    """PGN has a lower test error than SAM."""
    best = experiments.tuned({"sam": SAM_FINE, "pgn": PGN}, options)
    sam, pgn = best.values()
    runs = experiments.compare(["sgd", sam, pgn], options)
    return [effect(more_accurate(pgn, sam), gain(runs, pgn, sam))]


def partial_penalty(experiments: Experiments) -> list[Effect]:
    """PGN with α from 0 (SGD) to 1 (SAM), at the most accurate radius of SAM."""
    (sam,) = experiments.tuned({"sam": SAM}, NOISY).values()
    r = sam.rpartition("=")[2]
    alphas = [f"penalized_gradient:r={r}:alpha={alpha}" for alpha in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    best = experiments.tuned({"alpha": alphas[1:-1]}, NOISY)["alpha"]
    runs = experiments.compare(["sgd", *alphas, sam], NOISY)
    ends = [abs(gain(runs, alphas[0], "sgd")), abs(gain(runs, alphas[-1], sam))]
    return [
        effect("0.1 minus the difference in accuracy of alpha=0 and sgd, points", 0.1 - ends[0]),
        effect("0.1 minus the difference in accuracy of alpha=1 and sam, points", 0.1 - ends[1]),
        effect(more_accurate(best, "alpha=1"), gain(runs, best, alphas[-1])),
    ]


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
        effect(more_accurate("adamw", early), gain(runs, "adamw", early)),
        effect(more_accurate(late, early), gain(runs, late, early)),
        effect(more_accurate(late, "adamw"), gain(runs, late, "adamw")),
    ]


def perturbed(experiments: Experiments) -> list[Effect]:
    """Noise on the weights against SGD and against SGD with dropout; 40% of the labels wrong."""
    best = experiments.tuned({"noise": NOISE, "scaled": SCALED_NOISE}, NOISY)
    model = experiments.setting.model
    grid = [{"model": f"{model}:dropout={rate}"} for rate in DROPOUT]
    dropout = experiments.tuned_options("sgd", grid, NOISY)
    with_dropout = experiments.compare(["sgd"], {**NOISY, **dropout}).of("sgd", ACCURACY)
    runs = experiments.compare(["sgd", *best.values()], NOISY)
    rate = dropout["model"].rpartition(":")[2]
    effects = []
    for label in best.values():
        effects += [
            effect(more_accurate(label, "sgd"), gain(runs, label, "sgd")),
            effect(
                more_accurate(label, f"sgd with {rate}"),
                points(runs.of(label, ACCURACY), with_dropout),
            ),
        ]
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
    # Where SAM itself gains nothing, a variant that is as accurate as SAM means little.
    gained = f"{gain(runs, full, 'sgd').mean():+.2g}"
    effects = []
    for label in best.values():
        size = gain(runs, label, full) + MARGIN
        flat = flatter(runs, label, full, "lambda_max") + 1
        costs = f"(step time {time[label]} × sgd)"
        reference = f"(step time {time[full]} × sgd, {gained} points over sgd)"
        effects += [
            effect(f"{more_accurate(f'{label} {costs}', f'{full} {reference}')}, + {MARGIN}", size),
            effect(f"{log_ratio('λ_max', full, label)}, + 1", flat),
        ]
    return effects


def large_batch(experiments: Experiments) -> list[Effect]:
    """The spectral norm penalty where an epoch has few steps."""
    size = experiments.recipe().examples // LARGE
    options = {"batch_size": size, "learning_rate": 0.2}
    (best,) = experiments.tuned({"spectral": SPECTRAL}, options).values()
    runs = experiments.compare(["sgd", best], options)
    narrower = runs.of("sgd", "generalization_gap") - runs.of(best, "generalization_gap")
    return [
        effect(f"generalization gap of sgd minus that of {best}, batch size {size}", narrower),
        effect(f"{more_accurate(best, 'sgd')}, + {MARGIN}", gain(runs, best, "sgd") + MARGIN),
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
    return [effect(log_ratio("epoch time", slow, fast), ratios)]
