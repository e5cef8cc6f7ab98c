"""Finds the linear map of every kernel of a model in the jaxpr of a call.

Each parameter is followed to the convolutions and the products in which it meets the input
(``traced.py``). Loops and conditionals are entered. A parameter that multiplies the input in any
other way is never left out in silence: :func:`linear_maps` names it in an error.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from flatreg._core.tree import named_leaves
from flatreg.lipschitz.operators.convolution import Convolution
from flatreg.lipschitz.operators.dense import Dense
from flatreg.lipschitz.operators.linear import LinearMap
from flatreg.lipschitz.operators.masked import Masked
from flatreg.lipschitz.operators.stacked import Stacked
from flatreg.lipschitz.operators.traced import (
    IDENTITIES,
    PADDING,
    Data,
    Derived,
    Factor,
    Tracked,
    Weight,
    constant,
    derived,
    folded,
    moved_factors,
    new_data,
    paths_of,
    rearranged,
    repeats,
    shape_of,
)
from flatreg.lipschitz.programs import scan_counts, walk
from flatreg.typing import Params

PRODUCTS = ("dot_general", "conv_general_dilated")
# Operations in which each entry of the output depends on one entry of every operand. A parameter
# that meets the input in one of them is a bias, a scale or a table, not a kernel.
_ENTRYWISE = {
    *("add", "sub", "add_any", "mul", "div", "max", "min", "rem", "pow", "atan2", "select_n"),
    *("clamp", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "nextafter"),
    *("concatenate", "dynamic_update_slice"),
}


def linear_maps(
    function: Callable[..., Any],
    params: Params,
    *args: Any,
    where: Callable[[str], bool] | None = None,
) -> dict[str, LinearMap]:
    r"""Finds the linear map of every kernel by tracing ``function(params, *args)``.

    A kernel is a parameter that multiplies the input: the kernel of a convolution of the input, or
    one factor of a product with the input. Strides, padding, dilations, groups and input sizes are
    those of the traced operation. Operations inside ``jit``, ``checkpoint``, loops, conditionals
    and functions with custom derivatives are found, too.

    * Casts, transpositions and reversals of a parameter before its use are taken into account.
    * The layers of a stack (``scan``, ``nn.scan``, ``nnx.scan``, ``w[i]``, products with a batch
      axis such as those of ``vmap``) are listed as :class:`Stacked`, with one map per layer.
    * A parameter that is multiplied by a constant array, such as a mask, is listed as
      :class:`Masked`.
    * A parameter that is used several times in the same map, for example in a recurrent cell, is
      listed with this map. If it is used in a dense map and in its transpose, the first of them is
      listed, because both have the same norm. This includes the table of an embedding that is also
      the output layer.
    * If the input of a convolution is padded with zeros or other constants, or circularly, the
      padding is part of the map.
    * Biases, scales and tables of embeddings do not multiply the input as kernels and are not
      listed.

    Any other parameter that multiplies the input raises an error that names it, because a
    projection with the returned maps would leave it unbounded. Examples are parameters that are
    changed before their use (weight standardization, ``w + a @ b``), kernels that are used in
    several different maps, kernels that multiply overlapping patches of the input (Flax's
    ``ConvLocal``), convolutions with reflected padding, and masks that are inputs. The branches of
    a sum, such as ``x @ w + x @ a @ b``, are listed one by one.

    Args:
      function: ``function(params, *args)``, for example a Linen ``model.apply`` or, in NNX,
        ``lambda params, x: nnx.merge(graphdef, params)(x)``. Arguments that are not arrays must be
        bound beforehand, for example with ``functools.partial``.
      params: the parameters, or a tree of objects with the same shapes and dtypes.
      *args: example inputs, or objects with the same shapes and dtypes. The first axis is the
        batch.
      where: a predicate on the path of a leaf. Leaves for which it is false are left out. If None,
        no kernel is left out.

    Returns:
      The linear maps by the paths of their kernels, such as ``"params/Conv_0/kernel"``, in the
      order of the leaves of ``params``.

    Raises:
      ValueError: if a parameter multiplies the input, but not by a single linear map; or if two
        leaves have the same path, such as ``{"a/b": …, "a": {"b": …}}``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
      >>> model = lambda params, x: jnp.tanh(x @ params["kernel"] + params["bias"])
      >>> lipschitz.linear_maps(model, params, jnp.ones((8, 4)))
      {'kernel': Dense(contracting=None)}
    """
    found = find_kernels(function, params, *args)
    keep = where or (lambda path: True)
    unmapped = {path: reason for path, reason in found.unmapped.items() if keep(path)}
    if unmapped:
        reasons = "; ".join(f"{path} {reason}" for path, reason in unmapped.items())
        paths = ", ".join(map(repr, unmapped))
        raise ValueError(
            f"linear_maps finds no single linear map for: {reasons}. To leave them out, write "
            f"maps = linear_maps(function, params, x, where=lambda path: path not in [{paths}]). "
            "To describe one by hand, add it: maps | {path: flatreg.lipschitz.Dense()}."
        )
    return {path: linear_map for path, linear_map in found.maps.items() if keep(path)}


class Kernels(NamedTuple):
    """The kernels of a model.

    Attributes:
      maps: the linear maps by the paths of their kernels.
      unmapped: the parameters that multiply the input, but not by a single linear map, by path,
        and the reason.
    """

    maps: dict[str, LinearMap]
    unmapped: dict[str, str]


def find_kernels(function: Callable[..., Any], params: Params, *args: Any) -> Kernels:
    """Returns what :func:`linear_maps` finds, without raising."""
    program = jax.make_jaxpr(function)(params, *args)
    leaves = named_leaves(params)
    variables = program.jaxpr.invars
    weights: list[Tracked] = [
        Weight(path, tuple(range(len(shape_of(variable)))))
        for path, variable in zip(leaves, variables, strict=False)
    ]
    inputs: list[Tracked] = [new_data(variable) for variable in variables[len(leaves) :]]
    finder = _Finder()
    walk(program, [*weights, *inputs], finder.visit, constant)
    ranks = {
        path: len(shape_of(variable)) for path, variable in zip(leaves, variables, strict=False)
    }
    return finder.kernels(ranks)


class _Finder:
    """Records how the operations of a program use each parameter."""

    def __init__(self) -> None:
        self._uses: dict[str, list[LinearMap]] = {}
        self._unmapped: dict[str, str] = {}

    def kernels(self, ranks: dict[str, int]) -> Kernels:
        """Returns the linear map of each kernel, given the number of axes of each parameter."""
        found = Kernels({}, {})
        for path, rank in ranks.items():
            uses = list(dict.fromkeys(self._uses.get(path, ())))
            if path in self._unmapped:
                found.unmapped[path] = self._unmapped[path]
            elif uses and all(_same_norm(uses[0], use, rank) for use in uses[1:]):
                found.maps[path] = uses[0]
            elif uses:
                found.unmapped[path] = f"is used in {len(uses)} different linear maps"
        return found

    def visit(self, equation: JaxprEqn, operands: list[Tracked], path: str) -> list[Tracked]:
        """Records the parameters that an operation uses and returns what its outputs are."""
        name = equation.primitive.name
        if name in _CONTROL_FLOW:
            return _CONTROL_FLOW[name](self, equation, operands, path)
        if name == "optimization_barrier":
            return operands
        if not any(isinstance(x, Data | Weight | Derived) for x in operands):
            return folded(equation, operands)
        moved = rearranged(equation, operands)
        if moved is not None:
            return [moved, *[None] * (len(equation.outvars) - 1)]
        if not any(isinstance(x, Data) for x in operands):
            return derived(equation, operands)
        if name in PRODUCTS:
            self._record_product(equation, operands)
        elif name in ("gather", "dynamic_slice") and not isinstance(operands[0], Data):
            return self._looked_up(equation, operands)
        elif name not in _ENTRYWISE and name not in IDENTITIES:
            for changed, reason in _changes(operands, name):
                self._fail(changed, f"is used in {reason!r}")
        first, *others = map(new_data, equation.outvars)
        factors = self._factors(equation, operands)
        first = self._with_producer(equation, operands, first)
        return [first._replace(factors=factors, repeats=repeats(equation, operands)), *others]

    def _fail(self, path: str, reason: str) -> None:
        self._unmapped.setdefault(path, reason)

    def _record_product(self, equation: JaxprEqn, operands: list[Tracked]) -> None:
        name = equation.primitive.name
        for i, operand in enumerate(operands):
            other = operands[1 - i]
            if isinstance(operand, Weight) and isinstance(other, Data):
                found = _linear_map(equation, i, operand, other)
                if isinstance(found, str):
                    self._fail(operand.path, found)
                else:
                    self._uses.setdefault(operand.path, []).append(found)
            for path, change in operand.changes if isinstance(operand, Derived) else ():
                self._fail(path, f"is changed by {change!r} before it multiplies the input")
            if isinstance(operand, Data) and isinstance(other, Data):
                contracted = _contracted(equation, i)
                for factor in operand.factors:
                    if len(factor.axes) > 1 and not factor.axes.isdisjoint(contracted):
                        use = "looked up" if factor.is_lookup else "multiplied by the input"
                        self._fail(factor.path, f"is {use} before it is used in {name!r}")

    def _looked_up(self, equation: JaxprEqn, operands: list[Tracked]) -> list[Tracked]:
        """Returns entries of parameters at places that depend on the input."""
        output = equation.outvars[0]
        axes = frozenset(range(len(shape_of(output))))
        factors = [Factor(path, axes, True) for path, _ in paths_of(operands[0], "gather")]
        return [new_data(output)._replace(factors=tuple(factors))]

    def _factors(self, equation: JaxprEqn, operands: list[Tracked]) -> tuple[Factor, ...]:
        """Returns the factors of an output, and records sums of products, which are kernels."""
        name, data = equation.primitive.name, [x for x in operands if isinstance(x, Data)]
        known = [factor for x in data for factor in x.factors]
        if name in ("reduce_sum", "cumsum", "fft"):
            axes = equation.params.get("axes", None)
            axes = range(len(shape_of(equation.invars[0]))) if axes is None else axes
            for factor in known:
                if not factor.is_lookup and not factor.axes.isdisjoint(axes):
                    self._fail(factor.path, f"multiplies the input by 'mul' and {name!r}")
            return ()
        if name not in ("mul", "div") or len(data) > 1:
            # A sum of what follows is no longer a product of the input with a scale.
            known = [factor for factor in known if len(factor.axes) > 1]
        if name in ("mul", "div") or (known and name in ("add", "sub", "add_any", "select_n")):
            varies = frozenset(range(len(shape_of(equation.outvars[0]))))
            for x in operands:
                axes = x.axes if isinstance(x, Derived) else varies
                known += [Factor(path, axes) for path, _ in paths_of(x, name)]
            return tuple(dict.fromkeys(known))
        return moved_factors(equation, *data)

    def _with_producer(self, equation: JaxprEqn, operands: list[Tracked], output: Data) -> Data:
        """Records which convolution made an output, and omits its kernel if parts are added up.

        Flax computes circular transposed convolutions by adding up parts of the output of a
        convolution. In this case, the convolution alone is not the linear map of the layer.
        """
        name, first = equation.primitive.name, operands[0]
        if name == "conv_general_dilated" and isinstance(operands[1], Weight):
            return output._replace(producer=operands[1].path)
        if not isinstance(first, Data) or first.producer is None:
            return output
        if name == "reshape":
            more_axes = len(shape_of(equation.outvars[0])) > len(shape_of(equation.invars[0]))
            return output._replace(producer=first.producer, is_split=first.is_split or more_axes)
        if name == "reduce_sum" and first.is_split:
            self._fail(
                first.producer,
                "is the kernel of a convolution whose outputs are added up (circular transposed "
                "convolution)",
            )
        return output

    def _scan(self, equation: JaxprEqn, operands: list[Tracked], path: str) -> list[Tracked]:
        """Enters a loop over stacked arrays."""
        body = equation.params["jaxpr"]
        fixed, carried = scan_counts(equation.params)
        constants, carry = operands[:fixed], operands[fixed : fixed + carried]
        inside = body.jaxpr.invars[fixed + carried :]
        stacks = zip(operands[fixed + carried :], inside, strict=True)
        slices = [_one_of(stack, variable) for stack, variable in stacks]
        outputs = self._looped(body, constants, carry, slices, path)
        stacked = equation.outvars[carried:]
        return [
            *_outputs(equation.outvars[:carried], outputs[:carried], "scan", keep=True),
            *_outputs(stacked, outputs[carried:], "scan", keep=False),
        ]

    def _while(self, equation: JaxprEqn, operands: list[Tracked], path: str) -> list[Tracked]:
        """Enters a loop without stacked arrays."""
        p = equation.params
        condition, fixed = p["cond_nconsts"], p["body_nconsts"]
        constants = operands[condition : condition + fixed]
        carry = operands[condition + fixed :]
        outputs = self._looped(p["body_jaxpr"], constants, carry, [], path)
        return _outputs(equation.outvars, outputs, "while", keep=True)

    def _looped(
        self,
        body: Any,
        constants: list[Tracked],
        carry: list[Tracked],
        slices: list[Tracked],
        path: str,
    ) -> list[Tracked]:
        """Walks through the body of a loop until what is known about the carry is stable."""
        inside = body.jaxpr.invars[len(constants) : len(constants) + len(carry)]
        # A value that the body returns unchanged is the same in every iteration.
        fixed = [x is y for x, y in zip(inside, body.jaxpr.outvars[: len(carry)], strict=True)]
        carry = [
            x if same else _joined(x, x, variable, "the loop")
            for x, variable, same in zip(carry, inside, fixed, strict=True)
        ]
        while True:
            trial = _Finder()
            outputs = walk(body, [*constants, *carry, *slices], trial.visit, constant, path)
            joined = [
                before if same else _joined(before, after, variable, "the loop")
                for before, after, variable, same in zip(
                    carry, outputs[: len(carry)], inside, fixed, strict=True
                )
            ]
            if [_kind(x) for x in joined] == [_kind(x) for x in carry]:
                self._merge(trial)
                return [*joined, *outputs[len(carry) :]]
            carry = joined

    def _merge(self, other: "_Finder") -> None:
        for path, uses in other._uses.items():
            self._uses.setdefault(path, []).extend(uses)
        for path, reason in other._unmapped.items():
            self._fail(path, reason)

    def _cond(self, equation: JaxprEqn, operands: list[Tracked], path: str) -> list[Tracked]:
        """Enters every branch of a conditional."""
        chosen, *arguments = operands
        branches = [
            walk(branch, arguments, self.visit, constant, path)
            for branch in equation.params["branches"]
        ]
        outputs = list(branches[0])
        for branch in branches[1:]:
            pairs = zip(outputs, branch, equation.outvars, strict=True)
            outputs = [x if _same(x, y) else _joined(x, y, v, "cond") for x, y, v in pairs]
        if isinstance(chosen, Data):
            outputs = [new_data(variable) for variable in equation.outvars]
        return _outputs(equation.outvars, outputs, "cond", keep=True)


_CONTROL_FLOW = {"scan": _Finder._scan, "while": _Finder._while, "cond": _Finder._cond}


def _changes(operands: Sequence[Tracked], name: str) -> list[tuple[str, str]]:
    """Returns the parameters among the operands of an operation, with the operation's name."""
    return [(path, name) for operand in operands for path, _ in paths_of(operand, name)]


