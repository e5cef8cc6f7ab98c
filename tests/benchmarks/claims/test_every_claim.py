"""What each claim computes, from invented runs whose effects are known.

In this world, accuracies on the test set prefer other hyperparameters than those on the validation
split. A claim that is tuned on the test set, or that takes the worst setting, compares others.
"""

import pathlib

import numpy as np
import pytest
from scipy import stats

from benchmarks.claims import accuracy, flatness
from benchmarks.claims.experiments import FIRST_TUNING_SEED, Experiments, Setting
from benchmarks.claims.registry import CHECKS, CLAIMS

SEEDS = 3
SPREAD = 1e-4 * np.array([-1, 0, 1])  # of accuracies, over the seeds of the test runs
BEST = {  # what is best in validation; everything else is better on the test set
    "sam": 0.2,
    "penalized_gradient": 0.3,
    "gam": 0.1,
    "perturbed_gradient": 0.05,
    "scaled_perturbed_gradient": 0.01,
    "spectral_norm_penalty": 0.01,
}
# Test accuracies of the best settings, in percent.
ACCURACY = {
    "sgd": 80,
    "adamw": 86,
    "sam": 84,
    "penalized_gradient": 87,
    "gam": 82,
    "sam+gam": 85.5,
    "perturbed_gradient": 81,
    "scaled_perturbed_gradient": 83,
    "spectral_norm_penalty": 82,
}
RATIO = {"sgd": 8.0, "adamw": 16.0, "sam": 4.0, "gam": 1.0}  # of λ_max, also of the trace
DROPOUT, LENGTH = 1.5, 2.5  # points that plain training gains by its best dropout and length


class World:
    """Runs that were never made; `asked` has the options of each comparison."""

    def __init__(self):
        self.asked = []

    def compare(self, options, folder):
        del folder
        self.asked.append(options)
        methods = options.methods.split(",")
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        runs = [self.run(method, seed, options) for method in methods for seed in seeds]
        return {"runs": runs, "dataset": {"test_examples": 10**12}}

    def run(self, method, seed, options):
        name, value = kind(method)
        small, late = "ascent_fraction" in method or "every" in method, "after" in method
        size = RATIO.get(name.split("+")[0], 1.0) * (1.5 if small else 1)
        width = int(options.model.rpartition("width=")[2]) if "width" in options.model else 64
        rate = options.learning_rate
        loss = np.array([1.0, 0.1]) if options.budget == "steps" else np.array([0.5, 0.2])
        scale = 1 if options.budget == "steps" else 1 / size**2  # reversed at equal compute
        slope = (256 / width) ** 0.25 * (0.1 / rate if options.epochs != 40 or rate != 0.1 else 1)
        slope *= 0.5 if name == "gradient_regularization" else 1
        curve = [
            {
                "curvature": {"loss": x, "lambda_max": scale * size, "trace": 2 * scale * size}
                | {"gradient_norm": slope}
            }
            for x in loss
        ]
        top = size * (1 + rate * options.batch_size if options.flatness == "end" else 1)
        measured = {
            "test_accuracy": self.accuracy(name, value, late, small, options) / 100
            + (SPREAD[seed] if seed < SEEDS else 0),
            "noise_accuracy": rate + (0.1 if name == "gradient_regularization" else 0),
            "generalization_gap": {"sgd": 0.5}.get(name, 0.3) + rate,
            "train_loss": 0.4 / options.epochs / options.batch_size**0.25,
            "pacgen": rate * options.batch_size,  # of the setting alone
            "lambda_max": top,
            "trace": 2 * top,
            "first_order_flatness": 0.05**2 * top * 2,
            "weight_norm": 1.0 + rate * options.batch_size,
            "weights": width**2,
        }
        time = {"sgd": 1.0, "sam": 2.0}.get(name, 3.0)
        return {
            "method": method,
            "seed": seed,
            "measured": measured,
            "curve": curve,
            "seconds_per_step": time * (0.6 if small else 1),
        }

    def accuracy(self, name, value, late, small, options):
        best = BEST.get(name.split("+")[0])
        gained = 0
        if "dropout" in options.model:
            off = abs(float(options.model.rpartition("=")[2]) - 0.3)
            gained = DROPOUT - off if options.evaluate_on == "validation" else DROPOUT + 40 * off
        epochs = 40
        if name in ("sgd", "adamw") and options.epochs < epochs:
            off = abs(options.epochs / epochs - 0.2)
            gained = LENGTH - off if options.evaluate_on == "validation" else LENGTH + 40 * off
        if best is None or value is None:
            return ACCURACY[name] + gained if name in ACCURACY else 70.0
        off = abs(np.log(value / best))
        if options.evaluate_on == "validation":
            return 50 - off
        alpha = name == "penalized_gradient" and options.label_noise and value == BEST["sam"]
        return (
            ACCURACY[name] + 5 * off - (0.25 if small else 0) - (2.0 if alpha else 0) + 3.0 * late
        )

    def lipschitz(self, options, folder):
        del folder
        return {
            "runs": [
                {
                    "method": method,
                    "seed": seed,
                    "epochs": [{"seconds_per_step": seconds * (1 + 0.01 * seed)}] * 3,
                }
                for method, seconds in (
                    ("input_gradient_penalty:penalty=1", 4.0),
                    ("spectral_normalization", 1.0),
                )
                for seed in range(options["seeds"])
            ]
        }


