"""The syntax of --methods, and the cost of each method."""

import pytest

from benchmarks.common import methods


@pytest.mark.parametrize(
    ("spec", "label", "cost"),
    [
        ("sgd", "sgd", 1),
        ("sam", "sam", 2),
        (" sam:rho=0.20 ", "sam:rho=0.2", 2),
        ("sam:rho=0.2:every=5", "sam:rho=0.2:every=5", 1.2),
        ("sam:rho=0.2:after=30:every=5", "sam:rho=0.2:after=30:every=5", 1.2),
        ("spectral_norm_penalty:penalty=0.1", "spectral_norm_penalty:penalty=0.1", 1),
        ("gradient_norm_penalty:penalty=0.1:ord=1", "gradient_norm_penalty:penalty=0.1:ord=1", 3),
        ("gsam+stable_sam", "gsam+stable_sam", 3),
        ("looksam", "looksam", 1.1),  # the default of flatreg is k=10
        ("looksam:k=4", "looksam:k=4", 1.25),
        ("looksam:k=4:every=2", "looksam:k=4:every=2", 1.125),
        ("gam", "gam", 6),  # required hyperparameters have default values here
        ("sam:rho=0.1+gam:rho=0.1:alpha=1", "sam:rho=0.1+gam:rho=0.1:alpha=1", 7),
        ("sam:rho=0.4:ascent_fraction=0.1", "sam:rho=0.4:ascent_fraction=0.1", 1.1),
    ],
)
def test_methods_are_parsed_with_their_cost(spec, label, cost):
    (method,) = methods.parse(spec, "sgd")
    assert method.label == label
    assert method.cost == pytest.approx(cost)
