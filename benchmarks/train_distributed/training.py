"""The compiled functions of a distributed run, its training loop and its evaluation."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import flatreg
from benchmarks.common.data.dataset import Dataset
from benchmarks.common.methods import Method
from benchmarks.train_distributed import devices
from benchmarks.train_distributed.batches import globally
from benchmarks.train_distributed.options import DistributedOptions
from flatreg.linen import TrainState, classification_loss, make_eval_step, make_train_step


class CompiledRun(NamedTuple):
    """The functions of a run.

    Attributes:
      init: returns the first state, given a key.
      step: `step(state, batch)` returns the next state and the metrics. The state is donated.
      evaluate: `evaluate(state, batch)` returns the metrics.
      abstract_state: the state as shapes with shardings.
    """

    init: Any
    step: Any
    evaluate: Any
    abstract_state: TrainState


def build(
    options: DistributedOptions, method: Method, model: Any, example: np.ndarray, mesh: Mesh
) -> CompiledRun:
    """Returns the functions of a run. Nothing is computed yet.

    Args:
      options: the options of the command.
      method: the method that is trained.
      model: a Flax model.
      example: an input of the model, a batch of one.
      mesh: the devices.
    """
    transform = method.transform
    if options.shards > 1 and method.cost > 1:
        transform = flatreg.per_shard(transform)
    tx = optax.chain(transform, _base_optimizer(options))

    def init(key: jax.Array) -> TrainState:
        return TrainState.init(model, tx, key, example, train=False).replace(apply_fn=apply)

    apply = devices.on_mesh(model.apply, options.sharding, mesh)
    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = devices.shardings_of(abstract, options.sharding, mesh)
    step = make_train_step(
        classification_loss,
        microbatches=options.microbatches,
        shards=options.shards if options.shards > 1 else None,
        ascent_fraction=method.ascent_fraction,
    )
    return CompiledRun(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        evaluate=jax.jit(make_eval_step(classification_loss)),
        abstract_state=jax.tree.map(lambda x, s: x.update(sharding=s), abstract, shardings),
    )


def train(
    run: CompiledRun,
    state: TrainState,
    first: int,
    options: DistributedOptions,
    batches: Iterator[tuple[jax.Array, ...]],
    save: Callable[[int, TrainState], None],
    console: Console,
) -> tuple[TrainState, np.ndarray]:
    """Trains from step `first` to the last step.

    Args:
      run: the functions of the run.
      state: the state before step `first`.
      first: the number of steps that are done already.
      options: the number of steps and the interval of checkpoints.
      batches: the batches from step `first` on.
      save: `save(step, state)` saves a checkpoint. The state is donated to the next step, so
        `save` must have copied it when it returns.
      console: where progress is shown.

    Returns:
      The final state, and the loss of each step before its update.
    """
    losses: list[Any] = []
    with _progress(console, first, options.steps) as show:
        for step in range(first, options.steps):
            state, metrics = run.step(state, next(batches))
            if losses:  # the loss of the previous step, so that the devices never wait for the host
                losses[-1] = float(losses[-1])
                show(step, losses[-1])
            losses.append(metrics["loss"])
            if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
                save(step + 1, state)
    return state, np.array(jax.device_get(losses), np.float32)


def accuracy(run: CompiledRun, state: TrainState, data: Dataset, mesh: Mesh) -> float:
    """Returns the accuracy on the test set.

    The test set is padded to a multiple of the number of devices by examples with the label -1,
    which no prediction matches.
    """
    count = len(data.x_test)
    rows = np.arange(-(-count // mesh.size) * mesh.size)
    labels = np.where(rows < count, data.y_test[rows % count], -1)
    x = globally(data.x_test, rows % count, mesh)
    y = globally(labels, rows, mesh)
    return float(run.evaluate(state, (x, y))["accuracy"]) * len(rows) / count


def _base_optimizer(options: DistributedOptions) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    return optax.adamw(schedule) if options.optimizer == "adamw" else optax.sgd(schedule, 0.9)


@contextlib.contextmanager
def _progress(console: Console, first: int, steps: int) -> Iterator[Callable[[int, float], None]]:
    """Yields `show(step, loss)`: it updates a bar in a terminal, or prints ten lines elsewhere."""
    columns = (
        TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=steps, completed=first)

        def show(step: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"loss {loss:.4f}")
            if not console.is_terminal and step % max(1, steps // 10) == 0:
                console.print(f"step {step} of {steps}: loss {loss:.4f}")

        yield show
