"""Claims about accuracy: who makes fewer test errors, and at which price."""

from collections.abc import Sequence

import numpy as np

from benchmarks.claims.effects import Effect, effect, flatter, gain, points
from benchmarks.claims.experiments import ACCURACY, Bench

NOISY = ("--label-noise=0.4",)
MARGIN = 0.5  # percentage points that count as the same accuracy
# What every method is tuned over: ten settings each, and SAM beside PGN fourteen, as PGN has two
# hyperparameters; both from radii that do nothing to radii that ruin.
RHOS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1)
SAM = [f"sam:rho={rho}" for rho in RHOS]
SAM_FINE = [f"sam:rho={rho}" for rho in sorted([*RHOS, 0.01, 0.03, 0.07, 1.5])]
RADII = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1)
PGN = [f"penalized_gradient:r={r}:alpha={alpha}" for r in RADII for alpha in (0.8, 0.9)]
NOISE = [f"perturbed_gradient:sigma={s}" for s in (0.005, 0.01, 0.02, *RHOS[1:7], 0.5)]
SCALED = [f"scaled_perturbed_gradient:sigma={s / 10:g}" for s in (0.01, *RHOS[:9])]
SPECTRAL = [f"spectral_norm_penalty:penalty={s / 10:g}" for s in (0.01, *RHOS[:9])]
DROPOUT = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LARGE = 8  # batches of an epoch


def below_sgd(bench: Bench, options: Sequence[str]) -> list[Effect]:
    """SAM's and PGN's test error is below SGD's."""
    best = bench.tuned({"sam": SAM_FINE, "pgn": PGN}, options)
    runs = bench.compare(["sgd", *best.values()], options)
    return [
        effect(f"{label} over sgd, points", gain(runs, label, "sgd")) for label in best.values()
    ]


def below_sam(bench: Bench, options: Sequence[str]) -> list[Effect]:
    """PGN's test error is below SAM's."""
    best = bench.tuned({"sam": SAM_FINE, "pgn": PGN}, options)
    sam, pgn = best.values()
    runs = bench.compare(["sgd", sam, pgn], options)
    return [effect(f"{pgn} over {sam}, points", gain(runs, pgn, sam))]


