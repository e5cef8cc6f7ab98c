"""Argument validation of NNX steps. Each error shows the corrected call."""

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
from flatreg.nnx import Optimizer, classification_loss, make_eval_step, make_train_step
from tests.support.networks.nnx_models import HAS_TREE_MODE, Plain, Tied
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
