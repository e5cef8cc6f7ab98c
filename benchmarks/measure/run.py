"""Restores a network of a comparison, measures it, prints and writes what was found."""

import pathlib
import time
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from rich.console import Console

from benchmarks.common import results, saved_models
from benchmarks.common.data.label_noise import with_label_noise
from benchmarks.common.data.preparation import load
from benchmarks.common.models.build import build
from benchmarks.measure import plots
from benchmarks.measure.measuring import Settings, describe, numbers, plan
from flatreg import measures

FILE = "measured.json"


class MeasureOptions(NamedTuple):
    """Which network to measure, and how.

    Attributes:
      method: the method as the comparison lists it, or None for the first one.
      seed: the seed of the run.
      examples: the number of training examples for the loss.
      batch_size: the number of examples that are in memory at a time.
      settings: the precision of the measures.
    """

    method: str | None
    seed: int
    examples: int
    batch_size: int
    settings: Settings


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
    data = load(chosen["data"], data_dir, chosen["train_size"], chosen["evaluate_on"])
    model = build(chosen["model"], data)
    variables = saved_models.restore(folder, method, seed, model, data.x_train[:1])
    labels = with_label_noise(data.y_train, data.num_classes, chosen["label_noise"], seed)
    examples = data.x_train[: options.examples], np.asarray(labels)[: options.examples]
    console = Console(soft_wrap=True)
    console.print(
        f"{method}, seed {seed}: {chosen['model']} on {len(examples[0])} training examples of "
        f"{chosen['data']}",
        highlight=False,
    )
    # By default, GPUs round the factors of a float32 product to TF32.
    with jax.default_matmul_precision("highest"):
        loss_fn = measures.dataset_loss(
            partial(_loss, model, variables), examples, batch_size=options.batch_size
        )
        found = _measure(loss_fn, variables["params"], options, console)
    where = saved_models.path(folder, method, seed).with_name(f"{seed}-measured")
    where.mkdir(parents=True, exist_ok=True)
    arguments = options._asdict() | {"method": method, "settings": options.settings._asdict()}
    results.write_json(where / FILE, {"arguments": arguments, **numbers(found)})
    figures = plots.draw(where, f"{method}, seed {seed}", found)
    written = ", ".join([FILE, *figures])
    console.print(f"Written to {where}: {written}", highlight=False)
    return where


def _measure(
    loss_fn: measures.LossFn, params: Any, options: MeasureOptions, console: Console
) -> dict[str, Any]:
    """Returns all measures by name, and prints each of them when it is finished."""
    found: dict[str, Any] = {}
    for i, (name, measure) in enumerate(plan(options.settings).items()):
        begin = time.perf_counter()
        with console.status(f"{name} …"):
            key = jax.random.fold_in(jax.random.key(options.seed), i)
            found[name] = jax.device_get(jax.jit(measure)(loss_fn, params, key))
        seconds = time.perf_counter() - begin
        for quantity, value in describe(name, found[name]):
            console.print(f"{quantity:28}{value}", highlight=False)
        console.print(f"[dim]{name}: {seconds:.1f} s with compilation[/dim]", highlight=False)
    return found


def _loss(model: nn.Module, variables: Any, params: Any, batch: Any) -> jax.Array:
    """Returns the mean cross-entropy of a batch in eval mode."""
    x, labels = batch
    logits: Any = model.apply({**variables, "params": params}, x, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
