"""The claims: a statement, its source, and the effects that it predicts to be above zero."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.claims import accuracy, flatness
from benchmarks.claims.effects import MARGIN
from benchmarks.claims.experiments import Experiments
from benchmarks.claims.verdict import Effect


class Claim(NamedTuple):
    """A statement that experiments can support or contradict.

    Attributes:
      statement: the claim in one sentence.
      source: the paper that makes it, or `flatreg` for a claim of this library.
      effects: makes the runs and returns the effects that the claim predicts to be above zero.
    """

    statement: str
    source: str
    effects: Callable[[Experiments], list[Effect]]


FORET, ZHAO, ZHAO_24 = "arXiv 2010.01412", "arXiv 2202.03599", "arXiv 2406.09723"
ZHANG, BARRETT, WANG = "arXiv 2303.03108", "arXiv 2009.11162", "arXiv 1809.07402"
YOSHIDA, MIYATO = "arXiv 1705.10941", "arXiv 1802.05957"
WRONG = " (40% of the training labels wrong)"
AS_GOOD = f"is as accurate as SAM within {MARGIN} points, with at most twice its λ_max"
PART_OF_BATCH = f"SAM whose ascent uses a part of the batch {AS_GOOD}"
SOME_STEPS = f"SAM on every second or fifth step only {AS_GOOD}"

CLAIMS = {
    "below_sgd": Claim(
        "SAM and PGN have a lower test error than SGD",
        f"{FORET}, {ZHAO}",
        lambda experiments: accuracy.below_sgd(experiments, {}),
    ),
    "below_sgd_noisy": Claim(
        f"SAM and PGN have a lower test error than SGD{WRONG}",
        f"{FORET}, {ZHAO}",
        lambda experiments: accuracy.below_sgd(experiments, accuracy.NOISY),
    ),
    "below_sam": Claim(
        "PGN has a lower test error than SAM",
        ZHAO,
        lambda experiments: accuracy.below_sam(experiments, {}),
    ),
    "below_sam_noisy": Claim(
        f"PGN has a lower test error than SAM{WRONG}",
        ZHAO,
        lambda experiments: accuracy.below_sam(experiments, accuracy.NOISY),
    ),
    "partial_penalty": Claim(
        "PGN with α = 0 equals SGD, with α = 1 it equals SAM, and some α in between is more "
        f"accurate than α = 1{WRONG}",
        ZHAO,
        accuracy.partial_penalty,
    ),
    "zero_warmup": Claim(
        "With AdamW and learning-rate warmup, PGN from the first step reduces accuracy, and PGN "
        "that starts after the warmup does not",
        ZHAO_24,
        accuracy.zero_warmup,
    ),
    "flatter_than_sgd": Claim(
        "GAM reaches a smaller λ_max and Hessian trace than SGD",
        ZHANG,
        lambda experiments: flatness.flatter_than_plain(experiments, "sgd"),
    ),
    "flatter_than_sam": Claim(
        "GAM reaches a smaller λ_max and Hessian trace than SAM, each with its most accurate "
        "radius",
        ZHANG,
        lambda experiments: flatness.flatter_than_sam(experiments, "sgd"),
    ),
    "flatter_at_same_radius": Claim(
        "GAM reaches a smaller λ_max and Hessian trace than SAM with the same radius, both with "
        "SGD",
        ZHANG,
        flatness.flatter_at_same_radius,
    ),
    "flatter_than_adamw": Claim(
        "GAM reaches a smaller λ_max and Hessian trace than AdamW",
        ZHANG,
        lambda experiments: flatness.flatter_than_plain(experiments, "adamw"),
    ),
    "flatter_than_sam_adamw": Claim(
        "GAM reaches a smaller λ_max and Hessian trace than SAM, both with AdamW, each with its "
        "most accurate radius",
        ZHANG,
        lambda experiments: flatness.flatter_than_sam(experiments, "adamw"),
    ),
    "sam_and_gam": Claim(
        f"SAM + GAM is at least as accurate as SAM within {MARGIN} points",
        ZHANG,
        flatness.sam_and_gam,
    ),
    "blind_to_the_gradient": Claim(
        "For a loss of one weight, R⁰ does not distinguish an oscillating basin (a comb) from a "
        "smooth one, and R¹ does",
        ZHANG,
        flatness.blind_to_the_gradient,
    ),
    "curvature_below_first_order": Claim(
        "λ_max ≤ R¹/ρ² at the end of training", ZHANG, flatness.curvature_below_first_order
    ),
    "implicit_regularization": Claim(
        "With a larger learning rate, SGD has a smaller gradient at the same training loss and is "
        "more robust to weight noise at the end; so has explicit gradient regularization with a "
        "small learning rate",
        BARRETT,
        flatness.implicit_regularization,
    ),
    "wider_is_flatter": Claim(
        "A wider network has a smaller R_IG at the same training loss",
        BARRETT,
        flatness.wider_is_flatter,
    ),
    "pacgen_and_gap": Claim(
        "PACGen's Ψ is larger where the generalization gap is larger, across batch sizes and "
        "across learning rates",
        WANG,
        flatness.pacgen_and_gap,
    ),
    "perturbed": Claim(
        f"Perturbed optimization is more accurate than SGD, with dropout and without it{WRONG}",
        WANG,
        accuracy.perturbed,
    ),
    "epoch_time": Claim(
        "An epoch with the input-gradient penalty takes longer than one with spectral "
        "normalization",
        MIYATO,
        accuracy.epoch_time,
    ),
    "large_batch": Claim(
        "With a large batch, the spectral norm penalty reduces the generalization gap",
        YOSHIDA,
        accuracy.large_batch,
    ),
    "cheap_ascent": Claim(
        PART_OF_BATCH, "flatreg", lambda experiments: accuracy.cheap_ascent(experiments, {})
    ),
    "cheap_ascent_noisy": Claim(
        f"{PART_OF_BATCH}{WRONG}",
        "flatreg",
        lambda experiments: accuracy.cheap_ascent(experiments, accuracy.NOISY),
    ),
    "rare_ascent": Claim(
        SOME_STEPS, "flatreg", lambda experiments: accuracy.rare_ascent(experiments, {})
    ),
    "rare_ascent_noisy": Claim(
        f"{SOME_STEPS}{WRONG}",
        "flatreg",
        lambda experiments: accuracy.rare_ascent(experiments, accuracy.NOISY),
    ),
}
