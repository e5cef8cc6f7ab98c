"""The report of the measure command: one page without other files, and the numbers on it."""

import base64
import html.parser

import flax.linen as nn
import jax
import numpy as np
import pytest

from benchmarks.common.models.cnn import Cnn
from benchmarks.common.models.resnet import ResNet
from benchmarks.measure import plots, report
from benchmarks.measure.connectivity import batch_statistics
from benchmarks.measure.measuring import GRID, POSITIONS, SIGMAS, describe
from flatreg import measures

NETWORK = "sam:rho=0.3 <b>&"


def everything():
    """Made-up results of all measures."""
    noise = np.linspace(0.5, 3, len(SIGMAS))
    found = {
        "values": {"loss": 0.5, "gradient_norm": 0.25},
        "eigenpairs": measures.Eigenpairs(
            np.array([4.0, 2.0]), None, np.array([0.1, 0.2]), np.array([True, False])
        ),
        "trace": measures.Estimate(np.array(9.0), np.array(0.5)),
        "R⁰": measures.Flatness(0.01, None, "gradient", np.array([0.01, 0.005]), 0.01),
        "R¹": measures.Flatness(0.02, None, "gradient", np.array([0.02, 0.01]), 0.01),
        "noise": measures.Estimate(noise, noise / 10),
        "slices": {
            "top eigenvector": 1 + POSITIONS**2,
            "random": 1 + POSITIONS**2 / 2,
            "surface": 1 + GRID[:, None] ** 2 + GRID**2,
        },
        "density": measures.Density(np.array([[0.0, 4.0]]), np.array([[0.9, 0.1]])),
        "pacgen": {"value": 12345.0, "curvature": 6.0, "active": 0.1, "hessian_lipschitz": 7.0},
        "stability": measures.Stability(
            np.array(4.0), np.array(38.0), np.array(4 / 38), np.array(0.1), None
        ),
    }
    positions = np.linspace(0, 1, 3)
    ends = (np.array(0.75), np.array(0.03), np.array(0.5), positions, np.array([0.5, 1.25, 0.5]))
    return found | {"segment": measures.Barrier(*ends), "curve": measures.BezierPath(*ends, None)}


class Elements(html.parser.HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    return report.page(NETWORK, [("network", "mlp")], everything(), [("command", "<script>")])


def test_the_report_needs_no_other_file(page):
    elements = Elements(page).found
    assert {tag for tag, _ in elements}.isdisjoint({"script", "link", "iframe", "object", "b"})
    assert "url(" not in report.STYLE
    assert "@import" not in report.STYLE
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    assert len(pictures) == len(plots.PANELS)
    for picture in pictures:
        start, encoded = picture["src"].split(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(encoded).startswith(b"\x89PNG")
        assert picture["alt"]
    assert not any({"src", "href", "srcset"} & set(a) for tag, a in elements if tag != "img")


def test_the_report_has_all_numbers(page):
    text = Elements(page).text
    assert text.count(NETWORK) == 2  # in the title and in the heading
    found = everything()
    for name, values in found.items():
        for quantity, value in describe(name, values):
            assert quantity in text
            assert value in text
    for number in ("4, residual 0.1", "0.75 ± 0.03 at position 0.50", "38", "12345", "9 ± 0.5"):
        assert number in text


def test_sections_without_measures_are_left_out():
    found = everything()
    for name in ("segment", "curve", "stability", "slices", "noise"):
        del found[name]
    text = Elements(report.page("sgd", [], found, [])).text
    for heading in ("Connectivity", "Stability", "Slices", "Noise"):
        assert heading not in text
    assert "Spectrum" in text


@pytest.mark.parametrize(
    "model",
    [
        Cnn(channels=(3,), num_classes=2),
        pytest.param(ResNet(num_classes=2, widths=(3,), blocks=1), marks=pytest.mark.slow),
    ],
    ids=["cnn", "resnet"],
)
def test_statistics_of_one_batch_are_its_mean_and_variance(model):
    x = jax.random.normal(jax.random.key(0), (5, 4, 4, 1))
    variables = model.init(jax.random.key(1), x, train=False)
    _, inner = model.apply(
        variables, x, train=False, capture_intermediates=lambda m, _: isinstance(m, nn.Conv)
    )
    (activations,) = inner["intermediates"]["Conv_0"]["__call__"]
    found = batch_statistics(model, variables, x)["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], activations.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["var"], activations.var((0, 1, 2)), rtol=1e-4)
