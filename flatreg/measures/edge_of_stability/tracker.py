"""Measures stability every few steps of a training loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import check_key, check_period
from flatreg.measures.edge_of_stability.optimizers import Hyperparameters
from flatreg.measures.edge_of_stability.stability import Measurement, measured_stability
from flatreg.typing import Grads, Params, ScalarOrSchedule

THOROUGH = 20  # Every so many measurements, one makes at least two products.


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
    one starts from the vector of the one before. It costs one Hessian-vector product if the
    residual is then below a tenth of the sharpness (``tolerance``), and otherwise up to five. Every
    twentieth measurement makes at least two products, to find a direction that has become sharper
    than the one that is tracked. If several eigenvalues are close together, the sharpness can
    belong to any of them.

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
      **options: further arguments of :func:`stability`, such as ``momentum=0.9``. With
        ``tolerance=0``, every measurement makes five products and is more accurate.

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

    hyperparameters = {k: v for k, v in options.items() if k in Hyperparameters._fields}
    others = {k: v for k, v in options.items() if k not in Hyperparameters._fields}

    @jit
    def measure(
        data: list[jax.Array],
        params: Params,
        opt_state: optax.OptState,
        start: Grads | None,
        count: int,
        learning_rate: jax.Array,
        args: tuple[Any, ...],
    ) -> Measurement:
        loss: Callable[..., jax.Array] = jax.tree.unflatten(structure, data) if data else loss_fn
        return measured_stability(
            lambda params: loss(params, *args),
            params,
            jax.random.fold_in(key, count),
            Hyperparameters(learning_rate, **hyperparameters),
            opt_state=opt_state,
            start=start,
            least=jnp.where(count % THOROUGH == 0, 2, 1),
            **others,
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
        count = len(history.records)
        found, start = measure(data, params, opt_state, history.vector, count, rate, args)
        record = StabilityRecord(
            step, found.sharpness, found.threshold, found.ratio, found.residual
        )
        return StabilityHistory((*history.records, record), start)

    return track
