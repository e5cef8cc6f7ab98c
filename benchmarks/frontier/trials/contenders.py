"""The methods of the frontier by name.

To add a method, add a row to `CONTENDERS`. A method that wraps the whole optimizer, needs an order
of the batches, or is evaluated at other parameters than it trains has fields of `Contender` for
that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import flatreg
from benchmarks.common.cli import UsageError
from benchmarks.common.methods import METHODS
from benchmarks.frontier.options import ALL
from benchmarks.frontier.records import PLAIN
from benchmarks.frontier.trials.contender import Contender
from benchmarks.frontier.tuning import Range


def _registered(
    name: str,
    tuned: dict[str, Range],
    method: Callable[..., Any] | None = None,
    **settings: Any,
) -> Contender:
    """Returns a contender of a method in the registry, with its declared cost."""
    entry = METHODS[name]
    return Contender(method or entry.factory, entry.gradients, tuned, **settings)


def _wrapper(factory: Callable[..., Any], tuned: Range, **settings: Any) -> Contender:
    """Returns a contender of a one-gradient wrapper, evaluated at the clean parameters."""
    return Contender(
        tuned={"rho": tuned},
        wrapper=lambda base, values: factory(base, values["rho"]),
        evaluated=flatreg.eval_params,
        **settings,
    )


def revisited(order: np.ndarray) -> np.ndarray:
    """Returns batches in the order that `flatreg.revisit` expects, at least as many as before.

    Batches from the beginning fill an incomplete last group.
    """
    short = -len(order) % GROUP
    filled = np.resize(order, (len(order) + short, *order.shape[1:]))
    return np.stack(list(flatreg.revisited(filled, GROUP)))


GROUP = 4  # batches that `revisit` sees before it sees them again
RADIUS = Range(0.03, 1.0)
CONTENDERS = {
    PLAIN: Contender(),
    "ema": Contender(averaging=True, tuned={"horizon": Range(0.01, 0.3, most=1.0)}),
    "sam": _registered("sam", {"rho": RADIUS}),
    "gsam": _registered("gsam", {"rho": RADIUS, "alpha": Range(0.05, 1.0)}),
    "friendly_sam": _registered("friendly_sam", {"rho": RADIUS}),
    "stable_sam": _registered("stable_sam", {"rho": RADIUS}),
    "penalized_gradient": _registered("penalized_gradient", {"r": RADIUS}),
    "gam_accelerated": _registered(
        "gam_accelerated", {"rho": Range(0.05, 1.0), "rho_prime": Range(0.02, 0.5)}
    ),
    "sam:every=5": _registered("sam", {"rho": Range(0.1, 3.0)}, every=5),
    "sam:ascent_fraction=0.1": _registered("sam", {"rho": Range(0.1, 3.0)}, ascent_fraction=0.1),
    "sam:tail=0.2": _registered("sam", {"rho": RADIUS}, tail=0.2),
    "looksam:k=5": _registered(
        "looksam", {"rho": RADIUS}, method=partial(flatreg.looksam, k=5), period=5
    ),
    "revisit": _wrapper(partial(flatreg.revisit, group=GROUP), RADIUS, arrange=revisited),
    "momentum_sam": _wrapper(flatreg.momentum_sam, Range(0.1, 3.0)),
    "previous_gradient_sam": _wrapper(flatreg.previous_gradient_sam, RADIUS),
}


def named(names: str) -> dict[str, Contender]:
    """Returns the contenders of a comma-separated list, or `all`; the plain optimizer first.

    Raises:
      UsageError: if a name is unknown or is given twice.
    """
    if names == ALL:
        return dict(CONTENDERS)
    listed = [name.strip() for name in names.split(",")]
    for name in listed:
        if name not in CONTENDERS:
            raise UsageError(
                f"Unknown method {name!r} in --methods. Choose from {', '.join(CONTENDERS)}, "
                "separated by commas."
            )
        if listed.count(name) > 1:
            raise UsageError(f"--methods contains {name} twice. Give each method only once.")
    if PLAIN not in listed:
        raise UsageError(
            f"--methods lacks {PLAIN}, with which the others are compared. Write "
            f"--methods {','.join([PLAIN, *listed])}."
        )
    return {name: CONTENDERS[name] for name in dict.fromkeys([PLAIN, *listed])}
