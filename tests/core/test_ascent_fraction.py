"""``ascent_fraction``: the clean pass uses only the first examples, the oracle uses all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatreg
from tests.support.losses import examples, flat, logistic, logistic_loss

CLOSE = {"rtol": 1e-9, "atol": 1e-9}

pytestmark = pytest.mark.usefixtures("x64")


def with_count(params, batch):
    """The loss, and the number of its examples as aux."""
    return logistic_loss(params, batch), {"examples": len(batch[0]), "mean": jnp.mean(batch[1])}


@pytest.mark.nightly_except("0.25-1-3", "0.75-2-10", "1.0-1-12")
@pytest.mark.parametrize(
    ("fraction", "microbatches", "count"),
    [
        (0.25, 1, 3),
        (0.3, 1, 4),
        (0.01, 1, 1),
        (1.0, 1, 12),
        (0.25, 4, 3),
        (0.5, 4, 6),
        (0.75, 2, 10),
    ],
)
def test_clean_pass_uses_the_first_examples_and_oracle_uses_all(fraction, microbatches, count):
    params, (x, y) = logistic().params, examples()
    (value, aux), grads, grad_fn = flatreg.value_and_grad_fn(
        with_count, has_aux=True, ascent_fraction=fraction, microbatches=microbatches
    )(params, (x, y))
    first = (x[:count], y[:count])
    np.testing.assert_allclose(value, logistic_loss(params, first), **CLOSE)
    np.testing.assert_allclose(aux["mean"], jnp.mean(y[:count]), **CLOSE)
    assert aux["examples"] <= len(x) / microbatches  # no larger than a microbatch of the oracle
    np.testing.assert_allclose(flat(grads), flat(jax.grad(logistic_loss)(params, first)), **CLOSE)
    elsewhere = jax.tree.map(jnp.sin, params)
    for point in (params, elsewhere):
        expected = flat(jax.grad(logistic_loss)(point, (x, y)))
        np.testing.assert_allclose(flat(grad_fn(point)), expected, **CLOSE)


def test_sam_ascends_on_the_fraction_and_descends_on_the_batch():
    params, (x, y) = logistic().params, examples()
    _, grads, grad_fn = flatreg.value_and_grad_fn(logistic_loss, ascent_fraction=0.25)(
        params, (x, y)
    )
    method = flatreg.sam(0.3)
    d, _ = method.update(grads, method.init(params), params, grad_fn=grad_fn)
    uphill = jax.grad(logistic_loss)(params, (x[:3], y[:3]))
    length = jnp.linalg.norm(flat(uphill))
    worst = jax.tree.map(lambda w, u: w + 0.3 * u / length, params, uphill)
    np.testing.assert_allclose(flat(d), flat(jax.grad(logistic_loss)(worst, (x, y))), **CLOSE)


def test_clean_pass_and_oracle_use_the_same_keys():
    """Microbatch i gets ``fold_in(key, i)`` in every pass, even if the clean pass has only one."""
    key, x = jax.random.key(50), jnp.arange(8.0)
    seen = lambda w, x, key: (w * x.mean(), jax.random.normal(key))  # noqa: E731
    for fraction, count in ((1.0, 4), (0.5, 2), (0.25, 1)):
        evaluate = flatreg.value_and_grad_fn(
            seen, has_aux=True, key_argnums=2, microbatches=4, ascent_fraction=fraction
        )
        (_, noise), _, _ = evaluate(jnp.ones(()), x, key)
        draws = [jax.random.normal(jax.random.fold_in(key, i)) for i in range(count)]
        np.testing.assert_allclose(noise, np.mean(draws), **CLOSE)


def test_ascent_fraction_and_shards_exclude_each_other():
    with pytest.raises(ValueError, match="shards and ascent_fraction cannot be used together"):
        flatreg.value_and_grad_fn(logistic_loss, shards=2, ascent_fraction=0.5)


@pytest.mark.parametrize(
    ("fraction", "microbatches", "suggested"),
    [(0.25, 1, 0.2), (0.1, 1, 0.1), (0.5, 2, 0.5), (0.65, 2, 0.5), (0.1, 2, 0.1)],
)
def test_ascent_fraction_must_fit_an_explicit_mesh(fraction, microbatches, suggested):
    x = jnp.arange(80.0 * microbatches)

    def clean_value(fraction):
        options = {"ascent_fraction": fraction, "microbatches": microbatches}
        evaluate = flatreg.value_and_grad_fn(lambda w, x: jnp.mean(w * x), **options)
        return jax.jit(lambda w, x: evaluate(w, x)[0])(jnp.ones(()), x)

    with jax.set_mesh(jax.make_mesh((8,), ("data",), (AxisType.Explicit,))):
        x = jax.device_put(x, P("data"))
        if suggested != fraction:
            with pytest.raises(ValueError, match=f"8 devices.*write ascent_fraction={suggested}"):
                clean_value(fraction)
        np.testing.assert_allclose(
            clean_value(suggested), (suggested * x.size - 1) / 2
        )  # of 0, 1, …
