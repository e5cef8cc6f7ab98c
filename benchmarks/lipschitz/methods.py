"""The methods that `python -m benchmarks.lipschitz` compares: one row of `METHODS` per method.

A method acts on the training step in one of four places, with a strength:

    penalty      penalty(f, x, y) is added to the loss, where f maps inputs to logits
    normalize    normalize(params, state) replaces the parameters inside the loss
    before       a transformation of the gradients, in front of the optimizer
    after        a transformation of the updates, behind the optimizer
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatreg import lipschitz

Operators = lipschitz.Operators | None
Logits = Callable[[jax.Array], jax.Array]
PLAIN = "plain"


class Parts(NamedTuple):
    """What a method of one strength adds to the training step. The defaults change nothing.

    Attributes:
      penalty: `penalty(f, x, y)` is added to the loss of a batch.
      start: `start(params, key)` returns the first state of `normalize`.
      normalize: `normalize(params, state)` returns the parameters that the network uses, and the
        next state.
      before: the gradient transformation in front of the optimizer.
      after: the gradient transformation behind the optimizer.
    """

    penalty: Callable[[Logits, jax.Array, jax.Array], Any] = lambda f, x, y: 0.0
    start: Callable[[Any, jax.Array], Any] = lambda params, key: ()
    normalize: Callable[[Any, Any], tuple[Any, Any]] = lambda params, state: (params, state)
    before: optax.GradientTransformation = optax.identity()
    after: optax.GradientTransformation = optax.identity()


class Family(NamedTuple):
    """A method without its strength: one row of `METHODS`.

    Attributes:
      title: the name in figures.
      symbol: the symbol of the strength in figures: λ for the weight of a penalty, c for a bound on
        the norm of every kernel.
      parts: `parts(strength, operators)`, given the linear maps of the network's kernels.
      strengths: the default strength for each model, chosen as described at the top of
        `benchmarks/lipschitz/__main__.py`.
      grid: the strengths that `--sweep` tries.
      aim: what the strength is chosen for: `certified` accuracy, or accuracy under `noise`.
    """

    title: str
    symbol: str
    parts: Callable[[float, Operators], Parts]
    strengths: dict[str, float]
    grid: tuple[float, ...]
    aim: Literal["certified", "noise"] = "certified"


class LipschitzMethod(NamedTuple):
    """A method with its strength."""

    name: str
    strength: float

    @property
    def label(self) -> str:
        """The method as `--methods` reads it."""
        return self.name if self.name == PLAIN else f"{self.name}:{self.strength:g}"

    def parts(self, operators: Operators) -> Parts:
        """Returns what the method adds to the step of a network with these linear maps."""
        return METHODS[self.name].parts(self.strength, operators)


def cross_entropies(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def margins(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the margin of each example: z_y − max over j ≠ y of z_j."""
    own = jax.nn.one_hot(y, logits.shape[1], dtype=bool)
    return jnp.sum(logits, 1, where=own) - jnp.max(jnp.where(own, -jnp.inf, logits), 1)


def _input_gradient(quantity: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """The penalty λ·mean ‖∇ₓ quantity(f(x), y)‖², whose target for the gradient's norm is 0."""

    def parts(strength: float, operators: Operators) -> Parts:
        def penalty(f: Logits, x: jax.Array, y: jax.Array) -> jax.Array:
            return strength * lipschitz.input_gradient_penalty(lambda x: quantity(f(x), y), x, 0.0)

        return Parts(penalty=penalty)

    return parts


def _weight_decay(strength: float, operators: Operators) -> Parts:
    def kernels(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return Parts(before=optax.add_decayed_weights(strength, kernels))


def _spectral_penalty(strength: float, operators: Operators) -> Parts:
    key = jax.random.key(0)
    return Parts(before=lipschitz.spectral_norm_penalty(strength, key, operators=operators))


def _normalization(strength: float, operators: Operators) -> Parts:
    return Parts(
        start=lambda params, key: lipschitz.spectral_normalization_state(
            params, key, operators=operators
        ),
        normalize=lambda params, state: lipschitz.spectral_normalize(
            params, state, bound=strength, operators=operators
        ),
    )


def _projection(norm: Literal["power", "upper_bound"]) -> Any:
    def parts(strength: float, operators: Operators) -> Parts:
        return Parts(
            after=lipschitz.project_spectral_norm(strength, norm=norm, operators=operators)
        )

    return parts


def _orthogonality(strength: float, operators: Operators) -> Parts:
    return Parts(before=lipschitz.orthogonality_penalty(strength, operators=operators))


PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
PROJECTIONS = {"mlp": 2.4, "cnn": 2.8}
BOUNDS = (1.0, 1.4, 1.7, 2.0, 2.4, 2.8, 4.0)
METHODS = {
    PLAIN: Family("plain", "", lambda strength, operators: Parts(), {}, (0.0,)),
    "weight_decay": Family(
        "weight decay", "λ", _weight_decay, {"mlp": 3e-3, "cnn": 1e-2}, PENALTIES[:6]
    ),
    "spectral_penalty": Family(
        "spectral norm penalty", "λ", _spectral_penalty, {"mlp": 3e-2, "cnn": 0.1}, PENALTIES[2:]
    ),
    "spectral_normalization": Family(
        "spectral normalization", "c", _normalization, {"mlp": 2.0, "cnn": 1.7}, BOUNDS
    ),
    "projection": Family(
        "projection, power iteration", "c", _projection("power"), PROJECTIONS, BOUNDS
    ),
    "projection_upper_bound": Family(
        "projection, upper bound", "c", _projection("upper_bound"), PROJECTIONS, BOUNDS
    ),
    "orthogonality_penalty": Family(
        "orthogonality penalty", "λ", _orthogonality, {"mlp": 3e-3, "cnn": 1e-2}, PENALTIES[1:7]
    ),
    "input_gradient_penalty": Family(
        "input-gradient penalty, loss",
        "λ",
        _input_gradient(cross_entropies),
        {"mlp": 0.1, "cnn": 0.1},
        PENALTIES[3:],
        "noise",
    ),
    "margin_gradient_penalty": Family(
        "input-gradient penalty, margin",
        "λ",
        _input_gradient(margins),
        {"mlp": 1e-2, "cnn": 3e-3},
        PENALTIES[2:],
        "noise",
    ),
}