def kind(method):
    """The name of a method, or of both parts of a sum, and its first hyperparameter."""
    parts = [one.partition(":") for one in method.split("+")]
    value = parts[0][2].partition("=")[2].partition(":")[0]
    return "+".join(name for name, _, _ in parts), float(value) if value else None


def experiments():
    world = World()
    setting = Setting("digits", None, "mlp", None, False, 1437, FIRST_TUNING_SEED)
    return world, Experiments(
        pathlib.Path("nowhere"), setting, SEEDS, world.compare, world.lipschitz
    )


def means(name):
    """The means of the effects of a claim that have a prediction."""
    _, made = experiments()
    return [one.mean for one in CLAIMS[name].effects(made) if one.prediction]


@pytest.mark.parametrize(
    "name", [*CLAIMS, *(name for name in CHECKS if name != "blind_to_the_gradient")]
)
def test_tuning_sees_neither_test_examples_nor_test_seeds(name):
    """And what is compared on the test set is what was best in validation."""
    world, made = experiments()
    (CLAIMS[name].effects if name in CLAIMS else CHECKS[name].checks)(made)
    for options in world.asked:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        if options.evaluate_on == "validation":
            assert options.flatness == "no"
            assert not set(seeds) & set(range(SEEDS))
            continue
        assert seeds == range(SEEDS)
        for method in options.methods.split(","):
            value = kind(method)[1]
            if name not in ("flatter_at_same_radius", "curvature_below_first_order"):
                expected = {BEST.get(kind(method)[0].split("+")[0]), None}
                if name in ("partial_penalty", "ends_of_the_penalty"):
                    expected.add(BEST["sam"])
                if "gradient_regularization" not in method:
                    assert value in expected, method


def test_tuned_dropout_and_length_are_those_of_validation():
    world, made = experiments()
    CLAIMS["perturbed"].effects(made)
    tests = [one for one in world.asked if one.evaluate_on == "test"]
    assert {one.model for one in tests} == {"mlp", "mlp:dropout=0.3"}
    assert {one.epochs for one in tests} == {40, 8}
    assert sum("dropout" in one.model for one in world.asked if one not in tests) == 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("below_sgd", [4, 7]),
        ("below_sgd_noisy", [4, 7]),
        ("below_sam", [3]),
        ("below_sam_noisy", [3]),
        ("partial_penalty", [0]),
        ("zero_warmup", [-1, 3, 4, 4 - DROPOUT, 4 - LENGTH]),
        ("sam_and_gam", [1.5]),
        ("perturbed", [1, 3, 1 - DROPOUT, 3 - DROPOUT, 1 - LENGTH, 3 - LENGTH]),
        ("large_batch", [0.2, 2]),
        ("epoch_time", [2]),
        ("cheap_ascent", [-0.25, np.log2(1 / 1.5)] * 4),
        ("rare_ascent", [-0.25, np.log2(1 / 1.5)] * 2),
    ],
)
def test_effects_on_accuracy_and_time(name, expected):
    assert means(name)[: len(expected)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("flatter_than_sgd", 3),
        ("flatter_than_sam", 2),
        ("flatter_at_same_radius", 2),
        ("flatter_than_adamw", 4),
        ("flatter_than_sam_adamw", 2),
    ],
)
def test_effects_on_curvature(name, ratio):
    """λ_max and trace after as many steps, then after as many gradients, where all is reversed."""
    assert means(name) == pytest.approx([ratio, ratio, -ratio, -ratio])


def test_the_number_of_weights_does_not_count_as_flatness():
    """‖∇L‖² falls by log₂(width) / 2, and R_IG by 2 log₂(width) more."""
    _, made = experiments()
    found = CLAIMS["wider_is_flatter"].effects(made)
    predicted = [one.mean for one in found if one.prediction]
    assert predicted == pytest.approx([0.5, 1, 1.5, 2])
    shown = [one.mean for one in found if not one.prediction]
    assert shown == pytest.approx([2, 2.5, 4, 5, 6, 7.5, 8, 10])


def test_a_larger_learning_rate_has_a_smaller_gradient():
    found = means("implicit_regularization")
    assert found[:4] == pytest.approx([1, 2, 3, 1])
    assert found[4:] == pytest.approx([1, 10])


def test_pacgen_must_tell_more_than_the_training_loss():
    """Here Ψ = rate · batch size has its own share of the gap, 0.5 + rate; the loss has less."""
    known, difference, at_equal_loss = means("pacgen_and_gap")
    assert known > 0.5
    assert difference > 0
    rates, sizes = np.array([0.1] * 4 + [0.01, 0.03, 0.3]), np.array([32, 64, 128, *[256] * 4])
    assert at_equal_loss == pytest.approx(stats.spearmanr(rates * sizes, rates).statistic)


def test_the_margin_is_a_share_of_the_gain_and_is_not_added():
    _, made = experiments()
    found = CLAIMS["cheap_ascent"].effects(made)
    assert found[0].prediction == "within ±1 (25% of SAM's gain over sgd, 4 points)"
    assert found[1].prediction == "> -1"
    assert "2.00 × sgd" in found[0].quantity
    assert "1.20 × sgd" in found[0].quantity
    assert all("+ " not in one.quantity for one in found)


def test_checks_hold_or_fail_by_their_values():
    _, made = experiments()
    for check in flatness.curvature_below_first_order(made):
        assert check.value == pytest.approx(1)
        assert check.holds
    ends = accuracy.ends_of_the_penalty(made)
    assert [check.holds for check in ends] == [check.value <= 0.1 for check in ends]
    assert not all(check.holds for check in ends), "the invented PGN is not SAM"
