"""Checkpoints of the whole training state of Linen or NNX, written with Orbax.

:func:`save` writes a checkpoint completely or not at all, together with a checksum of every array.
:func:`restore` reads it and verifies the checksums. Both functions block until they are done.

To save in the background, or to keep only the last few checkpoints, use
``orbax.checkpoint.CheckpointManager`` with :func:`save_args`, which adds the checksums.
:func:`restore` reads its checkpoints too.

With Linen, the training state is a :class:`flatreg.linen.TrainState`::

    checkpoint.save(path, state)
    state = checkpoint.restore(path, state)

With NNX, it is the state of the model and the optimizer::

    checkpoint.save(path, nnx.state((model, optimizer)))
    state = checkpoint.restore(path, nnx.state((model, optimizer)))
    nnx.update((model, optimizer), state)
"""

import collections
import numbers
import os
import sys
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import bits_of

try:
    import orbax.checkpoint as ocp  # type: ignore[import-untyped]
    from etils import epath  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'flatreg.checkpoint needs Orbax: pip install "flatreg[flax]".', name=error.name
    ) from error

__all__ = ["restore", "save", "save_args"]

State = TypeVar("State")


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Write a training state to a new folder.

    Orbax writes to a temporary folder next to the new one and renames it at the end, so a run that
    is killed leaves either a complete checkpoint or none. In a run with several processes, all
    processes must call this function.

    Args:
      path: the folder to create, local or in a bucket (``gs://…``).
      state: a tree of arrays, which may be sharded and may include random keys: a
        :class:`flatreg.linen.TrainState`, or ``nnx.state((model, optimizer))``. Its leaves are
        arrays of JAX or NumPy, or numbers. Orbax cannot store uint2 and uint4.

    Raises:
      FileExistsError: if the folder already exists.
      TypeError: if the state contains NNX modules instead of their states, or leaves that are not
        arrays.
      ValueError: if two leaves have the same name in the checkpoint, such as ``"a.b"`` and
        ``"a" -> "b"``.

    Examples:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from flatreg import checkpoint
      >>> state = {"params": jnp.ones(3), "key": jax.random.key(0)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoint.save(f"{folder}/100", state)
      ...     restored = checkpoint.restore(f"{folder}/100", state)
      >>> print(restored["params"])
      [1. 1. 1.]
    """
    args = save_args(state)
    folder = epath.Path(path).resolve()
    if folder.exists():
        raise FileExistsError(
            f"{folder} already exists. If the run were killed while replacing it, both checkpoints "
            'would be lost. Write one folder per step: save(f"{path}/{step}", state).'
        )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, args.item, custom_metadata=args.custom_metadata)


def save_args(state: Any) -> ocp.args.StandardSave:
    """Return Orbax's arguments for saving a training state, with a checksum of every array.

    ``orbax.checkpoint.CheckpointManager`` saves in the background: its ``save`` returns when the
    arrays are copied to the host. The next step may then change or donate them.

    Args:
      state: a tree of arrays, as for :func:`save`.

    Returns:
      The arguments for ``CheckpointManager.save(step, args=...)``. The checksums are computed when
      this function is called.

    Raises:
      TypeError: for the reasons of :func:`save`.
      ValueError: for the reasons of :func:`save`.

    Examples:
      >>> import tempfile, jax.numpy as jnp, orbax.checkpoint as ocp
      >>> from flatreg import checkpoint
      >>> state = {"params": jnp.ones(3)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with ocp.CheckpointManager(folder) as manager:  # waits at its end
      ...         saved = manager.save(100, args=checkpoint.save_args(state))
      ...     restored = checkpoint.restore(f"{folder}/100/default", state)
      >>> print(restored["params"])
      [1. 1. 1.]
    """
    _check_state(state)
    _check_leaves(state)
    _check_names(state)
    metadata = {_CHECKSUMS: _checksums(state)}
    return ocp.args.StandardSave(_without_scalars(state), custom_metadata=metadata)


def restore(path: str | os.PathLike[str], like: State) -> State:
    """Read a training state from a checkpoint.

    Args:
      path: the folder that :func:`save` created.
      like: a state with the structure, shapes and dtypes of the saved one, such as the state before
        the first step, or ``nnx.state((model, optimizer))``. Its leaves may be
        ``jax.ShapeDtypeStruct``. The restored state has the shardings of ``like``, even on a
        different number of devices. It also has the functions of ``like`` (``apply_fn``, ``tx``),
        which are not saved.

    Returns:
      The restored state. With NNX, ``nnx.update((model, optimizer), state)`` writes it to the model
      and the optimizer.

    Raises:
      TypeError: if ``like`` contains NNX modules instead of their states.
      FileNotFoundError: if the folder does not exist.
      ValueError: if the folder is not an Orbax checkpoint, if it is the checkpoint of a different
        state (structure, shapes, dtypes, and the implementations of random keys), or if it is
        damaged.

    Examples:
      >>> import tempfile, jax.numpy as jnp
      >>> from flatreg import checkpoint
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoint.save(f"{folder}/100", {"w": jnp.ones(3)})
      ...     checkpoint.restore(f"{folder}/100", {"w": jnp.ones(4)})
      Traceback (most recent call last):
      ValueError: ... of a different state: w is float32[3] in the checkpoint, float32[4] in like...
    """
    _check_state(like)
    folder = epath.Path(path).resolve()
    if not folder.exists():
        raise FileNotFoundError(f"no checkpoint at {folder}: check the path.")
    with ocp.StandardCheckpointer() as checkpointer:
        contents, checksums = _metadata(folder, checkpointer)
        _check_contents(folder, contents, like)
        try:
            restored = checkpointer.restore(folder, _without_scalars(like))
        except Exception as error:
            reason = str(error).partition(" [")[0]
            raise ValueError(f"{folder} cannot be read. {_DAMAGED} Orbax says: {reason}") from error
    _check_values(folder, checksums, restored)
    _check_keys(folder, restored, like)
    return _with_scalars(restored, like)


_CHECKSUMS = "flatreg_checksums"
_DAMAGED = "If a file is missing or damaged, restore an earlier checkpoint."


def _check_state(state: Any) -> None:
    """Reject NNX modules: Orbax writes them as trees that it cannot always read back."""
    nnx: Any = sys.modules.get("flax.nnx")  # Without NNX, modules cannot occur.
    if nnx is None:
        return
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Pytree))
    for node in nodes:
        if isinstance(node, nnx.Pytree):
            raise TypeError(
                f"a checkpoint holds the state of a {type(node).__name__}, not the object itself. "
                "To save, write checkpoint.save(path, nnx.state((model, optimizer))); to restore, "
                "nnx.update((model, optimizer), "
                "checkpoint.restore(path, nnx.state((model, optimizer))))."
            )


def _check_leaves(state: Any) -> None:
    """Check that every leaf is an array of numbers or a number, of a dtype that Orbax stores."""
    leaves = ocp.tree.to_flat_dict(state, sep="/")
    if others := [name for name, x in leaves.items() if not _is_array_or_number(x)]:
        raise TypeError(
            f"a checkpoint holds arrays and numbers, but these leaves are not: {_listed(others)}. "
            "For an Equinox model, write params, static = eqx.partition(model, eqx.is_array) and "
            "checkpoint.save(path, params); to restore, model = "
            "eqx.combine(checkpoint.restore(path, params), static)."
        )
    if others := [name for name, x in leaves.items() if str(jnp.result_type(x)) in _NOT_STORED]:
        raise TypeError(
            f"Orbax cannot store the dtypes {' and '.join(_NOT_STORED)}, which these leaves have: "
            f"{_listed(others)}. Save x.astype(jnp.uint8), and cast it back after restoring."
        )


_NOT_STORED = ("uint2", "uint4")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _is_array_or_number(x: Any) -> bool:
    if isinstance(x, np.ndarray | np.generic):
        return bool(jnp.issubdtype(x.dtype, np.number) or x.dtype == bool)
    return isinstance(x, jax.Array | numbers.Number)


def _check_names(state: Any) -> None:
    """Check that no two leaves have the same name in the checkpoint.

    Orbax joins the keys of a path with dots, and the checksums join them with slashes.
    """
    for separator in "./":
        paths: dict[str, list[tuple[Any, ...]]] = collections.defaultdict(list)
        for path in ocp.tree.to_flat_dict(state):
            paths[separator.join(map(str, path))].append(path)
        for name, same in paths.items():
            if len(same) > 1:
                raise ValueError(
                    f"the leaves at {' and '.join(map(str, same))} would both be named {name!r} in "
                    "the checkpoint, and one would overwrite the other. Rename a key: write "
                    "{'a_b': x, 'a': {'b': y}} instead of {'a.b': x, 'a': {'b': y}}."
                )


def _is_scalar(x: Any) -> bool:
    """Whether this is a number that Orbax does not store as it is."""
    return isinstance(x, np.generic | complex)


def _without_scalars(state: Any) -> Any:
    """Return the state with NumPy scalars and complex numbers as arrays without axes."""
    return jax.tree.map(lambda x: np.asarray(x) if _is_scalar(x) else x, state)


def _with_scalars(restored: Any, like: State) -> State:
    """Return the restored state with scalars where ``like`` has them."""

    def convert(x: Any, new: Any) -> Any:
        return type(x)(new.item()) if _is_scalar(x) else new

    converted: State = jax.tree.map(convert, like, restored)
    return converted


def _check_keys(folder: epath.Path, restored: Any, like: Any) -> None:
    """Check that random keys have the implementation of ``like``.

    The contents do not show it: keys of "rbg" and of "unsafe_rbg" are the same arrays.
    """
    wanted = ocp.tree.to_flat_dict(like, sep="/")
    for name, x in ocp.tree.to_flat_dict(restored, sep="/").items():
        dtype = getattr(wanted[name], "dtype", None)
        if _is_key(x) and dtype != x.dtype:
            raise ValueError(
                f"{folder} is the checkpoint of a different state: {name} is a random key of type "
                f"{x.dtype} in the checkpoint, {dtype} in like. Pass a state whose key has this "
                f"implementation: jax.random.key(0, impl={str(jax.random.key_impl(x))!r})."
            )


def _metadata(folder: epath.Path, checkpointer: ocp.StandardCheckpointer) -> tuple[Any, Any]:
    """Return the table of contents, and the checksums if flatreg wrote the checkpoint."""
    metadata = checkpointer.metadata(folder) if folder.is_dir() else None
    if metadata is None or metadata.item_metadata is None:
        raise ValueError(f"{folder} is not a readable Orbax checkpoint. {_DAMAGED}")
    contents = metadata.item_metadata
    # A `CheckpointManager` stores what `save_args` adds next to the contents.
    own = (metadata.custom_metadata or {}) | (contents.custom_metadata or {})
    return contents.tree, own.get(_CHECKSUMS)


def _check_contents(folder: epath.Path, contents: Any, like: Any) -> None:
    """Check that the checkpoint has the paths, dtypes and shapes of ``like``."""
    saved, wanted = _contents(contents), _contents(like)
    differences = [
        f"{name} is {saved.get(name, 'missing')} in the checkpoint, "
        f"{wanted.get(name, 'missing')} in like"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        more = f", and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(
            f"{folder} is the checkpoint of a different state: {'; '.join(differences[:5])}{more}. "
            "Pass a state of the model and the optimizer that were saved: "
            "restore(path, TrainState.init(model, tx, key, x)), or with NNX "
            "nnx.update((model, optimizer), restore(path, nnx.state((model, optimizer))))."
        )


def _check_values(folder: epath.Path, checksums: dict[str, int] | None, restored: Any) -> None:
    """Verify the checksums, because the files themselves do not detect every flipped bit."""
    if checksums is None:
        return
    found = _checksums(restored)
    damaged = [name for name in checksums if checksums[name] != found[name]]
    if damaged:
        raise ValueError(
            f"{folder} is damaged: the checksums of {damaged[:5]} do not match. {_DAMAGED}"
        )


def _checksums(state: Any) -> dict[str, int]:
    """Return one checksum per leaf. It depends on every bit but not on the sharding."""
    sums = {name: _checksum(x) for name, x in ocp.tree.to_flat_dict(state, sep="/").items()}
    return {name: int(x) for name, x in sums.items()}


@jax.jit  # avoids a copy of the leaf
def _checksum(x: Any) -> jax.Array:
    x = jax.random.key_data(x) if _is_key(x) else jnp.asarray(x)
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    if x.dtype != jnp.bool and bits_of(x.dtype) < 8:
        x = x.astype(jnp.int8 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.float16)
    if x.dtype != jnp.bool:
        x = jax.lax.bitcast_convert_type(x, jnp.uint8)
    return jnp.sum(x, dtype=jnp.uint32)


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _contents(tree: Any) -> dict[str, str]:
    """Return the dtype and shape of every leaf as text, by path."""
    return {name: _describe(x) for name, x in ocp.tree.to_flat_dict(tree, sep="/").items()}


def _describe(x: Any) -> str:
    if not hasattr(x, "dtype"):
        x = np.asarray(x)  # a Python number
    if _is_key(x):
        x = jax.eval_shape(jax.random.key_data, x)  # how Orbax stores it
    return f"{x.dtype}{list(x.shape)}"
