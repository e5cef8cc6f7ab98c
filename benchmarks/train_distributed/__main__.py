r"""Trains one method on however many devices and processes there are, with one program for all.

    one CPU         python -m benchmarks.train_distributed --method sam:rho=0.1
    8 host devices  JAX_NUM_CPU_DEVICES=8 python -m benchmarks.train_distributed --sharding fsdp
    processes       on one machine, one command a process, with I = 0 and 1:
                    python -m benchmarks.train_distributed --coordinator 127.0.0.1:9876 \
                        --processes 2 --process-id I
    GPUs            the first command, on all GPUs of the machine, after pip install 'jax[cuda13]';
                    CUDA_VISIBLE_DEVICES=0 for one of them
    TPU slice       the first command on every host at once; JAX finds the others by itself:
                    gcloud compute tpus tpu-vm ssh NAME --worker=all \
                        --command='cd flatreg && python -m benchmarks.train_distributed'
    Slurm           srun --ntasks-per-node=1 python -m benchmarks.train_distributed
    other clusters  as for processes, with HOST:PORT of process 0 as --coordinator

With --checkpoint DIR, a folder that all processes see, the run saves its state as it goes. The same
command goes on from there after a crash, also on another number of devices or processes.
"""

import pathlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from rich.console import Console

import flatreg
from benchmarks.common import data as _data
from benchmarks.common import methods as _methods
from benchmarks.common.checkpoints import Checkpoints
from benchmarks.common.cli import UsageError, exit_code
from benchmarks.common.data import Dataset
from benchmarks.common.models import build as _models
from benchmarks.train_distributed import engine as _distributed
from benchmarks.train_distributed import options as _distributed_options
from benchmarks.train_distributed.options import Options
from flatreg.linen import TrainState, classification_loss, make_eval_step, make_train_step


class Program(NamedTuple):
    """The compiled functions of a run, and its state as shapes with shardings."""

    init: Any
    step: Any
    evaluate: Any
    abstract_state: TrainState