def _kind(x: Tracked) -> Any:
    """Returns what a loop must find again in its next iteration: the kind, and the parameters."""
    if isinstance(x, Data):
        return Data
    return frozenset(path for path, _ in paths_of(x, ""))


def _same(x: Tracked, y: Tracked) -> bool:
    """Whether two branches of a conditional return the same array."""
    return x is y or (isinstance(x, Weight) and x == y)


def _joined(before: Tracked, after: Tracked, variable: Any, operation: str) -> Tracked:
    """Returns what is known about an array that is one of two."""
    if isinstance(before, Data) or isinstance(after, Data):
        return new_data(variable)
    changes = dict([*paths_of(after, operation), *paths_of(before, operation)])
    axes = frozenset(range(len(shape_of(variable))))
    return Derived(tuple(changes.items()), axes) if changes else None


def _one_of(stack: Tracked, variable: Any) -> Tracked:
    """Returns one layer of a stack along its first axis."""
    if isinstance(stack, Weight):
        if stack.mask is None and stack.axes[0] not in stack.reversed_axes:
            return stack._replace(axes=stack.axes[1:], layers=stack.layers | {stack.axes[0]})
        return Derived(((stack.path, "mul"),), frozenset())
    if isinstance(stack, Data):
        return new_data(variable)
    return stack if isinstance(stack, Derived) else None


