"""The test on which a step is skipped: whether a tree of arrays is finite."""

import jax
import jax.numpy as jnp
import pytest

from flatreg._flax.guarded_update import all_finite


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_only_nan_and_inf_are_not_finite(dtype):
    """The largest and smallest numbers and both zeros are finite, and so are all integers."""
    with jax.enable_x64(dtype == jnp.float64):
        ends = jnp.finfo(dtype)
        extreme = jnp.array([ends.max, ends.min, ends.tiny, ends.smallest_subnormal, 0, -0.0])
        tree = {"x": jnp.tile(extreme.astype(dtype), 1000), "n": jnp.arange(3), "none": None}
        assert all_finite(tree)
        assert all_finite({"empty": jnp.zeros((0, 3), dtype)})
        for bad in (jnp.nan, jnp.inf, -jnp.inf):
            assert not all_finite({**tree, "y": jnp.ones(7, dtype).at[3].set(bad)})