class Result(NamedTuple):
    """How a run ended: `losses[i]` is that of the step `first_step + i`, before its update."""

    state: TrainState
    first_step: int
    losses: np.ndarray
    test_accuracy: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after a mistake of usage, or 130 when interrupted."""

    def command() -> None:
        options = _distributed_options.parse(argv, __doc__)
        _distributed.connect(options.coordinator, options.processes, options.process_id)
        train(options, _distributed.make_mesh(options.axes))

    return exit_code(command, "Interrupted. With --checkpoint the same command goes on.")


def train(options: Options, mesh: Mesh) -> Result:
    """Builds or restores the state, trains, evaluates, and says so on process 0."""
    console = Console(quiet=jax.process_index() > 0, soft_wrap=True)
    method = _method(options)
    data = _data.load(options.data, options.data_dir, train_size=None, evaluate_on="test")
    _distributed_options.check(options, method, mesh.size, len(data.x_train))
    model = _models.build(options.model, data)
    saved = Checkpoints(options.checkpoint, configuration(options, method, data))
    with jax.set_mesh(mesh):
        program = build(options, method, model, data.x_train[:1], mesh)
        first = saved.latest_step()
        if first is None:
            state, first = program.init(jax.random.key(options.seed)), 0
        else:
            state = saved.restore(first, program.abstract_state)
        console.print(
            f"{method.label}, {options.model} on {options.data}: steps {first} to {options.steps} "
            f"on {_distributed.describe(mesh)}, {options.sharding} over {options.axes} axes"
        )
        begin = time.perf_counter()
        state, losses = _steps(options, program, state, first, data, mesh, saved, console)
        seconds = time.perf_counter() - begin
        result = Result(state, first, losses, _accuracy(program, state, data, mesh))
    console.print(_summary(options, result, seconds))
    if options.out:
        _write(pathlib.Path(options.out), result, _distributed.everywhere(state.params, mesh))
        console.print(f"Written to {options.out}")
    return result


def build(
    options: Options, method: _methods.Method, model: Any, example: np.ndarray, mesh: Mesh
) -> Program:
    """Makes the functions of a run; nothing is computed yet."""
    transform = method.transform
    if options.shards > 1 and method.cost > 1:
        transform = flatreg.per_shard(transform)
    tx = optax.chain(transform, _base_optimizer(options))

    def init(key: jax.Array) -> TrainState:
        return TrainState.init(model, tx, key, example, train=False).replace(apply_fn=apply)

    apply = _distributed.on_mesh(model.apply, options.sharding, mesh)
    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = _distributed.shardings_of(abstract, options.sharding, mesh)
    step = make_train_step(
        classification_loss,
        microbatches=options.microbatches,
        shards=options.shards if options.shards > 1 else None,
        ascent_fraction=method.ascent_fraction,
    )
    return Program(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        evaluate=jax.jit(make_eval_step(classification_loss)),
        abstract_state=jax.tree.map(lambda x, s: x.update(sharding=s), abstract, shardings),
    )


def configuration(options: Options, method: _methods.Method, data: Dataset) -> dict[str, Any]:
    """What decides the trajectory; where it is computed is free to change."""
    names = ("model", "optimizer", "learning_rate", "steps", "batch_size", "seed")
    names += ("microbatches", "shards")
    chosen = {name: getattr(options, name) for name in names}
    return {"data": options.data, **data.description(), "method": method.label, **chosen}


def _steps(
    options: Options,
    program: Program,
    state: TrainState,
    first: int,
    data: Dataset,
    mesh: Mesh,
    saved: Checkpoints,
    console: Console,
) -> tuple[TrainState, np.ndarray]:
    arrays = (data.x_train, data.y_train)
    batches = _distributed.Batches(arrays, options.batch_size, options.seed, mesh)
    losses: list[Any] = []
    with _distributed.progress(console, first, options.steps) as show:
        for step in range(first, options.steps):
            state, metrics = program.step(state, batches(step))
            if losses:  # read the step before's, so that the devices never wait for the host
                losses[-1] = float(losses[-1])
                show(step, losses[-1])
            losses.append(metrics["loss"])
            if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
                saved.save(step + 1, state)
    return state, np.array(jax.device_get(losses), np.float32)


def _accuracy(program: Program, state: TrainState, data: Dataset, mesh: Mesh) -> float:
    """On the test set, padded to what the devices share equally with examples of no class."""
    count = len(data.x_test)
    rows = np.arange(-(-count // mesh.size) * mesh.size)
    labels = np.where(rows < count, data.y_test[rows % count], -1)
    x = _distributed.globally(data.x_test, rows % count, mesh)
    y = _distributed.globally(labels, rows, mesh)
    return float(program.evaluate(state, (x, y))["accuracy"]) * len(rows) / count


def _summary(options: Options, result: Result, seconds: float) -> str:
    accuracy = f"test accuracy {result.test_accuracy:.1%}"
    if not len(result.losses):
        return f"{accuracy}; nothing was left to train"
    speed = len(result.losses) * options.batch_size / seconds
    return (
        f"loss {result.losses[-1]:.4f}, {accuracy}; {seconds:.1f} s with compilation, "
        f"{speed:,.0f} examples/s"
    )


def _write(path: pathlib.Path, result: Result, params: Any) -> None:
    if jax.process_index() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        losses=result.losses,
        first_step=result.first_step,
        test_accuracy=result.test_accuracy,
        **flatten_dict({"params": params}, sep="/"),
    )


def _method(options: Options) -> _methods.Method:
    method, *others = _methods.parse(options.method, options.optimizer)
    if others:
        raise UsageError(f"--method {options.method} names several methods: train one at a time.")
    return method


def _base_optimizer(options: Options) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    return optax.adamw(schedule) if options.optimizer == "adamw" else optax.sgd(schedule, 0.9)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is an interruption
    sys.exit(main())
