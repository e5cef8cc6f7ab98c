"""Certified robustness: perturbations that cannot change a classifier's answer.

The margin zᵧ − zⱼ of label y over label j is a function of the input x. If Lᵧⱼ is its Lipschitz
constant, no perturbation whose norm is less than min over j of (zᵧ − zⱼ)/Lᵧⱼ changes the answer. If
the logits have the constant L, then every margin has the constant √2·L. If the logits have the form
Wz(x) + b, the margin has the smaller constant ‖Wᵧ − Wⱼ‖ times the constant of z.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatreg._core.checks import check_nonnegative
from flatreg._core.tree import widened


def certified_radius(
    logits: jax.Array, labels: jax.Array, lipschitz: float | jax.Array
) -> jax.Array:
    r"""Returns the radius within which a classifier's correct predictions cannot change.

    The radius is min over j ≠ y of (zᵧ − zⱼ)/Lᵧⱼ, and 0 where the prediction is wrong. No input
    within this distance, in the 2-norm, is classified differently. This is a certificate only if
    ``lipschitz`` is an upper bound for the function that computed the logits.

    The radius is rounded toward zero. It is smaller than the quotient of the given numbers by a
    relative amount of about 6 ε, with ε = 1.2e-7 in float32. Rounding errors of the logits
    themselves are not covered.

    Args:
      logits: z, with shape (batch, classes).
      labels: y, integers with shape (batch,).
      lipschitz: either the Lipschitz constant L of the logits, a number, which gives Lᵧⱼ = √2·L, or
        the matrix of all Lᵧⱼ, with shape (classes, classes), such as ``lipschitz_bound(…).pairs``.
        The matrix certifies larger radii.

    Returns:
      The radii, with shape (batch,), in the units of the input. A correct prediction with a
      Lipschitz constant of 0 has an infinite radius.

    Raises:
      ValueError: if the shapes do not agree, or if ``lipschitz`` is a negative number.
      TypeError: if ``lipschitz`` is neither a number nor an array.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> logits = jnp.array([[3.0, 1.0], [0.0, 1.0]])
      >>> radii = lipschitz.certified_radius(logits, jnp.array([0, 0]), 2.0)
      >>> print(radii.round(4))  # 2/(√2·2), and 0 for the wrong prediction
      [0.7071 0.    ]

    References:
      Tsuzuku, Sato and Sugiyama, `Lipschitz-Margin Training <https://arxiv.org/abs/1802.04034>`_,
      NeurIPS 2018, Proposition 1 and, for the last layer, its appendix.
    """
    check_nonnegative(lipschitz=lipschitz)
    given: Any = lipschitz
    if given is None or isinstance(given, tuple):
        raise TypeError(
            f"lipschitz must be a number or an array, got {type(given).__name__}: write "
            "bound = lipschitz_bound(function, params, x), and pass bound.pairs, or bound.upper if "
            "bound.pairs is None."
        )
    logits, labels, bounds = map(jnp.asarray, (logits, labels, lipschitz))
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must have shape (batch, classes) and labels (batch,), got {logits.shape} and "
            f"{labels.shape}: if the labels are one-hot, pass jnp.argmax(labels, axis=-1)."
        )
    classes = logits.shape[1]
    if bounds.shape not in ((), (classes, classes)):
        raise ValueError(
            f"lipschitz must be a number or an array of shape ({classes}, {classes}), got shape "
            f"{bounds.shape}: pass lipschitz_bound(function, params, x).upper or its .pairs."
        )
    logits = widened(logits)
    dtype = jnp.result_type(logits, bounds)
    logits, bounds = logits.astype(dtype), bounds.astype(dtype)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    margin = own - logits
    constants = jnp.sqrt(2) * bounds if bounds.ndim == 0 else bounds[labels]
    constants = jnp.broadcast_to(constants, margin.shape)
    # A zero Lipschitz constant gives an infinite radius; a nonpositive margin gives zero. A bound
    # that is NaN certifies nothing.
    changes = constants != 0
    finfo = np.finfo(dtype)
    # Covers the rounding errors of the margin, of √2·L, of the quotient, and of a radius that is
    # compared with the result. Only a zero constant gives infinity, not an overflow.
    rounding = 1 - 6 * float(finfo.eps)
    quotient = rounding * (margin / jnp.where(changes, constants, 1))
    radii = jnp.where(changes, jnp.minimum(quotient, float(finfo.max)), jnp.inf)
    radii = jnp.where(margin > 0, radii, 0)
    others = jnp.arange(classes) != labels[:, None]
    return jnp.min(radii, axis=1, initial=jnp.inf, where=others)


def certified_accuracy(
    logits: jax.Array, labels: jax.Array, lipschitz: float | jax.Array, radii: jax.Array
) -> jax.Array:
    r"""Returns the fraction of examples that are classified correctly on a ball of radius r.

    An example counts if its prediction is correct and provably stays so for all ‖x′ − x‖ < r. At
    r = 0 the result is the accuracy. At r > 0 it is a lower bound on the accuracy under any attack
    with ‖x′ − x‖ < r.

    Args:
      logits: z, with shape (batch, classes).
      labels: y, integers with shape (batch,).
      lipschitz: either the Lipschitz constant of the logits, or the matrix of the Lipschitz
        constants of all differences of two logits, with shape (classes, classes), such as
        ``lipschitz_bound(…).pairs``.
      radii: r ≥ 0, a number or an array.

    Returns:
      Accuracies in [0, 1], with the shape of ``radii``.

    Raises:
      ValueError: if the shapes do not agree, or if ``lipschitz`` or ``radii`` is a negative number.
      TypeError: if ``lipschitz`` is neither a number nor an array.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> logits = jnp.array([[3.0, 1.0], [0.0, 1.0]])
      >>> radii = jnp.array([0.0, 0.5, 1.0])
      >>> print(lipschitz.certified_accuracy(logits, jnp.array([0, 0]), 2.0, radii))
      [0.5 0.5 0. ]

    References:
      Tsuzuku, Sato and Sugiyama, `Lipschitz-Margin Training <https://arxiv.org/abs/1802.04034>`_,
      NeurIPS 2018.
    """
    check_nonnegative(radii=radii)
    certified = certified_radius(logits, labels, lipschitz)
    asked = jnp.asarray(radii)[..., None]
    return jnp.mean((certified > 0) & (certified >= asked), axis=-1)
