"""The ``apply`` that a loss function receives: a Linen model with its variables filled in."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import errors
from flax.core import tracers
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT


class Apply:
    """A Linen model with its parameters, collections and random keys filled in.

    A train step makes one for each pass and passes it to the loss function.
    ``apply(*inputs, **kwargs)`` returns what ``model.apply(variables, *inputs, **kwargs)`` returns.

    A loss function may call it several times. Each call starts from the BatchNorm statistics after
    the previous call and uses its own random keys.

    To get the values that the model sows, name the collections as in Flax:
    ``outputs, sown = apply(x, train=train, mutable="intermediates")``. With ``mutable=False`` the
    call does not update the statistics. Inside ``jax.grad``, ``jax.vmap`` or ``jax.checkpoint``,
    ``mutable=False`` is required if the state has statistics, because updated statistics cannot
    leave such a transformation.

    Attributes:
      collections: the mutable collections, such as ``batch_stats``, after the last call.
      used: whether the loss function has used the parameters.

    Examples:
      >>> import jax, jax.numpy as jnp, flax.linen as nn
      >>> from flatreg.linen import Apply
      >>> model, x = nn.Dense(3), jnp.ones((4, 2))
      >>> apply = Apply(model.apply, model.init(jax.random.key(0), x), train=True)
      >>> apply(x).shape
      (4, 3)
    """

    def __init__(
        self,
        apply_fn: Callable[..., Any],
        variables: dict[str, Any],
        key: jax.Array | None = None,
        rngs: tuple[str, ...] = (),
        *,
        train: bool,
    ) -> None:
        """Fill in the variables of a model.

        Args:
          apply_fn: ``model.apply``.
          variables: the parameters and the other collections of the model.
          key: the random key of the pass, or None if the model draws no random numbers.
          rngs: the names of the model's random streams, such as ``("dropout",)``.
          train: whether a call may update the collections.
        """
        self._apply_fn, self._key, self._rngs, self._train = apply_fn, key, rngs, train
        fixed = {"params", OVERWRITE_WITH_GRADIENT}
        self._parameters = {k: v for k, v in variables.items() if k in fixed}
        self.collections = {k: v for k, v in variables.items() if k not in fixed}
        self.used = False
        self._calls = 0
        self._trace = tracers.current_trace()

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the next call. A penalty on weights can use ``variables["params"]``."""
        self.used = True
        return self._parameters | self.collections

    def __call__(
        self, *inputs: Any, mutable: Literal[False] | str | Iterable[str] = (), **kwargs: Any
    ) -> Any:
        """Run the model.

        Args:
          *inputs: the inputs of the model.
          mutable: the name or names of the collections that the model sows and that this call
            returns; False if the call must not update the collections of the state.
          **kwargs: keyword arguments of the model, such as ``train``.

        Returns:
          The outputs of the model, or ``(outputs, sown)`` with a dict of the collections that
          ``mutable`` names.

        Raises:
          ValueError: if the collections of the state change inside another JAX transformation, or
            change their structure or shapes.
        """
        sown = {mutable} if isinstance(mutable, str) else set(mutable or ())
        updatable = set(self.collections) if self._train else set()
        outputs, updated = self._apply_fn(
            self.variables,
            *inputs,
            rngs=self._keys_of_next_call(),
            mutable=sorted(updatable | sown),
            **kwargs,
        )
        if mutable is not False:
            self._update_collections({name: updated[name] for name in updatable})
        return (outputs, {name: updated.get(name, {}) for name in sown}) if sown else outputs

    def _update_collections(self, updated: dict[str, Any]) -> None:
        if updated and tracers.current_trace() != self._trace:
            raise ValueError(
                "apply was called inside jax.grad, jax.vmap, jax.checkpoint or a similar "
                f"transformation, and the updated collections {sorted(updated)} cannot leave it: "
                "write apply(x, train=train, mutable=False) there."
            )
        for name, collection in updated.items():
            _check_same_shapes(name, self.collections[name], collection)
        self.collections |= updated

    def _keys_of_next_call(self) -> dict[str, jax.Array]:
        if self._key is None:
            return {}
        keys = jax.random.split(jax.random.fold_in(self._key, self._calls), len(self._rngs))
        self._calls += 1
        return dict(zip(self._rngs, keys, strict=True))


@contextlib.contextmanager
def flax_errors_explained(train: bool) -> Iterator[None]:
    """Add a note with the corrected call to Flax's own errors.

    Args:
      train: whether the code inside the context is a train step; otherwise it is an evaluation.
    """
    try:
        yield
    except errors.InvalidRngError as error:
        note = "Evaluation provides no random keys: write nn.Dropout(0.1, deterministic=not train)."
        if train:
            note = (
                "Give the state a key, TrainState.create(..., key=jax.random.key(0)), and name all "
                "random streams of the model in the step, for example "
                'make_train_step(loss_fn, rngs=("dropout",)).'
            )
        error.add_note(note)
        raise
    except errors.ScopeCollectionNotFound as error:
        error.add_note(
            "Give the state every collection of the model, TrainState.create(..., "
            'batch_stats=variables["batch_stats"], collections={"cache": variables["cache"]}), or '
            "write TrainState.init(model, tx, key, x), which keeps all of them."
        )
        raise
    except errors.ModifyScopeVariableError as error:
        error.add_note(
            "Only collections that the state holds are mutable, and only in training: write "
            "apply(x, train=train) and nn.BatchNorm(use_running_average=not train), or add the "
            "collection to the state, TrainState.create(..., collections={…})."
        )
        raise
    except TypeError as error:
        if "unexpected keyword argument 'train'" in str(error):
            error.add_note(
                "The model does not take a train argument: write your own loss, "
                "def loss_fn(apply, batch, train): logits = apply(batch[0]) …."
            )
        raise


def _check_same_shapes(name: str, old: Any, new: Any) -> None:
    """Check that an updated collection has the structure and shapes of the old one."""
    before, after = _shapes(old), _shapes(new)
    if before != after:
        raise ValueError(
            f"the model changes the collection {name!r} from {before} to {after}, either because "
            "it sows values there or because it stores examples. Remove the collection from the "
            "state, state.replace(collections={…}), and request it in the loss: "
            f"outputs, sown = apply(x, mutable={name!r})."
        )


def _shapes(collection: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(collection)
    return {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}
