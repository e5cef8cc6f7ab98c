"""Argument validation of NNX steps. Each error shows the corrected call."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
from flatreg.nnx import Optimizer, classification_loss, make_eval_step, make_train_step
from tests.support.networks.nnx_models import HAS_TREE_MODE, Plain, Tied, pure
from tests.support.steps import chain, examples

SAM = chain(flatreg.sam(0.1))


def run(loss_fn=classification_loss, tx=SAM, wrt=nnx.Param, batch=None, **options):
    model = Plain(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)
    return make_train_step(loss_fn, **options)(model, optimizer, batch or examples())


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda model, batch: model(batch[0]), ValueError, r"return loss\.mean\(\)"),
        (lambda model, batch: (0.0, 1.0), TypeError, "with a dict of metrics"),
        (lambda model, batch: None, TypeError, "must return a floating-point scalar"),
    ],
)
def test_a_loss_is_a_scalar_with_a_dict(loss_fn, error, message):
    with pytest.raises(error, match=message):
        run(loss_fn)
    with pytest.raises(error, match=message):
        make_eval_step(loss_fn)(Plain(nnx.Rngs(0)), examples())


def test_the_filter_must_select_a_variable():
    with pytest.raises(
        ValueError, match=r"BatchStat.* selects no Variable of Plain: .*wrt=nnx\.Param"
    ):
        run(wrt=nnx.BatchStat)


@pytest.mark.parametrize(
    "tx",
    [
        flatreg.sam(0.1),
        optax.chain(optax.clip(1.0), flatreg.observe(flatreg.gam(0.1, 1.0))),
        flatreg.every(flatreg.sam(0.1), 2),
    ],
    ids=["sam", "gam", "every"],
)
def test_a_chain_must_end_in_an_optimizer(tx):
    with pytest.raises(ValueError, match=r"tx ends in a method.*optax\.chain"):
        run(tx=tx)


def test_tx_must_be_a_transformation():
    with pytest.raises(TypeError, match=r"tx must be an Optax transformation.*optax\.chain"):
        Optimizer(Plain(nnx.Rngs(0)), "sgd", wrt=nnx.Param)


def test_an_optimizer_before_a_method_is_refused():
    with pytest.raises(ValueError, match=r"an optimizer before a method.*optax\.chain"):
        run(tx=optax.chain(optax.adamw(0.1), flatreg.sam(0.1), optax.ema(0.9)))


def test_a_batch_must_be_a_pair():
    x, labels = examples()
    with pytest.raises(TypeError, match=r"batch = \(x, labels\).*\['image', 'label'\]"):
        run(batch={"image": x, "label": labels})


def test_accumulation_around_a_method_is_refused():
    with pytest.raises(ValueError, match=r"make_train_step\(loss_fn, microbatches=k\)"):
        run(tx=optax.MultiSteps(SAM, 2).gradient_transformation())


def test_the_optimizer_comes_second():
    model = Plain(nnx.Rngs(0))
    optimizer = Optimizer(model, SAM, wrt=nnx.Param)
    step = make_train_step(classification_loss)
    for arguments in ((model, model), (optimizer, model), (model, SAM)):
        with pytest.raises(TypeError, match=r"train_step\(model, optimizer, batch\)"):
            step(*arguments, examples())


@pytest.mark.parametrize("option", ["microbatches", "shards"])
def test_the_parts_must_divide_the_batch(option):
    with pytest.raises(ValueError, match="a batch of 16 examples cannot be split equally"):
        run(**{option: 3})
    with pytest.raises(ValueError, match="must have the examples along its leading axis"):
        run(batch=(jnp.ones((4, 4)), jnp.ones(())), **{option: 2})


def test_options_are_checked_before_the_first_step():
    with pytest.raises(ValueError, match="microbatches must be"):
        make_train_step(classification_loss, microbatches=0)
    with pytest.raises(ValueError, match="ascent_fraction must be in"):
        make_train_step(classification_loss, ascent_fraction=0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
def test_a_loss_must_remove_what_it_sows():
    class Sowing(Plain):
        def __call__(self, x):
            self.sow(nnx.Intermediate, "x", x)
            return super().__call__(x)

    def popping(model, batch):
        loss, metrics = classification_loss(model, batch)
        sown = nnx.pop(model, nnx.Intermediate)
        return loss, metrics | {"sown": sown["x"][0].sum()}

    model = Sowing(nnx.Rngs(0))
    optimizer = Optimizer(model, SAM, wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"nnx\.pop\(model, nnx\.Intermediate\)"):
        make_train_step(classification_loss)(model, optimizer, examples())
    metrics = make_train_step(popping)(model, optimizer, examples())
    assert metrics["sown"] == examples()[0].sum()


@pytest.mark.skipif(not HAS_TREE_MODE, reason="this version of Flax lacks tree mode")
def test_shared_modules_need_graph_mode():
    for options, mode in (({"graph": False}, True), ({}, False)):
        with (
            nnx.set_graph_mode(mode),
            pytest.raises(ValueError, match=r"first and second.*graph=True"),
        ):
            Optimizer(Tied(nnx.Rngs(0)), SAM, wrt=nnx.Param, **options)
    model = Tied(nnx.Rngs(0))
    optimizer = Optimizer(model, SAM, wrt=nnx.Param)
    with pytest.raises(ValueError, match="graph=True"):  # an error of Flax itself
        nnx.jit(make_train_step(classification_loss), graph=False)(model, optimizer, examples())


@pytest.mark.parametrize(
    "transform",
    [jax.jit, lambda step: jax.vmap(step, in_axes=None, axis_size=2), jax.checkpoint],
    ids=["jit", "vmap", "checkpoint"],
)
def test_jax_s_own_transformations_are_refused(transform):
    """They pass copies of the model and the optimizer, whose changes would be lost."""
    model = Plain(nnx.Rngs(0))
    optimizer = Optimizer(model, SAM, wrt=nnx.Param)
    with pytest.raises(TypeError, match=r"train_step = nnx\.jit\(make_train_step\(loss_fn\)"):
        transform(make_train_step(classification_loss))(model, optimizer, examples())


def test_a_pure_function_of_the_state_may_use_jax_jit():
    model = Plain(nnx.Rngs(0))
    step, state = pure(make_train_step(classification_loss), model, Optimizer(model, SAM, wrt=...))
    new, _ = jax.jit(step)(state, examples())
    assert any(jnp.any(x != y) for x, y in zip(*map(jax.tree.leaves, (new, state)), strict=True))


def mixed_trees():
    """Calls in which one tree holds Params and the other one arrays."""
    model = Plain(nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    arrays = nnx.as_pure(params)
    optimizer = nnx.Optimizer(model, SAM, wrt=nnx.Param)

    def loss_fn(params):
        return classification_loss(nnx.merge(graphdef, params), examples())[0]

    grads = nnx.grad(classification_loss, has_aux=True)(model, examples())[0]
    oracle = lambda params: nnx.grad(classification_loss, has_aux=True)(  # noqa: E731
        nnx.merge(graphdef, params), examples()
    )[0]
    gradient = jax.grad(loss_fn)
    return {
        "update": lambda: SAM.update(grads, SAM.init(arrays), arrays, grad_fn=gradient),
        "update_params": lambda: SAM.update(
            nnx.as_pure(grads), SAM.init(params), params, grad_fn=gradient
        ),
        "oracle": lambda: optimizer.update(model, grads, grad_fn=oracle),
        "exact_hvp": lambda: flatreg.exact_hvp(gradient, arrays)[1](params),
        "forward_hvp": lambda: flatreg.forward_hvp(gradient, params)[1](arrays),
        "reverse_hvp": lambda: flatreg.reverse_hvp(gradient, arrays)[1](params),
        "difference": lambda: flatreg.finite_difference_hvp(0.1)(gradient, params)[1](arrays),
    }


@pytest.mark.skipif(not hasattr(nnx, "as_pure"), reason="this version of Flax lacks as_pure")
def test_params_beside_arrays_are_told_about_as_pure():
    for call in mixed_trees().values():
        with pytest.raises(
            (ValueError, TypeError), match=r"nnx\.as_pure\(nnx\.state\(model, nnx.P"
        ):
            call()
