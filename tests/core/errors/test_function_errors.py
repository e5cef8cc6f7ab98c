"""Errors about arguments that are functions, and about options of ``value_and_grad_fn``."""

import ast
import inspect
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import flatreg
from tests.support.cases import CASES
from tests.support.losses import fused_tanh, opaque_tanh
from tests.support.problems import direction, loss_fn, tanh_net

HVPS = {"exact": flatreg.exact_hvp, "forward": flatreg.forward_hvp, "reverse": flatreg.reverse_hvp}
SCALED = {  # factory -> its scalars
    flatreg.sam: {"rho": 0.1},
    flatreg.penalized_gradient: {"r": 0.1, "alpha": 0.5},
    flatreg.gradient_norm_penalty: {"penalty": 0.1},
    flatreg.gradient_regularization: {"mu": 0.1},
    flatreg.gam: {"rho": 0.1},
    flatreg.gam_accelerated: {"rho": 0.1},
    flatreg.perturbed_gradient: {"key": jax.random.key(0), "sigma": 0.1},
    flatreg.gsam: {"rho": 0.1},
    flatreg.friendly_sam: {"rho": 0.1},
    flatreg.looksam: {"rho": 0.1},
    flatreg.stable_sam: {"rho": 0.1},
}
WITH_HVP = {  # (factory, name of the argument) -> its scalars
    (flatreg.gradient_norm_penalty, "hvp"): {"penalty": 0.1},
    (flatreg.gradient_regularization, "hvp"): {"mu": 0.1},
    (flatreg.gam, "hvp"): {"rho": 0.1, "alpha": 0.5},
    (flatreg.gam, "ascent_hvp"): {"rho": 0.1, "alpha": 0.5},
}
scaled = pytest.mark.parametrize("factory", SCALED)
with_hvp = pytest.mark.parametrize(("factory", "argument"), WITH_HVP)


def declared_static(argument):
    """A pattern for the advice to declare the argument as static."""
    return rf"static_args=(\(.*)?'{argument}'"


def inject(factory, **arguments):
    """The first state of the injected method. Its hyperparameters have become arrays."""
    static_args = {"key"} & set(arguments)
    return optax.inject_hyperparams(factory, static_args)(**arguments).init(tanh_net()[0])


class TestStaticArguments:
    """Arguments that ``inject_hyperparams`` must not turn into arrays."""

    @scaled
    @pytest.mark.parametrize("scale", [1.0, jnp.ones(()), lambda params: jnp.ones(())])
    def test_injected_scale_must_be_static(self, factory, scale):
        with pytest.raises(TypeError, match=declared_static("scale")):
            inject(factory, **SCALED[factory], scale=scale)

    @scaled
    def test_scale_must_be_a_function(self, factory):
        with pytest.raises(TypeError, match=r"scale must be a function params -> T or None"):
            factory(**SCALED[factory], scale=tanh_net()[0])

    @with_hvp
    def test_hvp_that_is_a_number_raises(self, factory, argument):
        scalars = WITH_HVP[factory, argument]
        with pytest.raises(TypeError, match=rf"{argument} must.*flatreg\.exact_hvp.*None"):
            factory(**scalars, **{argument: 0.01})
        with pytest.raises(TypeError, match=declared_static(argument)):
            inject(factory, **scalars, **{argument: 0.01})

    @with_hvp
    @pytest.mark.parametrize(
        "hvp", [*HVPS.values(), flatreg.finite_difference_hvp(0.01)], ids=[*HVPS, "difference"]
    )
    def test_injected_hvp_error_shows_a_working_call(self, factory, argument, hvp):
        with pytest.raises(TypeError, match=declared_static(argument)) as caught:
            inject(factory, **WITH_HVP[factory, argument], **{argument: hvp})
        suggested = re.findall(r"static_args=('\w+'|\(.*?\))", str(caught.value))
        static_args = next(names for names in suggested if repr(argument) in names)
        optax.inject_hyperparams(factory, ast.literal_eval(static_args))

    @with_hvp
    def test_finite_difference_hvp_needs_its_length(self, factory, argument):
        hvp = flatreg.finite_difference_hvp
        with pytest.raises(TypeError, match=r"finite_difference_hvp\(0\.01\)"):
            direction(factory(**WITH_HVP[factory, argument], **{argument: hvp}), *tanh_net())

    @pytest.mark.parametrize(
        "ord",
        ["2", None, jnp.ones(2), jnp.linalg.norm],
        ids=["text", "nothing", "vector", "function"],
    )
    def test_ord_must_be_a_number(self, ord):
        with pytest.raises(TypeError, match=r"ord must be a number or a 0-d array.*ord=2"):
            flatreg.gradient_norm_penalty(0.1, ord=ord)

    def test_injected_normalize_clean_must_be_static(self):
        with pytest.raises(TypeError, match=declared_static("normalize_clean")):
            inject(flatreg.penalized_gradient, r=0.1, normalize_clean=1)


