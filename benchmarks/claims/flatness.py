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
    NOISE_ACCURACY,
    Runs,
    correlation,
    flatter,
    flatter_at_same_loss,
    flatter_during_training,
    gain,
    log_ratio,
    more_accurate,
    partial_correlation,
)
from benchmarks.claims.experiments import Experiments, MissingRunsError
from benchmarks.claims.grids import GAM, SAM
from benchmarks.claims.verdict import Check, Effect, above, missing, shown
from benchmarks.common import measuring
from benchmarks.common.statistics.confidence import diverged_as_worst
from flatreg import measures

RADIUS = 0.1  # of SAM and GAM where the claim is about equal radii
RATES = {0.025: 160, 0.05: 80, 0.1: 40, 0.2: 20}  # learning rate: epochs; their product is constant
QUICK_RATES = {0.05: 4, 0.1: 2, 0.2: 1}
WIDTHS = (32, 64, 128, 256, 512)
QUICK_WIDTHS = WIDTHS[:2]
SAME_LOSS = "at equal training loss"
SYMBOLS = {"lambda_max": "λ_max", "trace": "trace"}
# What else could predict the generalization gap as well as Ψ does; a smaller training loss goes
# with a larger gap.
RIVALS = {"weight_norm": "‖w‖", "lambda_max": "λ_max", "trace": "trace"}


def flatter_than_plain(experiments: Experiments, optimizer: str) -> list[Effect]:
    """The curvature that GAM reaches against that of the plain optimizer."""

    def methods(options: Mapping[str, Any]) -> tuple[str, str]:
        return _tuned_sam_and_gam(experiments, options)["gam"], optimizer

    return _flatter_in_both(experiments, {"optimizer": optimizer}, methods)


def flatter_than_sam(experiments: Experiments, optimizer: str) -> list[Effect]:
    """The curvature that GAM reaches against that of SAM."""

    def methods(options: Mapping[str, Any]) -> tuple[str, str]:
        best = _tuned_sam_and_gam(experiments, options)
        return best["gam"], best["sam"]

    return _flatter_in_both(experiments, {"optimizer": optimizer}, methods)


def flatter_at_same_radius(experiments: Experiments) -> list[Effect]:
    """GAM with weight 1 against SAM with the same radius: both approximately descend L + ρ‖∇L‖."""

    def methods(options: Mapping[str, Any]) -> tuple[str, str]:
        del options
        return f"gam:rho={RADIUS}:alpha=1", f"sam:rho={RADIUS}"

    return _flatter_in_both(experiments, {}, methods)


def _tuned_sam_and_gam(experiments: Experiments, options: Mapping[str, Any]) -> dict[str, str]:
    return experiments.tuned({"sam": SAM, "gam": GAM}, options)


def _flatter_in_both(
    experiments: Experiments,
    options: Mapping[str, Any],
    methods: Callable[[Mapping[str, Any]], tuple[str, str]],
) -> list[Effect]:
    """λ_max and trace at equal training loss, after as many steps and after as many gradients.

    The methods are chosen anew for each of the two budgets. At the end of training and during it,
    the training losses differ, so that these ratios are only shown.
    """
    flat, sharp = methods(options)
    plain = options.get("optimizer", "sgd")
    labels = list(dict.fromkeys([plain, sharp, flat]))
    runs = experiments.compare(labels, options, flatness="along")
    norms = ", ".join(f"{runs.of(label, 'weight_norm').mean():.1f}" for label in (sharp, flat))
    effects = []
    for name, symbol in SYMBOLS.items():
        what = log_ratio(symbol, sharp, flat)
        effects += [
            above(
                f"{what}, {SAME_LOSS}, equal steps", flatter_at_same_loss(runs, flat, sharp, name)
            ),
            shown(
                f"{what}, at the end of training (‖w‖ {norms})", flatter(runs, flat, sharp, name)
            ),
            shown(f"{what}, mean over training", flatter_during_training(runs, flat, sharp, name)),
        ]
    return [*effects, *_flatter_at_equal_compute(experiments, options, methods)]


