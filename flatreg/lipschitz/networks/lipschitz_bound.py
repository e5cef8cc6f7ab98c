"""An upper bound on the Lipschitz constant of a network, computed from its traced program.

Every value v that depends on the input x gets a bound on the Lipschitz constant of x ↦ v. A linear
operation with known weights multiplies the bound by its norm, an activation φ by max |φ′|, and a
residual sum adds the bounds of its terms. For a feed-forward network the result is ∏ ‖Wₗ‖. Because
the program is traced, the same code bounds networks written in Linen, NNX or plain JAX.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.tree import path_name, with_standard_promotion
from flatreg.lipschitz.batch_functions import check_inputs
from flatreg.lipschitz.inputs.jacobians import safe_sqrt
from flatreg.lipschitz.networks.explanations import explain
from flatreg.lipschitz.networks.interpreter import Interpreter
from flatreg.lipschitz.networks.values import Known, Value, known, propagate
from flatreg.lipschitz.norms.gram import eps_of
from flatreg.typing import Params


class LipschitzBound(NamedTuple):
    """An upper bound on the Lipschitz constant of a function f, in the 2-norm.

    Attributes:
      upper: ‖f(x) − f(y)‖ ≤ upper·‖x − y‖ for all inputs x, y of a single example.
      pairs: bounds on the Lipschitz constants of the differences f(x)ᵢ − f(x)ⱼ of two outputs, with
        shape (outputs, outputs), in the form that :func:`certified_radius` accepts. Each is
        √2·upper or, if f(x) = Wz(x) + b, the smaller of √2·upper and ‖Wᵢ − Wⱼ‖ times the bound of
        z. None if the output of f is not (batch, outputs).
      layers: the factors in ``upper`` other than 1, in order. The keys are the names of the layers,
        activations or poolings that they come from. The factors of parallel residual branches are
        listed one branch after the other. If the output of a layer is scaled per channel, as by
        BatchNorm, the factor of the layer is its norm with the scales relative to the largest one,
        and the largest scale is a factor of its own.
    """

    upper: jax.Array
    pairs: jax.Array | None
    layers: dict[str, jax.Array]


@with_standard_promotion
def lipschitz_bound(
    function: Callable[[Params, jax.Array], jax.Array], params: Params, x: jax.Array
) -> LipschitzBound:
    r"""Returns a certified upper bound on the Lipschitz constant of x ↦ function(params, x).

    The bound holds for all x in ℝⁿ. It covers:

    * dense layers, and convolutions with any stride, padding, dilation and groups;
    * BatchNorm with fixed statistics;
    * pooling; overlapping max-pooling contributes √∏⌈k/s⌉ for windows k and strides s;
    * residual sums, concatenations, stacks, tiles, reshapes and reductions;
    * the activations of ``jax.nn`` (GELU 1.129, SiLU 1.100), softmax (½), log_softmax (√n for n
      classes) and logsumexp (1), along any axes;
    * sorting (GroupSort) and MaxMin (1);
    * ``jnp.where(z > 0, z, a * z)`` and other functions of single entries that consist of pieces,
      with a condition that compares two affine functions. The pieces must agree, up to rounding,
      where the condition changes;
    * ``scan`` over layers, and loops and conditionals whose condition is known.

    The product of two values that depend on x cannot be bounded, which excludes attention and
    LayerNorm. Such products raise an error, as do operations without a rule. The bound
    holds for the network in exact arithmetic and does not account for rounding in the network's
    dtype.

    A margin covers the rounding errors of the computation of the bound. The only exception is a
    function of single entries whose slope is a sum of terms that cancel. Its constant is computed
    in float64. Outside of ``jit``, the norms of the layers are computed with NumPy in float64, on
    the host and without compilation, and the margin is negligible. Inside ``jit``, they are
    computed in the dtype of the parameters, with the margin of :func:`spectral_norm_upper_bound`,
    and layers of the same shape share one loop, which is compiled once.

    The function can be jitted and differentiated with respect to ``params``. It reads only the
    shape and the dtype of ``x``.

    Args:
      function: the network in evaluation mode, which maps the parameters and a batch to the
        outputs. In Linen, pass ``lambda variables, x: model.apply(variables, x, train=False)``. In
        NNX, pass ``lambda state, x: nnx.merge(graphdef, state)(x)`` with ``graphdef, state =
        nnx.split(model)``.
      params: a tree of all arrays that the network computes with. Their paths name the layers.
      x: a batch of inputs, or a ``jax.ShapeDtypeStruct`` of one. The size of the batch is not used.

    Returns:
      A :class:`LipschitzBound`.

    Raises:
      ValueError: if an operation cannot be bounded; the message names the operation and its layer.
      TypeError: if x is not floating-point, or if the function does not return a single array.

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
    example = jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x))

    def apply(leaves: list[Any], x: jax.Array) -> Any:
        return function(jax.tree.unflatten(structure, leaves), x)

    try:
        trace = jax.make_jaxpr(apply, return_shape=True)
        program, outputs = trace([leaf for _, leaf in named], example)
    except Exception as error:
        error.add_note(
            f"lipschitz_bound treated x, of shape {jnp.shape(x)}, as a batch and called the "
            f"function with one example, of shape {example.shape}. If x is a single example, pass "
            "x[None]."
        )
        raise
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise TypeError(
            f"lipschitz_bound needs a function that returns one array, got {outputs}: for example, "
            "write lambda params, x: function(params, x)[0]."
        )
    interpreter = Interpreter()
    arguments: list[Value] = [known(leaf, path_name(path) or "params") for path, leaf in named]
    arguments.append(interpreter.start(example))
    (result,) = propagate(program, arguments, interpreter.visit)
    if isinstance(result, Known):
        return LipschitzBound(jnp.zeros(()), _pairs(outputs.shape, jnp.zeros(()), None), {})
    if result.unbounded is not None:
        raise ValueError(explain(result.unbounded))
    if result.head is None:
        (upper,), layers = interpreter.results(result)
        return LipschitzBound(upper, _pairs(result.shape, upper, None), layers)
    of_features, rows = result.head
    (upper, features), layers = interpreter.results(result, of_features)
    return LipschitzBound(upper, _pairs(result.shape, upper, (features, rows)), layers)


