"""What a loss receives and returns, in the steps of Linen and NNX: arguments, labels, metrics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flatreg
import flatreg.linen
import flatreg.nnx
from tests.support.assertions import assert_leaves_close
from tests.support.networks import linen_models, nnx_models
from tests.support.steps import chain, examples

TX = optax.chain(flatreg.penalized_gradient(0.3, 0.7), optax.sgd(1.0))


class LinenEncoder(nn.Module):
    """A variational autoencoder: the code is drawn around its mean with the key ``z_rng``."""

    @nn.compact
    def __call__(self, x, z_rng, train):
        mean = nn.Dense(2)(x)
        noise = jax.random.normal(z_rng, mean.shape)
        if train:
            noise += jax.random.normal(self.make_rng("prior"), mean.shape)
        return nn.Dense(4)(mean + 0.1 * noise), mean


class NnxEncoder(nnx.Module):
    """The same with NNX, without the second noise."""

    def __init__(self, rngs):
        self.encode, self.decode = nnx.Linear(4, 2, rngs=rngs), nnx.Linear(2, 4, rngs=rngs)

    def __call__(self, x, z_rng):
        mean = self.encode(x)
        return self.decode(mean + 0.1 * jax.random.normal(z_rng, mean.shape)), mean


def elbo(model, x, z_rng, weight, size):
    output, mean = model(x, z_rng)
    return weight * (jnp.mean((output - x) ** 2) + size * jnp.mean(mean**2))


def linen_loss(apply, x, train, z_rng, weight=1.0, *, size):
    return elbo(lambda x, z_rng: apply(x, z_rng, train=train), x, z_rng, weight, size)


def penalized_step(loss_fn, params):
    """By hand: the loss, and θ − (1−α)∇L(θ) − α∇L(θ + r∇L/‖∇L‖)."""

    @jax.jit
    def step(params):
        loss, g = jax.value_and_grad(loss_fn)(params)
        there = jax.grad(loss_fn)(optax.tree.add_scale(params, 0.3 / optax.tree.norm(g), g))
        return loss, jax.tree.map(lambda w, g, h: w - 0.3 * g - 0.7 * h, params, g, there)

    return step(params)


@pytest.mark.nightly_except("2")
@pytest.mark.parametrize("microbatches", [1, 2])
def test_linen_passes_keys_and_arguments_to_the_loss(microbatches):
    """The model also draws from two random streams. Each microbatch has its own keys."""
    x, _ = examples()
    key, z_rng = jax.random.key(1), jax.random.key(2)
    init = lambda: flatreg.linen.TrainState.init(LinenEncoder(), TX, key, x, z_rng, train=False)  # noqa: E731
    state = jax.jit(init)()
    step = flatreg.linen.make_train_step(
        linen_loss, rngs=("prior", "dropout"), key_argnums=3, microbatches=microbatches
    )
    new, metrics = jax.jit(step)(state, x, z_rng, 2.0, size=0.5)

    def loss_fn(params):
        total = 0
        for i in range(microbatches):
            keys = jax.random.fold_in(state.key, 0), z_rng
            if microbatches > 1:
                keys = [jax.random.fold_in(key, i) for key in keys]
            prior, _ = jax.random.split(jax.random.fold_in(keys[0], 0), 2)

            def model(x, z_rng, prior=prior):
                rngs = {"prior": prior}
                return LinenEncoder().apply({"params": params}, x, z_rng, train=True, rngs=rngs)

            total += elbo(model, x[i::microbatches], keys[1], 2.0, 0.5) / microbatches
        return total

    assert_leaves_close((metrics["loss"], new.params), penalized_step(loss_fn, state.params), 1e-5)
    evaluated = jax.jit(flatreg.linen.make_eval_step(linen_loss))(state, x, z_rng, size=0.5)
    rebuilt = LinenEncoder().apply({"params": state.params}, x, z_rng, train=False)
    expected = elbo(lambda x, z_rng: rebuilt, x, z_rng, 1.0, 0.5)
    assert_leaves_close(evaluated["loss"], expected, 1e-5)


@pytest.mark.nightly_except("2")
@pytest.mark.parametrize("microbatches", [1, 2])
def test_nnx_passes_keys_and_arguments_to_the_loss(microbatches):
    x, _ = examples()
    z_rng = jax.random.key(2)
    model = NnxEncoder(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    graphdef, params = nnx.split(model)
    evaluate = nnx.jit(flatreg.nnx.make_eval_step(elbo))
    evaluated = evaluate(model, x, z_rng, 2.0, size=0.5)
    assert_leaves_close(evaluated["loss"], elbo(model, x, z_rng, 2.0, 0.5), 1e-6)

    def loss_fn(params):
        total = 0
        for i in range(microbatches):
            key = jax.random.fold_in(z_rng, i) if microbatches > 1 else z_rng
            copy = nnx.merge(graphdef, params)
            total += elbo(copy, x[i::microbatches], key, 2.0, 0.5) / microbatches
        return total

    expected = penalized_step(loss_fn, jax.tree.map(jnp.copy, params))
    step = flatreg.nnx.make_train_step(elbo, key_argnums=2, microbatches=microbatches)
    metrics = nnx.jit(step)(model, optimizer, x, z_rng, 2.0, size=0.5)
    assert_leaves_close((metrics["loss"], nnx.state(model)), expected, 1e-5)


def linen_step(loss_fn, batch, *args, method=None, **options):
    """One step of a classifier, with a loss ``loss_fn(logits_fn, batch, *args)``."""
    tx = chain(method or flatreg.sam())
    state = linen_models.state_of(linen_models.Plain(), tx, examples()[0])

    def loss(apply, batch, train, *args):
        return loss_fn(lambda x: apply(x, train=train), batch, *args)

    step = flatreg.linen.make_train_step(loss, **options)
    return jax.eval_shape(step, state, batch, *args)


def nnx_step(loss_fn, batch, *args, method=None, **options):
    model = nnx_models.Plain(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, chain(method or flatreg.sam()), wrt=nnx.Param)
    step = flatreg.nnx.make_train_step(loss_fn, **options)
    return nnx.eval_shape(step, model, optimizer, batch, *args)


both_faces = pytest.mark.parametrize("run", [linen_step, nnx_step])


def classified(logits_fn, batch, *_):
    return flatreg.nnx.classification_loss(logits_fn, batch)


@both_faces
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda y: jax.nn.one_hot(y, 3), ValueError, r"one-hot.*labels\.argmax\(-1\)"),
        (lambda y: jax.nn.one_hot(y, 3, dtype=int), ValueError, r"int32\[16, 3\].*argmax"),
        (lambda y: y.astype(jnp.float32), TypeError, r"float32\[16\].*labels\.astype\(int\)"),
        (lambda y: y > 0, TypeError, r"integer labels, but the labels are bool"),
        (lambda y: y[:, None], ValueError, r"int32\[16, 1\].*labels\.squeeze\(-1\)"),
    ],
    ids=["one_hot", "integer_one_hot", "float", "bool", "column"],
)
def test_labels_must_be_one_integer_per_example(run, change, error, text):
    x, labels = examples()
    with pytest.raises(error, match=text):
        run(classified, (x, change(labels)))


def test_sequences_have_one_label_per_position():
    logits = jax.random.normal(jax.random.key(0), (2, 5, 3))
    labels = jnp.arange(10).reshape(2, 5) % 3
    loss, metrics = flatreg.nnx.classification_loss(lambda x: x, (logits, labels))
    expected = -jax.nn.log_softmax(logits).reshape(10, 3)[jnp.arange(10), labels.ravel()].mean()
    assert_leaves_close(loss, expected, 1e-6)
    assert metrics["accuracy"] == jnp.mean(logits.argmax(-1) == labels)


@both_faces
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("loss", None),
        ("skipped", None),
        ("cosine", flatreg.observe(flatreg.sam())),
    ],
)
def test_a_metric_is_not_overwritten(run, name, method):
    def loss_fn(logits_fn, batch):
        loss, metrics = classified(logits_fn, batch)
        return loss + 1.0, metrics | {name: loss}

    with pytest.raises(ValueError, match=f'metric named {name!r}.*"own_{name}": value'):
        run(loss_fn, examples(), method=method)


@both_faces
def test_the_loss_itself_may_be_among_the_metrics(run):
    def loss_fn(logits_fn, batch):
        loss, metrics = classified(logits_fn, batch)
        return loss, metrics | {"loss": loss, "cosine": loss}

    out = run(loss_fn, examples())
    metrics = out[1] if isinstance(out, tuple) else out
    assert sorted(metrics) == ["accuracy", "cosine", "loss", "skipped"]


@both_faces
@pytest.mark.parametrize("options", [{"microbatches": 2}, {"shards": 2}], ids=str)
def test_parts_of_a_batch_do_not_share_a_key(run, options):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"would use the same one.*key_argnums"):
        run(classified, examples(), key, **options)
    with pytest.raises(ValueError, match=r"must name arguments after loss_fn.*key_argnums="):
        run(classified, examples(), key, key_argnums=1, **options)
    with pytest.raises(ValueError, match="pass the key as a positional argument"):
        run(classified, examples(), key_argnums=3, **options)


@both_faces
def test_a_key_in_the_batch_is_refused_with_parts(run):
    x, labels = examples()

    def loss_fn(logits_fn, batch):
        noise = jax.random.normal(batch["key"], x.shape[1:])
        return classified(logits_fn, (batch["x"] + noise, batch["labels"]))

    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        batch = {"x": x, "labels": labels, "key": key}
        run(loss_fn, batch)
        with pytest.raises(ValueError, match=r"A random key is not an example.*key_argnums"):
            run(loss_fn, batch, microbatches=2)


@pytest.mark.slow
def test_each_example_may_have_its_own_key():
    """An array of keys is split like the other leaves of the batch."""
    x, labels = examples()
    keys = jax.random.split(jax.random.key(0), len(x))
    state = linen_models.state_of(linen_models.Plain(), chain(flatreg.sam()), x)

    def loss_fn(apply, batch, train):
        x, labels, keys = batch
        noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        return flatreg.linen.classification_loss(apply, (x + noise, labels), train)

    one, two = (
        jax.jit(flatreg.linen.make_train_step(loss_fn, microbatches=k))(state, (x, labels, keys))
        for k in (1, 2)
    )
    assert_leaves_close(two[0].params, one[0].params, 1e-5)


@both_faces
def test_wrong_arguments_are_named(run):
    def loss_fn(logits_fn, batch, key):
        return classified(logits_fn, batch)

    run(loss_fn, examples(), jax.random.key(0))
    if run is nnx_step:  # The loss of the Linen step above takes any arguments.
        with pytest.raises(
            TypeError, match=r"0 further .*train_step\(model, optimizer, batch, key"
        ):
            run(loss_fn, examples())
    state = linen_models.state_of(linen_models.Plain(), chain(flatreg.sam()), examples()[0])
    step = flatreg.linen.make_train_step(lambda apply, batch, train, key: None)
    with pytest.raises(TypeError, match=r"0 further .*train_step\(state, batch, key\)"):
        step(state, examples())


class Outside(nnx.Module):
    """A network whose dropout draws from random streams that are an argument of its call."""

    def __init__(self, rngs):
        self.plain = nnx_models.Plain(rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return self.plain(self.dropout(x, rngs=rngs))


@pytest.mark.nightly_except("train_step")
@pytest.mark.parametrize("stock", [False, True], ids=["train_step", "value_and_grad_fn"])
def test_nnx_rngs_may_be_an_argument_of_the_loss(stock):
    """All passes draw the same mask, and the count of the streams increases by one per step."""
    batch = examples()
    model, rngs = Outside(nnx.Rngs(0)), nnx.Rngs(7)
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    graphdef, params = nnx.split(model)

    def loss_fn(model, batch, rngs):
        return classified(lambda x: model(x, rngs), batch)[0]

    def by_hand(params):
        return loss_fn(nnx.merge(graphdef, params), batch, nnx.Rngs(7))

    def stock_step(model, optimizer, batch, rngs):
        loss, grads, grad_fn = flatreg.nnx.value_and_grad_fn(loss_fn)(model, batch, rngs)
        optimizer.update(model, grads, grad_fn=grad_fn)
        return {"loss": loss}

    expected = penalized_step(by_hand, jax.tree.map(jnp.copy, params))
    step = nnx.jit(stock_step if stock else flatreg.nnx.make_train_step(loss_fn))
    metrics = step(model, optimizer, batch, rngs)
    assert_leaves_close((metrics["loss"], nnx.state(model)), expected, 1e-5)
    assert rngs.default.count[...] == 1


def test_microbatches_draw_different_masks_from_nnx_rngs():
    """The number of its first example is folded into the keys of each microbatch."""

    def loss_fn(model, x, rngs):
        mask = nnx.Dropout(0.5)(jnp.ones((16,)), rngs=rngs)
        return model(x).mean() + 0 * mask.mean(), {"mask": mask}

    model, rngs = nnx_models.Plain(nnx.Rngs(0)), nnx.Rngs(7)
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    step = nnx.jit(flatreg.nnx.make_train_step(loss_fn, microbatches=2))
    metrics = step(model, optimizer, examples()[0], rngs=rngs)
    assert set(metrics["mask"].tolist()) == {0.0, 1.0, 2.0}  # 1 where the two masks differ
    assert rngs.default.count[...] == 1
