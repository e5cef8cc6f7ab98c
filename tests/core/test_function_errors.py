"""Functions as arguments and ``value_and_grad_fn``'s options: each error names the mending call."""

import ast
import inspect
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import flatreg
from tests.support.cases import CASES
from tests.support.problems import direction, loss_fn, tanh_net

HVPS = {"exact": flatreg.exact_hvp, "forward": flatreg.forward_hvp, "reverse": flatreg.reverse_hvp}
SCALED = {  # factory -> its scalars
    flatreg.sam: {"rho": 0.1},
    flatreg.penalized_gradient: {"r": 0.1, "alpha": 0.5},
    flatreg.gam_accelerated: {"rho": 0.1},
}
WITH_HVP = {  # (factory, name of the argument) -> its scalars
    (flatreg.gradient_norm_penalty, "hvp"): {"penalty": 0.1},
    (flatreg.gradient_regularization, "hvp"): {"mu": 0.1},
    (flatreg.gam, "hvp"): {"rho": 0.1, "alpha": 0.5},
    (flatreg.gam, "ascent_hvp"): {"rho": 0.1, "alpha": 0.5},
}
scaled = pytest.mark.parametrize("factory", SCALED)
with_hvp = pytest.mark.parametrize(("factory", "argument"), WITH_HVP)


def mend(argument):
    return rf"static_args=(\(.*)?'{argument}'"


def inject(factory, **arguments):
    """The injected method's first state, in which every hyperparameter has become an array."""
    return optax.inject_hyperparams(factory)(**arguments).init(tanh_net()[0])


class TestStaticArguments:
    """What must not arrive as a number."""

    @scaled
    @pytest.mark.parametrize("scale", [1.0, jnp.ones(()), lambda params: jnp.ones(())])
    def test_an_injected_scale_is_told_to_be_static(self, factory, scale):
        with pytest.raises(TypeError, match=mend("scale")):
            inject(factory, **SCALED[factory], scale=scale)

    @scaled
    def test_a_scale_that_is_a_tree_is_told_to_be_a_function(self, factory):
        with pytest.raises(TypeError, match=r"scale must be a function params -> T or None"):
            factory(**SCALED[factory], scale=tanh_net()[0])

    @with_hvp
    def test_an_hvp_that_is_a_number_is_told_to_be_static(self, factory, argument):
        scalars = WITH_HVP[factory, argument]
        with pytest.raises(TypeError, match=rf"{argument} must.*flatreg\.exact_hvp.*None"):
            factory(**scalars, **{argument: 0.01})
        with pytest.raises(TypeError, match=mend(argument)):
            inject(factory, **scalars, **{argument: 0.01})

    @with_hvp
    @pytest.mark.parametrize(
        "hvp", [*HVPS.values(), flatreg.finite_difference_hvp(0.01)], ids=[*HVPS, "difference"]
    )
    def test_an_injected_hvp_is_told_a_call_that_optax_takes(self, factory, argument, hvp):
        with pytest.raises(TypeError, match=mend(argument)) as caught:
            inject(factory, **WITH_HVP[factory, argument], **{argument: hvp})
        told = re.findall(r"static_args=('\w+'|\(.*?\))", str(caught.value))
        static_args = next(names for names in told if repr(argument) in names)
        optax.inject_hyperparams(factory, ast.literal_eval(static_args))

    @with_hvp
    def test_an_hvp_without_its_length_is_told_to_have_one(self, factory, argument):
        hvp = flatreg.finite_difference_hvp
        with pytest.raises(TypeError, match=r"finite_difference_hvp\(0\.01\)"):
            direction(factory(**WITH_HVP[factory, argument], **{argument: hvp}), *tanh_net())

    @pytest.mark.parametrize(
        "ord",
        ["2", None, jnp.ones(2), jnp.linalg.norm],
        ids=["text", "nothing", "vector", "function"],
    )
    def test_an_ord_that_is_no_number_is_told_so(self, ord):
        with pytest.raises(TypeError, match=r"ord must be a number or a 0-d array.*ord=2"):
            flatreg.gradient_norm_penalty(0.1, ord=ord)

    def test_an_injected_normalize_clean_is_told_to_be_static(self):
        with pytest.raises(TypeError, match=mend("normalize_clean")):
            inject(flatreg.penalized_gradient, r=0.1, normalize_clean=1)


