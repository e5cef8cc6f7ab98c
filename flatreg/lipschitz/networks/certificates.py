"""Which perturbations of an input cannot change a classifier's answer, by its Lipschitz constant.

zᵧ − zⱼ, the lead of a label over another, is a function of x with a Lipschitz constant Lᵧⱼ: no
perturbation shorter than min over j of (zᵧ − zⱼ)/Lᵧⱼ closes it. Of logits with constant L each lead
has √2·L; where they are Wz(x) + b it has the smaller ‖Wᵧ − Wⱼ‖ times the constant of z.
"""

from typing import Any

import jax
import jax.numpy as jnp

from flatreg._core.checks import check_nonnegative
from flatreg._core.tree import widened


def certified_radius(
    logits: jax.Array, labels: jax.Array, lipschitz: float | jax.Array
) -> jax.Array:
    r"""min over j ≠ y of (zᵧ − zⱼ)/Lᵧⱼ, and 0 where the prediction is wrong.

    No input within this distance, in the 2-norm, is classified otherwise. It is a certificate only
    if ``lipschitz`` is an upper bound, and the logits those of the same function.

    Args:
      logits: z, (batch, classes).
      labels: y, (batch,), integers.
      lipschitz: a number L, the constant of the logits, for Lᵧⱼ = √2·L; or the matrix of all Lᵧⱼ,
        (classes, classes), such as ``lipschitz_bound(…).pairs``, which certifies more.

    Returns:
      Radii, (batch,), in the units of the input; infinite for a right prediction that no input
      changes.

    Raises:
      ValueError: if the shapes do not agree, or ``lipschitz`` is a negative number.
      TypeError: if ``lipschitz`` is neither a number nor an array.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flatreg import lipschitz
      >>> logits = jnp.array([[3.0, 1.0], [0.0, 1.0]])
      >>> radii = lipschitz.certified_radius(logits, jnp.array([0, 0]), 2.0)
      >>> print(radii.round(4))  # 2/(√2·2), and wrong
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
            "that is None."
        )
    logits, labels, bounds = map(jnp.asarray, (logits, labels, lipschitz))
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (batch, classes) and labels (batch,), got {logits.shape} and "
            f"{labels.shape}: pass jnp.argmax(labels, axis=-1) for labels that are one-hot."
        )
    classes = logits.shape[1]
    if bounds.shape not in ((), (classes, classes)):
        raise ValueError(
            f"lipschitz must be a number or ({classes}, {classes}), got {bounds.shape}: "
            "pass lipschitz_bound(function, params, x).upper or its .pairs."
        )
    logits = widened(logits)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    lead = own - logits
    steepness = jnp.sqrt(2) * bounds if bounds.ndim == 0 else bounds[labels]
    steepness = jnp.broadcast_to(steepness, lead.shape)
    # A lead that no input changes lasts for ever, one that there is not has no radius; a bound that
    # is NaN certifies nothing.
    changes = steepness != 0
    radii = jnp.where(changes, lead / jnp.where(changes, steepness, 1), jnp.inf)
    radii = jnp.where(lead > 0, radii, 0)
    others = jnp.arange(classes) != labels[:, None]
    return jnp.min(radii, axis=1, initial=jnp.inf, where=others)


def certified_accuracy(
    logits: jax.Array, labels: jax.Array, lipschitz: float | jax.Array, radii: jax.Array
) -> jax.Array:
    r"""The share of examples that are right, and provably so wherever ‖x′ − x‖ < r, for every r.

    At r = 0 it is the accuracy. It is a lower bound on the accuracy under any attack of that size.

    Args:
      logits: as in :func:`certified_radius`.
      labels: see there.
      lipschitz: see there.
      radii: r ≥ 0, a number or an array.

    Returns:
      Accuracies in [0, 1], shaped like ``radii``.

    Raises:
      ValueError: as there, or if ``radii`` is a negative number.
      TypeError: as there.

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
