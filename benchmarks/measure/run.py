"""Restores a network of a comparison, measures it, prints and writes what was found."""

import pathlib
import time
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from benchmarks.common import methods, results, saved_models
from benchmarks.common.cli import UsageError, command_line
from benchmarks.common.data.label_noise import with_label_noise
from benchmarks.common.data.preparation import load
from benchmarks.common.models.build import build
from benchmarks.measure import plots, report
from benchmarks.measure.connectivity import Examples, connectivity
from benchmarks.measure.measuring import (
    Measure,
    Momentum,
    Settings,
    describe,
    numbers,
    plan,
    plan_of_report,
)
from flatreg import measures

FILE, REPORT = "measured.json", "report.html"


class MeasureOptions(NamedTuple):
    """Which network to measure, and how.

    Attributes:
      method: the method as the comparison lists it, or None for the first one.
      seed: the seed of the run.
      examples: the number of training examples for the loss.
      batch_size: the number of examples that are in memory at a time.
      settings: the precision of the measures.
      other: another network, METHOD or METHOD/SEED, for the loss between the two, or None.
      report: whether to write the report.
    """

    method: str | None
    seed: int
    examples: int
    batch_size: int
    settings: Settings
    other: str | None = None
    report: bool = False


def run(
    options: MeasureOptions, folder: pathlib.Path, *, data_dir: str | None = None
) -> pathlib.Path:
    """Measures one network of a comparison.

    Args:
      options: which network to measure, and how.
      folder: the results of the comparison, with saved networks.
      data_dir: a folder with local copies of the data sets.

    Returns:
      The folder with the measurements and the figures.
    """
    chosen = results.configuration(folder)
    method, seed = options.method or chosen["methods"][0], options.seed
    other = _network(options.other, seed)
    if other == (method, seed):
        raise UsageError(
            f"--with {options.other} is the network that is measured. Name another one, as in "
            "--with METHOD/SEED."
        )
    data = load(chosen["data"], data_dir, chosen["train_size"], chosen["evaluate_on"])
    model = build(chosen["model"], data)
    variables = saved_models.restore(folder, method, seed, model, data.x_train[:1])
    between = other and saved_models.restore(folder, *other, model, data.x_train[:1])["params"]
    labels = with_label_noise(data.y_train, data.num_classes, chosen["label_noise"], seed)
    x, y = data.x_train[: options.examples], np.asarray(labels)[: options.examples]
    console = Console(soft_wrap=True)
    title = f"{method}, seed {seed}"
    trained = f"{chosen['model']} on {len(x)} training examples of {chosen['data']}"
    console.print(f"{title}: {trained}", highlight=False)
    measured = plan(options.settings)
    if options.report:
        measured |= plan_of_report(options.settings, _optimizer(chosen))
    # By default, GPUs round the factors of a float32 product to TF32.
    with jax.default_matmul_precision("highest"):
        loss_fn = measures.dataset_loss(
            partial(_loss, model, variables), (x, y), batch_size=options.batch_size
        )
        found = _measure(measured, loss_fn, variables["params"], options.seed, console)
        if between is not None:
            examples = jnp.asarray(x), jnp.asarray(y)
            found |= _connect(model, variables, between, examples, options, console)
    where = saved_models.path(folder, method, seed).with_name(f"{seed}-measured")
    where.mkdir(parents=True, exist_ok=True)
    arguments = options._asdict() | {"method": method, "settings": options.settings._asdict()}
    results.write_json(where / FILE, {"arguments": arguments, **numbers(found)})
    written = [FILE, *plots.draw(where, title, found)]
    if options.report:
        size = sum(w.size for w in jax.tree.leaves(variables["params"]))
        facts = [
            ("network", trained),
            ("weights", f"{size:,}"),
            ("radius ρ", f"{options.settings.rho:g}"),
        ]
        if other is not None:
            facts.append(("other network", f"{other[0]}, seed {other[1]}"))
        text = report.page(title, facts, found, _footer(options, chosen, folder, method))
        (where / REPORT).write_text(text, encoding="utf-8")
        written.append(REPORT)
    console.print(f"Written to {where}: {', '.join(written)}", highlight=False)
    return where


def _network(name: str | None, seed: int) -> tuple[str, int] | None:
    """Returns the method and the seed that `METHOD` or `METHOD/SEED` names."""
    if name is None:
        return None
    method, slash, number = name.rpartition("/")
    if not slash:
        return name, seed
    if not number.isdecimal():
        raise UsageError(f"--with {name} does not end in a seed. Write --with METHOD/SEED.")
    return method, int(number)


def _optimizer(chosen: dict[str, Any]) -> Momentum | None:
    """Returns the optimizer of a comparison, or None if its second moments are not saved."""
    if chosen["optimizer"] != "sgd":
        return None
    return Momentum(chosen["learning_rate"], methods.MOMENTUM, chosen["weight_decay"])


def _footer(
    options: MeasureOptions, chosen: dict[str, Any], folder: pathlib.Path, method: str
) -> list[tuple[str, str]]:
    """Returns the rows of the report that say how it was made."""
    words = [str(folder), "--method", method, "--seed", str(options.seed), "--report"]
    words += [] if options.other is None else ["--with", options.other]
    trained = ("optimizer", "learning_rate", "weight_decay", "batch_size", "epochs", "label_noise")
    settings = {"batch_size": options.batch_size, **options.settings._asdict()}
    left_out = [("left out", "stability, because the second moments of AdamW are not saved")]
    return [
        ("command", command_line("measure", words)),
        ("training", ", ".join(f"{name} {chosen[name]}" for name in trained)),
        ("settings", ", ".join(f"{name} {value}" for name, value in settings.items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in results.environment().items())),
        ("loss", "mean cross-entropy of the training examples, in eval mode, in full float32"),
        *(left_out if _optimizer(chosen) is None else []),
    ]


def _measure(
    plan: dict[str, Measure], loss_fn: measures.LossFn, params: Any, seed: int, console: Console
) -> dict[str, Any]:
    """Returns all measures by name, and prints each of them when it is finished."""
    found: dict[str, Any] = {}
    for i, (name, measure) in enumerate(plan.items()):
        begin = time.perf_counter()
        with console.status(f"{name} …"):
            key = jax.random.fold_in(jax.random.key(seed), i)
            found[name] = jax.device_get(jax.jit(measure)(loss_fn, params, key))
        _print({name: found[name]}, name, time.perf_counter() - begin, console)
    return found


def _connect(
    model: nn.Module,
    variables: Any,
    other: Any,
    examples: Examples,
    options: MeasureOptions,
    console: Console,
) -> dict[str, Any]:
    """Returns the barriers between two networks by name, and prints them."""
    begin = time.perf_counter()
    with console.status("connectivity …"):
        key, steps = jax.random.key(options.seed), options.settings.curve_steps
        between = connectivity(model, options.batch_size, steps, variables, other, examples, key)
        found: dict[str, Any] = jax.device_get(between)._asdict()
    _print(found, "connectivity", time.perf_counter() - begin, console)
    return found


def _print(found: dict[str, Any], name: str, seconds: float, console: Console) -> None:
    for measure, values in found.items():
        for quantity, value in describe(measure, values):
            console.print(f"{quantity:28}{value}", highlight=False)
    console.print(f"[dim]{name}: {seconds:.1f} s with compilation[/dim]", highlight=False)


def _loss(model: nn.Module, variables: Any, params: Any, batch: Any) -> jax.Array:
    """Returns the mean cross-entropy of a batch in eval mode."""
    x, labels = batch
    logits: Any = model.apply({**variables, "params": params}, x, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