def _outputs(
    variables: Sequence[Any], values: Sequence[Tracked], operation: str, keep: bool
) -> list[Tracked]:
    """Returns the outputs of a loop or a conditional."""
    outputs: list[Tracked] = []
    for variable, x in zip(variables, values, strict=True):
        if isinstance(x, Data):
            outputs.append(new_data(variable))
        elif keep:
            outputs.append(x)
        else:
            changes = paths_of(x, operation)
            outputs.append(Derived(changes, frozenset()) if changes else None)
    return outputs


def _same_norm(first: LinearMap, other: LinearMap, rank: int) -> bool:
    """Whether two maps of a parameter are equal or adjoint."""
    if isinstance(first, Masked) and isinstance(other, Masked):
        same_mask = np.array_equal(first.mask, other.mask)
        return same_mask and _same_norm(first.linear_map, other.linear_map, rank)
    if isinstance(first, Stacked) and isinstance(other, Stacked):
        rest = rank - len(first.axes)
        return first.axes == other.axes and _same_norm(first.linear_map, other.linear_map, rest)
    if isinstance(first, Dense) and isinstance(other, Dense):
        axes = [
            set(range(rank - 1) if x.contracting is None else x.contracting) for x in (first, other)
        ]
        return axes[0] == axes[1] or axes[0] == set(range(rank)) - axes[1]
    return first == other