def _pairs(
    shape: tuple[int, ...], upper: jax.Array, head: tuple[jax.Array, jax.Array] | None
) -> jax.Array | None:
    """Returns bounds on the Lipschitz constants of the differences of two outputs.

    Args:
      shape: the shape of the outputs.
      upper: the bound of the outputs.
      head: (B, W) if the outputs are Wz + c and z has the bound B.
    """
    if len(shape) != 2:
        return None
    plain: jax.Array = math.sqrt(2) * upper * (1 - jnp.eye(shape[1], dtype=upper.dtype))
    if head is not None:
        features, rows = head
        plain = jnp.minimum(plain, features * jnp.asarray(_distances(rows), upper.dtype))
    return plain * (1 + 4 * eps_of(upper))  # rounded up


def _distances(rows: Any) -> Any:
    """Returns upper bounds on all ‖Wᵢ − Wⱼ‖, computed with NumPy if W is concrete."""
    roundings = rows.shape[1] + 4
    if isinstance(rows, np.ndarray):
        products = rows @ rows.T
        squares = np.diagonal(products)
        both = squares[:, None] + squares
        errors = 2 * math.expm1(roundings * eps_of(rows)) * both
        return np.sqrt(np.maximum(both - 2 * products, 0) + errors)
    _, distances = jax.lax.scan(_distances_of_row, rows, rows)
    return distances * (1 + math.expm1(roundings * eps_of(rows) / 2 + 4 * eps_of(rows)))


def _distances_of_row(rows: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns ‖Wᵢ − w‖ for all rows of W. A function with a name is compiled once per shape."""
    return rows, safe_sqrt(jnp.sum((rows - row) ** 2, axis=1))
