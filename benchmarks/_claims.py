"""The claims: a statement, its paper, and the effects that it predicts to be above zero."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks import _measure
from benchmarks._experiments import Bench, Runs
from flatreg import measures

NOISY = ("--label-noise=0.4",)
MARGIN = 0.5  # percentage points that count as the same accuracy
SAM = [f"sam:rho={rho}" for rho in (0.05, 0.1, 0.2, 0.3, 0.5)]
PGN = [f"penalized_gradient:r={r}:alpha=0.8" for r in (0.05, 0.1, 0.2, 0.3, 0.5)]
GAM = [f"gam:rho={rho}:alpha=1" for rho in (0.05, 0.1, 0.2, 0.3, 0.5)]
NOISE = [f"perturbed_gradient:sigma={sigma}" for sigma in (0.01, 0.02, 0.05, 0.1, 0.2)]
SCALED = [f"scaled_perturbed_gradient:sigma={s}" for s in (0.001, 0.003, 0.01, 0.03, 0.1)]
ACCURACY = "test_accuracy"


class Effect(NamedTuple):
    """What a claim says is above zero: mean and 95% t-interval over the seeds."""

    what: str
    mean: float
    low: float
    high: float
    seeds: int


class Claim(NamedTuple):
    """A statement of a paper, and how it is tried."""

    statement: str
    source: str
    effects: Callable[[Bench], list[Effect]]


def effect(what: str, values: Any) -> Effect:
    """Of one value a seed; of a single one, without an interval, that value."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    count = len(values)
    if count < 2:
        size = float(values.mean()) if count else float("nan")
        return Effect(what, size, float("nan"), float("nan"), count)
    half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5
    mean = float(values.mean())
    return Effect(what, mean, mean - float(half), mean + float(half), count)


def verdict(effects: Sequence[Effect]) -> str:
    """Of a claim that predicts all of the effects."""
    if any(one.high < 0 for one in effects):
        return "not reproduced"
    return "reproduced" if all(one.low > 0 for one in effects) else "inconclusive"


def _gain(runs: Runs, better: str, worse: str) -> np.ndarray:
    """Percentage points of test accuracy."""
    return 100 * (runs.of(better, ACCURACY) - runs.of(worse, ACCURACY))


def _flatter(runs: Runs, flat: str, sharp: str, name: str) -> np.ndarray:
    """log₂ of how many times smaller a measure is."""
    return np.log2(runs.of(sharp, name) / runs.of(flat, name))


def _order_of_errors(bench: Bench, options: Sequence[str]) -> list[Effect]:
    best = bench.tuned({"sam": SAM, "pgn": PGN}, options)
    runs = bench.compare(["sgd", *best.values()], options)
    return [
        effect(f"{best['sam']} over sgd, points", _gain(runs, best["sam"], "sgd")),
        effect(f"{best['pgn']} over {best['sam']}", _gain(runs, best["pgn"], best["sam"])),
    ]