def _contracted(equation: JaxprEqn, position: int) -> set[int]:
    """Returns the axes of an operand that a product sums over."""
    if equation.primitive.name == "dot_general":
        return set(equation.params["dimension_numbers"][0][position])
    return set(range(len(shape_of(equation.invars[position]))))


def _linear_map(equation: JaxprEqn, position: int, weight: Weight, data: Data) -> LinearMap | str:
    """Returns the linear map with which an operation applies a weight to data, or what is wrong."""
    if not weight.layers.isdisjoint(weight.axes):
        return "is sliced before it multiplies the input"
    summed = _contracted(equation, 1 - position)
    if equation.primitive.name == "conv_general_dilated":
        summed = {equation.params["dimension_numbers"].lhs_spec[1]}
    if data.repeats or any(_has_repetition(data.indices[i]) for i in summed):
        return (
            "multiplies overlapping patches or copies of the input, whose norm is larger than that "
            "of the input"
        )
    if equation.primitive.name == "dot_general":
        found = _dense(equation, position, weight, data)
    elif position == 1:
        found = _convolution(equation, weight, data)
    else:
        return "is the input of a convolution"
    if isinstance(found, str) or weight.mask is None:
        return found
    mask = np.asarray(weight.mask())
    if isinstance(found, Masked):
        return Masked(found.linear_map, mask * found.mask)
    return Masked(found, mask)


