"""The model as a loss gets it, so that nobody forgets ``mutable`` or counts a statistic twice."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import errors
from flax.core import tracers
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT


class Apply:
    """A model with its parameters, collections and random keys filled in.

    ``apply(*inputs, **kwargs)`` returns what ``model.apply(variables, *inputs, **kwargs)`` does.
    Several calls in one loss each go on with the statistics of the call before and draw from keys
    of their own. Collections that the model sows are asked for as in Flax:
    ``outputs, sown = apply(x, train=train, mutable="intermediates")``. With ``mutable=False`` the
    call leaves the statistics alone; inside of ``jax.grad``, ``jax.vmap`` or ``jax.checkpoint`` it
    must, for they cannot get out of there.

    Attributes:
      collections: the mutable collections after the last call.
      used: whether the loss has looked at the parameters at all.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        variables: dict[str, Any],
        key: jax.Array | None = None,
        rngs: tuple[str, ...] = (),
        *,
        train: bool,
    ) -> None:
        self._model, self._key, self._rngs, self._train = model, key, rngs, train
        fixed = {"params", OVERWRITE_WITH_GRADIENT}
        self._parameters = {k: v for k, v in variables.items() if k in fixed}
        self.collections = {k: v for k, v in variables.items() if k not in fixed}
        self.used = False
        self._calls = 0
        self._trace = tracers.current_trace()

    @property
    def variables(self) -> dict[str, Any]:
        """What the next call runs with; its ``["params"]`` are there for penalties on weights."""
        self.used = True
        return self._parameters | self.collections

    def __call__(
        self, *inputs: Any, mutable: Literal[False] | str | Iterable[str] = (), **kwargs: Any
    ) -> Any:
        """Runs the model."""
        sown = {mutable} if isinstance(mutable, str) else set(mutable or ())
        changing = set(self.collections) if self._train else set()
        outputs, updated = self._model(
            self.variables, *inputs, rngs=self._keys(), mutable=sorted(changing | sown), **kwargs
        )
        if mutable is not False:
            self._keep({name: updated[name] for name in changing})
        return (outputs, {name: updated.get(name, {}) for name in sown}) if sown else outputs

    def _keep(self, updated: dict[str, Any]) -> None:
        """Goes on with these collections."""
        if updated and tracers.current_trace() != self._trace:
            raise ValueError(
                "apply was called inside of jax.grad, jax.vmap, jax.checkpoint or the like, out of "
                f"which the collections {sorted(updated)} cannot get: write apply(x, train=train, "
                "mutable=False) there."
            )
        for name, collection in updated.items():
            _check_shapes(name, self.collections[name], collection)
        self.collections |= updated

    def _keys(self) -> dict[str, jax.Array]:
        """Random keys by name, new ones in each call."""
        if self._key is None:
            return {}
        keys = jax.random.split(jax.random.fold_in(self._key, self._calls), len(self._rngs))
        self._calls += 1
        return dict(zip(self._rngs, keys, strict=True))


@contextlib.contextmanager
def explained(train: bool) -> Iterator[None]:
    """Adds to Flax's errors the call that mends them."""
    try:
        yield
    except errors.InvalidRngError as error:
        mend = "In evaluation there are no random keys: nn.Dropout(0.1, deterministic=not train)."
        if train:
            mend = (
                "Give the state a key, TrainState.create(..., key=jax.random.key(0)), and the step "
                'every name that the model draws by, make_train_step(loss_fn, rngs=("dropout",)).'
            )
        error.add_note(mend)
        raise
    except errors.ScopeCollectionNotFound as error:
        error.add_note(
            "Give the state every collection of the model, TrainState.create(..., "
            'batch_stats=variables["batch_stats"], collections={"cache": variables["cache"]}), or '
            "write TrainState.init(model, tx, key, x), which keeps them all."
        )
        raise
    except errors.ModifyScopeVariableError as error:
        error.add_note(
            "Only the collections that the state holds are mutable, and only in training: write "
            "apply(x, train=train) and nn.BatchNorm(use_running_average=not train), or give the "
            "state the collection, TrainState.create(..., collections={…})."
        )
        raise
    except TypeError as error:
        if "unexpected keyword argument 'train'" in str(error):
            error.add_note(
                "The model takes no train: write a loss that calls it in its own way, "
                "def loss_fn(apply, batch, train): logits = apply(batch[0]) …."
            )
        raise


def _check_shapes(name: str, old: Any, new: Any) -> None:
    """What the state keeps must fit the next step."""
    before, after = _shapes(old), _shapes(new)
    if before != after:
        raise ValueError(
            f"the model changes the collection {name!r} from {before} to {after}: it sows values "
            "there, or keeps examples. Leave it out of the state, state.replace(collections={…}), "
            f"and let the loss ask for it: outputs, sown = apply(x, mutable={name!r})."
        )


def _shapes(collection: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(collection)
    return {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}
