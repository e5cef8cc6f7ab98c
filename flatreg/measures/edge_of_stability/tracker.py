"""Measures stability every few steps of a training loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from flatreg._core.checks import check_key, check_period
from flatreg.measures.edge_of_stability.stability import Stability, stability
from flatreg.typing import Grads, Params, ScalarOrSchedule


class StabilityRecord(NamedTuple):
    """One measurement of a training.

    Attributes:
      step: the step at which it was made.
      sharpness: the largest eigenvalue, as in :class:`Stability`.
      threshold: the value of ``sharpness`` above which the optimizer diverges.
      ratio: ``sharpness`` / ``threshold``.
      residual: an eigenvalue lies within this distance of ``sharpness``.
    """

    step: int
    sharpness: jax.Array
    threshold: jax.Array
    ratio: jax.Array
    residual: jax.Array


class StabilityHistory(NamedTuple):
    """The measurements of a training so far.

    Attributes:
      records: one :class:`StabilityRecord` per measurement.
      vector: the vector with which the next measurement starts, or None.
    """

    records: tuple[StabilityRecord, ...] = ()
    vector: Grads | None = None


def stability_tracker(
    loss_fn: Callable[..., jax.Array],
    key: jax.Array,
    *,
    every: int,
    learning_rate: ScalarOrSchedule,
    jit: Callable[..., Any] = jax.jit,
    **options: Any,
) -> Callable[..., StabilityHistory]:
    """Returns a function that measures :func:`stability` every few steps of a training loop.

    Call the function after each step, outside ``jit``. Between two measurements it only compares
    two integers. The first measurement runs up to five Lanczos iterations of 20 steps. Each later
    one starts from the vector of the one before and costs five Hessian-vector products.

    A measurement is compiled once without a start and once with one. It runs asynchronously: the
    records hold arrays, and nothing waits for them. To reduce the cost, measure with a loss on a
    part of the data.

    Args:
      loss_fn: ``loss_fn(params, *args) -> scalar``, the training loss on fixed data. Models with
        BatchNorm need their statistics as ``args``, and run in evaluation mode.
      key: the random key for the start vector.
      every: the number of steps from one measurement to the next, at least 1. Step 0 is measured.
      learning_rate: η, a number or a schedule, which is evaluated at the step.
      jit: the function that compiles the measurement: ``jax.jit``, or a ``functools.partial`` of it
        with other options.
      **options: further arguments of :func:`stability`, such as ``momentum=0.9``.

    Returns:
      ``track(history, step, params, opt_state=None, *args) -> history``. The history is a
      :class:`StabilityHistory` with one more record if ``step`` is a multiple of ``every``, and
      unchanged otherwise. The history is a pytree, so it can be saved with the train state.

    Raises:
      ValueError: if ``every`` is not a positive integer.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flatreg import measures
      >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, 4.0]) * w**2) / 2
      >>> tx = optax.sgd(0.1)
      >>> params = jnp.ones(2)
      >>> opt_state = tx.init(params)
      >>> track = measures.stability_tracker(
      ...     loss_fn, jax.random.key(0), every=5, learning_rate=0.1
      ... )
      >>> history = measures.StabilityHistory()
      >>> for step in range(11):
      ...     updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state)
      ...     params = optax.apply_updates(params, updates)
      ...     history = track(history, step, params, opt_state)
      >>> for record in history.records:
      ...     print(f"step {record.step}: {record.ratio:.3f}")
      step 0: 0.200
      step 5: 0.200
      step 10: 0.200

    References:
      Cohen et al., `Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability
      <https://arxiv.org/abs/2103.00065>`_, ICLR 2021.
    """
    check_period(every=every)
    check_key(key, "measures.stability_tracker(loss_fn, jax.random.key(0), every=50, …)")
    leaves, structure = jax.tree.flatten(loss_fn)
    # The data of a dataset_loss are arguments of the compiled function, not constants in it.
    data = [] if any(map(callable, leaves)) else leaves

    @jit
    def measure(
        data: list[jax.Array],
        params: Params,
        opt_state: optax.OptState,
        start: Grads | None,
        learning_rate: jax.Array,
        args: tuple[Any, ...],
    ) -> Stability:
        loss: Callable[..., jax.Array] = jax.tree.unflatten(structure, data) if data else loss_fn
        return stability(
            lambda params: loss(params, *args),
            params,
            key,
            learning_rate=learning_rate,
            opt_state=opt_state,
            start=start,
            **options,
        )

    def track(
        history: StabilityHistory,
        step: int,
        params: Params,
        opt_state: optax.OptState | None = None,
        *args: Any,
    ) -> StabilityHistory:
        if step % every:
            return history
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        found = measure(data, params, opt_state, history.vector, rate, args)
        record = StabilityRecord(
            step, found.sharpness, found.threshold, found.ratio, found.residual
        )
        return StabilityHistory((*history.records, record), found.vector)

    return track