def _has_repetition(indices: Any) -> bool:
    places = indices[indices != PADDING]
    return len(np.unique(places)) < len(places)


def _of_layer(weight: Weight, stack: frozenset[int]) -> dict[int, int]:
    """Returns the axes of the kernel of one layer, by the axes of the parameter."""
    others = sorted(axis for axis in weight.axes if axis not in stack)
    return {axis: i for i, axis in enumerate(others)}


def _stacked(found: Dense | Convolution, stack: frozenset[int]) -> LinearMap:
    return Stacked(found, tuple(sorted(stack))) if stack else found


def _dense(equation: JaxprEqn, position: int, weight: Weight, data: Data) -> LinearMap | str:
    contracted, batch = equation.params["dimension_numbers"]
    if not contracted[0]:
        return "multiplies the input without a sum (outer product)"
    if weight.reversed_axes:
        return "is reversed before it multiplies the input"
    stack = weight.layers | {weight.axes[i] for i in batch[position]}
    place = _of_layer(weight, stack)
    # Contracted axes in the order of the input's axes.
    pairs = sorted(zip(contracted[1 - position], contracted[position], strict=True))
    axes = tuple(place[weight.axes[i]] for _, i in pairs)
    dense = Dense(None if axes == tuple(range(len(place) - 1)) else axes)
    found = _stacked(dense, stack)
    reads = {weight.axes[k]: data.indices[d] != PADDING for d, k in pairs}
    return _restricted(found, reads, len(weight.axes) + len(weight.layers))


