"""The claims: a statement, its paper, and the effects that it predicts to be above zero."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.claims import accuracy as accuracy
from benchmarks.claims import flatness as flatness
from benchmarks.claims.effects import Effect
from benchmarks.claims.experiments import Bench


class Claim(NamedTuple):
    """A statement of a paper, and how it is tried."""

    statement: str
    source: str
    effects: Callable[[Bench], list[Effect]]


FORET, ZHAO, ZHAO_24 = "arXiv 2010.01412", "arXiv 2202.03599", "arXiv 2406.09723"
ZHANG, BARRETT, WANG = "arXiv 2303.03108", "arXiv 2009.11162", "arXiv 1809.07402"
YOSHIDA, MIYATO = "arXiv 1705.10941", "arXiv 1802.05957"
WRONG = "40% of the labels wrong"
NEARLY = f"to {accuracy.MARGIN} points"

CLAIMS = {
    "below_sgd": Claim(
        "test error: SAM and PGN < SGD",
        f"{FORET}, {ZHAO}",
        lambda b: accuracy.below_sgd(b, ()),
    ),
    "below_sgd_noisy": Claim(
        f"test error: SAM and PGN < SGD, {WRONG}",
        f"{FORET}, {ZHAO}",
        lambda b: accuracy.below_sgd(b, accuracy.NOISY),
    ),
    "below_sam": Claim("test error: PGN < SAM", ZHAO, lambda b: accuracy.below_sam(b, ())),
    "below_sam_noisy": Claim(
        f"test error: PGN < SAM, {WRONG}", ZHAO, lambda b: accuracy.below_sam(b, accuracy.NOISY)
    ),
    "partial_penalty": Claim(
        f"α = 0 is SGD, α = 1 is SAM, and one in between is better ({WRONG})",
        ZHAO,
        accuracy.partial_penalty,
    ),
    "zero_warmup": Claim(
        "with Adam and a warm-up of its rate the penalty hurts, and one that waits does not",
        ZHAO_24,
        accuracy.zero_warmup,
    ),
    "flatter_than_sgd": Claim(
        "GAM's λ_max and trace are below SGD's",
        ZHANG,
        lambda b: flatness.flatter_than_plain(b, "sgd"),
    ),
    "flatter_than_sam": Claim(
        "GAM's λ_max and trace are below SAM's, each with its most accurate radius",
        ZHANG,
        lambda b: flatness.flatter_than_sam(b, "sgd"),
    ),
    "flatter_at_same_radius": Claim(
        "GAM's λ_max and trace are below SAM's of the same radius, both on SGD",
        ZHANG,
        flatness.flatter_at_same_radius,
    ),
    "flatter_than_adamw": Claim(
        "GAM's λ_max and trace are below AdamW's",
        ZHANG,
        lambda b: flatness.flatter_than_plain(b, "adamw"),
    ),
    "flatter_than_sam_adamw": Claim(
        "GAM's λ_max and trace are below SAM's, both on AdamW, each with its most accurate radius",
        ZHANG,
        lambda b: flatness.flatter_than_sam(b, "adamw"),
    ),
    "sam_and_gam": Claim(
        f"SAM + GAM is at least as good as SAM, {NEARLY}", ZHANG, flatness.sam_and_gam
    ),
    "blind_to_the_gradient": Claim(
        "on a line, R⁰ cannot tell a comb from a smooth basin, R¹ can",
        ZHANG,
        flatness.blind_to_the_gradient,
    ),
    "curvature_below_first_order": Claim(
        "λ_max ≤ R¹/ρ² at trained points", ZHANG, flatness.curvature_below_first_order
    ),
    "implicit_regularization": Claim(
        "a larger step passes the same loss at a smaller gradient and ends bearing more noise; "
        "so does EGR at a small step",
        BARRETT,
        flatness.implicit_regularization,
    ),
    "wider_is_flatter": Claim(
        "a larger model passes the same loss at a smaller R_IG", BARRETT, flatness.wider_is_flatter
    ),
    "pacgen_and_gap": Claim(
        "PACGen's Ψ and the generalization gap move together over batch size and learning rate",
        WANG,
        flatness.pacgen_and_gap,
    ),
    "perturbed": Claim(
        f"perturbed optimization beats SGD, without and with dropout ({WRONG})",
        WANG,
        accuracy.perturbed,
    ),
    "epoch_time": Claim(
        "an epoch with the input-gradient penalty takes longer than with spectral normalization",
        MIYATO,
        accuracy.epoch_time,
    ),
    "large_batch": Claim(
        "at a large batch spectral norm regularization narrows the gap",
        YOSHIDA,
        accuracy.large_batch,
    ),
    "cheap_ascent": Claim(
        f"SAM's ascent on a part of the batch is as good, {NEARLY} and twice the λ_max",
        "flatreg",
        lambda b: accuracy.cheap_ascent(b, ()),
    ),
    "cheap_ascent_noisy": Claim(
        f"SAM's ascent on a part of the batch is as good, {NEARLY} and twice the λ_max, {WRONG}",
        "flatreg",
        lambda b: accuracy.cheap_ascent(b, accuracy.NOISY),
    ),
    "rare_ascent": Claim(
        f"SAM on some steps is as good, {NEARLY} and twice the λ_max",
        "flatreg",
        lambda b: accuracy.rare_ascent(b, ()),
    ),
    "rare_ascent_noisy": Claim(
        f"SAM on some steps is as good, {NEARLY} and twice the λ_max, {WRONG}",
        "flatreg",
        lambda b: accuracy.rare_ascent(b, accuracy.NOISY),
    ),
}