class TestScale:
    """Structure and shapes of ``scale(params)``."""

    @scaled
    @pytest.mark.parametrize(
        "scale",
        [
            lambda params: 1.0,
            lambda params: jax.tree.leaves(params),
            lambda params: {**params, "out": None},
        ],
        ids=["number", "list", "missing"],
    )
    def test_scale_with_wrong_structure_raises(self, factory, scale):
        with pytest.raises(ValueError, match=r"structure of params.*write scale=lambda params"):
            direction(factory(**SCALED[factory], scale=scale), *tanh_net())

    @scaled
    @pytest.mark.parametrize("shape", [(1,), (4,), (1, 8), (8, 1)], ids=repr)
    def test_scale_with_wrong_shapes_raises(self, factory, shape):
        def scale(params):
            return jax.tree.map(jnp.ones_like, params) | {"out": jnp.ones(shape)}

        with pytest.raises(ValueError, match=r"\(8,\)\. Return one factor per weight or one"):
            direction(factory(**SCALED[factory], scale=scale), *tanh_net())


class TestHvp:
    """Losses that support only some of the ways to compute a Hessian-vector product."""

    def made(self, factory, argument, hvp):
        others = {} if argument == "hvp" else {"hvp": flatreg.reverse_hvp}
        return factory(**WITH_HVP[factory, argument], **others, **{argument: hvp})

    @with_hvp
    @pytest.mark.parametrize("way", ["exact", "forward"])
    @pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
    def test_loss_without_forward_mode_gets_hint(self, factory, argument, way, jitted):
        x, grad_fn = jnp.ones(3), jax.grad(lambda w: jnp.sum(fused_tanh(w)))
        tx = self.made(factory, argument, HVPS[way])
        update = lambda x: tx.update(grad_fn(x), tx.init(x), x, grad_fn=grad_fn)[0]  # noqa: E731
        with pytest.raises(TypeError) as caught:
            jax.jit(update)(x) if jitted else update(x)
        notes = "".join(caught.value.__notes__)
        assert f"{argument}=flatreg.reverse_hvp" in notes
        assert f"{argument}=flatreg.finite_difference_hvp(0.01)" in notes

    @with_hvp
    @pytest.mark.parametrize("hvp", [flatreg.reverse_hvp, flatreg.finite_difference_hvp(0.01)])
    def test_the_suggested_hvps_work(self, factory, argument, hvp):
        x, grad_fn = jnp.ones(3), jax.grad(lambda w: jnp.sum(fused_tanh(w)))
        tx = self.made(factory, argument, hvp)
        d, _ = tx.update(grad_fn(x), tx.init(x), x, grad_fn=grad_fn)
        assert jnp.all(jnp.isfinite(d))

    @with_hvp
    @pytest.mark.parametrize("way", HVPS)
    def test_loss_with_one_derivative_gets_finite_difference_hint(self, factory, argument, way):
        x, grad_fn = jnp.ones(3), jax.grad(lambda w: jnp.sum(opaque_tanh(w)))
        tx = self.made(factory, argument, HVPS[way])
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as caught:
            jax.eval_shape(lambda x: tx.update(x, tx.init(x), x, grad_fn=grad_fn)[0], x)
        assert "flatreg.finite_difference_hvp(0.01)" in "".join(caught.value.__notes__)


