"""Checkpoints of any training state, Linen's or NNX's, by Orbax: written whole or not at all.

Two functions that block, for a loop of your own. To save in the background, or to keep the last few
only, take ``orbax.checkpoint.CheckpointManager``; :func:`restore` reads its folders too.

Linen's ``TrainState`` is such a state. With NNX it is what the model and the optimizer hold::

    save(path, nnx.state((model, optimizer)))
    nnx.update((model, optimizer), restore(path, nnx.state((model, optimizer))))
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
        'flatreg.checkpoint writes with Orbax: pip install "flatreg[flax]".', name=error.name
    ) from error

State = TypeVar("State")


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Writes a state to a new folder.

    Orbax writes to a temporary folder beside it and renames that at the end, so a run that is
    killed leaves a whole checkpoint or none. With several processes all of them must call this.

    Args:
      path: the folder to make, local or in a bucket (``gs://…``).
      state: a tree of arrays, sharded or not, random keys included: a
        :class:`flatreg.linen.TrainState`, or ``nnx.state((model, optimizer))``.

    Raises:
      FileExistsError: if the folder is there.
      TypeError: if the state holds NNX modules themselves.

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
            f"{folder} exists, and replacing it would leave nothing if the run were killed "
            'meanwhile: write to a folder a step, save(f"{path}/{step}", state).'
        )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state, custom_metadata={_CHECKSUMS: _checksums(state)})


def restore(path: str | os.PathLike[str], like: State) -> State:
    """Reads a state.

    Args:
      path: the folder that :func:`save` made.
      like: a state of the same structure, shapes and dtypes, such as the one that training starts
        from, or ``nnx.state((model, optimizer))``. What is restored has its shardings, on whatever
        devices they name, and its functions (``apply_fn``, ``tx``), which are not saved.

    Returns:
      The state; ``nnx.update((model, optimizer), state)`` puts that of NNX back.

    Raises:
      TypeError: if ``like`` holds NNX modules themselves.
      FileNotFoundError: if there is no such folder.
      ValueError: if it holds no Orbax checkpoint, one of another state, or a damaged one.

    Examples:
      >>> import tempfile, jax.numpy as jnp
      >>> from flatreg import checkpoint
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoint.save(f"{folder}/100", {"w": jnp.ones(3)})
      ...     checkpoint.restore(f"{folder}/100", {"w": jnp.ones(4)})
      Traceback (most recent call last):
      ValueError: ... is the checkpoint of another state: w is float32[3] there, float32[4] here...
    """
    _check_state(like)
    folder = epath.Path(path).resolve()
    if not folder.exists():
        raise FileNotFoundError(f"there is no checkpoint at {folder}.")
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
    """Orbax writes NNX modules as trees that it cannot always read back."""
    nnx: Any = sys.modules.get("flax.nnx")  # Without it there are no modules.
    if nnx is None:
        return
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Pytree))
    for node in nodes:
        if isinstance(node, nnx.Pytree):
            raise TypeError(
                f"a checkpoint holds the state of a {type(node).__name__}, not the object: write "
                "checkpoint.save(path, nnx.state((model, optimizer))), and to go on from it "
                "nnx.update((model, optimizer), "
                "checkpoint.restore(path, nnx.state((model, optimizer))))."
            )


def _metadata(folder: epath.Path, checkpointer: ocp.StandardCheckpointer) -> tuple[Any, Any]:
    """The table of contents, and the checksums if :func:`save` wrote it."""
    metadata = checkpointer.metadata(folder) if folder.is_dir() else None
    if metadata is None or metadata.item_metadata is None:
        raise ValueError(f"{folder} holds no Orbax checkpoint that can be read. {_DAMAGED}")
    return metadata.item_metadata.tree, (metadata.custom_metadata or {}).get(_CHECKSUMS)


def _check_contents(folder: epath.Path, contents: Any, like: Any) -> None:
    """The checkpoint is one of such a state, as far as its table of contents tells."""
    saved, wanted = _contents(contents), _contents(like)
    differences = [
        f"{name} is {saved.get(name, 'missing')} there, {wanted.get(name, 'missing')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        more = f", and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(
            f"{folder} is the checkpoint of another state: {'; '.join(differences[:5])}{more}. "
            "Restore it with the model and the optimizer that it was saved with: "
            "restore(path, TrainState.init(model, tx, key, x)), or with NNX "
            "nnx.update((model, optimizer), restore(path, nnx.state((model, optimizer))))."
        )


def _check_values(folder: epath.Path, checksums: dict[str, int] | None, restored: Any) -> None:
    """What was read is what was written: the files themselves do not notice every flipped bit."""
    if checksums is None:
        return
    found = _checksums(restored)
    damaged = [name for name in checksums if checksums[name] != found[name]]
    if damaged:
        raise ValueError(f"{folder} is damaged: not what was saved in {damaged[:5]}. {_DAMAGED}")


def _checksums(state: Any) -> dict[str, int]:
    """One number a leaf that depends on every bit, and on no sharding."""
    sums = {name: _checksum(x) for name, x in ocp.tree.to_flat_dict(state, sep="/").items()}
    return {name: int(x) for name, x in sums.items()}


@jax.jit  # to make no copy of the leaf
def _checksum(x: Any) -> jax.Array:
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.asarray(x)
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    if x.dtype != jnp.bool:
        x = jax.lax.bitcast_convert_type(x, jnp.uint8)
    return jnp.sum(x, dtype=jnp.uint32)


def _contents(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf, by its path."""
    return {name: _describe(x) for name, x in ocp.tree.to_flat_dict(tree, sep="/").items()}


def _describe(x: Any) -> str:
    if not hasattr(x, "dtype"):
        x = np.asarray(x)  # a Python number
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, x)  # how Orbax stores it
    return f"{x.dtype}{list(x.shape)}"
