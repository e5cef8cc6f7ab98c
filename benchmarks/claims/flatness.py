"""Claims about flatness. Each function returns the effects that one claim predicts.

They are about curvature, zeroth- and first-order flatness (R⁰ and R¹), implicit regularization and
the PACGen measure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.claims.effects import (
    MARGIN,
    Runs,
    correlation,
    flatter,
    flatter_at_same_loss,
    flatter_during_training,
    gain,
    log_ratio,
    more_accurate,
)
from benchmarks.claims.experiments import Experiments
from benchmarks.claims.grids import GAM, SAM
from benchmarks.claims.verdict import Effect, effect, exact
from benchmarks.common import measuring
from flatreg import measures

RADIUS = 0.1  # of SAM and GAM where the claim is about equal radii
RATES = {0.025: 160, 0.05: 80, 0.1: 40, 0.2: 20}  # learning rate: epochs; their product is constant
QUICK_RATES = {0.05: 4, 0.1: 2, 0.2: 1}
WIDTHS = (32, 64, 128, 256, 512)
QUICK_WIDTHS = WIDTHS[:2]
SAME_LOSS = "at equal training loss"


def flatter_than_plain(experiments: Experiments, optimizer: str) -> list[Effect]:
    """The curvature that GAM reaches against that of the plain optimizer."""
    runs, best = _tuned_sam_and_gam(experiments, optimizer)
    return list(_flatter(runs, best["gam"], optimizer))


def flatter_than_sam(experiments: Experiments, optimizer: str) -> list[Effect]:
    """The curvature that GAM reaches against that of SAM."""
    runs, best = _tuned_sam_and_gam(experiments, optimizer)
    return list(_flatter(runs, best["gam"], best["sam"]))


def flatter_at_same_radius(experiments: Experiments) -> list[Effect]:
    """GAM with weight 1 against SAM with the same radius: both approximately descend L + ρ‖∇L‖."""
    sam, gam = f"sam:rho={RADIUS}", f"gam:rho={RADIUS}:alpha=1"
    return list(_flatter(experiments.compare(["sgd", sam, gam], flatness="along"), gam, sam))


def _tuned_sam_and_gam(experiments: Experiments, optimizer: str) -> tuple[Runs, dict[str, str]]:
    options = {"optimizer": optimizer}
    best = experiments.tuned({"sam": SAM, "gam": GAM}, options)
    return experiments.compare([optimizer, *best.values()], options, flatness="along"), best


def _flatter(runs: Runs, flat: str, sharp: str) -> Iterator[Effect]:
    """λ_max and trace at the end of training, during it, and at equal training loss."""
    norms = ", ".join(f"{runs.of(label, 'weight_norm').mean():.1f}" for label in (sharp, flat))
    for name, symbol in (("lambda_max", "λ_max"), ("trace", "trace")):
        what = log_ratio(symbol, sharp, flat)
        yield effect(
            f"{what}, at the end of training (‖w‖ {norms})", flatter(runs, flat, sharp, name)
        )
        yield effect(
            f"{what}, mean over training", flatter_during_training(runs, flat, sharp, name)
        )
        yield effect(f"{what}, {SAME_LOSS}", flatter_at_same_loss(runs, flat, sharp, name))


def sam_and_gam(experiments: Experiments) -> list[Effect]:
    """The sum of both penalties against SAM alone."""
    best = experiments.tuned({"sam": SAM, "gam": GAM})
    both = f"{best['sam']}+{best['gam']}"
    runs = experiments.compare([best["sam"], both])
    what = f"{more_accurate(both, best['sam'])}, + {MARGIN}"
    return [effect(what, gain(runs, both, best["sam"]) + MARGIN)]


def blind_to_the_gradient(experiments: Experiments, rho: float = 0.5) -> list[Effect]:
    """Two losses of one weight with equal R⁰ within the radius ρ; one of them oscillates."""
    del experiments

    def smooth(w: jax.Array) -> jax.Array:
        return w**2

    def comb(w: jax.Array) -> jax.Array:
        """Nowhere above `smooth`, and equal to it at ±ρ, where the oscillation vanishes."""
        return w**2 - 0.1 * jnp.sin(8 * jnp.pi * w) ** 2 * (1 - (w / rho) ** 2)

    def flatness(line: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        def loss(w: jax.Array) -> jax.Array:
            return line(w[0])

        key, w = jax.random.key(0), jnp.zeros(1)
        zeroth = measures.zeroth_order_flatness(loss, w, key, rho=rho, random_starts=16)
        first = measures.first_order_flatness(loss, w, key, rho=rho, random_starts=16)
        return zeroth.value, first.value

    (zeroth, first), (zeroth_of_comb, first_of_comb) = flatness(smooth), flatness(comb)
    difference = abs(zeroth_of_comb / zeroth - 1)
    return [
        exact("0.01 minus the relative difference of R⁰", float(0.01 - difference)),
        exact(
            log_ratio("R¹", "the comb", "the smooth basin"), float(jnp.log2(first_of_comb / first))
        ),
    ]


def curvature_below_first_order(experiments: Experiments) -> list[Effect]:
    """λ_max ≤ R¹/ρ² at the end of training."""
    labels = ["sgd", f"sam:rho={RADIUS}", f"gam:rho={RADIUS}:alpha=1"]
    runs = experiments.compare(labels, flatness="end")
    rho = measuring.RHO
    return [
        effect(
            f"log₂((R¹/ρ²) / λ_max) of {label}",
            np.log2(runs.of(label, "first_order_flatness") / rho**2 / runs.of(label, "lambda_max")),
        )
        for label in labels
    ]


def implicit_regularization(experiments: Experiments) -> list[Effect]:
    """A larger learning rate against a small one, and explicit regularization at the small one.

    ‖∇L‖ is compared at equal training loss, because at the end of training it mainly reflects how
    far the loss has decreased.
    """
    rates = QUICK_RATES if experiments.setting.quick else RATES
    small, *larger = rates
    explicit = "gradient_regularization:mu=0.1"
    runs = Runs({})
    for rate, epochs in rates.items():
        options = {"learning_rate": rate, "epochs": epochs}
        methods = ["sgd", explicit] if rate == small else ["sgd"]
        found = experiments.compare(methods, options, flatness="along")
        runs.records.update(found.renamed(f" at {rate}"))
    sgd, explicit = f"sgd at {small}", f"{explicit} at {small}"
    noise = "accuracy under weight noise"
    robust = [runs.of(f"sgd at {rate}", "noise_accuracy") for rate in rates]
    return [
        *(
            effect(
                f"{log_ratio('‖∇L‖', sgd, flat)}, {SAME_LOSS}",
                flatter_at_same_loss(runs, flat, sgd, "gradient_norm"),
            )
            for flat in (*(f"sgd at {rate}" for rate in larger), explicit)
        ),
        effect(f"rank correlation of learning rate and {noise}", correlation(list(rates), robust)),
        effect(more_accurate(explicit, sgd, noise), gain(runs, explicit, sgd, "noise_accuracy")),
    ]


def wider_is_flatter(experiments: Experiments) -> list[Effect]:
    """R_IG = ‖∇L‖²/m of MLPs with m weights, at equal training loss."""
    widths = QUICK_WIDTHS if experiments.setting.quick else WIDTHS
    runs = Runs({})
    for width in widths:
        found = experiments.compare(["sgd"], {"model": f"mlp:width={width}"}, flatness="along")
        runs.records.update(found.renamed(f" with width {width}"))
    narrow, *wider = (f"sgd with width {width}" for width in widths)
    return [
        effect(
            f"{log_ratio('R_IG', narrow, wide)}, {SAME_LOSS}",
            2 * flatter_at_same_loss(runs, wide, narrow, "gradient_norm")
            + np.log2(runs.of(wide, "weights") / runs.of(narrow, "weights")),
        )
        for wide in wider
    ]


def pacgen_and_gap(experiments: Experiments) -> list[Effect]:
    """Ψ and the generalization gap across batch sizes, and across learning rates.

    Batch sizes are compared at the learning rate 0.1, learning rates at the batch size 256.
    """
    sizes, rates = (32, 64, 128, 256), (0.01, 0.03, 0.1, 0.3)
    settings = {
        "batch sizes": [{"batch_size": size, "learning_rate": 0.1} for size in sizes],
        "learning rates": [{"batch_size": 256, "learning_rate": rate} for rate in rates],
    }
    return [
        effect(
            f"rank correlation of Ψ and generalization gap across {name}",
            _pacgen_correlation(experiments, options),
        )
        for name, options in settings.items()
    ]


def _pacgen_correlation(
    experiments: Experiments, options: Sequence[Mapping[str, Any]]
) -> list[float]:
    """The rank correlation of Ψ and the generalization gap across options, one per seed."""
    runs = [experiments.compare(["sgd"], one, flatness="end") for one in options]
    metric, gap = (
        np.transpose([one.of("sgd", name) for one in runs])
        for name in ("pacgen", "generalization_gap")
    )
    return [stats.spearmanr(*pair).statistic for pair in zip(metric, gap, strict=True)]
