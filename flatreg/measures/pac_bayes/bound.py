"""McAllester's PAC-Bayes bound on the expected test loss under noise on the weights."""

import math

import jax
import jax.numpy as jnp

from flatreg.typing import Scalar


def pacbayes_bound(
    expected_loss: Scalar, kl: Scalar, *, n: int, delta: float, loss_range: tuple[float, float]
) -> jax.Array:
    r"""McAllester's PAC-Bayes bound on the expected test loss under weight noise.

    E L(θ+u) ≤ E L̂(θ+u) + (b−a)√((KL + log(2√n/δ))/(2n)) for a loss with values in [a, b]. With
    probability 1 − δ over the draw of n independent training examples, this holds simultaneously
    for all noise distributions, provided that the prior (its width τ) was chosen without looking at
    the examples. It bounds the test loss under noise, not the test loss at θ.

    Args:
      expected_loss: E L̂(θ+u), the expected training loss under noise, or an upper bound on it such
        as the result of :func:`expected_loss_bound`.
      kl: the KL divergence of the noise distribution from the prior, such as :func:`uniform_kl`.
      n: the number of training examples, at least 1.
      delta: δ, the probability that the bound fails, in (0, 1).
      loss_range: (a, b), the smallest and the largest value of the loss of one example. The
        cross-entropy is unbounded, so it has no such range unless it is clipped.

    Returns:
      The bound, shaped like ``expected_loss``.

    Raises:
      ValueError: if n < 1, δ is outside (0, 1), or a ≥ b.

    Examples:
      >>> from flatreg import measures
      >>> bound = measures.pacbayes_bound(0.1, 50.0, n=10_000, delta=0.05, loss_range=(0.0, 1.0))
      >>> print(f"{bound:.4f}")
      0.1540

    References:
      Maurer, `A Note on the PAC Bayesian Theorem <https://arxiv.org/abs/cs/0411099>`_, 2004.
    """
    least, most = loss_range
    if n < 1 or not 0 < delta < 1 or not least < most:
        raise ValueError(
            f"pacbayes_bound needs n ≥ 1, 0 < δ < 1 and a < b, got {n=}, {delta=}, {loss_range=}: "
            "for example, write n=60_000, delta=0.05, loss_range=(0.0, 1.0)."
        )
    return expected_loss + (most - least) * jnp.sqrt((kl + math.log(2 * n**0.5 / delta)) / (2 * n))
