"""Error messages for operations without a bound: what is wrong, and what to do."""

from flatreg.lipschitz.networks.values import Unbounded

_PRODUCTS = {
    *("mul", "div", "dot_general", "conv_general_dilated", "reduce_prod", "cumprod"),
    "triangular_solve",
}
_STEEP = {
    *("exp", "exp2", "expm1", "log", "log1p", "sqrt", "rsqrt", "cbrt", "tan", "sinh", "cosh"),
    *(
        "square",
        "integer_pow",
        "pow",
        "asin",
        "acos",
        "acosh",
        "atanh",
        "erf_inv",
        "lgamma",
        "digamma",
        "cumlogsumexp",
    ),
}
_JUMPS = {
    *("floor", "ceil", "round", "sign", "rem", "convert_element_type", "argmax", "argmin"),
    *("gt", "ge", "lt", "le", "eq", "ne", "is_finite", "nextafter"),
}
_POSITIONS = {"gather", "dynamic_slice", "dynamic_update_slice", "scatter", "scatter-add"}

_EXAMPLES = "attention, LayerNorm, GroupNorm, BatchNorm in training mode"
_PARTS = (
    "Bound the parts before and after the operation, lipschitz_bound(part, params, z).upper, and "
    "multiply the bounds with a bound that you know for the operation"
)


def explain(unbounded: Unbounded) -> str:
    """Returns an error message that names the operation without a bound and suggests a remedy."""
    operation, layer, after, before, factors, detail = unbounded
    where = [f"in {layer!r}"] if layer else []
    where.append(f"after {after!r}" if after else "right after x")
    where += [f"before {before!r}"] if before else []
    beginning = (
        f"lipschitz_bound found no bound for `{operation}` of values that depend on x, "
        f"{', '.join(where)}."
    )
    return " ".join(filter(None, (beginning, detail, _reason(operation, factors))))


def _reason(operation: str, factors: int) -> str:
    """Returns why operations of this kind cannot be bounded, and what to do."""
    if operation == "select_n":
        return (
            "jnp.where with a condition that depends on x has a bound only if both branches agree "
            "where the condition changes: for example, write jnp.where(z > 0, z, a * z), "
            "jnp.maximum(z, b) or jnp.clip(z, low, high)."
        )
    if operation in {"sort", "top_k"}:
        return (
            "The positions of sorted values jump where two values are equal. The sorted values "
            "themselves have a bound: write jnp.sort(z) instead of z[jnp.argsort(z)]."
        )
    if operation in _POSITIONS:
        return (
            "Entries at positions that depend on x jump where the positions change. Use positions "
            "that do not depend on x, or write jnp.sort(z) or jnp.max(z, axis=-1)."
        )
    if operation in {"while", "scan", "cond"}:
        return (
            "A loop or conditional has a bound only if its number of iterations and its condition "
            "are known: they must depend neither on x nor on traced parameters. Use jnp.where "
            "with branches that agree where the condition changes, or write "
            "jax.lax.fori_loop(0, 3, step, z)."
        )
    if operation in _JUMPS:
        return (
            "Its result jumps, so no Lipschitz constant exists. Leave the operation out, or use a "
            "continuous function, for example jnp.clip(z, 0, 1) or jax.nn.sigmoid(z)."
        )
    if operation == "div" and factors == 1:
        return (
            "Dividing by a value that depends on x cannot be bounded, because the value can be "
            "arbitrarily close to zero. Keep it away from zero: for example, write "
            "1 / jnp.maximum(z, 0.1)."
        )
    if operation in _STEEP:
        return (
            f"Its slope is unbounded over all values, which also rules out {_EXAMPLES}. Limit its "
            "argument to a range on which the slope is bounded: for example, write "
            "jnp.exp(jnp.clip(z, -5, 5)) or jnp.clip(z, -1, 1) ** 2. Or replace the layer."
        )
    if operation in _PRODUCTS:
        return (
            f"The product or quotient of two values that depend on x ({_EXAMPLES}) cannot be "
            f"bounded for all x. {_PARTS}, or replace the layer. If both are functions of one "
            "value z, entry by entry, it is enough to limit z by jnp.clip(z, -1, 1)."
        )
    return f"flatreg contains no rule for this operation. {_PARTS}."
