"""The toy problem of the PACGen paper, its two minima, and what the metric and the bound say.

Wang, Keskar, Xiong and Socher, 'Identifying Generalization Properties in Neural Networks', 2018,
arXiv 1809.07402, illustrate their metric by a network of 5 layers that share their weights, two of
which are free. The activations are sigmoids. The data are samples of a mixture of 3 Gaussians, with
labels split at a median. The paper gives no numbers, so the rest is our own choice:

1. The weight matrix is [[w₁, C], [0, w₂]] with a constant C and without biases. The first
   four layers end in a sigmoid, and the fifth gives two logits for the cross-entropy.
2. The label of a sample tells whether its distance from the origin is above the median distance.
3. The bound is E L̂(w+u) + KL/√n for the uniform noise σ* that minimizes it. It is the linear
   PAC-Bayes bound of Alquier, Ridgway and Chopin (arXiv 1506.04091) without the terms that are the
   same for all w. The prior is uniform over the plane. The search for ρ, the Lipschitz constant of
   the Hessian, gives a lower bound on ρ, so that the result is an estimate of the bound.
4. C, the seed and the scale of the samples come from a search, because few data sets have a second
   minimum that is flatter than the first and nearly as low. This data set was chosen among those
   because its flat minimum also has the lower loss on fresh samples, which not all of them share.

The example illustrates the metric and the bound; it is not evidence that they predict
generalization. Which minimum the bound prefers also depends on the scale of the noise and on the
weight of the KL term: with κ = 0.1 or with KL/n it prefers the sharp minimum, and with κ of 0.5 or
more and KL/√n the flat one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatreg import measures

SEED, SAMPLES, C = 165, 100, -7.0
EDGE = 12.0  # the weights are limited to [-EDGE, EDGE]²
KAPPA = 0.5  # the largest scale of the noise on a weight
WEIGHT_OF_KL = SAMPLES**-0.5


class Minimum(NamedTuple):
    """A minimum of the training loss in the plane, and what is measured there.

    Attributes:
      w: the two weights.
      loss: the training loss.
      eigenvalues: those of the Hessian, in ascending order.
      metric: PACGen's metric Ψ.
      bound: the estimate of the PAC-Bayes bound.
      fresh_loss: the loss on samples that were not used for training.
    """

    w: np.ndarray
    loss: float
    eigenvalues: np.ndarray
    metric: float
    bound: float
    fresh_loss: float


def samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws points of the mixture and their labels.

    The three centers depend on the seed only, and not on the number of samples.
    """
    rng = np.random.default_rng(SEED)
    centers = 3 * rng.normal(size=(3, 2))
    which = rng.integers(3, size=count)
    x = centers[which] + rng.normal(size=(count, 2))
    radius = np.linalg.norm(x, axis=1)
    return x, (radius > np.median(radius)).astype(np.int32)


def logits(w: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the two logits of each row of x, for a network with weights w."""
    weights = jnp.array([[w[0], C], [0.0, w[1]]])
    for _ in range(4):
        x = jax.nn.sigmoid(x @ weights.T)
    z: jax.Array = x @ weights.T
    return z


def batch_loss(w: jax.Array, batch: Any) -> jax.Array:
    """Returns the mean cross-entropy of a batch of samples and labels."""
    x, labels = batch
    log_probabilities = jax.nn.log_softmax(logits(w, x))
    picked: jax.Array = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    return -jnp.mean(picked)


def measured(loss_fn: measures.LossFn, w: jax.Array) -> dict[str, jax.Array]:
    """Returns the loss, the metric and the bound at one point w of the plane."""
    diagonal = measures.diagonal(loss_fn, w, probes=None).value
    radius = KAPPA * 2**0.5  # of the ball that contains the box of the noise
    found = measures.hessian_lipschitz(loss_fn, w, jax.random.key(0), radius, starts=3, steps=6)
    sigma = measures.optimal_noise(diagonal, found.value, KAPPA, WEIGHT_OF_KL)
    loss = loss_fn(w)
    expected = measures.expected_loss_bound(loss, sigma, diagonal, found.value, KAPPA)
    kl = measures.uniform_kl(w, sigma, EDGE + KAPPA)
    return {
        "loss": loss,
        "metric": measures.pacgen(w, diagonal, found.value).value,
        "bound": expected + WEIGHT_OF_KL * kl,
    }


def over_plane(function: Callable[[jax.Array], Any], side: np.ndarray) -> Any:
    """Evaluates a function of w on the grid side × side; returns arrays of that shape."""
    plane = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    values = jax.jit(lambda plane: jax.lax.map(function, plane, batch_size=256))(plane)
    return jax.tree.map(lambda v: np.asarray(v).reshape(len(side), len(side)), values)


def minima(loss_fn: measures.LossFn, fresh_loss_fn: measures.LossFn) -> list[Minimum]:
    """Finds all minima inside the plane, sorted by their loss.

    The search starts from the local minima of a grid, which Newton's method refines.
    """
    side = np.linspace(-EDGE, EDGE, 97)
    losses = over_plane(loss_fn, side)
    around = [
        np.roll(losses, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
    ]
    low = np.argwhere((losses < np.min(around, axis=0))[1:-1, 1:-1]) + 1
    measure = jax.jit(partial(measured, loss_fn))
    derivatives = jax.jit(lambda w: (jax.grad(loss_fn)(w), jax.hessian(loss_fn)(w)))
    found: list[Minimum] = []
    for w in np.asarray(jax.jit(jax.vmap(partial(_newton, loss_fn)))(side[low])):
        gradient, hessian = derivatives(w)
        values = np.linalg.eigvalsh(hessian)
        inside = np.abs(w).max() < EDGE and np.linalg.norm(gradient) < 1e-9 and values[0] > 0
        if inside and all(np.linalg.norm(w - other.w) > 1e-3 for other in found):
            at = measure(w)
            loss, metric, bound = (float(at[name]) for name in ("loss", "metric", "bound"))
            found.append(Minimum(w, loss, values, metric, bound, float(fresh_loss_fn(w))))
    return sorted(found, key=lambda minimum: minimum.loss)


def _newton(loss_fn: measures.LossFn, w: jax.Array) -> jax.Array:
    """Returns a minimum near w by Newton steps of length at most 0.1.

    The absolute values of the Hessian's eigenvalues keep the steps downhill where the loss is
    not convex.
    """

    def step(_: int, w: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(jax.hessian(loss_fn)(w))
        along = (vectors.T @ jax.grad(loss_fn)(w)) / jnp.maximum(jnp.abs(values), 1e-4)
        return w - vectors @ along * jnp.minimum(1, 0.1 / jnp.maximum(jnp.linalg.norm(along), 0.1))

    refined: jax.Array = jax.lax.fori_loop(0, 60, step, w)
    return refined


def sharp_and_flat() -> tuple[measures.LossFn, Minimum, Minimum]:
    """Returns the training loss, its global minimum, and the flattest of the other minima."""
    data, fresh = samples(SAMPLES), samples(50 * SAMPLES)
    loss_fn, fresh_loss_fn = (partial(batch_loss, batch=batch) for batch in (data, fresh))
    lowest, *others = minima(loss_fn, fresh_loss_fn)
    return loss_fn, lowest, min(others, key=lambda minimum: minimum.eigenvalues[-1])
