"""An upper bound on a network's Lipschitz constant, operation by operation of its traced program.

Every value v that depends on the input x carries a bound on the Lipschitz constant of x ↦ v:
linear operations with known weights multiply it with their norm, activations with max |φ′|,
residual sums add the bounds of their terms. In a feed-forward network that is ∏ ‖Wₗ‖. A program is
a program, whether Linen, NNX or plain JAX wrote it: one interpreter serves them all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatreg._core.tree import path_name
from flatreg.lipschitz.inputs.gradient_penalties import check_inputs
from flatreg.lipschitz.networks.interpreter import Interpreter, explain
from flatreg.lipschitz.networks.values import Dependent, Known, Value, known, numbers_in, walk
from flatreg.typing import Params


class LipschitzBound(NamedTuple):
    """An upper bound on a function's Lipschitz constant, for the 2-norms of inputs and outputs.

    Attributes:
      upper: ‖f(x) − f(y)‖ ≤ upper·‖x − y‖ for one example's inputs x, y.
      pairs: (outputs, outputs), bounds for the differences f(x)ᵢ − f(x)ⱼ of two outputs, as
        :func:`certified_radius` takes them: the smaller of √2·upper and, where f(x) = Wz(x) + b,
        ‖Wᵢ − Wⱼ‖ times the bound of z. None if f's output is not (batch, outputs).
      layers: the factors in ``upper``, in order, of every layer, activation or pooling that has one
        other than 1; residual branches stand one after the other.
    """

    upper: jax.Array
    pairs: jax.Array | None
    layers: dict[str, jax.Array]


def lipschitz_bound(
    function: Callable[[Params, jax.Array], jax.Array], params: Params, x: jax.Array
) -> LipschitzBound:
    r"""A certified upper bound on the Lipschitz constant of x ↦ function(params, x), all x in ℝⁿ.

    Dense layers, convolutions with any stride, padding, dilation and groups, BatchNorm with fixed
    statistics, pooling (overlapping max-pooling by √∏⌈k/s⌉), residual sums and concatenations,
    reshapes and reductions, and the activations of ``jax.nn`` (GELU 1.129, SiLU 1.100, softmax ½)
    are bounded. Products of two values that depend on x, hence attention and LayerNorm, have no
    bound, and neither has an operation that is unknown here: these raise. Operations are those of
    exact arithmetic, without the rounding of the network's dtype.

    It can be jitted and differentiated with respect to ``params``; the trace needs no data.

    Args:
      function: the network in evaluation mode, from the parameters and a batch to outputs. Linen:
        ``lambda variables, x: model.apply(variables, x, train=False)``. NNX: ``graphdef, state =
        nnx.split(model)`` and ``lambda state, x: nnx.merge(graphdef, state)(x)``.
      params: whatever the network computes with, a tree of arrays, whose paths name the layers.
      x: a batch, or a ``jax.ShapeDtypeStruct`` of it: only the shape of one example counts.

    Returns:
      :class:`LipschitzBound`.

    Raises:
      ValueError: if there is no bound, naming the operation and its layer.
      TypeError: if x is not of floating point, or the function returns anything but one array.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> network = lambda w, x: jnp.tanh(x @ w["in"]) @ w["out"]
      >>> w = {"in": jnp.diag(jnp.array([3.0, 1.0])), "out": jnp.diag(jnp.array([1.0, 2.0]))}
      >>> bound = lipschitz.lipschitz_bound(network, w, jnp.ones((1, 2)))
      >>> print(f"{bound.upper:.3f}", {name: f"{s:.3f}" for name, s in bound.layers.items()})
      6.000 {'in': '3.000', 'out': '2.000'}

    References:
      Szegedy et al., `Intriguing properties of neural networks <https://arxiv.org/abs/1312.6199>`_,
      ICLR 2014, section 4.3.

      Tsuzuku et al., `Lipschitz-Margin Training <https://arxiv.org/abs/1802.04034>`_, NeurIPS 2018.
    """
    check_inputs(x)
    named, structure = jax.tree_util.tree_flatten_with_path(params)
    arguments: list[Value] = [known(leaf, path_name(path) or "params") for path, leaf in named]
    example = jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x))

    def apply(leaves: list[Any], x: jax.Array) -> Any:
        return function(jax.tree.unflatten(structure, leaves), x)

    try:
        trace = jax.make_jaxpr(apply, return_shape=True)
        program, outputs = trace([leaf for _, leaf in named], example)
    except Exception as error:
        error.add_note(
            f"lipschitz_bound took x, of shape {jnp.shape(x)}, for a batch and called the function "
            f"with one example, of shape {example.shape}: if x is a single one, pass x[None]."
        )
        raise
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise TypeError(
            f"lipschitz_bound needs the function to return one array, got {outputs}: write lambda "
            "params, x: function(params, x)[0], say."
        )
    interpreter = Interpreter(numbers_in(program))
    arguments.append(interpreter.start(example))
    (result,) = walk(program, arguments, interpreter.visit)
    if isinstance(result, Known):
        result = Dependent(outputs.shape, outputs.dtype, "0", jnp.zeros(()))
    if result.unbounded is not None:
        raise ValueError(explain(result.unbounded))
    return LipschitzBound(result.bound, _pairs(result), interpreter.layers(result))


def _pairs(result: Dependent) -> jax.Array | None:
    """Bounds of the differences of two outputs."""
    if len(result.shape) != 2:
        return None
    outputs = result.shape[1]
    plain: jax.Array = jnp.sqrt(2) * result.bound * (1 - jnp.eye(outputs))
    if result.head is None:
        return plain
    features, rows = result.head
    apart = jax.lax.map(lambda row: jnp.linalg.norm(rows - row, axis=1), rows)
    return jnp.minimum(plain, features * apart)
