"""The claims: a statement, its source, and the effects that it predicts.

Statements that hold by construction are `CHECKS`. They are listed apart and are not counted.
"""

from benchmarks.claims import accuracy, flatness
from benchmarks.claims.claim import Checked, Claim

FORET, ZHAO, ZHAO_24 = "arXiv 2010.01412", "arXiv 2202.03599", "arXiv 2406.09723"
ZHANG, BARRETT, WANG = "arXiv 2303.03108", "arXiv 2009.11162", "arXiv 1809.07402"
YOSHIDA, MIYATO = "arXiv 1705.10941", "arXiv 1802.05957"
WRONG = " (40% of the training labels wrong)"
SAME_EPOCHS = " after as many epochs, with SGD at its default learning rate"
AS_GOOD = (
    f"is as accurate as SAM within {accuracy.SHARE:.0%} of SAM's gain over SGD, with at most twice "
    "its λ_max"
)
EQUAL = "at equal training loss, after as many steps and after as many gradients"
PART_OF_BATCH = f"SAM whose ascent uses a part of the batch {AS_GOOD}"
SOME_STEPS = f"SAM on every second or fifth step only {AS_GOOD}"

UNTUNED = (
    "The plain optimizer had fixed hyperparameters and as many epochs; it was not tuned at equal "
    "compute."
)

CLAIMS = {
    "below_sgd": Claim(
        f"SAM and PGN have a lower test error than SGD{SAME_EPOCHS}",
        f"{FORET}, {ZHAO}",
        lambda experiments: accuracy.below_sgd(experiments, {}),
        UNTUNED,
    ),
    "below_sgd_noisy": Claim(
        f"SAM and PGN have a lower test error than SGD{SAME_EPOCHS}{WRONG}",
        f"{FORET}, {ZHAO}",
        lambda experiments: accuracy.below_sgd(experiments, accuracy.NOISY),
        UNTUNED,
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
        f"PGN with some α between 0 and 1 is more accurate than with α = 1, which is SAM{WRONG}",
        ZHAO,
        accuracy.partial_penalty,
    ),
    "zero_warmup": Claim(
        "With AdamW and learning-rate warmup, PGN from the first step reduces accuracy, and PGN "
        "that starts after the warmup raises it, also above AdamW with tuned dropout or length",
        ZHAO_24,
        accuracy.zero_warmup,
        UNTUNED,
    ),
    "flatter_than_sgd": Claim(
        f"GAM reaches a smaller λ_max and Hessian trace than SGD, {EQUAL}",
        ZHANG,
        lambda experiments: flatness.flatter_than_plain(experiments, "sgd"),
        UNTUNED,
    ),
    "flatter_than_sam": Claim(
        "GAM reaches a smaller λ_max and Hessian trace than SAM, each with its most accurate "
        f"radius, {EQUAL}",
        ZHANG,
        lambda experiments: flatness.flatter_than_sam(experiments, "sgd"),
    ),
    "flatter_at_same_radius": Claim(
        "GAM reaches a smaller λ_max and Hessian trace than SAM with the same radius, both with "
        f"SGD, {EQUAL}",
        ZHANG,
        flatness.flatter_at_same_radius,
    ),
    "flatter_than_adamw": Claim(
        f"GAM reaches a smaller λ_max and Hessian trace than AdamW, {EQUAL}",
        ZHANG,
        lambda experiments: flatness.flatter_than_plain(experiments, "adamw"),
        UNTUNED,
    ),
    "flatter_than_sam_adamw": Claim(
        "GAM reaches a smaller λ_max and Hessian trace than SAM, both with AdamW, each with its "
        f"most accurate radius, {EQUAL}",
        ZHANG,
        lambda experiments: flatness.flatter_than_sam(experiments, "adamw"),
    ),
    "sam_and_gam": Claim(
        "SAM + GAM is more accurate than SAM",
        ZHANG,
        flatness.sam_and_gam,
    ),
    "implicit_regularization": Claim(
        "With a larger learning rate, SGD has a smaller gradient at the same training loss and is "
        "more robust to weight noise at the end; so has explicit gradient regularization with a "
        "small learning rate",
        BARRETT,
        flatness.implicit_regularization,
    ),
    "wider_is_flatter": Claim(
        "A wider network has a smaller ‖∇L‖² at the same training loss, so that its R_IG = ‖∇L‖²/m "
        "is smaller by more than the number m of its weights explains",
        BARRETT,
        flatness.wider_is_flatter,
    ),
    "pacgen_and_gap": Claim(
        "PACGen's Ψ tells more about the generalization gap than the training loss does, across "
        "batch sizes and learning rates",
        WANG,
        flatness.pacgen_and_gap,
    ),
    "perturbed": Claim(
        "Perturbed optimization is more accurate than SGD, also than SGD with tuned dropout or "
        f"length{WRONG}",
        WANG,
        accuracy.perturbed,
        UNTUNED,
    ),
    "epoch_time": Claim(
        "An epoch with the input-gradient penalty takes longer than one with spectral "
        "normalization",
        MIYATO,
        accuracy.epoch_time,
    ),
    "large_batch": Claim(
        "With a large batch, the spectral norm penalty reduces the generalization gap and raises "
        "accuracy",
        YOSHIDA,
        accuracy.large_batch,
        UNTUNED,
    ),
    "cheap_ascent": Claim(
        PART_OF_BATCH,
        "flatreg",
        lambda experiments: accuracy.cheap_ascent(experiments, {}),
        UNTUNED,
    ),
    "cheap_ascent_noisy": Claim(
        f"{PART_OF_BATCH}{WRONG}",
        "flatreg",
        lambda experiments: accuracy.cheap_ascent(experiments, accuracy.NOISY),
        UNTUNED,
    ),
    "rare_ascent": Claim(
        SOME_STEPS,
        "flatreg",
        lambda experiments: accuracy.rare_ascent(experiments, {}),
        UNTUNED,
    ),
    "rare_ascent_noisy": Claim(
        f"{SOME_STEPS}{WRONG}",
        "flatreg",
        lambda experiments: accuracy.rare_ascent(experiments, accuracy.NOISY),
        UNTUNED,
    ),
}

CHECKS = {
    "ends_of_the_penalty": Checked(
        f"PGN with α = 0 is SGD, and with α = 1 it is SAM{WRONG}",
        ZHAO,
        accuracy.ends_of_the_penalty,
    ),
    "blind_to_the_gradient": Checked(
        "For a loss of one weight, R⁰ does not distinguish an oscillating basin (a comb) from a "
        "smooth one, and R¹ does",
        ZHANG,
        flatness.blind_to_the_gradient,
    ),
    "curvature_below_first_order": Checked(
        "λ_max ≤ R¹/ρ² at the end of training", ZHANG, flatness.curvature_below_first_order
    ),
}
