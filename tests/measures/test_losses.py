"""Losses and parameters in a form that a measure cannot use, and how the errors correct them."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatreg
from flatreg import measures

KEY = jax.random.key(0)
X = jnp.arange(6.0).reshape(3, 2)
ONE = {"draws": 2}
# Every measure of a loss on the parameters.
OF_LOSS = {
    "expected_sharpness": lambda f, w: measures.expected_sharpness(f, w, KEY, 0.1, **ONE),
    "first_order_flatness": lambda f, w: measures.first_order_flatness(f, w, KEY, 0.1),
    "gradient_flow": lambda f, w: measures.gradient_flow(f, w, [1.0]),
    "gradient_norm": measures.gradient_norm,
    "hessian": lambda f, w: measures.hessian(f, w)(w),
    "hessian_lipschitz": lambda f, w: measures.hessian_lipschitz(f, w, KEY, 0.1),
    "implicit_gradient_regularizer": measures.implicit_gradient_regularizer,
    "interpolate": lambda f, w: measures.interpolate(f, w, w, [0.5]),
    "loss_slice": lambda f, w: measures.loss_slice(f, w, (w, [0.5])),
    "modified_loss": lambda f, w: measures.modified_loss(f, 0.1)(w),
    "noise_robustness": lambda f, w: measures.noise_robustness(f, w, KEY, [0.1], **ONE),
    "pacbayes_sigma": lambda f, w: measures.pacbayes_sigma(f, w, KEY, 0.1, **ONE),
    "restrict": lambda f, w: measures.trace(
        *measures.restrict(f, w, lambda path: True), probes=None
    ),
    "spectral_density": lambda f, w: measures.spectral_density(f, w, KEY),
    "diagonal": lambda f, w: measures.diagonal(f, w, KEY),
    "top_eigenpairs": lambda f, w: measures.top_eigenpairs(f, w, KEY),
    "trace": lambda f, w: measures.trace(f, w, KEY),
    "zeroth_order_flatness": lambda f, w: measures.zeroth_order_flatness(f, w, KEY, 0.1),
    "zeroth_and_first_order_flatness": lambda f, w: measures.zeroth_and_first_order_flatness(
        f, w, KEY, 0.1
    ),
    "barrier": lambda f, w: measures.barrier(f, w, w),
    "bezier_path": lambda f, w: measures.bezier_path(f, w, w, KEY, steps=1),
    "critical_sharpness": lambda f, w: measures.critical_sharpness(f, w, w),
    "local_learning_coefficient": lambda f, w: measures.local_learning_coefficient(
        f, w, KEY, n=10, chains=2, burn_in=4, draws=4
    ),
    "per_block": lambda f, w: measures.per_block(
        measures.trace, f, w, KEY, {"all": lambda path: True}, probes=2
    ),
    "stability": lambda f, w: measures.stability(f, w, KEY, learning_rate=0.1),
    "worst_case_sharpness": lambda f, w: measures.worst_case_sharpness(f, w, KEY, 0.1),
}
# Every measure of a loss on the parameters and a batch.
OF_BATCH = {
    "dataset_loss": lambda f, w: measures.dataset_loss(f, X, batch_size=2)(w),
    "gradient_statistics": lambda f, w: measures.gradient_statistics(f, w, X),
    "modified_minibatch_loss": lambda f, w: measures.modified_minibatch_loss(f, 0.1, X[None])(w),
    "batch_sharpness": lambda f, w: measures.batch_sharpness(f, w, jnp.stack([X, X])),
}
# These take a loss of other arguments.
OTHERS = {"stability_tracker", "with_batch_statistics"}
of_loss = pytest.mark.parametrize("name", OF_LOSS)
of_batch = pytest.mark.parametrize("name", OF_BATCH)


def loss_fn(w, batch=X):
    return jnp.mean((batch @ w["kernel"]) ** 2)


W = {"kernel": jnp.ones(2)}


def test_every_measure_of_a_loss_is_tested():
    functions = {name: getattr(measures, name) for name in measures.__all__}
    takes = {
        name
        for name, function in functions.items()
        if inspect.isfunction(function)
        and {"loss_fn", "metric_fn"} & set(inspect.signature(function).parameters)
    }
    assert takes == set(OF_LOSS) | set(OF_BATCH) | OTHERS


@of_loss
def test_a_loss_with_aux_is_told_about_has_aux(name):
    with pytest.raises(TypeError, match=r"has_aux.*write lambda params: loss_fn\(params\)\[0\]"):
        OF_LOSS[name](lambda w: (loss_fn(w), {"accuracy": 1.0}), W)


@of_batch
def test_a_batch_loss_with_aux_is_told_about_has_aux(name):
    with pytest.raises(TypeError, match=r"has_aux.*batch: loss_fn\(params, batch\)\[0\]"):
        OF_BATCH[name](lambda w, batch: (loss_fn(w, batch), 1.0), W)


@of_loss
@pytest.mark.parametrize(
    "batch_loss",
    [lambda w, batch: loss_fn(w, batch), jax.jit(lambda w, batch, key: (loss_fn(w, batch), key))],
    ids=["batch", "jitted, with a key and aux"],
)
def test_a_loss_on_a_batch_is_told_about_dataset_loss(name, batch_loss):
    with pytest.raises(TypeError, match=r"\(w, batch.*measures\.dataset_loss\(loss_fn, dataset"):
        OF_LOSS[name](batch_loss, W)


@of_batch
@pytest.mark.parametrize("wrong", [lambda w: 0.0, lambda w, batch, key: 0.0], ids=["one", "three"])
def test_a_batch_loss_with_other_arguments_shows_them(name, wrong):
    with pytest.raises(TypeError, match=r"calls loss_fn\(params, batch\), but .*\(w.*closing over"):
        OF_BATCH[name](wrong, W)


@of_loss
def test_a_type_error_inside_the_loss_is_unchanged(name):
    def wrong(w):
        return len(3)

    with pytest.raises(TypeError, match=r"^object of type 'int' has no len"):
        OF_LOSS[name](wrong, W)


@pytest.mark.parametrize("name", [*OF_LOSS, *OF_BATCH])
@pytest.mark.parametrize("leaf", [jnp.tanh, "relu"], ids=["function", "text"])
def test_leaves_that_are_not_arrays_are_named(name, leaf):
    f, measure = (loss_fn, (OF_LOSS | OF_BATCH)[name])
    if name == "dataset_loss":
        pytest.skip("it does not read the parameters")
    with pytest.raises(TypeError, match=r"'activation'.*eqx\.partition.*eqx\.combine\(params"):
        measure(f, W | {"activation": leaf})


@pytest.mark.parametrize("name", ["pacgen", "optimal_noise", "uniform_kl", "filter_normalized"])
def test_measures_without_a_loss_name_leaves_that_are_not_arrays(name):
    calls = {
        "pacgen": lambda w: measures.pacgen(w, 1.0, 1.0),
        "optimal_noise": lambda w: measures.optimal_noise(w, 1.0, 0.5, 0.1),
        "uniform_kl": lambda w: measures.uniform_kl(w, 0.1, 1.0),
        "filter_normalized": lambda w: measures.filter_normalized(w, KEY),
    }
    with pytest.raises(TypeError, match=r"'activation'.*eqx\.partition"):
        calls[name](W | {"activation": jnp.tanh})


@pytest.mark.parametrize(
    ("curvature", "error", "message"),
    [
        (
            lambda f, w: lambda v: {"kernel": None},
            ValueError,
            r"None at 'kernel'.*eqx\.partition",
        ),
        (lambda f, w: lambda v: {"kernel": jnp.ones(3)}, ValueError, r"\(2,\).*\(3,\)"),
        (flatreg.reverse_hvp, TypeError, r"functools\.partial\(measures\.hessian, hvp="),
        (flatreg.finite_difference_hvp(0.1), TypeError, r"functools\.partial\(measures\.hess"),
        (0.01, TypeError, r"curvature must be a function"),
    ],
    ids=["None", "shape", "hvp", "difference", "number"],
)
def test_a_wrong_curvature_shows_the_corrected_argument(curvature, error, message):
    for measure in (measures.trace, measures.spectral_density):
        with pytest.raises(error, match=message):
            measure(loss_fn, W, KEY, curvature=curvature)


@pytest.mark.slow
def test_an_equinox_model_can_be_measured():
    """An unfiltered model raises, and the corrected call works."""
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, "scalar", 3, 1, activation=jnp.tanh, key=KEY)

    def of_model(model):
        return jnp.mean(jax.vmap(model)(X) ** 2)

    with pytest.raises(TypeError, match=r"'activation'.*eqx\.partition"):
        measures.trace(of_model, model, KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def of_params(params):
        return of_model(eqx.combine(params, static))

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda w: of_params(unravel(w)))(flat)
    actual = jax.jit(lambda p: measures.trace(of_params, p, probes=None).value)(params)
    np.testing.assert_allclose(actual, np.trace(hessian), rtol=1e-5)
