"""What `python -m benchmarks.lipschitz` compares: a row of the registry is a method.

A method enters the training step in one of four places, at a strength:

    loss      penalty(f, x, y) is added; f maps inputs to logits
    weights   normalize(params, state) takes the parameters' place inside of the loss
    before    a transformation of the gradients, before the optimizer
    after     one of the updates, after it
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.common.cli import UsageError
from flatreg import lipschitz

Operators = lipschitz.Operators | None
Logits = Callable[[jax.Array], jax.Array]
PLAIN = "plain"


class Parts(NamedTuple):
    """A method of one strength, ready to be put into a step; by default it does nothing."""

    penalty: Callable[[Logits, jax.Array, jax.Array], Any] = lambda f, x, y: 0.0
    start: Callable[[Any, jax.Array], Any] = lambda params, key: ()
    normalize: Callable[[Any, Any], tuple[Any, Any]] = lambda params, state: (params, state)
    before: optax.GradientTransformation = optax.identity()
    after: optax.GradientTransformation = optax.identity()


class Kind(NamedTuple):
    """A row: what it is called in plots, its parts at a strength, and the strengths to sweep.

    Attributes:
      title: in plots.
      symbol: of the strength, λ for a penalty's weight and c for a bound on every kernel's norm.
      parts: ``parts(strength, operators)`` with the linear maps of the network's kernels.
      strengths: by model, chosen as the head of `benchmarks.lipschitz` says.
      grid: what they were chosen from.
      aim: what is asked of it: certified accuracy, or accuracy under noise.
    """

    title: str
    symbol: str
    parts: Callable[[float, Operators], Parts]
    strengths: dict[str, float]
    grid: tuple[float, ...]
    aim: str = "certified"


class Method(NamedTuple):
    """A kind of method at a strength."""

    name: str
    strength: float

    @property
    def label(self) -> str:
        """As `--methods` reads it."""
        return self.name if self.name == PLAIN else f"{self.name}:{self.strength:g}"

    def parts(self, operators: Operators) -> Parts:
        """The method for a network with these linear maps."""
        return KINDS[self.name].parts(self.strength, operators)


def cross_entropies(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The loss of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def margins(logits: jax.Array, y: jax.Array) -> jax.Array:
    """z_y − max over j ≠ y of z_j of each example."""
    own = jax.nn.one_hot(y, logits.shape[1], dtype=bool)
    return jnp.sum(logits, 1, where=own) - jnp.max(jnp.where(own, -jnp.inf, logits), 1)


def _input_gradient(of: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """λ·mean ‖∇ₓ of(f(x), y)‖², which is the penalty for target 0."""

    def parts(strength: float, operators: Operators) -> Parts:
        def penalty(f: Logits, x: jax.Array, y: jax.Array) -> jax.Array:
            return strength * lipschitz.input_gradient_penalty(lambda x: of(f(x), y), x, 0.0)

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


def _projection(norm: str) -> Any:
    def parts(strength: float, operators: Operators) -> Parts:
        return Parts(
            after=lipschitz.project_spectral_norm(strength, norm=norm, operators=operators)
        )

    return parts


def _orthogonality(strength: float, operators: Operators) -> Parts:
    return Parts(before=lipschitz.orthogonality_penalty(strength))


PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
PROJECTIONS = {"mlp": 2.4, "cnn": 2.8}
BOUNDS = (1.0, 1.4, 1.7, 2.0, 2.4, 2.8, 4.0)
KINDS = {
    PLAIN: Kind("plain", "", lambda strength, operators: Parts(), {}, (0.0,)),
    "weight_decay": Kind(
        "weight decay", "λ", _weight_decay, {"mlp": 3e-3, "cnn": 1e-2}, PENALTIES[:6]
    ),
    "spectral_penalty": Kind(
        "spectral norm penalty", "λ", _spectral_penalty, {"mlp": 3e-2, "cnn": 0.1}, PENALTIES[2:]
    ),
    "spectral_normalization": Kind(
        "spectral normalization", "c", _normalization, {"mlp": 2.0, "cnn": 1.7}, BOUNDS
    ),
    "projection": Kind(
        "projection, power iteration", "c", _projection("power"), PROJECTIONS, BOUNDS
    ),
    "projection_upper_bound": Kind(
        "projection, upper bound", "c", _projection("upper_bound"), PROJECTIONS, BOUNDS
    ),
    "orthogonality_penalty": Kind(
        "orthogonality penalty", "λ", _orthogonality, {"mlp": 3e-3, "cnn": 1e-2}, PENALTIES[1:7]
    ),
    "input_gradient_penalty": Kind(
        "input-gradient penalty, loss",
        "λ",
        _input_gradient(cross_entropies),
        {"mlp": 0.1, "cnn": 0.1},
        PENALTIES[3:],
        "noise",
    ),
    "margin_gradient_penalty": Kind(
        "input-gradient penalty, margin",
        "λ",
        _input_gradient(margins),
        {"mlp": 1e-2, "cnn": 3e-3},
        PENALTIES[2:],
        "noise",
    ),
}


def parse(text: str, model: str, sweep: bool) -> list[Method]:
    """Reads `--methods`; plain is always among them, since time is measured against it."""
    methods = [Method(PLAIN, 0.0)]
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, _, written = word.partition(":")
        if name not in KINDS:
            raise UsageError(f"Unknown method {name!r} in --methods. Choose {', '.join(KINDS)}.")
        if name == PLAIN:
            continue
        if sweep and not written:
            methods += [Method(name, strength) for strength in KINDS[name].grid]
            continue
        try:
            strength = float(written) if written else KINDS[name].strengths[model]
        except ValueError:
            strength = float("nan")
        if not 0 < strength < float("inf"):
            raise UsageError(
                f"--methods {word}: the strength must be a positive number, such as {name}:"
                f"{KINDS[name].strengths[model]:g}."
            )
        methods.append(Method(name, strength))
    return list(dict.fromkeys(methods))