def _flatter_at_equal_compute(
    experiments: Experiments,
    options: Mapping[str, Any],
    methods: Callable[[Mapping[str, Any]], tuple[str, str]],
) -> Iterator[Effect]:
    """λ_max and trace at equal training loss, if all methods take as many gradients as SGD."""
    options = {**options, "budget": "gradients"}
    try:
        flat, sharp = methods(options)
        runs = experiments.compare([sharp, flat], options, flatness="along")
    except MissingRunsError:
        for symbol in SYMBOLS.values():
            yield missing(f"{symbol}, {SAME_LOSS}, equal compute", "runs are missing")
        return
    for name, symbol in SYMBOLS.items():
        what = f"{log_ratio(symbol, sharp, flat)}, {SAME_LOSS}, equal compute"
        yield above(what, flatter_at_same_loss(runs, flat, sharp, name))


def sam_and_gam(experiments: Experiments) -> list[Effect]:
    """The sum of both penalties against SAM alone."""
    best = experiments.tuned({"sam": SAM, "gam": GAM})
    both = f"{best['sam']}+{best['gam']}"
    runs = experiments.compare([best["sam"], both])
    return [above(more_accurate(both, best["sam"]), gain(runs, both, best["sam"]))]


def blind_to_the_gradient(experiments: Experiments, rho: float = 0.5) -> list[Check]:
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
        zeroth, first = measures.zeroth_and_first_order_flatness(
            loss, w, key, rho=rho, random_starts=16
        )
        return zeroth.value, first.value

    (zeroth, first), (zeroth_of_comb, first_of_comb) = flatness(smooth), flatness(comb)
    difference = float(abs(zeroth_of_comb / zeroth - 1))
    ratio = float(jnp.log2(first_of_comb / first))
    return [
        Check("relative difference of R⁰", difference, "≤ 0.01", difference <= 0.01),
        Check(log_ratio("R¹", "the comb", "the smooth basin"), ratio, "> 0", ratio > 0),
    ]


def curvature_below_first_order(experiments: Experiments) -> list[Check]:
    """λ_max ≤ R¹/ρ² at the end of training."""
    labels = ["sgd", f"sam:rho={RADIUS}", f"gam:rho={RADIUS}:alpha=1"]
    runs = experiments.compare(labels, flatness="end")
    found = []
    for label in labels:
        first, top = (runs.of(label, name) for name in ("first_order_flatness", "lambda_max"))
        least = float(np.log2(first / measuring.RHO**2 / top).min())
        what = f"log₂((R¹/ρ²) / λ_max) of {label}, smallest over seeds"
        found.append(Check(what, least, "≥ 0", least >= 0))
    return found


def implicit_regularization(experiments: Experiments) -> list[Effect]:
    """A larger learning rate against a small one, and explicit regularization at the small one.

    ‖∇L‖ is compared at equal training loss, because at the end of training it mainly reflects how
    far the loss has decreased.
    """
    rates = QUICK_RATES if experiments.setting.quick else RATES
    small, *larger = rates
    explicit = "gradient_regularization:mu=0.1"
    runs = Runs({}, 0)
    for rate, epochs in rates.items():
        options = {"learning_rate": rate, "epochs": epochs}
        methods = ["sgd", explicit] if rate == small else ["sgd"]
        found = experiments.compare(methods, options, flatness="along")
        runs = Runs(runs.records | found.renamed(f" at {rate}"), found.examples)
    sgd, explicit = f"sgd at {small}", f"{explicit} at {small}"
    noise = "accuracy under weight noise"
    robust = diverged_as_worst(
        *(runs.of(f"sgd at {rate}", NOISE_ACCURACY) for rate in rates), worst=0
    )
    return [
        *(
            above(
                f"{log_ratio('‖∇L‖', sgd, flat)}, {SAME_LOSS}",
                flatter_at_same_loss(runs, flat, sgd, "gradient_norm"),
            )
            for flat in (*(f"sgd at {rate}" for rate in larger), explicit)
        ),
        above(f"rank correlation of learning rate and {noise}", correlation(list(rates), robust)),
        above(more_accurate(explicit, sgd, noise), gain(runs, explicit, sgd, NOISE_ACCURACY)),
    ]


