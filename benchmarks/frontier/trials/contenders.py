"""The methods of the frontier by name, and variants of the wrappers for an ablation.

To add a method, add a row to `CONTENDERS`. A method that wraps the whole optimizer, needs an order
of the batches, or is evaluated at other parameters than it trains has fields of `Contender` for
that.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

import flatreg
from benchmarks.common.cli import UsageError
from benchmarks.common.methods import METHODS
from benchmarks.frontier.options import ALL
from benchmarks.frontier.records import PLAIN
from benchmarks.frontier.trials import slide
from benchmarks.frontier.trials.contender import Contender, Values
from benchmarks.frontier.tuning import Range

GROUP = 4  # batches that `revisit` sees before it sees them again
RADIUS, LONG = Range(0.03, 1.0), Range(0.1, 3.0)


def _registered(
    name: str,
    tuned: dict[str, Range],
    method: Callable[..., Any] | None = None,
    **settings: Any,
) -> Contender:
    """Returns a contender of a method in the registry, with its declared cost."""
    entry = METHODS[name]
    return Contender(method or entry.factory, entry.gradients, tuned, **settings)


def _wrapper(
    factory: Callable[..., Any], rho: Range | float = RADIUS, **settings: Any
) -> Contender:
    """Returns a contender of a one-gradient wrapper, evaluated at the clean parameters.

    The radius is tuned in a range, or fixed.
    """
    tuned = {"rho": rho} if isinstance(rho, Range) else {}
    return Contender(
        tuned=tuned,
        wrapper=lambda base, values: factory(base, values.get("rho", rho)),
        evaluated=flatreg.eval_params,
        **settings,
    )


def revisited(
    order: np.ndarray, group: int = GROUP, visits: int = 2, tail: float = 1.0, roll: int = 0
) -> np.ndarray:
    """Returns batches in the order that `flatreg.revisit` expects, at least as many as before.

    Batches from the beginning fill an incomplete last group.

    Args:
      order: the batches, one per row.
      group: the number of batches in a group.
      visits: how often each batch comes.
      tail: the fraction of the steps, the last ones, on which batches come again. The others see
        new batches, in whole groups.
      roll: on later visits, the batches of a group are moved by so many places, so that the
        directions of the first visit are those of other batches.
    """
    steps = int((1 - tail) * len(order)) // (group * visits) * (group * visits)
    head, order = order[:steps], order[steps:]
    filled = np.resize(order, (len(order) + -len(order) % group, *order.shape[1:]))
    first = filled.reshape(-1, 1, group, *order.shape[1:])  # group, visit, batch, examples
    later = np.repeat(np.roll(first, -roll, axis=2), visits - 1, axis=1)
    again = np.concatenate([first, later], axis=1).reshape(-1, *order.shape[1:])
    return np.concatenate([head, again])


def _revisit(
    rho: Range | float = RADIUS,
    *,
    group: int = GROUP,
    visits: int = 2,
    order: Mapping[str, Any] = {},
    direction_dtype: Any = None,
    **settings: Any,
) -> Contender:
    """Returns a contender of `revisit`; `order` are further arguments of `revisited`."""
    factory = partial(flatreg.revisit, group=group, visits=visits, direction_dtype=direction_dtype)
    arrange = partial(revisited, group=group, visits=visits, **order)
    return _wrapper(factory, rho, arrange=arrange, **settings)


def _climbing_first(wrapper: Callable[..., Any], tuned: Range) -> Contender:
    """Returns `revisit` with another wrapper around it, which shifts on first visits only."""

    def make(base: Any, values: Values) -> Any:
        def radius(step: Any) -> Any:
            return jnp.where(step // GROUP % 2 == 0, values["first_rho"], 0)

        return wrapper(flatreg.revisit(base, values["rho"], group=GROUP), radius)

    def evaluated(opt_state: Any, params: Any) -> Any:
        inner = flatreg.eval_params(opt_state, params)
        return flatreg.eval_params(opt_state.inner_state, inner)

    return Contender(
        tuned={"rho": RADIUS, "first_rho": tuned},
        wrapper=make,
        arrange=revisited,
        evaluated=evaluated,
    )


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
    "revisit": _revisit(),
    "momentum_sam": _wrapper(flatreg.momentum_sam, LONG),
    "previous_gradient_sam": _wrapper(flatreg.previous_gradient_sam),
}
# What `revisit` owes to each of its parts, and further ideas at the price of one gradient.
VARIANTS = {
    **{f"revisit:group={group}": _revisit(group=group) for group in (1, 2, 8, 15)},
    # A fixed radius; with 0, batches come again without a shift.
    **{f"revisit:rho={rho:g}": _revisit(rho) for rho in (0.0, 0.1, 0.3, 1.0)},
    "revisit:visits=3": _revisit(visits=3),
    "revisit:direction=bfloat16": _revisit(direction_dtype=jnp.bfloat16),
    "revisit:direction=other_batch": _revisit(order={"roll": 1}),
    "revisit:tail=0.5": _revisit(tail=0.5, order={"tail": 0.5}),
    "revisit:radius=decaying": _revisit(decaying=True),
    # Every batch of about an epoch, four times, and uphill along its last direction from the second
    # time on.
    "revisit:epochs=4": _revisit(group=22, visits=4),
    "revisit:first=previous_gradient": _climbing_first(flatreg.previous_gradient_sam, RADIUS),
    "revisit:first=momentum": _climbing_first(flatreg.momentum_sam, LONG),
    "momentum_sam:radius=decaying": _wrapper(flatreg.momentum_sam, LONG, decaying=True),
    "slide": _wrapper(slide.slide, arrange=slide.sliding, train_step=slide.train_step),
}
KNOWN = CONTENDERS | VARIANTS
ABLATION = (PLAIN, "sam", "revisit", "momentum_sam", "previous_gradient_sam", *VARIANTS)


def named(names: str) -> dict[str, Contender]:
    """Returns the contenders of a comma-separated list; the plain optimizer first.

    `all` stands for those in `CONTENDERS`, and `ablation` for those in `ABLATION`.

    Raises:
      UsageError: if a name is unknown or is given twice.
    """
    if names == ALL:
        return dict(CONTENDERS)
    if names == "ablation":
        names = ",".join(ABLATION)
    listed = [name.strip() for name in names.split(",")]
    for name in listed:
        if name not in KNOWN:
            raise UsageError(
                f"Unknown method {name!r} in --methods. Choose from {', '.join(KNOWN)}, "
                "separated by commas."
            )
        if listed.count(name) > 1:
            raise UsageError(f"--methods contains {name} twice. Give each method only once.")
    if PLAIN not in listed:
        raise UsageError(
            f"--methods lacks {PLAIN}, with which the others are compared. Write "
            f"--methods {','.join([PLAIN, *listed])}."
        )
    return {name: KNOWN[name] for name in dict.fromkeys([PLAIN, *listed])}
