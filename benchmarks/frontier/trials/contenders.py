"""The methods of the frontier by name.

To add a method, add a row to `CONTENDERS`. A method that wraps the whole optimizer, needs an order
of the batches, or is evaluated at other parameters than it trains has fields of `Contender` for
that.
"""

from typing import Any

from benchmarks.common.cli import UsageError
from benchmarks.common.methods import METHODS
from benchmarks.frontier.options import ALL
from benchmarks.frontier.records import PLAIN
from benchmarks.frontier.trials.contender import Contender
from benchmarks.frontier.tuning import Range


def _registered(name: str, tuned: dict[str, Range], **settings: Any) -> Contender:
    """Returns a contender of a method in the registry, with its declared cost."""
    entry = METHODS[name]
    return Contender(entry.factory, entry.gradients, tuned, **settings)


RADIUS = Range(0.03, 1.0)
CONTENDERS = {
    PLAIN: Contender(),
    "ema": Contender(averaging=True, tuned={"horizon": Range(0.01, 0.3, most=1.0)}),
    "sam": _registered("sam", {"rho": RADIUS}),
    "penalized_gradient": _registered("penalized_gradient", {"r": RADIUS}),
    "gam_accelerated": _registered(
        "gam_accelerated", {"rho": Range(0.05, 1.0), "rho_prime": Range(0.02, 0.5)}
    ),
    "sam:every=5": _registered("sam", {"rho": Range(0.1, 3.0)}, every=5),
    "sam:ascent_fraction=0.1": _registered("sam", {"rho": Range(0.1, 3.0)}, ascent_fraction=0.1),
    "sam:tail=0.2": _registered("sam", {"rho": RADIUS}, tail=0.2),
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
