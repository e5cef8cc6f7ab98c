"""One program for any number of devices: equal numbers, stable shardings, minimal communication.

These tests run in one process on some of its eight CPU devices.
"""

import contextlib
import functools
import json
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import flatreg
from benchmarks.common.data.preparation import load
from benchmarks.common.methods import METHODS
from benchmarks.common.methods import parse as parse_methods
from benchmarks.common.models.build import build as build_model
from benchmarks.common.models.cnn import Cnn
from benchmarks.common.models.mlp import Mlp
from benchmarks.train_distributed.__main__ import parse
from benchmarks.train_distributed.batches import Batches
from benchmarks.train_distributed.devices import make_mesh
from benchmarks.train_distributed.run import run
from benchmarks.train_distributed.training import build
from flatreg.linen import TrainState, classification_loss, make_train_step
from tests.support.problems import assert_close

DEVICES = 8
REDUCTIONS = {
    "sgd": (optax.identity(), 1),
    "sam": (flatreg.sam(0.1), 2),
    "gradient_regularization": (flatreg.gradient_regularization(0.1), 2),
    "gam": (flatreg.gam(0.1, 1.0), 4),
    "gam_accelerated": (flatreg.gam_accelerated(), 4),
}

both_axes = pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=str)


def spec(name):
    """Returns a method with its hyperparameters, as the command line names it."""
    settings = METHODS[name].hyperparameters if name in METHODS else {}
    return ":".join([name, *(f"{k}={v}" for k, v in settings.items())])


def command(name):
    return f"--method {spec(name)}"


def tolerance(name):
    """The tolerance for 20 steps on other devices, relative to the largest entry of each leaf."""
    return (
        1e-6 if name in ("sgd", "sam", "asam") else 1e-5
    )  # finite differences amplify rounding errors


class Operation(NamedTuple):
    """A collective operation of a compiled program, and the number of entries of each operand."""

    kind: str
    sizes: list[int]


def collectives(compiled):
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text())
    return [
        Operation(kind, list(map(size, re.findall(r"\w\[([\d,]*)\]", types))))
        for types, kind in found
    ]


def size(dimensions):
    return math.prod(int(n) for n in dimensions.split(",") if n)


@contextlib.contextmanager
def program_of(arguments, axes):
    """Yields the functions of a run on eight devices, and its first batch."""
    options = parse(f"{arguments} --axes {axes.name.lower()}".split())
    (method,) = parse_methods(options.method, options.optimizer)
    data, mesh = digits(), make_mesh(options.axes, DEVICES)
    batches = Batches((data.x_train, data.y_train), options.batch_size, 0, mesh)
    with jax.set_mesh(mesh):
        model = build_model("mlp", data)
        yield build(options, method, model, data.x_train[:1], mesh), next(batches)


@contextlib.contextmanager
def small_step(model, method, axes, devices=DEVICES):
    """Yields a step of `flatreg.linen`, its replicated state, and a sharded batch."""
    with jax.set_mesh(make_mesh(axes.name.lower(), devices)):
        x = jax.random.normal(jax.random.key(0), (32, 8, 8, 1))
        tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
        state = TrainState.init(model, tx, jax.random.key(1), x[:1], train=False)
        step = jax.jit(make_train_step(classification_loss))
        yield step, jax.device_put(state, P()), jax.device_put((x, jnp.arange(32) % 3), P("data"))


@functools.cache
def digits():
    return load("digits", None, None, "test")


@functools.cache
def trained(devices, arguments, steps=20):
    """Returns the parameters after 20 steps, the losses and the test accuracy."""
    options = parse(f"{arguments} --steps {steps}".split())
    result = run(options, make_mesh(options.axes, devices))
    return jax.device_get(result.state.params), result.losses, result.test_accuracy


def trained_together(mesh, names):
    """Returns the parameters after 20 steps of each method, all in one compiled step."""
    data = digits()
    model = build_model("mlp", data)
    step = make_train_step(classification_loss)

    def state_of(name):
        (method,) = parse_methods(spec(name), "sgd")
        tx = optax.chain(method.transform, optax.sgd(0.05, momentum=0.9))
        return TrainState.init(model, tx, jax.random.key(0), data.x_train[:1], train=False)

    def init():
        return {name: state_of(name) for name in names}

    def steps(states, batch):
        return {name: step(state, batch)[0] for name, state in states.items()}

    batches = Batches((data.x_train, data.y_train), 64, 0, mesh)
    with jax.set_mesh(mesh):
        states = jax.jit(init, out_shardings=NamedSharding(mesh, P()))()
        compiled = jax.jit(steps, donate_argnums=0)
        for _ in range(20):
            states = compiled(states, next(batches))
    return {name: jax.tree.map(np.asarray, state.params) for name, state in states.items()}


@pytest.mark.nightly
def test_eight_devices_train_as_one_device_with_every_method():
    one, eight = (trained_together(make_mesh("auto", n), ("sgd", *METHODS)) for n in (1, DEVICES))
    for name, params in eight.items():
        assert_close(params, one[name], tolerance(name))


