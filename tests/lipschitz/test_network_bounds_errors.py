"""Errors of lipschitz_bound, which name the operation without a bound and its layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from flatreg import lipschitz
from tests.support.networks.lipschitz_networks import bound_of

pytestmark = pytest.mark.usefixtures("x64")


@jax.jit
def gelu(x):
    """Not GELU in spite of its name: functions are recognized by their operations."""
    return x**3


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, name="attention")(nn.Dense(4)(x))


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.inward = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.inward(x))


class Normed(nn.Module):
    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.norm(nn.Dense(4)(x))


class TestErrors:
    @pytest.mark.parametrize(
        ("model", "operation", "layer"),
        [
            (Attention(), "dot_general", "Attention/attention/"),
            (Normed(nn.LayerNorm()), "square", "Normed/norm'"),
            (Normed(nn.GroupNorm(2)), "square", "Normed/norm'"),
            (Normed(nn.RNN(nn.GRUCell(3, param_dtype=float))), "mul", "Normed/norm"),
        ],
        ids=str,
    )
    def test_layers_without_a_bound_are_named_in_linen(self, model, operation, layer):
        x = jnp.ones((1, 3, 4))
        variables = model.init(jax.random.key(0), x)
        with pytest.raises(ValueError, match=rf"no bound for `{operation}`.* in '{layer}"):
            lipschitz.lipschitz_bound(model.apply, variables, x)

    def test_layers_without_a_bound_are_named_in_nnx(self):
        graphdef, state = nnx.split(NnxNorm(nnx.Rngs(0)))
        match = "`square` .*after 'inward/bias', before 'norm/scale'"
        with pytest.raises(ValueError, match=match):
            lipschitz.lipschitz_bound(
                lambda state, x: nnx.merge(graphdef, state)(x), state, jnp.ones((1, 4))
            )

    def test_batch_norm_in_training_mode_has_no_bound(self):
        model = nn.BatchNorm(use_running_average=False)
        x = jnp.ones((2, 4))
        variables = model.init(jax.random.key(0), x)
        apply = lambda v, x: model.apply(v, x, mutable="batch_stats")[0]  # noqa: E731
        with pytest.raises(ValueError, match=r"`square`|`mul`"):
            lipschitz.lipschitz_bound(apply, variables, x)

    @pytest.mark.parametrize(
        ("f", "operation"),
        [
            (lambda x: x * x, "square|mul"),
            (lambda x: 1 / x, "div"),
            (jnp.exp, "exp"),
            (jnp.sqrt, "sqrt"),
            (jnp.floor, "floor"),
            (lambda x: jnp.where(x > 0, x, 1 + x), "select_n"),
            (lambda x: x.astype(int).astype(float), "convert_element_type"),
            (lambda x: x @ x.T, "dot_general"),
            (lambda x: lax.while_loop(lambda x: x.sum() < 1, lambda x: 2 * x, x), "while"),
            (lambda x: lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x), "cond"),
            (lambda x: lax.rsqrt(x) * x, "rsqrt"),
            (gelu, "integer_pow"),
        ],
    )
    def test_operations_without_a_bound_are_named(self, f, operation):
        with pytest.raises(ValueError, match=f"no bound for `({operation})`.*right after x"):
            bound_of(f, 3)

    def test_errors_say_why_and_show_what_to_write(self):
        """The text is about the operation: only products mention attention."""
        product = "attention, LayerNorm"
        for f, reason, remedy in (
            (lambda x: x @ x.T, product, "multiply the bounds"),
            (lambda x: x * jnp.cumsum(x), product, "lipschitz_bound"),
            (lambda x: jnp.exp(3 * x), "slope is unbounded", "jnp.exp(jnp.clip(z, -5, 5))"),
            (lambda x: x**4, "slope is unbounded", "jnp.clip(z, -1, 1) ** 2"),
            (lambda x: 2 / x, "close to zero", "1 / jnp.maximum(z, 0.1)"),
            (jnp.round, "jumps", "jnp.clip(z, 0, 1)"),
            (lambda x: x[:, jnp.argsort(x[0])], "two values are equal", "jnp.sort(z) instead"),
            (lambda x: x[:, (x[0] > 0).astype(int)], "jumps", "jnp.clip"),
            (lambda x: lax.while_loop(lambda x: x[0, 0] < 1, jnp.exp, x), "loop", "fori_loop(0, 3"),
            (lambda x: jnp.where(x > 0, x, 2.0), "between 0 and 2", "jnp.maximum(z, b)"),
            (lambda x: jnp.abs(jnp.fft.fft(x)), "no rule", "lipschitz_bound(part, params, z)"),
        ):
            with pytest.raises(ValueError, match="no bound for") as caught:
                bound_of(f, 3)
            text = str(caught.value)
            assert reason in text, text
            assert remedy in text, text
            assert ("attention" in text) == (reason in (product, "slope is unbounded"))

    def test_a_missing_batch_axis_is_pointed_out(self):
        class Cnn(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.avg_pool(nn.Conv(2, (3, 3))(x), (2, 2), (2, 2))
                return nn.Dense(3)(x.reshape(len(x), -1))

        image = jnp.ones((8, 8, 1))
        variables = jax.eval_shape(Cnn().init, jax.random.key(0), image[None])
        with pytest.raises(ZeroDivisionError) as caught:
            lipschitz.lipschitz_bound(Cnn().apply, variables, image)
        assert "If x is a single example, pass x[None]" in "".join(caught.value.__notes__)

    def test_invalid_inputs_and_outputs_raise(self):
        with pytest.raises(TypeError, match="one array"):
            bound_of(lambda x: (x, x), 3)
        with pytest.raises(TypeError, match="floating-point inputs"):
            lipschitz.lipschitz_bound(lambda w, x: x, (), jnp.arange(3))
