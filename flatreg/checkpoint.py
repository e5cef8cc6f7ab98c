"""Checkpoints of the whole training state of Linen or NNX, written with Orbax.

:func:`save` writes a checkpoint completely or not at all, together with a checksum of every array.
:func:`restore` reads it and verifies the checksums. Both functions block until they are done. To
save in the background, or to keep only the last few checkpoints, use
``orbax.checkpoint.CheckpointManager``; :func:`restore` reads its checkpoints too.

With Linen, the training state is a :class:`flatreg.linen.TrainState`::

    checkpoint.save(path, state)
    state = checkpoint.restore(path, state)

With NNX, it is the state of the model and the optimizer::

    checkpoint.save(path, nnx.state((model, optimizer)))
    state = checkpoint.restore(path, nnx.state((model, optimizer)))
    nnx.update((model, optimizer), state)
"""

import os
import sys
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

try:
    import orbax.checkpoint as ocp  # type: ignore[import-untyped]
    from etils import epath  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'flatreg.checkpoint needs Orbax: pip install "flatreg[flax]".', name=error.name
    ) from error

__all__ = ["restore", "save"]

State = TypeVar("State")


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Write a training state to a new folder.

    Orbax writes to a temporary folder next to the new one and renames it at the end, so a run that
    is killed leaves either a complete checkpoint or none. In a run with several processes, all
    processes must call this function.

    Args:
      path: the folder to create, local or in a bucket (``gs://…``).
      state: a tree of arrays, which may be sharded and may include random keys: a
        :class:`flatreg.linen.TrainState`, or ``nnx.state((model, optimizer))``.

    Raises:
      FileExistsError: if the folder already exists.
      TypeError: if the state contains NNX modules instead of their states.

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
    _check_state(state)
    folder = epath.Path(path).resolve()
    if folder.exists():
        raise FileExistsError(
            f"{folder} already exists. If the run were killed while replacing it, both checkpoints "
            'would be lost. Write one folder per step: save(f"{path}/{step}", state).'
        )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state, custom_metadata={_CHECKSUMS: _checksums(state)})


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
        state, or if it is damaged.

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
        raise FileNotFoundError(f"there is no checkpoint at {folder}: check the path.")
    with ocp.StandardCheckpointer() as checkpointer:
        contents, checksums = _metadata(folder, checkpointer)
        _check_contents(folder, contents, like)
        try:
            restored: State = checkpointer.restore(folder, like)
        except Exception as error:
            reason = str(error).partition(" [")[0]
            raise ValueError(f"{folder} cannot be read. {_DAMAGED} Orbax says: {reason}") from error
    _check_values(folder, checksums, restored)
    return restored


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


def _metadata(folder: epath.Path, checkpointer: ocp.StandardCheckpointer) -> tuple[Any, Any]:
    """Return the table of contents, and the checksums if :func:`save` wrote the checkpoint."""
    metadata = checkpointer.metadata(folder) if folder.is_dir() else None
    if metadata is None or metadata.item_metadata is None:
        raise ValueError(f"{folder} is not a readable Orbax checkpoint. {_DAMAGED}")
    return metadata.item_metadata.tree, (metadata.custom_metadata or {}).get(_CHECKSUMS)


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
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.asarray(x)
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    if x.dtype != jnp.bool:
        x = jax.lax.bitcast_convert_type(x, jnp.uint8)
    return jnp.sum(x, dtype=jnp.uint32)


def _contents(tree: Any) -> dict[str, str]:
    """Return the dtype and shape of every leaf as text, by path."""
    return {name: _describe(x) for name, x in ocp.tree.to_flat_dict(tree, sep="/").items()}


def _describe(x: Any) -> str:
    if not hasattr(x, "dtype"):
        x = np.asarray(x)  # a Python number
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, x)  # how Orbax stores it
    return f"{x.dtype}{list(x.shape)}"