@pytest.mark.nightly_except("sam---axes explicit")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("sam", "--axes explicit"),
        ("sam", "--sharding fsdp --microbatches 4"),
        ("gam", "--sharding fsdp --axes explicit --microbatches 2"),
    ],
)
def test_every_layout_trains_as_one_device(name, layout):
    one, eight = trained(1, command(name)), trained(DEVICES, f"{command(name)} {layout}")
    assert_close(eight, one, tolerance(name))


@pytest.mark.slow
@pytest.mark.nightly_except("explicit")
@pytest.mark.parametrize("axes", ["auto", "explicit"])
def test_eight_shards_train_alike_on_eight_devices_and_on_one(axes):
    """The result differs from training without shards, which perturb by their own gradients."""
    arguments = f"{command('sam')} --shards 8"
    assert_close(trained(DEVICES, f"{arguments} --axes {axes}"), trained(1, arguments), 1e-6)
    whole, shards = trained(1, command("sam"))[1], trained(1, arguments)[1]
    assert np.abs(whole - shards).max() > 1e-4


@pytest.mark.nightly_except("*Auto")
@both_axes
def test_fsdp_keeps_an_eighth_of_the_state_on_each_device(axes):
    """This holds for each parameter and optimizer array with an axis that eight divides."""
    with program_of("--sharding fsdp --optimizer adamw", axes) as (program, batch):
        state = program.init(jax.random.key(0))
        for _ in range(2):
            state, _ = program.step(state, batch)
    for x, expected in zip(
        jax.tree.leaves(state), jax.tree.leaves(program.abstract_state), strict=True
    ):
        assert x.sharding.is_equivalent_to(expected.sharding, x.ndim)
    for x in jax.tree.leaves((state.params, state.opt_state)):
        cut = [size % DEVICES == 0 for size in x.shape]
        assert x.addressable_shards[0].data.size * (DEVICES if any(cut) else 1) == x.size


@both_axes
def test_fsdp_gathers_each_parameter_once_per_pass(axes):
    with program_of("--sharding fsdp", axes) as (program, batch):
        found = collectives(program.step.lower(program.abstract_state, batch).compile())
    sizes = [x.size for x in jax.tree.leaves(program.abstract_state.params)]
    cut = [size for size in sizes if size % DEVICES == 0]
    gathered = [sum(operation.sizes) for operation in found if operation.kind == "all-gather"]
    assert sorted(gathered) == sorted(2 * cut)  # SAM takes two passes


@pytest.mark.nightly_except("sam-*", "gam-*Auto")
@pytest.mark.slow
@both_axes
@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_step_reduces_once_per_gradient_or_product(name, axes):
    """A step has one all-reduce per gradient or Hessian-vector product and no other collectives."""
    method, reductions = REDUCTIONS[name]
    with small_step(Mlp((16,), 3), method, axes) as (step, *inputs):
        found = collectives(step.lower(*inputs).compile())
    assert {operation.kind for operation in found} == {"all-reduce"}
    # Loss and accuracy are scalars; they may be reduced with a gradient or separately.
    of_tensors = [[n for n in operation.sizes if n > 1] for operation in found]
    of_tensors = [sizes for sizes in of_tensors if sizes]
    assert len(of_tensors) == reductions
    if name in ("sgd", "sam", "gam_accelerated"):  # a product is reduced in two or three terms
        parameters = sorted(x.size for x in jax.tree.leaves(inputs[0].params))
        assert all(sorted(sizes) == parameters for sizes in of_tensors)


@pytest.mark.nightly
@pytest.mark.slow
def test_batch_norm_and_dropout_see_the_whole_batch():
    """Eight devices agree with one, and only all-reduces are needed: no parameters are gathered."""
    model, ends = Cnn((4,), 3, dropout=0.3), []
    for devices in (1, DEVICES):
        with small_step(model, flatreg.sam(0.1), AxisType.Auto, devices) as (step, state, batch):
            compiled = step.lower(state, batch).compile()
            for _ in range(5):
                state, metrics = compiled(state, batch)
        ends.append(jax.device_get((state.params, state.batch_stats, metrics)))
    assert_close(ends[1], ends[0], 1e-5)
    assert {operation.kind for operation in collectives(compiled)} == {"all-reduce"}


def test_batches_depend_on_the_seed_and_the_position_only():
    """Also on another number of devices, and from a position that was written as JSON."""
    x, meshes = np.arange(50), [make_mesh("auto", devices) for devices in (1, DEVICES)]
    one, many = (Batches((x, -x), 16, 3, mesh) for mesh in meshes)
    batches, positions = [], []
    for _ in range(6):  # three per epoch; two examples are left over
        positions.append(json.dumps(one.get_state()))
        inputs, labels = next(one)
        np.testing.assert_array_equal(inputs, -labels)
        batches.append(np.asarray(inputs))
    for step in (4, 0, 5):
        many.set_state(json.loads(positions[step]))
        for expected in batches[step : step + 2]:
            np.testing.assert_array_equal(next(many)[0], expected)
    epochs = [np.concatenate(batches[:3]), np.concatenate(batches[3:])]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 48
    assert (epochs[0] != epochs[1]).any()
    other = Batches((x,), 16, 4, meshes[0])
    assert (np.asarray(next(other)[0]) != batches[0]).any()
