"""Invalid arguments raise at once or during tracing, and the error shows a corrected call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatreg
from tests.support.cases import CASES
from tests.support.problems import METHODS, loss_fn, tanh_net

every_scalar = pytest.mark.parametrize(
    ("case", "scalar"),
    [pytest.param(case, s, id=f"{case.name}-{s}") for case in CASES for s in case.scalars],
)
# All methods that call the oracle on the first step, also inside combinators.
every_method = pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("after", "randomly", "per_shard")]
)
NO_BIAS = {"hidden": {"kernel": True, "bias": False}, "out": True}


def update(tx, grad_fn=None, params=None, grads=None):
    """Traces one update. Each argument replaces its default."""
    net, batch = tanh_net()
    params = net if params is None else params
    oracle = functools.partial(jax.grad(loss_fn), batch=batch) if grad_fn is None else grad_fn

    def run(params):
        g = params if grads is None else grads
        return tx.update(g, tx.init(params), params, grad_fn=oracle)[0]

    return jax.eval_shape(run, params)


def with_batch(function):
    return lambda params: function(params, tanh_net()[1])


class TestUpdate:
    """The arguments of ``tx.update``."""

    @every_method
    def test_missing_oracle_error_shows_how_to_make_one(self, name):
        params, tx = tanh_net()[0], METHODS[name]()
        with pytest.raises(ValueError, match=r"grad_fn = flatreg\.value_and_grad_fn\(loss_fn\)"):
            tx.update(params, tx.init(params), params)

    @every_method
    def test_missing_parameters_error_shows_the_call(self, name):
        params, tx = tanh_net()[0], METHODS[name]()
        with pytest.raises(ValueError, match=r"tx\.update\(grads, state, params, grad_fn=grad_fn"):
            tx.update(params, tx.init(params), grad_fn=with_batch(jax.grad(loss_fn)))

    @every_method
    @pytest.mark.parametrize("oracle", [3.0, "loss", {"a": 1}])
    def test_oracle_must_be_a_function(self, name, oracle):
        with pytest.raises(TypeError, match=r"grad_fn to be a function.*grad_fn=grad_fn"):
            update(METHODS[name](), grad_fn=oracle)

    @every_method
    @pytest.mark.parametrize(
        "oracle",
        [
            jax.value_and_grad(loss_fn),
            jax.grad(lambda p, b: (loss_fn(p, b), 0.0), has_aux=True),
            flatreg.value_and_grad_fn(loss_fn),
        ],
        ids=["value_and_grad", "has_aux", "value_and_grad_fn"],
    )
    def test_oracle_that_returns_a_tuple_raises(self, name, oracle):
        with pytest.raises(TypeError, match=r"tuple.*has_aux=True\)\(params, batch\)\[0\]"):
            update(METHODS[name](), grad_fn=with_batch(oracle))

    @every_method
    def test_oracle_that_takes_a_step_raises(self, name):
        """``optax.contrib.sam`` calls ``grad_fn(params, step)``."""
        text = r"requires step.*optax\.contrib\.sam.*grad_fn=lambda params: grad_fn\(params, 0\)"
        with pytest.raises(TypeError, match=text):
            update(METHODS[name](), grad_fn=lambda params, step: params)

    @every_method
    def test_oracle_that_takes_the_batch_raises(self, name):
        text = r"requires batch.*grad_fn\(params, batch\).*flatreg\.value_and_grad_fn\(loss_fn\)"
        with pytest.raises(TypeError, match=text):
            update(METHODS[name](), grad_fn=jax.grad(loss_fn))

    @pytest.mark.parametrize("hvp", [flatreg.exact_hvp, flatreg.finite_difference_hvp(0.1)])
    def test_an_error_of_the_oracle_is_not_blamed_on_the_hvp(self, hvp):
        tx = flatreg.gam(hvp=hvp)
        with pytest.raises(TypeError, match="requires step") as caught:
            update(tx, grad_fn=lambda params, step: params)
        assert "reverse_hvp" not in "".join(getattr(caught.value, "__notes__", []))

    @every_method
    def test_oracle_may_have_optional_arguments(self, name):
        _, batch = tanh_net()

        def grad_fn(params, step=0, *others, **more):
            return jax.grad(loss_fn)(params, batch)

        update(METHODS[name](), grad_fn=grad_fn)

    def test_type_errors_inside_the_oracle_are_unchanged(self):
        def grad_fn(params):
            raise TypeError("unsupported operand")

        with pytest.raises(TypeError, match="unsupported operand"):
            update(flatreg.sam(), grad_fn=grad_fn)

    @every_method
    def test_loss_in_place_of_oracle_raises(self, name):
        with pytest.raises(TypeError, match=r"jax\.grad\(loss_fn\)\(params, batch\)"):
            update(METHODS[name](), grad_fn=with_batch(loss_fn))

    @every_method
    def test_loss_of_one_array_in_place_of_oracle_raises(self, name):
        with pytest.raises(TypeError, match=r"jax\.grad\(loss_fn\)\(params, batch\)"):
            update(METHODS[name](), grad_fn=lambda w: jnp.sum(w**2), params=jnp.ones(3))

    @every_method
    def test_value_and_gradient_in_place_of_gradient_raises(self, name):
        params, _ = tanh_net()
        with pytest.raises((TypeError, ValueError), match=r"tx\.update\(grads, state, params"):
            update(METHODS[name](), grads=(jnp.ones(()), params))

    @every_method
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda tx: optax.masked(tx, NO_BIAS),
            lambda tx: optax.partition({True: tx, False: optax.sgd(0.1)}, NO_BIAS),
            lambda tx: optax.selective_transform(tx, freeze_mask=NO_BIAS),
        ],
        ids=["masked", "partition", "selective_transform"],
    )
    def test_masked_trees_raise_and_suggest_scale(self, name, wrap):
        (params, _), tx, correction = tanh_net(), METHODS[name](), r"optax\.chain\(method.*scale="
        with pytest.raises(ValueError, match=correction):
            wrap(tx).init(params)
        masked = {"hidden": {**params["hidden"], "bias": optax.MaskedNode()}, "out": params["out"]}
        with pytest.raises(ValueError, match=correction):
            tx.update(masked, tx.init(params), masked, grad_fn=lambda params: params)

    @every_method
    def test_complex_parameters_raise(self, name):
        grad_fn = jax.grad(lambda w: jnp.sum(jnp.abs(w) ** 2))
        with pytest.raises(TypeError, match=r"real parameters.*w\.real, w\.imag"):
            update(METHODS[name](), grad_fn=grad_fn, params=jnp.array([1.0, 1.0j]))


class TestScalars:
    """Hyperparameters are checked when the method is made."""

    @every_scalar
    @pytest.mark.parametrize("value", [-1, -0.5, np.float32(-2.0), float("nan"), np.nan])
    def test_negative_scalars_and_nan_raise(self, case, scalar, value):
        with pytest.raises(ValueError, match=r"(?s)must be .*at least 0, got (-|nan)"):
            case.make(**{scalar: value})

    @every_scalar
    def test_infinite_scalars_raise(self, case, scalar):
        with pytest.raises(ValueError, match=r"finite.*got inf"):
            case.make(**{scalar: float("inf")})

    @every_scalar
    @pytest.mark.parametrize(
        "value", ["0.1", [0.1], {"a": 0.1}, 1j, np.ones(2), jnp.ones((1,))], ids=repr
    )
    def test_values_that_are_not_scalars_raise(self, case, scalar, value):
        with pytest.raises(TypeError, match=r"0-d array or an optax schedule.*linear_schedule"):
            case.make(**{scalar: value})

    @pytest.mark.parametrize("ord", [0.99, 0, -2, float("inf"), float("nan")])
    def test_ord_must_be_finite_and_at_least_one(self, ord):
        with pytest.raises(ValueError, match=r"ord must be finite and at least 1.*ord=2"):
            flatreg.gradient_norm_penalty(0.1, ord=ord)

    @pytest.mark.parametrize("r", [0, 0.0, -0.1, float("nan")])
    def test_length_of_a_difference_must_be_positive(self, r):
        with pytest.raises(ValueError, match=r"greater than 0.*finite_difference_hvp\(0.01\)"):
            flatreg.finite_difference_hvp(r)

    @pytest.mark.parametrize("r", ["0.1", None, optax.constant_schedule(0.1), jnp.ones(2)])
    def test_length_of_a_difference_must_be_a_number(self, r):
        with pytest.raises(TypeError, match=r"finite_difference_hvp\(0.01\)"):
            flatreg.finite_difference_hvp(r)


class TestCombinators:
    """Arguments of combinators are checked when the combination is made."""

    def test_combine_needs_a_method(self):
        with pytest.raises(ValueError, match=r"combine\(sam\(0.05\), gam\(0.1, 1.0\)\)"):
            flatreg.combine()

    @pytest.mark.parametrize("k", [0, -1, 0.5, float("nan")])
    def test_period_must_be_at_least_one(self, k):
        with pytest.raises(ValueError, match=r"k must be .*at least 1"):
            flatreg.every(flatreg.sam(), k)

    def test_period_must_be_an_integer(self):
        with pytest.raises(ValueError, match=r"k must be a whole number, got 2\.5"):
            flatreg.every(flatreg.sam(), 2.5)
        curvature = flatreg.CurvatureScale(interval=2.5)
        with pytest.raises(ValueError, match=r"interval must be a whole number, got 2\.5"):
            flatreg.perturbed_gradient(jax.random.key(0), curvature=curvature)
        flatreg.every(flatreg.sam(), np.int32(2))

    @pytest.mark.parametrize("step", [-1, float("nan")])
    def test_first_step_must_be_nonnegative(self, step):
        with pytest.raises(ValueError, match=r"step must be .*at least 0"):
            flatreg.after(flatreg.sam(), step)

    @pytest.mark.parametrize("probability", [2.0, -0.1, float("nan")])
    def test_probability_must_be_in_its_range(self, probability):
        with pytest.raises(ValueError, match=r"probability must be in \[0, 1\]"):
            flatreg.randomly(flatreg.sam(), probability, jax.random.key(0))

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda: flatreg.every(flatreg.sam(), optax.constant_schedule(2)), "write k=10"),
            (lambda: flatreg.after(flatreg.sam(), "5"), "write step=1000"),
            (lambda: flatreg.randomly(flatreg.sam(), "x", jax.random.key(0)), "probability=0.1"),
            (
                lambda: flatreg.randomly(flatreg.sam(), 0.5, jax.random.split(jax.random.key(0))),
                r"flatreg.randomly\(method, 0.5, jax.random.key\(0\)\)",
            ),
        ],
        ids=["every", "after", "randomly", "keys"],
    )
    def test_combinator_arguments_must_be_scalars_and_keys(self, make, text):
        with pytest.raises(TypeError, match=text):
            make()

    @pytest.mark.parametrize("oracle", ["plain", "missing"])
    def test_per_shard_needs_an_oracle_of_shards(self, oracle):
        (params, batch), tx = tanh_net(), flatreg.per_shard(flatreg.sam())
        _, g, grad_fn = flatreg.value_and_grad_fn(loss_fn)(params, batch)
        extra = {"grad_fn": grad_fn} if oracle == "plain" else {}
        with pytest.raises(TypeError, match=r"flatreg\.value_and_grad_fn\(loss_fn, shards=m\)"):
            tx.update(g, tx.init(params), params, **extra)

    @pytest.mark.parametrize(
        "combination",
        [
            lambda method: flatreg.combine(flatreg.sam(), method),
            lambda method: flatreg.combine(method),
            lambda method: flatreg.every(method, 2),
            lambda method: flatreg.after(method, 2),
            lambda method: flatreg.randomly(method, 0.5, jax.random.key(0)),
            flatreg.when_sharp,
            flatreg.per_shard,
            flatreg.observe,
        ],
        ids=[
            *("combine", "combine_one", "every", "after", "randomly"),
            *("when_sharp", "per_shard", "observe"),
        ],
    )
    @pytest.mark.parametrize("method", [flatreg.sam, "sam", 0.05], ids=["factory", "name", "rho"])
    def test_combinators_reject_factories_and_other_values(self, combination, method):
        with pytest.raises(TypeError, match=r"sam\("):
            combination(method)

    @pytest.mark.parametrize(
        "combination",
        [
            lambda method: flatreg.combine(flatreg.sam(), method),
            lambda method: flatreg.every(method, 2),
            lambda method: flatreg.after(method, 2),
            lambda method: flatreg.randomly(method, 0.5, jax.random.key(0)),
            flatreg.when_sharp,
        ],
        ids=["combine", "every", "after", "randomly", "when_sharp"],
    )
    @pytest.mark.parametrize(
        "method",
        [
            optax.adam(0.1),
            optax.chain(flatreg.sam(), optax.adamw(0.1)),
            optax.chain(optax.lion(0.1), flatreg.sam()),
            optax.inject_hyperparams(optax.rmsprop)(0.1),
        ],
        ids=["alone", "behind", "before", "injected"],
    )
    def test_combinators_reject_optimizers(self, combination, method):
        with pytest.raises(ValueError, match=r"takes methods.*optax\.chain\(flatreg\."):
            combination(method).init(tanh_net()[0])