def partial_penalty(bench: Bench) -> list[Effect]:
    """α between SGD and SAM, at the radius that suits SAM."""
    (r,) = bench.tuned({"sam": SAM}, NOISY).values()
    r = r.rpartition("=")[2]
    alphas = [f"penalized_gradient:r={r}:alpha={alpha}" for alpha in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    best = bench.tuned({"alpha": alphas[1:-1]}, NOISY)["alpha"]
    runs = bench.compare(["sgd", *alphas, f"sam:rho={r}"], NOISY)
    ends = [abs(gain(runs, alphas[0], "sgd")), abs(gain(runs, alphas[-1], f"sam:rho={r}"))]
    return [
        effect("0.1 points less the distance of alpha=0 from sgd", 0.1 - ends[0]),
        effect("0.1 points less the distance of alpha=1 from sam", 0.1 - ends[1]),
        effect(f"{best} over alpha=1, points", gain(runs, best, alphas[-1])),
    ]


def zero_warmup(bench: Bench) -> list[Effect]:
    """With Adam, whose rate warms up over a fifth of the training, the penalty waits as long."""
    recipe = bench.recipe()
    options = ["--optimizer=adamw", f"--warmup-epochs={recipe.epochs / 5:g}"]
    until, until_held_out = (
        int(recipe.epochs / 5 * (size // recipe.batch_size))
        for size in (recipe.examples, recipe.examples * 4 // 5)
    )
    waits = [f"{method}:after={until_held_out}" for method in PGN]
    best = bench.tuned({"hasty": PGN, "waiting": waits}, options)
    hasty, waiting = best["hasty"], f"{best['waiting'].rpartition(':')[0]}:after={until}"
    runs = bench.compare(["adamw", hasty, waiting], options)
    return [
        effect(f"adamw over {hasty}, points", gain(runs, "adamw", hasty)),
        effect(f"{waiting} over {hasty}, points", gain(runs, waiting, hasty)),
        effect(f"{waiting} over adamw, points", gain(runs, waiting, "adamw")),
    ]


def perturbed(bench: Bench) -> list[Effect]:
    """Noise on the weights against none and against dropout, 40% of the labels wrong."""
    best = bench.tuned({"noise": NOISE, "scaled": SCALED}, NOISY)
    grid = [[f"--model={bench.setting.model}:dropout={rate}"] for rate in DROPOUT]
    dropout = bench.tuned_options("sgd", grid, NOISY)
    dropped = bench.compare(["sgd"], [*NOISY, *dropout]).of("sgd", ACCURACY)
    runs = bench.compare(["sgd", *best.values()], NOISY)
    rate = dropout[0].rpartition(":")[2]
    effects = []
    for label in best.values():
        against = points(runs.of(label, ACCURACY), dropped)
        effects += [
            effect(f"{label} over sgd, points", gain(runs, label, "sgd")),
            effect(f"{label} over {rate}, points", against),
        ]
    return effects


def cheap_ascent(bench: Bench, options: Sequence[str]) -> list[Effect]:
    """SAM's first gradient from a part of the batch."""
    return _cheap(bench, options, [f"ascent_fraction={part}" for part in (0.02, 0.05, 0.1, 0.25)])


def rare_ascent(bench: Bench, options: Sequence[str]) -> list[Effect]:
    """SAM on some steps only."""
    return _cheap(bench, options, ["every=2", "every=5"])


def _cheap(bench: Bench, options: Sequence[str], ways: Sequence[str]) -> list[Effect]:
    best = bench.tuned(
        {"sam": SAM} | {way: [f"{method}:{way}" for method in SAM] for way in ways}, options
    )
    runs = bench.compare(["sgd", *best.values()], options, flatness="lambda_max")
    full = best.pop("sam")
    time = {label: f"{runs.time(label, 'sgd'):.2f}" for label in (full, *best.values())}
    # Where SAM gains nothing, there is nothing to lose.
    sam = f"{full} ({time[full]}; {gain(runs, full, 'sgd').mean():+.2g} points over sgd)"
    effects = []
    for label in best.values():
        size = gain(runs, label, full) + MARGIN
        flat = flatter(runs, label, full, "lambda_max") + 1
        what = f"{label} ({time[label]} times sgd's time) over {sam}"
        effects += [
            effect(f"{what}, points, plus {MARGIN}", size),
            effect(f"log₂ λ_max of {full} / of {label}, plus 1", flat),
        ]
    return effects


def large_batch(bench: Bench) -> list[Effect]:
    """The spectral penalty where an epoch has few steps."""
    size = bench.recipe().examples // LARGE
    options = [f"--batch-size={size}", "--learning-rate=0.2"]
    (best,) = bench.tuned({"spectral": SPECTRAL}, options).values()
    runs = bench.compare(["sgd", best], options)
    narrower = runs.of("sgd", "generalization_gap") - runs.of(best, "generalization_gap")
    return [
        effect(f"gap of sgd less that of {best}, batches of {size}", narrower),
        effect(f"{best} over sgd, points, plus {MARGIN}", gain(runs, best, "sgd") + MARGIN),
    ]


def epoch_time(bench: Bench) -> list[Effect]:
    """The input-gradient penalty differentiates twice, normalization iterates once."""
    slow, fast = "input_gradient_penalty", "spectral_normalization"
    runs = bench.lipschitz([slow, fast])
    seconds = {
        name: [
            [epoch["seconds_a_step"] for epoch in run["epochs"]]
            for run in runs
            if run["method"].startswith(name)
        ]
        for name in (slow, fast)
    }
    ratios = np.median(np.log2(np.divide(seconds[slow], seconds[fast])), axis=1)
    return [effect(f"log₂ an epoch's time with {slow} / with {fast}", ratios)]