def _restricted(found: LinearMap, reads: dict[int, Any], rank: int) -> LinearMap:
    """Masks the entries of a kernel that multiply constants instead of the input."""
    mask = np.ones((1,) * rank)
    for axis, read in reads.items():
        if not read.all():
            mask = mask * read.reshape([-1 if i == axis else 1 for i in range(rank)])
    return found if mask.all() else Masked(found, mask)  # type: ignore[arg-type]


def _convolution(equation: JaxprEqn, weight: Weight, data: Data) -> LinearMap | str:
    p = equation.params
    layout = p["dimension_numbers"]
    _, channels, *spatial = layout.lhs_spec
    flipped, groups = weight.reversed_axes, p["feature_group_count"]
    place = _of_layer(weight, weight.layers)
    out, into, *window = (weight.axes[i] for i in layout.rhs_spec)
    if p["batch_group_count"] != 1:
        return "is the kernel of a convolution with groups of examples"
    if flipped not in (frozenset(), frozenset(window)):
        return "is reversed along some of its axes"
    axes = tuple(place[axis] for axis in (*window, into, out))
    sizes = shape_of(equation.invars[0])
    settings = {
        "strides": tuple(p["window_strides"]),
        "kernel_dilation": tuple(p["rhs_dilation"]),
        "feature_group_count": groups,
        "kernel_axes": None if axes == tuple(range(len(axes))) else axes,
        "reverse": bool(flipped),
    }
    spaced = [_spaced(data.indices[i]) for i in spatial]
    inputs = [x for x in spaced if x is not None]
    reads = data.indices[channels] != PADDING
    if len(inputs) < len(spaced):
        shape = tuple(data.shape[i] for i in spatial)
        found = Convolution((*shape, sizes[channels]), padding="CIRCULAR", **settings)
        taps = tuple(shape_of(equation.invars[1])[i] for i in layout.rhs_spec[2:])
        plain = all(pair == (0, 0) for pair in p["padding"]) and set(p["lhs_dilation"]) == {1}
        if not plain or not _is_wrapped(data, found, spatial, taps):
            return (
                "is the kernel of a convolution whose input is padded with its own entries, but "
                "not circularly"
            )
    else:
        # Padding by a separate operation is part of the convolution's padding.
        dilation, padding = [], []
        for x, d, (low, high) in zip(inputs, p["lhs_dilation"], p["padding"], strict=True):
            dilation.append(int(d) * x.step)
            padding.append((int(low) + int(d) * x.low, int(high) + int(d) * x.high))
        shape = tuple(x.size for x in inputs)
        found = Convolution(
            (*shape, sizes[channels]),
            padding=tuple(padding),
            input_dilation=tuple(dilation),
            **settings,
        )
    if groups > 1 and not reads.all():
        return "is the kernel of a grouped convolution of constant channels"
    stacked = _stacked(found, weight.layers)
    return _restricted(stacked, {into: reads}, len(weight.axes) + len(weight.layers))


class _Spaced(NamedTuple):
    """Entries of the input at equal distances, between padding."""

    low: int
    size: int
    step: int
    high: int


def _spaced(indices: Any) -> _Spaced | None:
    """Describes the padding of an axis, if the other entries are different ones."""
    places = np.flatnonzero(indices != PADDING)
    steps = np.unique(np.diff(places))
    if not len(places) or len(np.unique(indices[places])) < len(places) or len(steps) > 1:
        return None
    step = int(steps[0]) if len(steps) else 1
    return _Spaced(int(places[0]), len(places), step, len(indices) - 1 - int(places[-1]))


def _is_wrapped(
    data: Data, convolution: Convolution, spatial: Sequence[int], window: tuple[int, ...]
) -> bool:
    """Whether the data is its source, padded circularly as the convolution needs it."""
    for i, axis in zip(spatial, convolution.axes(window), strict=True):
        extent = (axis.window - 1) * axis.kernel_dilation + 1
        expected = np.arange(-axis.low, data.shape[i] - axis.low + extent - 1) % data.shape[i]
        if not np.array_equal(data.indices[i], expected):
            return False
    return True