class TestValueAndGradFn:
    """Options are checked at once, and batches during tracing."""

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"microbatches": 0}, "microbatches must be a whole number of at least 1"),
            ({"shards": -1}, "shards must be a whole number of at least 1"),
            (
                {"ascent_fraction": 0},
                r"ascent_fraction must be in \(0, 1\], got 0:.*ascent_fraction=0\.1",
            ),
            ({"ascent_fraction": 1.5}, r"ascent_fraction must be in \(0, 1\]"),
            ({"ascent_fraction": 0.5, "shards": 2}, "remove one of them"),
            ({"batch_argnums": 0}, "0 is params.*write batch_argnums=1, key_argnums=2"),
            ({"batch_argnums": (1, -1)}, "write batch_argnums=1, key_argnums=2"),
            ({"key_argnums": 1.5}, "write batch_argnums=1, key_argnums=2"),
            ({"batch_argnums": (1, 2), "key_argnums": 2}, "name it in one"),
        ],
        ids=repr,
    )
    def test_options_out_of_range_raise_at_once(self, options, text):
        with pytest.raises(ValueError, match=text):
            flatreg.value_and_grad_fn(loss_fn, **options)

    @pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"shards": 2}], ids=repr)
    def test_loss_that_returns_a_tuple_needs_has_aux(self, options):
        evaluate = flatreg.value_and_grad_fn(lambda p, b: (loss_fn(p, b), 1.0), **options)
        with pytest.raises(TypeError, match=r"value_and_grad_fn\(loss_fn, has_aux=True\)"):
            evaluate(*tanh_net())

    @pytest.mark.parametrize("options", [{"microbatches": 3}, {"shards": 3}], ids=repr)
    def test_batch_that_cannot_be_split_equally_raises(self, options):
        with pytest.raises(ValueError, match=r"16 examples cannot be split equally.*drop or pad"):
            flatreg.value_and_grad_fn(loss_fn, **options)(*tanh_net())

    def test_shard_that_cannot_be_split_equally_raises(self):
        with pytest.raises(ValueError, match=r"batch of 4 examples cannot be split equally"):
            flatreg.value_and_grad_fn(loss_fn, shards=4, microbatches=3)(*tanh_net())

    @pytest.mark.parametrize(
        "options", [{"microbatches": 2}, {"shards": 2}, {"ascent_fraction": 0.5}], ids=repr
    )
    @pytest.mark.parametrize(
        "batch", [(jnp.ones((16, 4)), jnp.ones(8)), (jnp.ones((16, 4)), 1.0), None]
    )
    def test_leading_axes_that_differ_raise_with_the_shapes(self, options, batch):
        with pytest.raises(ValueError, match=r"leading axis.*name the batch in batch_argnums"):
            flatreg.value_and_grad_fn(loss_fn, **options)(tanh_net()[0], batch)

    @pytest.mark.parametrize("argument", ["batch_argnums", "key_argnums"])
    @pytest.mark.parametrize("options", [{"microbatches": 2}, {"shards": 2}], ids=repr)
    def test_missing_loss_argument_is_named_by_its_number(self, argument, options):
        evaluate = flatreg.value_and_grad_fn(loss_fn, **{argument: 2}, **options)
        with pytest.raises(ValueError, match=r"argument 2 of the loss.*called with 1 after params"):
            evaluate(*tanh_net())


def test_every_scale_and_hvp_argument_is_tested():
    takes = {
        (factory, argument)
        for factory in {getattr(case.factory, "func", case.factory) for case in CASES}
        for argument in {"scale", "hvp", "ascent_hvp"} & set(inspect.signature(factory).parameters)
    }
    assert takes == set(WITH_HVP) | {(factory, "scale") for factory in SCALED}
