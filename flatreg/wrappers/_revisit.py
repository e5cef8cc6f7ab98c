"""Revisit: every batch is seen twice, and the second visit climbs along the gradient of the first.

first visit of a batch B:   θ ← θ − η g,   g = ∇L_B(θ), and remember ĝ_B = g/‖g‖
second visit:               θ ← θ − η g̃,  g̃ = ∇L_B(θ + ρ ĝ_B), at the parameters of that time

The batches come in groups of L: B₁ … B_L, then B₁ … B_L again, then the next group. The second
visit of a batch comes L steps after the first, so its gradient is a little out of date, but it
belongs to the same batch, unlike the gradient of the previous step or the momentum. A step costs
one gradient.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from flatreg._core.checks import (
    check_arrays,
    check_nonnegative,
    check_scalars,
    check_scale,
    check_whole,
    check_wrapped_update,
    checked_base,
    checked_scale,
)
from flatreg._core.tree import ascent, bits_of, mix, norm
from flatreg.typing import Grads, Method, Params, ScalarOrSchedule, Scale

Batch = TypeVar("Batch")


class RevisitState(NamedTuple):
    """State of :func:`revisit`.

    Attributes:
      count: the number of updates so far, including skipped ones, an int32 scalar. It determines
        the position in the group.
      directions: the unit gradient of each batch of the group, with a leading axis of ``group``
        entries; zero for a batch that has none.
      radius: the length ρ of the shift that is on the parameters now; zero without a shift.
      last_finite: whether the last gradient was finite, a boolean scalar. If it was not, the
        optimizer made no step.
      fingerprints: the fingerprint of each batch of the group, if ``update`` got one, uint32.
      mismatches: the number of visits on which the fingerprint was not that of the first visit, an
        int32 scalar. If it is not zero, the order of the data does not match ``group``.
      inner_state: the state of the optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax does
    directions: Params
    radius: jax.Array
    last_finite: jax.Array
    fingerprints: jax.Array
    mismatches: jax.Array
    inner_state: optax.OptState

    @property
    def shift(self) -> Params:
        """The shift ε that is on the parameters now; zero before the first visit of a batch."""
        slot = self.count % self.fingerprints.shape[0]
        return mix((self.radius, _entry(self.directions, slot)))