class TestScale:
    """What ``scale(params)`` returns."""

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
    def test_a_wrong_structure_is_told_the_right_one(self, factory, scale):
        with pytest.raises(ValueError, match=r"structure of params.*write scale=lambda params"):
            direction(factory(**SCALED[factory], scale=scale), *tanh_net())

    @scaled
    @pytest.mark.parametrize("shape", [(1,), (4,), (1, 8), (8, 1)], ids=repr)
    def test_a_wrong_shape_is_told_the_right_ones(self, factory, shape):
        def scale(params):
            return jax.tree.map(jnp.ones_like, params) | {"out": jnp.ones(shape)}

        with pytest.raises(ValueError, match=r"\(8,\): give one factor a weight or one a leaf"):
            direction(factory(**SCALED[factory], scale=scale), *tanh_net())


@jax.custom_vjp
def fused_tanh(x):
    """tanh by a kernel, whose backward pass is a kernel too, with a derivative of its own."""
    return jnp.tanh(x)


@jax.custom_vjp
def fused_backward(x, g):
    return g * (1 - jnp.tanh(x) ** 2)


fused_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (fused_backward(x, g),))
fused_backward.defvjp(
    lambda x, g: (fused_backward(x, g), (x, g)),
    lambda residuals, c: jax.vjp(lambda x, g: g * (1 - jnp.tanh(x) ** 2), *residuals)[1](c),
)


@jax.custom_vjp
def opaque_tanh(x):
    """tanh by a kernel, whose backward pass has no derivative at all."""
    return jnp.tanh(x)


opaque_tanh.defvjp(
    lambda x: (jnp.tanh(x), x),
    lambda x, g: (jax.pure_callback(lambda x, g: g / jnp.cosh(x) ** 2, x, x, g),),
)


class TestHvp:
    """Losses that cannot be differentiated twice in every way."""

    def made(self, factory, argument, hvp):
        others = {} if argument == "hvp" else {"hvp": flatreg.reverse_hvp}
        return factory(**WITH_HVP[factory, argument], **others, **{argument: hvp})

    @with_hvp
    @pytest.mark.parametrize("way", ["exact", "forward"])
    def test_a_loss_without_forward_mode_is_told_the_ways_without(self, factory, argument, way):
        x, grad_fn = jnp.ones(3), jax.grad(lambda w: jnp.sum(fused_tanh(w)))
        tx = self.made(factory, argument, HVPS[way])
        with pytest.raises(TypeError) as caught:
            tx.update(grad_fn(x), tx.init(x), x, grad_fn=grad_fn)
        notes = "".join(caught.value.__notes__)
        assert f"{argument}=flatreg.reverse_hvp" in notes
        assert f"{argument}=flatreg.finite_difference_hvp(0.01)" in notes

    @with_hvp
    @pytest.mark.parametrize("hvp", [flatreg.reverse_hvp, flatreg.finite_difference_hvp(0.01)])
    def test_the_ways_that_the_note_names_work(self, factory, argument, hvp):
        x, grad_fn = jnp.ones(3), jax.grad(lambda w: jnp.sum(fused_tanh(w)))
        tx = self.made(factory, argument, hvp)
        d, _ = tx.update(grad_fn(x), tx.init(x), x, grad_fn=grad_fn)
        assert jnp.all(jnp.isfinite(d))

    @with_hvp
    @pytest.mark.parametrize("way", HVPS)
    def test_a_loss_with_one_derivative_is_told_to_take_differences(self, factory, argument, way):
        x, grad_fn = jnp.ones(3), jax.grad(lambda w: jnp.sum(opaque_tanh(w)))
        tx = self.made(factory, argument, HVPS[way])
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as caught:
            jax.eval_shape(lambda x: tx.update(x, tx.init(x), x, grad_fn=grad_fn)[0], x)
        assert "flatreg.finite_difference_hvp(0.01)" in "".join(caught.value.__notes__)


