"""What a training step of every method costs: operations, memory, compilation and time.

    python -m benchmarks.step_cost
    python -m benchmarks.step_cost --models mlp,vit --methods sam,sam:rho=0.1:every=5 --peers

Networks on random images of 32×32×3 at the sizes of benchmarks.compare. XLA counts the operations
and the temporary memory of the compiled step (a loop's body once, a condition's branches all). The
steps take turns in one process, and the ratios are of neighbors in time, medians with 95%
intervals. They are held against one gradient step written by hand without flatreg, against the
method's floor, which is that times its number of gradients, and against `optax.contrib.sam`;
with --peers also PyTorch with pytorch_optimizer's SAM. Writes results.json, table.md and a figure.

Where a goal is missed, these are the causes:

1. A step of flatreg tests whether it was finite, and keeps the old state until it knows: a read of
   the updates and a write of the new state more than by hand. With a gradient of few operations a
   weight, as of the MLP at batch 128, that is a tenth of a gradient a step; the longer a gradient
   takes, the less.
2. AdamW's two new moments meanwhile lie in temporary memory, two copies of the parameters.
3. The sums and norms of gam_accelerated's four gradients are reads and writes of memory as well.
4. On a CPU the convolutions here are products of patches (_convolution.py), which an exact
   Hessian-vector product keeps: 3.7 times the gradient's memory on the CNN, 2.5 times with XLA's
   own convolution.
5. penalized_gradient mixes the clean gradient with the second one, and so keeps it through the
   second pass: a copy of the parameters more than SAM.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks.common import data as _data
from benchmarks.common import results as _results
from benchmarks.common.cli import Parser, UsageError, exit_code
from benchmarks.common.methods import METHODS
from benchmarks.common.models import build as _models
from benchmarks.step_cost import measuring as _step_cost
from benchmarks.step_cost import peers as _step_cost_peers
from benchmarks.step_cost import plot as _step_cost_plot
from benchmarks.step_cost import table as _step_cost_table
from benchmarks.step_cost.goals import goals
from benchmarks.step_cost.measuring import GRADIENT, OPTIMIZERS

QUICK = {
    "batch_size": 8,
    "rounds": 3,
    "optimizers": "sgd",
    "methods": "sam,gradient_norm_penalty",
    "image": 8,
}
FULL = {
    "batch_size": 128,
    "rounds": 20,
    "optimizers": ",".join(OPTIMIZERS),
    "methods": ",".join(name for name, entry in METHODS.items() if entry.gradients > 1),
    "image": 32,
}
QUICK_SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (32,)},
    "cnn": {"channels": (8, 8)},
    "resnet18": {"widths": (4, 8), "blocks": 1},
    "vit": {"width": 16, "depth": 1, "heads": 2},
}
CLASSES = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after a mistake of usage, or 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: run(_parse(argv), argv))


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Measures network after network, and prints and writes each as soon as it is done."""
    models, optimizers = args.models.split(","), args.optimizers.split(",")
    specs = args.methods.split(",")
    for optimizer in optimizers:
        _step_cost.methods(specs, optimizer)  # raises before any work
    if args.peers:
        _step_cost_peers.check_installed()
    console = Console(soft_wrap=True)
    if not console.is_terminal:  # a log file has no width, so give the tables what they need
        console = Console(soft_wrap=True, width=120)
    folder = _results.folder(args.out, "step_cost", resume=False)
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.step_cost", *command]),
        "revision": _results.revision(),
        "configuration": {k: v for k, v in vars(args).items() if k != "out"},
        "environment": _results.environment(),
        "networks": [],
    }
    if args.peers:
        record["environment"] |= _step_cost_peers.versions()
    _results.start(folder, record, resume=False)
    for name in models:
        model, batch = _problem(name, args)
        for optimizer in optimizers:
            with console.status(f"{name}, {optimizer}"):
                found = _measure(name, model, batch, optimizer, specs, args)
            record["networks"].append(found)
            _results.save(folder, record)
            _step_cost_table.show(found, console)
    (folder / "table.md").write_text(_step_cost_table.markdown(record), encoding="utf-8")
    _step_cost_plot.draw(folder, record["networks"])
    written = f"{_results.FILE}, table.md, {_step_cost_plot.FILE}"
    console.print(f"Written to {folder}: {written}")


def _problem(name: str, args: argparse.Namespace) -> tuple[nn.Module, _step_cost.Batch]:
    """A network and a batch of random images; a step costs the same on any."""
    random = np.random.default_rng(0)
    shape = (args.batch_size, args.image, args.image, 3)
    x = random.normal(size=shape).astype(np.float32)
    y = random.integers(CLASSES, size=args.batch_size).astype(np.int32)
    sizes = QUICK_SIZES[name] if args.quick else {}
    model = _models.build(name, _data.Dataset(x, y, x, y, CLASSES), **sizes)
    return model, (jnp.asarray(x), jnp.asarray(y))


def _measure(
    name: str,
    model: nn.Module,
    batch: _step_cost.Batch,
    optimizer: str,
    specs: Sequence[str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """All contestants of one network and optimizer."""
    contestants = _step_cost.contestants(model, batch, optimizer, specs, not args.quick)
    if args.peers and name == "mlp":
        contestants += _step_cost_peers.contestants(model, batch, optimizer)
    seconds = _step_cost.in_turns(contestants, args.rounds)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), batch[0])
    parameter_bytes = sum(w.size * w.dtype.itemsize for w in jax.tree.leaves(variables["params"]))
    rows = [
        {
            "name": one.name,
            "gradients": one.gradients,
            **one.analysis,
            "seconds": seconds[one.name],
            "time_in_gradients": _step_cost.ratio(seconds[one.name], seconds[GRADIENT])._asdict(),
        }
        for one in contestants
    ]
    return {
        "model": name,
        "optimizer": optimizer,
        "parameter_bytes": parameter_bytes,
        "rows": rows,
        "goals": [goal._asdict() for goal in goals(rows, parameter_bytes)],
    }


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.step_cost",
        description=(__doc__ or "").split("\n")[0],
        allow_abbrev=False,
    )
    every = ",".join(_models.NAMES)
    parser.add_argument("--models", default=every, help=f"some of {every} (all)")
    parser.add_argument(
        "--methods",
        help="as for benchmarks.compare, or names alone, which take usual hyperparameters (all)",
    )
    parser.add_argument("--optimizers", help=f"some of {FULL['optimizers']} (all)")
    parser.add_argument("--batch-size", type=int, help=f"examples ({FULL['batch_size']})")
    parser.add_argument("--rounds", type=int, help=f"of timing ({FULL['rounds']})")
    parser.add_argument("--peers", action="store_true", help="also PyTorch, on the MLP")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small, some methods, compiled without optimization, to see that it works",
    )
    parser.add_argument("--out", help="folder for the results (default: a new one)")
    args = parser.parse_args(argv, argparse.Namespace(image=None))
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, known in (("models", _models.NAMES), ("optimizers", tuple(OPTIMIZERS))):
        for one in getattr(args, name).split(","):
            if one not in known:
                raise UsageError(f"--{name} cannot take {one!r}: some of {','.join(known)}.")
    for name in ("batch_size", "rounds"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {getattr(args, name)} is out of range: at least 1.")
    return args


if __name__ == "__main__":
    sys.exit(main())