def _partial_penalty(bench: Bench) -> list[Effect]:
    alphas = [f"penalized_gradient:r=0.3:alpha={alpha}" for alpha in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    best = bench.tuned({"alpha": alphas[1:-1]}, NOISY)["alpha"]
    runs = bench.compare(["sgd", *alphas, "sam:rho=0.3"], NOISY)
    ends = [abs(_gain(runs, alphas[0], "sgd")), abs(_gain(runs, alphas[-1], "sam:rho=0.3"))]
    return [
        effect("0.1 points less the distance of alpha=0 from sgd", 0.1 - ends[0]),
        effect("0.1 points less the distance of alpha=1 from sam", 0.1 - ends[1]),
        effect(f"{best} over alpha=1, points", _gain(runs, best, alphas[-1])),
    ]


def _flatter_by_gam(bench: Bench, optimizer: str) -> list[Effect]:
    options = [f"--optimizer={optimizer}"]
    best = bench.tuned({"sam": SAM, "gam": GAM}, options)
    runs = bench.compare([optimizer, *best.values()], options)
    return [
        effect(
            f"log₂ {name} of {sharp} / of {best['gam']}", _flatter(runs, best["gam"], sharp, name)
        )
        for sharp in (optimizer, best["sam"])
        for name in ("lambda_max", "trace")
    ]


def _sam_and_gam(bench: Bench) -> list[Effect]:
    best = bench.tuned({"sam": SAM, "gam": GAM})
    both = f"{best['sam']}+{best['gam']}"
    runs = bench.compare([best["sam"], both])
    gain = _gain(runs, both, best["sam"])
    return [effect(f"{both} over {best['sam']}, points, plus {MARGIN}", gain + MARGIN)]


def _blind_to_the_gradient(bench: Bench) -> list[Effect]:
    """Two basins on a line, both as deep and as high at distance ρ; one is a comb."""
    del bench
    rho = 0.5

    def smooth(w: jax.Array) -> jax.Array:
        return w**2

    def comb(w: jax.Array) -> jax.Array:
        """As high at ±ρ, and never above: teeth which vanish there."""
        return w**2 - 0.1 * jnp.sin(8 * jnp.pi * w) ** 2 * (1 - (w / rho) ** 2)

    found = {}
    for name, line in (("smooth", smooth), ("comb", comb)):

        def loss(w: jax.Array, line: Callable[[jax.Array], jax.Array] = line) -> jax.Array:
            return line(w[0])

        key, w, ball = jax.random.key(0), jnp.zeros(1), {"rho": rho, "random_starts": 16}
        zeroth = measures.zeroth_order_flatness(loss, w, key, **ball).value
        found[name] = zeroth, measures.first_order_flatness(loss, w, key, **ball).value
    same = abs(found["comb"][0] / found["smooth"][0] - 1)
    steeper = np.log2(found["comb"][1] / found["smooth"][1])
    return [
        Effect("0.01 less the relative difference of R⁰", *[float(0.01 - same)] * 3, 1),
        Effect("log₂ R¹ of the comb / of the smooth basin", *[float(steeper)] * 3, 1),
    ]


def _curvature_below_first_order(bench: Bench) -> list[Effect]:
    runs = bench.compare(["sgd", SAM[2], GAM[1]])
    return [
        effect(
            f"log₂ (R¹/ρ²) / λ_max of {label}",
            np.log2(
                runs.of(label, "first_order_flatness")
                / _measure.RHO**2
                / runs.of(label, "lambda_max")
            ),
        )
        for label in ("sgd", SAM[2], GAM[1])
    ]


def _correlation(x: Sequence[float], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Spearman's, of one value a setting with those of each seed."""
    return np.array([stats.spearmanr(x, values).statistic for values in np.transpose(rows)])


def _implicit_regularization(bench: Bench) -> list[Effect]:
    """Epochs in inverse proportion to the learning rate, so that all go as far."""
    rates = {0.025: 160, 0.05: 80, 0.1: 40, 0.2: 20}
    if bench.setting.quick:
        rates = {0.05: 4, 0.1: 2, 0.2: 1}
    runs = {
        rate: bench.compare(["sgd"], [f"--learning-rate={rate}", f"--epochs={epochs}"])
        for rate, epochs in rates.items()
    }

    def along(name: str) -> np.ndarray:
        return _correlation(list(rates), [one.of("sgd", name) for one in runs.values()])

    slow = min(rates)
    options = [f"--learning-rate={slow}", f"--epochs={rates[slow]}"]
    explicit = "gradient_regularization:mu=0.1"
    both = bench.compare(["sgd", explicit], options)
    return [
        effect("−rank correlation of learning rate and ‖∇L‖", -along("gradient_norm")),
        effect(
            "rank correlation of learning rate and accuracy under noise", along("noise_accuracy")
        ),
        effect(
            f"points of accuracy under noise, {explicit} over sgd, at {slow}",
            100 * (both.of(explicit, "noise_accuracy") - both.of("sgd", "noise_accuracy")),
        ),
    ]


def _pacgen_and_gap(bench: Bench) -> list[Effect]:
    sizes, rates = (32, 64, 128, 256), (0.01, 0.03, 0.1, 0.3)
    settings = {
        "batch size": [[f"--batch-size={size}", "--learning-rate=0.1"] for size in sizes],
        "learning rate": [["--batch-size=256", f"--learning-rate={rate}"] for rate in rates],
    }
    effects = []
    for name, options in settings.items():
        runs = [bench.compare(["sgd"], one) for one in options]
        pairs = zip(
            *(
                np.transpose([one.of("sgd", quantity) for one in runs])
                for quantity in ("pacgen", "generalization_gap")
            ),
            strict=True,
        )
        values = [stats.spearmanr(metric, gap).statistic for metric, gap in pairs]
        effects.append(effect(f"rank correlation of Ψ and gap over {name}", values))
    return effects


def _perturbed(bench: Bench) -> list[Effect]:
    best = bench.tuned({"noise": NOISE, "scaled": SCALED}, NOISY)
    runs = bench.compare(["sgd", *best.values()], NOISY)
    return [
        effect(f"{label} over sgd, points", _gain(runs, label, "sgd")) for label in best.values()
    ]


def _cheap_sam(bench: Bench, options: Sequence[str]) -> list[Effect]:
    grids = {"sam": SAM}
    for fraction in ("0.05", "0.1", "0.25"):
        rhos = (0.2, 0.3, 0.5, 0.7, 1)
        grids[fraction] = [f"sam:rho={rho}:ascent_fraction={fraction}" for rho in rhos]
    grids["every"] = [f"sam:rho={rho}:every=5" for rho in (0.2, 0.3, 0.5, 0.7, 1)]
    best = bench.tuned(grids, options)
    runs = bench.compare(list(best.values()), options)
    full = best.pop("sam")
    return [
        effect(f"{cheap} over {full}, points, plus {MARGIN}", _gain(runs, cheap, full) + MARGIN)
        for cheap in best.values()
    ]


FORET, ZHAO = "arXiv 2010.01412", "arXiv 2202.03599"
ZHANG, BARRETT, WANG = "arXiv 2303.03108", "arXiv 2009.11162", "arXiv 1809.07402"

CLAIMS = {
    "sam_beats_sgd": Claim(
        "test error: PGN < SAM < SGD", f"{FORET}, {ZHAO}", lambda b: _order_of_errors(b, ())
    ),
    "sam_beats_sgd_noisy": Claim(
        "test error: PGN < SAM < SGD, with 40% of the labels wrong",
        f"{FORET}, {ZHAO}",
        lambda b: _order_of_errors(b, NOISY),
    ),
    "partial_penalty": Claim(
        "α = 0 is SGD, α = 1 is SAM, and one in between is better (40% of the labels wrong)",
        ZHAO,
        _partial_penalty,
    ),
    "flatter_by_gam": Claim(
        "GAM ends at smaller λ_max and trace than SGD and SAM",
        ZHANG,
        lambda b: _flatter_by_gam(b, "sgd"),
    ),
    "flatter_by_gam_adamw": Claim(
        "the same with AdamW", ZHANG, lambda b: _flatter_by_gam(b, "adamw")
    ),
    "sam_and_gam": Claim("SAM + GAM is at least as good as SAM", ZHANG, _sam_and_gam),
    "blind_to_the_gradient": Claim(
        "on a line, R⁰ cannot tell a comb from a smooth basin, R¹ can",
        ZHANG,
        _blind_to_the_gradient,
    ),
    "curvature_below_first_order": Claim(
        "λ_max ≤ R¹/ρ² at trained points", ZHANG, _curvature_below_first_order
    ),
    "implicit_regularization": Claim(
        "a larger step ends at a smaller gradient and bears more noise; so does EGR at a small one",
        BARRETT,
        _implicit_regularization,
    ),
    "pacgen_and_gap": Claim(
        "PACGen's Ψ and the generalization gap move together over batch size and learning rate",
        WANG,
        _pacgen_and_gap,
    ),
    "perturbed": Claim(
        "perturbed optimization beats SGD (40% of the labels wrong)", WANG, _perturbed
    ),
    "cheap_sam": Claim(
        f"a cheaper ascent is as good as SAM's, to {MARGIN} points",
        "flatreg",
        lambda b: _cheap_sam(b, ()),
    ),
    "cheap_sam_noisy": Claim(
        f"the same with 40% of the labels wrong, to {MARGIN} points",
        "flatreg",
        lambda b: _cheap_sam(b, NOISY),
    ),
}
