"""Claims about flatness: curvature, R⁰ and R¹, implicit regularization, PACGen."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks.claims.accuracy import MARGIN, RHOS, SAM
from benchmarks.claims.effects import (
    Effect,
    correlation,
    effect,
    exact,
    flatter,
    flatter_at_same_loss,
    flatter_on_the_way,
    gain,
)
from benchmarks.claims.experiments import Bench, Runs
from benchmarks.common import measuring as _measure
from flatreg import measures

GAM = [f"gam:rho={rho}:alpha={alpha}" for rho in (0.05, 0.1, 0.2, 0.3, 0.5) for alpha in (1, 2)]
RADII = RHOS[2], RHOS[4]
RATES = {0.025: 160, 0.05: 80, 0.1: 40, 0.2: 20}  # learning rate: epochs, so that all go as far
WIDTHS = (32, 64, 128, 256, 512)


def flatter_than_plain(bench: Bench, optimizer: str) -> list[Effect]:
    """GAM against the plain optimizer, by curvature."""
    options = [f"--optimizer={optimizer}"]
    best = bench.tuned({"sam": SAM, "gam": GAM}, options)
    runs = bench.compare([optimizer, *best.values()], options, flatness="along")
    return list(_flatter(runs, best["gam"], optimizer))


def flatter_than_sam(bench: Bench, optimizer: str) -> list[Effect]:
    """GAM against SAM, by curvature."""
    options = [f"--optimizer={optimizer}"]
    best = bench.tuned({"sam": SAM, "gam": GAM}, options)
    runs = bench.compare([optimizer, *best.values()], options, flatness="along")
    return list(_flatter(runs, best["gam"], best["sam"]))


def flatter_at_same_radius(bench: Bench) -> list[Effect]:
    """GAM of weight 1 against SAM of the same radius, which both descend L + ρ‖∇L‖ nearby."""
    sam, gam = f"sam:rho={RADII[0]}", f"gam:rho={RADII[0]}:alpha=1"
    return list(_flatter(bench.compare(["sgd", sam, gam], flatness="along"), gam, sam))


def _flatter(runs: Runs, flat: str, sharp: str) -> Iterator[Effect]:
    """At the end, on the way there, and where both have the same training loss."""
    norms = ", ".join(f"{runs.of(label, 'weight_norm').mean():.1f}" for label in (sharp, flat))
    for name in ("lambda_max", "trace"):
        what = f"log₂ {name} of {sharp} / of {flat}"
        yield effect(f"{what}, in the end (‖w‖ {norms})", flatter(runs, flat, sharp, name))
        yield effect(f"{what}, along training", flatter_on_the_way(runs, flat, sharp, name))
        yield effect(f"{what}, at the same loss", flatter_at_same_loss(runs, flat, sharp, name))


def sam_and_gam(bench: Bench) -> list[Effect]:
    """Both penalties at once."""
    best = bench.tuned({"sam": SAM, "gam": GAM})
    both = f"{best['sam']}+{best['gam']}"
    runs = bench.compare([best["sam"], both])
    what = f"{both} over {best['sam']}, points, plus {MARGIN}"
    return [effect(what, gain(runs, both, best["sam"]) + MARGIN)]


def blind_to_the_gradient(bench: Bench, rho: float = 0.5) -> list[Effect]:
    """Two basins on a line, both as deep and as high at distance ρ; one is a comb."""
    del bench

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
        exact("0.01 less the relative difference of R⁰", 0.01 - same),
        exact("log₂ R¹ of the comb / of the smooth basin", steeper),
    ]


def curvature_below_first_order(bench: Bench) -> list[Effect]:
    """λ_max ≤ R¹/ρ² where training ends."""
    labels = ["sgd", f"sam:rho={RADII[0]}", f"gam:rho={RADII[0]}:alpha=1"]
    runs = bench.compare(labels, flatness="end")
    bound = {label: runs.of(label, "first_order_flatness") / _measure.RHO**2 for label in labels}
    return [
        effect(
            f"log₂ (R¹/ρ²) / λ_max of {label}",
            np.log2(bound[label] / runs.of(label, "lambda_max")),
        )
        for label in labels
    ]


def implicit_regularization(bench: Bench) -> list[Effect]:
    """What a larger step does, and what the explicit regularizer does at a small one.

    ‖∇L‖ at the same training loss: in the end it tells above all how far that has gone down.
    """
    rates = {0.05: 4, 0.1: 2, 0.2: 1} if bench.setting.quick else RATES
    small, *larger = rates
    egr = "gradient_regularization:mu=0.1"
    runs = Runs({})
    for rate, epochs in rates.items():
        options = [f"--learning-rate={rate}", f"--epochs={epochs}"]
        methods = ["sgd", egr] if rate == small else ["sgd"]
        found = bench.compare(methods, options, flatness="along")
        runs.records.update(found.renamed(f" at {rate}"))
    sgd, egr = f"sgd at {small}", f"{egr} at {small}"
    noise = "accuracy under noise"
    robust = [runs.of(f"sgd at {rate}", "noise_accuracy") for rate in rates]
    return [
        *(
            effect(
                f"log₂ ‖∇L‖ of {sgd} / of {flat}, at the same loss",
                flatter_at_same_loss(runs, flat, sgd, "gradient_norm"),
            )
            for flat in (*(f"sgd at {rate}" for rate in larger), egr)
        ),
        effect(f"rank correlation of learning rate and {noise}", correlation(list(rates), robust)),
        effect(f"{noise}, points of {egr} over sgd", gain(runs, egr, sgd, "noise_accuracy")),
    ]


def wider_is_flatter(bench: Bench) -> list[Effect]:
    """R_IG = ‖∇L‖²/m of MLPs with m weights, at the same training loss."""
    widths = WIDTHS[:2] if bench.setting.quick else WIDTHS
    runs = Runs({})
    for width in widths:
        found = bench.compare(["sgd"], [f"--model=mlp:width={width}"], flatness="along")
        runs.records.update(found.renamed(f" of width {width}"))
    narrow, *wider = (f"sgd of width {width}" for width in widths)
    return [
        effect(
            f"log₂ R_IG of {narrow} / of {wide}, at the same loss",
            2 * flatter_at_same_loss(runs, wide, narrow, "gradient_norm")
            + np.log2(runs.of(wide, "weights") / runs.of(narrow, "weights")),
        )
        for wide in wider
    ]


def pacgen_and_gap(bench: Bench) -> list[Effect]:
    """Ψ and test loss − training loss, over batch size at rate 0.1 and over rate at batch 256."""
    sizes, rates = (32, 64, 128, 256), (0.01, 0.03, 0.1, 0.3)
    settings = {
        "batch size": [[f"--batch-size={size}", "--learning-rate=0.1"] for size in sizes],
        "learning rate": [["--batch-size=256", f"--learning-rate={rate}"] for rate in rates],
    }
    return [
        effect(f"rank correlation of Ψ and gap over {name}", _together(bench, options))
        for name, options in settings.items()
    ]


def _together(bench: Bench, options: Sequence[Sequence[str]]) -> list[float]:
    """The rank correlation of Ψ and gap over sets of options, one a seed."""
    runs = [bench.compare(["sgd"], more, flatness="end") for more in options]
    metric, gap = (
        np.transpose([one.of("sgd", name) for one in runs])
        for name in ("pacgen", "generalization_gap")
    )
    return [stats.spearmanr(*pair).statistic for pair in zip(metric, gap, strict=True)]
