"""Measures how flat the minimum is that one run of a comparison ended in.

    python -m benchmarks.compare --save-models --out results/digits
    python -m benchmarks.measure results/digits --method sam:rho=0.3

Everything is measured of the training loss with the labels that the run saw, in eval mode and in
full float32 precision, and each number comes with its error. Writes measured.json and two plots
beside the network: slices of the loss, and the spectral density of its Hessian.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from rich.console import Console

from benchmarks.common import data as _data
from benchmarks.common import results as _results
from benchmarks.common import saved_models as _saved_models
from benchmarks.common.cli import Parser, UsageError, exit_code
from benchmarks.common.flatness import Settings, describe, numbers, plan
from benchmarks.common.models import build as _models
from benchmarks.measure import plots as _flatness_plots
from flatreg import measures


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after a mistake of usage, or 130 when interrupted."""
    return exit_code(lambda: run(_parse(argv)))


def run(args: argparse.Namespace) -> None:
    """Restores the network, measures it, prints and writes what was found."""
    folder = pathlib.Path(args.results)
    options = _results.configuration(folder)
    method = args.method or options["methods"][0]
    data = _data.load(options["data"], args.data_dir, options["train_size"], options["evaluate_on"])
    model = _models.build(options["model"], data)
    variables = _saved_models.restore(folder, method, args.seed, model, data.x_train[:1])
    labels = _data.with_label_noise(
        data.y_train, data.num_classes, options["label_noise"], args.seed
    )
    examples = data.x_train[: args.examples], np.asarray(labels)[: args.examples]
    console = Console(soft_wrap=True)
    console.print(
        f"{method}, seed {args.seed}: {options['model']} on {len(examples[0])} training examples "
        f"of {options['data']}"
    )
    with jax.default_matmul_precision("highest"):  # GPUs would round a float32 product to TF32
        loss_fn = measures.dataset_loss(
            partial(_loss, model, variables), examples, batch_size=args.batch_size
        )
        found = _measure(loss_fn, variables["params"], args, console)
    where = _saved_models.path(folder, method, args.seed).with_name(f"{args.seed}-measured")
    where.mkdir(parents=True, exist_ok=True)
    written = json.dumps({"arguments": vars(args), **numbers(found)}, indent=1, ensure_ascii=False)
    (where / "measured.json").write_text(written + "\n", encoding="utf-8")
    plots = _flatness_plots.draw(where, f"{method}, seed {args.seed}", found)
    console.print(f"Written to {where}: measured.json, {', '.join(plots)}")


def _measure(
    loss_fn: measures.LossFn, params: Any, args: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Every measure by its name, each printed as soon as it is there."""
    found: dict[str, Any] = {}
    settings = Settings(*(getattr(args, name) for name in Settings._fields))
    for i, (name, measure) in enumerate(plan(settings).items()):
        begin = time.perf_counter()
        with console.status(f"{name} …"):
            key = jax.random.fold_in(jax.random.key(args.seed), i)
            found[name] = jax.device_get(jax.jit(measure)(loss_fn, params, key))
        seconds = time.perf_counter() - begin
        for what, value in describe(name, found[name]):
            console.print(f"{what:28}{value}", highlight=False)
        console.print(f"[dim]{name}: {seconds:.1f} s with compilation[/dim]", highlight=False)
    return found


def _loss(model: nn.Module, variables: Any, params: Any, batch: Any) -> jax.Array:
    x, labels = batch
    logits = model.apply({**variables, "params": params}, x, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.measure", description=__doc__.split("\n")[0])
    parser.add_argument("results", help="folder of python -m benchmarks.compare --save-models")
    parser.add_argument("--method", help="as the comparison lists it (default: its first)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", help="as for the comparison")
    parser.add_argument("--examples", type=int, default=2048, help="of the training set (2048)")
    parser.add_argument("--batch-size", type=int, default=512, help="examples in memory (512)")
    parser.add_argument("--eigenvalues", type=int, default=5, help="how many (5)")
    parser.add_argument("--steps", type=int, default=20, help="of the Lanczos iteration (20)")
    parser.add_argument("--probes", type=int, default=64, help="for the trace (64)")
    parser.add_argument("--ascent-steps", type=int, default=100, help="to R⁰ and R¹ (100)")
    parser.add_argument("--rho", type=float, default=0.05, help="radius of the ball (0.05)")
    args = parser.parse_args(argv)
    for name, least in (
        ("examples", 1),
        ("batch_size", 1),
        ("eigenvalues", 1),
        ("probes", 2),
        ("ascent_steps", 1),
    ):
        if getattr(args, name) < least:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {getattr(args, name)} is out of range: at least {least}.")
    if args.steps < args.eigenvalues:
        raise UsageError(f"--steps {args.steps} must be at least --eigenvalues {args.eigenvalues}.")
    if not 0 < args.rho < float("inf"):
        raise UsageError(f"--rho {args.rho} must be a positive number.")
    return args


if __name__ == "__main__":
    sys.exit(main())
