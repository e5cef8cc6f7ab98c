"""Runs the training: builds or restores the state, trains, evaluates and writes the outcome."""

import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from rich.console import Console

from benchmarks.common import methods
from benchmarks.common.cli import UsageError
from benchmarks.common.data.dataset import Dataset
from benchmarks.common.data.preparation import load
from benchmarks.common.models import build as models
from benchmarks.train_distributed import devices
from benchmarks.train_distributed.batches import Batches
from benchmarks.train_distributed.checkpoints import Checkpoints
from benchmarks.train_distributed.options import DistributedOptions, check
from benchmarks.train_distributed.training import accuracy, build, train
from flatreg.linen import TrainState


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      state: the final state.
      first_step: the number of steps that were restored from a checkpoint.
      losses: `losses[i]` is the loss of step `first_step + i`, before its update.
      test_accuracy: the accuracy on the test set.
    """

    state: TrainState
    first_step: int
    losses: np.ndarray
    test_accuracy: float


def run(options: DistributedOptions, mesh: Mesh) -> Outcome:
    """Trains one method on the devices of a mesh; process 0 prints.

    If the folder of checkpoints has any, the run resumes from the newest one.

    Args:
      options: the options of the command.
      mesh: the devices.
    """
    console = Console(quiet=jax.process_index() > 0, soft_wrap=True)
    method = _method(options)
    data = load(options.data, options.data_dir, train_size=None, evaluate_on="test")
    check(options, method, mesh.size, len(data.x_train))
    model = models.build(options.model, data)
    arrays = (data.x_train, data.y_train)
    batches = Batches(arrays, options.batch_size, options.seed, mesh)
    settings = configuration(options, method, data)
    with Checkpoints(options.checkpoint, settings) as saved, jax.set_mesh(mesh):
        compiled = build(options, method, model, data.x_train[:1], mesh)
        first = saved.latest_step()
        if first is None:
            state, first = compiled.init(jax.random.key(options.seed)), 0
        else:
            state = saved.restore(first, compiled.abstract_state, batches)
        console.print(
            f"{method.label}, {options.model} on {options.data}: steps {first} to {options.steps} "
            f"on {devices.describe(mesh)}, {options.sharding} sharding, {options.axes} axes",
            highlight=False,
        )
        begin = time.perf_counter()
        save = functools.partial(saved.save, batches=batches)
        state, losses = train(compiled, state, first, options, batches, save, console)
        seconds = time.perf_counter() - begin
        outcome = Outcome(state, first, losses, accuracy(compiled, state, data, mesh))
    console.print(_summary(options, outcome, seconds), highlight=False)
    if options.out:
        _write(pathlib.Path(options.out), outcome, devices.everywhere(state.params, mesh))
        console.print(f"Written to {options.out}", highlight=False)
    return outcome


def configuration(
    options: DistributedOptions, method: methods.Method, data: Dataset
) -> dict[str, Any]:
    """Returns the settings that decide the trajectory.

    A resumed run must have the same ones. The devices, processes and shardings may change.
    """
    names = (
        "model",
        "optimizer",
        "learning_rate",
        "steps",
        "batch_size",
        "seed",
        "microbatches",
        "shards",
    )
    chosen = {name: getattr(options, name) for name in names}
    return {"data": options.data, **data.description(), "method": method.label, **chosen}


def _summary(options: DistributedOptions, outcome: Outcome, seconds: float) -> str:
    """Returns the line that is printed at the end."""
    share = f"test accuracy {outcome.test_accuracy:.1%}"
    if not len(outcome.losses):
        return f"{share}; all steps were done already"
    speed = len(outcome.losses) * options.batch_size / seconds
    return (
        f"loss {outcome.losses[-1]:.4f}, {share}; {seconds:.1f} s including compilation, "
        f"{speed:,.0f} examples per second"
    )


def _write(path: pathlib.Path, outcome: Outcome, params: Any) -> None:
    """Process 0 writes the losses, the accuracy and the parameters."""
    if jax.process_index() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        losses=outcome.losses,
        first_step=outcome.first_step,
        test_accuracy=outcome.test_accuracy,
        **flatten_dict({"params": params}, sep="/"),
    )


def _method(options: DistributedOptions) -> methods.Method:
    """Reads `--method`, which must name one method."""
    method, *others = methods.parse(options.method, options.optimizer)
    if others:
        raise UsageError(f"--method {options.method} names several methods: train one at a time.")
    return method