def revisit(
    base: optax.GradientTransformation,
    rho: ScalarOrSchedule = 0.1,
    *,
    group: int = 4,
    visits: int = 2,
    scale: Scale | None = None,
    direction_dtype: Any = None,
) -> Method:
    r"""Revisit: a plain step on the first visit of a batch, a SAM step on its later visits.

    The batches must come in groups: ``group`` batches, the same batches again in the same order,
    ``visits`` times in all, and then the next group. :func:`flatreg.revisited` makes this order. On
    the first visit, the step is that of ``base`` with the gradient g = ∇L(θ), and the direction of
    g is stored. On a later visit, the gradient is ∇L(θ + ρ T²g/‖Tg‖), where g is the last gradient
    of the same batch and θ are the current parameters.

    The parameters that training sees are θ + ε, where ε = 0 on first visits. The optimizer ``base``
    sees the clean parameters θ, so weight decay acts on them. Use :func:`flatreg.eval_params` for
    evaluation. The wrapper goes around the whole chain, including clipping, because everything
    after it would change the shift.

    **Order of the data.** The wrapper counts steps and does not see the data. With a wrong order,
    shuffled batches for example, it shifts along gradients of other batches, and no error is
    raised. To check the order, pass ``fingerprint=flatreg.batch_fingerprint(batch)`` to ``update``
    and read the number of mismatches with ``optax.tree.get(opt_state, "mismatches")``.

    **Skipped steps.** If a gradient contains a NaN or an infinity, the optimizer makes no step, its
    state does not change, and no direction is stored. The position in the group advances, so that
    it stays in step with the data. The later visits of a batch without a direction are plain.
    ``optax.apply_if_finite`` is therefore not needed.

    **BatchNorm.** Update the running statistics on every step. Statistics of the first or of the
    second visits only are not better.

    Args:
      base: the optimizer, for example ``optax.sgd(0.1, momentum=0.9)``, or a chain.
      rho: the radius ρ ≥ 0 of the shift in parameter space, a number or a schedule. Step t uses the
        radius of step t.
      group: the number of batches in a group, a Python integer of at least 1. With 1, each batch
        comes several times in a row.
      visits: the number of visits of each batch, a Python integer of at least 1. With 1, the
        optimizer is unchanged.
      scale: a function ``params -> T`` that returns one factor per weight or per leaf, evaluated at
        the clean parameters; None means T = 1. Leaves with a factor of zero are not shifted.
      direction_dtype: the dtype of the stored directions, such as ``jnp.bfloat16``, which halves
        their memory; None means the dtypes of the parameters.

    Returns:
      A transformation whose ``update`` needs ``params`` and the gradient at ``params``. A step
      costs one gradient, and the state contains ``group`` copies of the parameters.

    Raises:
      TypeError: if ``base`` is not a transformation, if ``rho`` is not a number, 0-d array or
        schedule, if ``scale`` is not a function, or if ``direction_dtype`` is not a floating-point
        dtype.
      ValueError: if ``rho`` is a negative Python number, or if ``group`` or ``visits`` is not a
        Python integer of at least 1.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, flatreg
      >>> grad_fn = jax.grad(lambda w, batch: jnp.mean((w - batch) ** 2) / 2)
      >>> batches = [jnp.array([0.0]), jnp.array([2.0])]
      >>> tx = flatreg.revisit(optax.sgd(0.5), rho=0.5, group=2)
      >>> w = jnp.zeros(())
      >>> state = tx.init(w)
      >>> for batch in flatreg.revisited(batches, group=2):
      ...     fingerprint = flatreg.batch_fingerprint(batch)
      ...     updates, state = tx.update(grad_fn(w, batch), state, w, fingerprint=fingerprint)
      ...     w = optax.apply_updates(w, updates)
      ...     print(w, flatreg.eval_params(state, w))
      0.0 0.0
      1.0 1.0
      0.0 0.5
      1.5 1.5
      >>> print(optax.tree.get(state, "mismatches"))
      0
    """
    base = checked_base("revisit", base)
    check_scalars(rho=rho)
    check_nonnegative(rho=rho)
    check_whole(group=group, visits=visits)
    check_scale(scale)
    if direction_dtype is not None and not jnp.issubdtype(direction_dtype, jnp.floating):
        raise TypeError(
            f"direction_dtype must be a floating-point dtype, got {direction_dtype!r}: write "
            "direction_dtype=jnp.bfloat16."
        )

    def place(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The number of the batch within its group, and the number of the visit."""
        return count % group, count // group % visits

    def init(params: Params) -> Any:
        check_arrays("revisit", params)
        return RevisitState(
            count=jnp.zeros((), jnp.int32),
            directions=jax.tree.map(
                lambda w: jnp.stack([jnp.zeros_like(w, direction_dtype)] * group), params
            ),
            radius=jnp.zeros(()),
            last_finite=jnp.ones((), bool),
            fingerprints=jnp.zeros(group, jnp.uint32),
            mismatches=jnp.zeros((), jnp.int32),
            inner_state=base.init(params),
        )

    def update(
        updates: Grads,
        state: Any,
        params: Any = None,
        *,
        fingerprint: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[Grads, RevisitState]:
        check_wrapped_update("revisit", updates, params)
        count: Any = optax.safe_increment(state.count)
        (slot, visit), (next_slot, next_visit) = place(state.count), place(count)
        size = norm(updates)
        # The cond copies the direction, after which XLA can write the new one in its place. It uses
        # the gradient (whose norm is never below zero) so that no copy exists before the gradient.
        direction = jax.lax.cond(
            (visit > 0) & ~(size < 0),
            lambda: _entry(state.directions, slot),
            lambda: jax.tree.map(jnp.zeros_like, _entry(state.directions, slot)),
        )
        # 1. The step of the optimizer at the clean parameters.
        clean = optax.tree.cast_like(mix((1, params), (-state.radius, direction)), params)
        finite = jnp.isfinite(size)
        step, inner_state = base.update(updates, state.inner_state, clean, **extra)
        step = _where(finite, step, optax.tree.zeros_like(step))
        inner_state = _where(finite, inner_state, state.inner_state)
        # 2. The direction of the gradient, or the last one of this batch, or none.
        unit = mix((1 / jnp.where(size == 0, 1, size), updates))  # without an array for g/max|g|
        last = _where(finite, optax.tree.cast_like(unit, direction), direction)
        # 3. The shift for the next batch.
        directions = _with_entry(state.directions, last, slot)
        ahead = _entry(directions, next_slot)
        if scale is not None:  # T is that of the parameters at the shift, so T²g/‖Tg‖ is stored.
            factors = checked_scale(scale, optax.apply_updates(clean, step))
            scaled = optax.tree.cast_like(ascent(ahead, 1.0, factors), ahead)
            ahead = _where(next_visit > 0, scaled, ahead)
            directions = _with_entry(directions, ahead, next_slot)
        radius: Any = rho(count) if callable(rho) else rho
        radius = jnp.where(next_visit > 0, radius, 0).astype(state.radius.dtype)
        moved = mix((1, step), (-state.radius, direction), (radius, ahead))
        # 4. Compare the data with the first visit.
        fingerprints, mismatches = state.fingerprints, state.mismatches
        if fingerprint is not None:
            seen = jnp.asarray(fingerprint, jnp.uint32)
            mismatches = mismatches + ((visit > 0) & (seen != fingerprints[slot]))
            fingerprints = jnp.where(visit > 0, fingerprints, fingerprints.at[slot].set(seen))
        new_state = RevisitState(
            count, directions, radius, finite, fingerprints, mismatches, inner_state
        )
        return moved, new_state

    return Method(init, update)


def revisited(batches: Iterable[Batch], group: int = 4, visits: int = 2) -> Iterator[Batch]:
    """Repeats batches in groups, in the order that :func:`flatreg.revisit` expects.

    The next ``group`` batches come ``visits`` times in a row, then the following ones. At the end,
    an incomplete group is dropped. At most ``group`` batches are in memory.

    To continue training after a checkpoint, skip the batches that were already used:
    ``itertools.islice(revisited(batches, group, visits), steps_done, None)``.

    Args:
      batches: any iterable of batches, finite or infinite.
      group: the number of batches in a group, as for :func:`flatreg.revisit`.
      visits: the number of visits of each batch, as for :func:`flatreg.revisit`.

    Returns:
      An iterator over the batches.

    Raises:
      ValueError: if ``group`` or ``visits`` is not a Python integer of at least 1.

    Examples:
      >>> import flatreg
      >>> print("".join(flatreg.revisited("abcde", group=2, visits=2)))
      ababcdcd
    """
    check_whole(group=group, visits=visits)

    def repeated() -> Iterator[Batch]:
        iterator = iter(batches)
        while len(chunk := list(itertools.islice(iterator, group))) == group:
            for _ in range(visits):
                yield from chunk

    return repeated()


def batch_fingerprint(batch: Any) -> jax.Array:
    """Returns a number that differs between batches, for the check of :func:`flatreg.revisit`.

    The number depends on every bit of every leaf and on their order. Different batches have the
    same fingerprint with a probability of about 2⁻³².

    Args:
      batch: a tree of arrays.

    Returns:
      A uint32 scalar.

    Examples:
      >>> import jax.numpy as jnp, flatreg
      >>> one, other = jnp.arange(4.0), jnp.arange(4.0)[::-1]
      >>> print(flatreg.batch_fingerprint(one) == flatreg.batch_fingerprint(one + 0))
      True
      >>> print(flatreg.batch_fingerprint(one) == flatreg.batch_fingerprint(other))
      False
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(batch):
        total = _mixed(total + _hash_of_bits(jnp.asarray(leaf)))
    return total


def _hash_of_bits(x: jax.Array) -> jax.Array:
    """Σᵢ h(bitsᵢ + h(i)) modulo 2³², where i numbers the entries."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    if bits_of(x.dtype) < 8:  # int4 and float4, whose bits XLA does not convert to those of a byte
        x = x.astype(jnp.float32)
    width = min(8 * x.dtype.itemsize, 32)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    numbers = jnp.zeros(bits.shape, jnp.uint32)  # not flattened, so that it stays sharded
    for axis, size in enumerate(bits.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        numbers = numbers * jnp.uint32(size) + along
    return jnp.sum(_mixed(bits + _mixed(numbers)), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of the 32-bit integers in which every bit of x affects the higher bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _where(condition: jax.Array, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), x, y)


def _entry(stacked: Params, slot: jax.Array) -> Params:
    """Entry ``slot`` of every leaf."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, keepdims=False), stacked)


def _with_entry(stacked: Params, entry: Params, slot: jax.Array) -> Params:
    """The stacked leaves with a new entry ``slot``."""
    return jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), slot, 0),
        stacked,
        entry,
    )
