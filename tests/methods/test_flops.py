"""The cost of a step in gradients, from the floating-point operations in XLA's cost analysis.

The networks have BatchNorm or LayerNorm, dropout, and a batch of 128. XLA merges computations that
a method repeats from the caller's clean pass, so the costs in the papers are upper bounds here.
"""

import functools

import jax
import optax
import pytest

import flatreg
from flatreg.linen import TrainState, classification_loss, make_train_step
from tests.support.networks import models

EXAMPLES = 128
MODELS = {"mlp": models.mlp, "cnn": models.cnn, "vit": models.vit}
every_model = pytest.mark.parametrize(
    "model", ["mlp", "cnn", pytest.param("vit", marks=pytest.mark.nightly)]
)

# If a method does not use the clean gradient, only the forward pass of the clean pass remains.
COSTS = {  # method -> model -> gradients
    "sam": (flatreg.sam(0.05), {"mlp": 2.03, "cnn": 2.03, "vit": 2.03}),
    "asam": (flatreg.asam(0.5), {"mlp": 2.03, "cnn": 2.03, "vit": 2.03}),
    "penalized_gradient": (flatreg.penalized_gradient(), {"mlp": 2.03, "cnn": 2.03, "vit": 2.03}),
    "gradient_norm_penalty": (
        flatreg.gradient_norm_penalty(0.1),
        {"mlp": 2.55, "cnn": 3.05, "vit": 3.3},
    ),
    "gradient_regularization": (
        flatreg.gradient_regularization(0.1),
        {"mlp": 2.55, "cnn": 3.05, "vit": 3.3},
    ),
    "gam": (flatreg.gam(0.1, 1.0), {"mlp": 6.1, "cnn": 6.1, "vit": 6.3}),
    "gam_with_ascent_by_differences": (
        flatreg.gam(0.1, 1.0, ascent_hvp=flatreg.finite_difference_hvp(0.01)),
        {"mlp": 5.1, "cnn": 5.1, "vit": 5.1},
    ),
    "gam_accelerated": (flatreg.gam_accelerated(), {"mlp": 4.05, "cnn": 4.05, "vit": 4.05}),
    "perturbed_gradient": (
        flatreg.perturbed_gradient(jax.random.key(0)),
        {"mlp": 1.51, "cnn": 1.37, "vit": 1.36},
    ),
    "perturbed_gradient_antithetic": (
        flatreg.perturbed_gradient(jax.random.key(0), antithetic=True),
        {"mlp": 2.52, "cnn": 2.37, "vit": 2.36},
    ),
}


@functools.cache
def problem(model):
    return MODELS[model](EXAMPLES)


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@functools.cache
def flops_of_gradient(model):
    loss_fn, *args = problem(model)
    return flops(jax.value_and_grad(loss_fn, has_aux=True), *args)


def gradients_of_step(model, method, **options):
    """The cost of a complete update, in gradients."""
    loss_fn, *args = problem(model)
    evaluate = flatreg.value_and_grad_fn(loss_fn, has_aux=True, key_argnums=2, **options)

    def step(params, batch, key):
        value_and_aux, g, grad_fn = evaluate(params, batch, key)
        return value_and_aux, method.update(g, method.init(params), params, grad_fn=grad_fn)[0]

    return flops(step, *args) / flops_of_gradient(model)


@pytest.mark.nightly_except("sam-mlp")
@pytest.mark.parametrize(
    ("name", "model"),
    [
        pytest.param(
            name,
            model,
            marks=[] if model == "mlp" or (name, model) == ("gam", "cnn") else pytest.mark.nightly,
        )
        for name in COSTS
        for model in MODELS
    ],
)
def test_step_cost_is_at_most_the_cost_in_the_paper(name, model):
    method, most = COSTS[name]
    assert gradients_of_step(model, method) <= most[model]


@pytest.mark.slow
@every_model
def test_ascent_on_a_tenth_of_the_batch_costs_a_tenth_more(model):
    assert gradients_of_step(model, flatreg.sam(0.05), ascent_fraction=0.1) <= 1.13


@pytest.mark.slow
def test_train_step_drops_an_unused_clean_backward_pass():
    _, _, batch, key = problem("mlp")
    tx = optax.chain(flatreg.perturbed_gradient(key), optax.sgd(0.1))
    state = TrainState.init(models.MLP(), tx, key, batch[0], train=False)
    assert flops(make_train_step(classification_loss), state, batch) <= 1.6 * flops_of_gradient(
        "mlp"
    )


@pytest.mark.slow
@every_model
def test_the_cost_analysis_counts_matrix_products(model):
    """A gradient has at least four operations per weight and example, so the count is not empty."""
    params = problem(model)[1]
    weights = sum(w.size for w in jax.tree.leaves(params) if w.ndim > 1)
    assert flops_of_gradient(model) > 4 * EXAMPLES * weights