class TestValueAndGradFn:
    """Options are checked at once, batches while tracing."""

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"microbatches": 0}, "microbatches must be a whole number of at least 1"),
            ({"shards": -1}, "shards must be a whole number of at least 1"),
            ({"ascent_fraction": 0}, r"ascent_fraction must lie in \(0, 1\], got 0: 0\.1, say"),
            ({"ascent_fraction": 1.5}, r"ascent_fraction must lie in \(0, 1\]"),
            ({"ascent_fraction": 0.5, "shards": 2}, "leave one of them out"),
            ({"batch_argnums": 0}, "0 is params.*write batch_argnums=1, key_argnums=2"),
            ({"batch_argnums": (1, -1)}, "write batch_argnums=1, key_argnums=2"),
            ({"key_argnums": 1.5}, "write batch_argnums=1, key_argnums=2"),
            ({"batch_argnums": (1, 2), "key_argnums": 2}, "name it in one"),
        ],
        ids=repr,
    )
    def test_an_option_out_of_range_is_told_at_once(self, options, text):
        with pytest.raises(ValueError, match=text):
            flatreg.value_and_grad_fn(loss_fn, **options)

    @pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"shards": 2}], ids=repr)
    def test_a_tuple_without_has_aux_is_told_to_ask_for_it(self, options):
        evaluate = flatreg.value_and_grad_fn(lambda p, b: (loss_fn(p, b), 1.0), **options)
        with pytest.raises(TypeError, match=r"value_and_grad_fn\(loss_fn, has_aux=True\)"):
            evaluate(*tanh_net())

    @pytest.mark.parametrize("options", [{"microbatches": 3}, {"shards": 3}], ids=repr)
    def test_a_ragged_batch_is_told_to_be_padded(self, options):
        with pytest.raises(ValueError, match=r"16 examples equally.*drop or pad a ragged last"):
            flatreg.value_and_grad_fn(loss_fn, **options)(*tanh_net())

    def test_a_ragged_shard_is_told_its_own_size(self):
        with pytest.raises(ValueError, match=r"batch of 4 examples equally"):
            flatreg.value_and_grad_fn(loss_fn, shards=4, microbatches=3)(*tanh_net())

    @pytest.mark.parametrize(
        "options", [{"microbatches": 2}, {"shards": 2}, {"ascent_fraction": 0.5}], ids=repr
    )
    @pytest.mark.parametrize(
        "batch", [(jnp.ones((16, 4)), jnp.ones(8)), (jnp.ones((16, 4)), 1.0), None]
    )
    def test_leading_axes_that_differ_are_told_the_shapes(self, options, batch):
        with pytest.raises(ValueError, match=r"leading axis.*name the batch in batch_argnums"):
            flatreg.value_and_grad_fn(loss_fn, **options)(tanh_net()[0], batch)

    @pytest.mark.parametrize("argument", ["batch_argnums", "key_argnums"])
    @pytest.mark.parametrize("options", [{"microbatches": 2}, {"shards": 2}], ids=repr)
    def test_an_argument_that_is_missing_is_told_by_its_number(self, argument, options):
        evaluate = flatreg.value_and_grad_fn(loss_fn, **{argument: 2}, **options)
        with pytest.raises(ValueError, match=r"argument 2 of the loss.*called with 1 after params"):
            evaluate(*tanh_net())


def test_every_method_that_takes_a_scale_or_an_hvp_is_tested_here():
    takes = {
        (factory, argument)
        for factory in {getattr(case.factory, "func", case.factory) for case in CASES}
        for argument in {"scale", "hvp", "ascent_hvp"} & set(inspect.signature(factory).parameters)
    }
    assert takes == set(WITH_HVP) | {(factory, "scale") for factory in SCALED}