def wider_is_flatter(experiments: Experiments) -> list[Effect]:
    """‖∇L‖² of MLPs of different widths, at equal training loss.

    R_IG = ‖∇L‖²/m also has the number of weights m, by which it falls with the width whatever the
    gradient does. That part is shown apart and proves nothing.
    """
    widths = QUICK_WIDTHS if experiments.setting.quick else WIDTHS
    runs = Runs({}, 0)
    for width in widths:
        found = experiments.compare(["sgd"], {"model": f"mlp:width={width}"}, flatness="along")
        runs = Runs(runs.records | found.renamed(f" with width {width}"), found.examples)
    narrow, *wider = (f"sgd with width {width}" for width in widths)
    effects = []
    for wide in wider:
        gradient = 2 * flatter_at_same_loss(runs, wide, narrow, "gradient_norm")
        weights = diverged_as_worst(np.log2(runs.of(wide, "weights") / runs.of(narrow, "weights")))[
            0
        ]
        effects += [
            above(f"{log_ratio('‖∇L‖²', narrow, wide)}, {SAME_LOSS}", gradient),
            shown(log_ratio("1/m", narrow, wide), weights),
            shown(f"{log_ratio('R_IG', narrow, wide)}, {SAME_LOSS}", gradient + weights),
        ]
    return effects


def pacgen_and_gap(experiments: Experiments) -> list[Effect]:
    """Ψ and the generalization gap across batch sizes and learning rates.

    A run that fits the training set better has a larger gap, whatever Ψ is. So the prediction is
    about what Ψ tells if the training loss is known. The rivals show what simpler quantities tell.
    """
    settings = [{"batch_size": size, "learning_rate": 0.1} for size in (32, 64, 128, 256)]
    settings += [{"batch_size": 256, "learning_rate": rate} for rate in (0.01, 0.03, 0.3)]
    runs = [experiments.compare(["sgd"], one, flatness="end") for one in settings]

    def of(name: str) -> np.ndarray:  # one row per seed, one column per setting
        return np.transpose([one.of("sgd", name) for one in runs])

    gap, loss = of("generalization_gap"), of("train_loss")

    def ranks(values: np.ndarray) -> list[float]:
        return [stats.spearmanr(*pair).statistic for pair in zip(values, gap, strict=True)]

    def given_loss(name: str) -> list[float]:
        rows = zip(of(name), gap, loss, strict=True)
        return [partial_correlation(*row) for row in rows]

    across = "across 7 batch sizes and learning rates"
    rank = "rank correlation with the generalization gap"
    return [
        above(f"{rank} at known training loss, of Ψ, {across}", given_loss("pacgen")),
        above(
            f"{rank}, of Ψ minus that of minus the training loss",
            np.subtract(ranks(of("pacgen")), ranks(-loss)),
        ),
        shown(f"{rank}, of Ψ", ranks(of("pacgen"))),
        shown(f"{rank}, of minus the training loss", ranks(-loss)),
        *(shown(f"{rank}, of {symbol}", ranks(of(name))) for name, symbol in RIVALS.items()),
        *(
            shown(f"{rank} at known training loss, of {symbol}", given_loss(name))
            for name, symbol in RIVALS.items()
        ),
        *_pacgen_at_equal_loss(experiments, settings),
    ]


def _pacgen_at_equal_loss(
    experiments: Experiments, settings: Sequence[Mapping[str, Any]]
) -> Iterator[Effect]:
    """Ψ and the gap at a training loss that all settings reach.

    They are interpolated between trainings of half, whole and double length.
    """
    if experiments.setting.quick:
        return
    what = f"rank correlation of Ψ and the generalization gap, {SAME_LOSS}"
    epochs = experiments.recipe().epochs
    lengths = [{"epochs": epochs // 2}, {}, {"epochs": 2 * epochs}]
    try:
        runs = [
            [experiments.compare(["sgd"], {**one, **more}, flatness="end") for more in lengths]
            for one in settings
        ]
    except MissingRunsError:
        yield missing(what, "runs are missing")
        return
    loss, metric, gap = (
        np.array([[one.of("sgd", name) for one in row] for row in runs])
        for name in ("train_loss", "pacgen", "generalization_gap")
    )
    found = []
    for seed in range(loss.shape[-1]):
        of_loss = np.log(loss[..., seed])  # one row per setting, one column per length
        low, high = of_loss.min(1).max(), of_loss.max(1).min()
        pairs = [
            [np.interp((low + high) / 2, x[x.argsort()], y[x.argsort()]) for y in both]
            for x, *both in zip(of_loss, metric[..., seed], gap[..., seed], strict=True)
        ]
        found.append(stats.spearmanr(*np.transpose(pairs)).statistic if low < high else np.nan)
    yield above(what, found)
