"""Stability, batch sharpness and critical sharpness against linear algebra, and the tracker."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.optimize import brentq

import flatreg
import flatreg.linen
import flatreg.nnx
from flatreg import measures
from flatreg.measures.edge_of_stability.optimizers import Hyperparameters, linear_optimizer
from tests.support.trained import batch_loss, dense_hessian, digits, trained

KEY = jax.random.key(0)
SIZE = 4
ETA = 0.05
WD = 0.3

# Each optimizer, and the arguments that tell stability what its state does not contain.
OPTIMIZERS = {
    "gradient descent": (optax.sgd(ETA), {}),
    "heavy ball": (optax.sgd(ETA, momentum=0.9), {"momentum": 0.9}),
    "nesterov": (
        optax.sgd(ETA, momentum=0.8, nesterov=True),
        {"momentum": 0.8, "nesterov": True},
    ),
    "rmsprop": (optax.rmsprop(ETA, decay=0.9, eps=0.02), {"eps_root": 0.02}),
    "rmsprop with momentum": (optax.rmsprop(ETA, momentum=0.7), {"momentum": 0.7}),
    "rmsprop with bias correction": (
        optax.rmsprop(ETA, decay=0.9, bias_correction=True, eps_in_sqrt=False, eps=0.1),
        {"b2": 0.9, "eps": 0.1, "eps_root": 0.0},
    ),
    "adam": (optax.adam(ETA), {}),
    "adam with other numbers": (
        optax.adam(ETA, b1=0.7, b2=0.9, eps=0.1, eps_root=0.01),
        {"b1": 0.7, "b2": 0.9, "eps": 0.1, "eps_root": 0.01},
    ),
    "nadam": (optax.nadam(ETA), {"nesterov": True}),
    "adamw": (optax.adamw(ETA, weight_decay=WD), {"weight_decay": WD}),
}


def spd(key, size=SIZE):
    a = jax.random.normal(key, (size, size), jnp.float64)
    return a @ a.T + 0.1 * jnp.eye(size)


def with_moments(state):
    """The state with second moments of different sizes, after many steps."""

    def replaced(part):
        if "nu" in getattr(part, "_fields", ()):
            part = part._replace(nu=jnp.array([0.3, 1.0, 2.0, 0.05]))
        if "count" in getattr(part, "_fields", ()):
            part = part._replace(count=jnp.int32(2000))
        return part

    return jax.tree.map(replaced, state, is_leaf=lambda x: hasattr(x, "_fields"))


PLAIN = ("gradient descent", "heavy ball", "nesterov", "adam", "adamw")


@pytest.mark.nightly_except("adamw")
@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if x in PLAIN else pytest.mark.nightly) for x in OPTIMIZERS],
)
def test_the_ratio_is_one_where_the_iteration_diverges(name, x64):
    """The oracle is the spectral radius of the update of Optax, differentiated at the minimum."""
    tx, options = OPTIMIZERS[name]
    h = spd(KEY)
    before = with_moments(tx.init(jnp.zeros(SIZE)))
    after = tx.update(jnp.zeros(SIZE), before, jnp.zeros(SIZE))[1]

    def momentum_and_weights(flat, scale):
        w, buffer = flat
        state = _with_buffer(before, buffer)
        updates, state = tx.update(scale * h @ w, state, w)
        return jnp.stack([w + updates, _buffer(state)])

    @jax.jit
    def both(scale):
        """The measured ratio, and one step as a matrix that acts on the weights and momentum."""
        measured = measures.stability(
            lambda w: scale * w @ h @ w / 2,
            jnp.zeros(SIZE),
            KEY,
            learning_rate=ETA,
            opt_state=after,
            **options,
        )
        jacobian = jax.jacobian(momentum_and_weights)(jnp.zeros((2, SIZE)), scale)
        return measured.ratio, jacobian.reshape(2 * SIZE, 2 * SIZE)

    critical = 1 / both(1.0)[0]
    for margin, diverges in ((-1e-4, False), (1e-4, True)):
        roots = np.linalg.eigvals(both(critical * (1 + margin))[1])
        assert (np.abs(roots).max() > 1) == diverges


def _is_momentum(x):
    return type(x).__name__ in ("TraceState", "ScaleByAdamState")


def _buffer(state):
    """The momentum in an optimizer state, or zeros."""
    for part in jax.tree.leaves(state, is_leaf=_is_momentum):
        if _is_momentum(part):
            return part.trace if hasattr(part, "trace") else part.mu
    return jnp.zeros(SIZE)


def _with_buffer(state, buffer):
    def replaced(part):
        if not _is_momentum(part):
            return part
        return part._replace(**{"trace" if hasattr(part, "trace") else "mu": buffer})

    return jax.tree.map(replaced, state, is_leaf=_is_momentum)


def found(tx, params, **options):
    """What stability reads from the state of an optimizer after one step with gradients of one."""
    tx = optax.with_extra_args_support(tx)
    state = tx.update(
        jax.tree.map(jnp.ones_like, params),
        tx.init(params),
        params,
        grad_fn=jax.grad(lambda p: sum(map(jnp.sum, jax.tree.leaves(p)))),
        value=jnp.zeros(()),
    )[1]
    numbers = dict.fromkeys(Hyperparameters._fields)
    given = Hyperparameters(**{**numbers, "learning_rate": 0.1, "nesterov": False, **options})
    return linear_optimizer(state, params, given)


ADAM = optax.adam(0.1, b2=0.5)
CHAINS = {
    "chain": optax.chain(optax.clip_by_global_norm(10.0), ADAM),
    "named_chain": optax.named_chain(("clip", optax.clip(10.0)), ("adam", ADAM)),
    "masked": optax.masked(ADAM, {"w": True, "b": True}),
    "partition": optax.partition(
        {"adam": ADAM, "none": optax.set_to_zero()}, {"w": "adam", "b": "none"}
    ),
    "MultiSteps": optax.MultiSteps(ADAM, 1),
    "apply_if_finite": optax.apply_if_finite(ADAM, 3),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(0.1, b2=0.5),
    "method": optax.chain(flatreg.observe(flatreg.sam(0.1)), ADAM),
    "schedule": optax.adam(optax.constant_schedule(0.1), b2=0.5),
}


@pytest.mark.parametrize("name", CHAINS)
def test_adam_is_found_in_any_chain(name):
    """After one gradient of one, v̂ = 1 and P = 1."""
    params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    optimizer = found(CHAINS[name], params, **({} if "inject" in name else {"b2": 0.5}))
    np.testing.assert_allclose(optimizer.threshold, 38 / 0.1, rtol=1e-6)
    hidden = 0.0 if name == "partition" else 1.0
    np.testing.assert_allclose(optimizer.factors["w"], np.ones((2, 2)), rtol=1e-6)
    np.testing.assert_allclose(optimizer.factors["b"], np.full(2, hidden), rtol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(flatreg.when_sharp(flatreg.sam(0.1)), ADAM),
        optax.chain(ADAM, optax.contrib.reduce_on_plateau()),
        flatreg.revisit(ADAM),
    ],
    ids=["when_sharp", "reduce_on_plateau", "revisit"],
)
def test_scalars_in_a_state_are_no_moments_of_one_scalar(tx):
    """The only parameter is a scalar, and so are numbers that other links of the chain keep."""
    optimizer = found(tx, jnp.zeros(()), b2=0.5)
    np.testing.assert_allclose((optimizer.threshold, optimizer.factors), (38 / 0.1, 1), rtol=1e-6)


def test_rmsprop_that_corrects_the_bias_has_its_default_decay():
    """After one gradient of one, v̂ = 1 and P = 1."""
    optimizer = found(optax.rmsprop(0.1, bias_correction=True), jnp.zeros(3))
    np.testing.assert_allclose(optimizer.factors, np.ones(3), rtol=1e-6)


def test_injected_numbers_are_read_from_the_state():
    tx = optax.inject_hyperparams(optax.adamw)(0.1, b1=0.5, eps=3.0, weight_decay=0.2)
    optimizer = found(tx, jnp.zeros(3))
    np.testing.assert_allclose(optimizer.threshold, 1.5 * (20 - 0.2) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(optimizer.factors, np.full(3, 0.5), rtol=1e-6)
    tx = optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.5)
    np.testing.assert_allclose(found(tx, jnp.zeros(3)).threshold, 30, rtol=1e-6)


@pytest.mark.parametrize(
    ("tx", "options", "message"),
    [
        (optax.lion(0.1), {}, "state ScaleByLionState"),
        (optax.adafactor(0.1), {}, "state FactoredState"),
        (optax.chain(optax.ema(0.9), optax.sgd(0.1)), {}, "state EmaState"),
        (optax.contrib.prodigy(0.1), {}, "state ProdigyState"),
        (optax.sgd(0.1, momentum=0.9), {}, "for example momentum=0.9"),
        (optax.adam(0.1), {"momentum": 0.9}, "Adam's own momentum as b1"),
        (optax.rmsprop(0.1), {"momentum": 0.9}, "no momentum buffer"),
        (optax.chain(optax.adam(0.1), optax.rmsprop(0.1)), {}, "several optimizers"),
        (optax.sgd(0.1), {"learning_rate": 0.0}, "greater than 0"),
        (optax.sgd(0.1), {"momentum": 1.0}, "below 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_optimizer_without_a_known_threshold_is_an_error(tx, options, message):
    with pytest.raises(ValueError, match=message):
        found(tx, jnp.zeros(3), **options)


def test_a_state_or_start_of_other_parameters_is_an_error():
    loss_fn = lambda w: jnp.sum(w**2)  # noqa: E731
    measure = functools.partial(measures.stability, loss_fn, jnp.ones(3), KEY, learning_rate=0.1)
    with pytest.raises(ValueError, match="second moments have the shapes"):
        measure(opt_state=optax.adam(0.1).init(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"start=measured\.vector"):
        measure(start=jnp.ones(2))
    with pytest.raises(TypeError, match=r"learning_rate=schedule\(step\)"):
        measure(learning_rate=optax.constant_schedule(0.1))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        measure(steps=0)
    with pytest.raises(ValueError, match="tolerance must be finite and at least 0"):
        measure(start=jnp.ones(3), tolerance=-0.1)


def preconditioned():
    """The trained network, and the state of Adam after some gradients of batches."""
    tx = optax.adam(0.01)
    params, (x, labels) = trained(), digits()
    state = tx.init(params)
    for i in range(5):
        part = slice(60 * i, 60 * i + 60)
        g = jax.grad(batch_loss)(params, (x[part], labels[part]))
        state = tx.update(g, state)[1]
    return params, state


@pytest.mark.slow
def test_preconditioned_sharpness_is_that_of_the_dense_matrix():
    params, state = preconditioned()
    loss_fn = measures.dataset_loss(batch_loss, digits(), batch_size=300)
    measure = jax.jit(functools.partial(measures.stability, learning_rate=0.01))
    measured = measure(loss_fn, params, KEY, opt_state=state)
    nu = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state[0].nu)]).astype(np.float64)
    factors = (np.sqrt(nu / (1 - 0.999**5)) + 1e-8) ** -0.5
    expected = np.linalg.eigvalsh(factors[:, None] * dense_hessian() * factors)[-1]
    np.testing.assert_allclose(measured.sharpness, expected, rtol=1e-5)
    np.testing.assert_allclose(measured.ratio, expected * 0.01 / 38, rtol=1e-5)
    assert measured.residual < 1e-3 * expected


def counted(calls):
    """The identity, which counts how often it runs."""

    def count(x):
        jax.debug.callback(lambda: calls.append(1))
        return x

    return count


def test_a_warm_measurement_costs_five_products():
    """The start is the top eigenvector before the spectrum turned, so it has to be found again."""
    calls = []

    def loss_fn(w, spectrum):
        return counted(calls)(jnp.sum(spectrum * w**2)) / 2

    @jax.jit
    def measure(spectrum, start):
        return measures.stability(
            lambda w: loss_fn(w, spectrum), jnp.ones(50), KEY, learning_rate=0.1, start=start
        )

    first = measure(jnp.linspace(0, 1, 50).at[3].set(2), None)
    np.testing.assert_allclose(first.sharpness, 2, rtol=1e-5)
    jax.effects_barrier()
    calls.clear()
    drifted = jnp.linspace(0, 1, 50).at[3].set(2.1).at[7].set(1.5)
    second = jax.block_until_ready(measure(drifted, first.vector))
    jax.effects_barrier()
    assert len(calls) <= 5
    np.testing.assert_allclose(second.sharpness, 2.1, rtol=1e-3)
    assert second.residual < 0.1


def test_a_slow_turn_costs_the_tracker_one_product():
    """At most five if it turns fast, and at least two in every twentieth measurement."""
    calls = []

    def loss_fn(w, angle):
        top = jnp.zeros(20).at[:2].set([jnp.cos(angle), jnp.sin(angle)])
        return counted(calls)(0.75 * (top @ w) ** 2 + w @ w / 4)  # eigenvalues 2 and 1/2

    track = measures.stability_tracker(loss_fn, KEY, every=1, learning_rate=0.1)
    history, products = measures.StabilityHistory(), []
    for step in range(23):
        calls.clear()
        angle = jnp.float32(0.02 * step if step < 21 else step)
        history = jax.block_until_ready(track(history, step, jnp.ones(20), None, angle))
        jax.effects_barrier()
        products.append(len(calls))
    assert products[1:20] == [1] * 19
    assert all(2 <= count <= 5 for count in products[20:])
    np.testing.assert_allclose([r.sharpness for r in history.records], 2, rtol=1e-2)


def test_a_start_does_not_hide_a_direction_that_became_sharper():
    """The start is an eigenvector of a loss that separates, and no longer the top one."""
    measured = measures.stability(
        lambda w: jnp.sum(jnp.array([1.0, 5.0, 2.0]) * w**2) / 2,
        jnp.ones(3),
        KEY,
        learning_rate=0.1,
        start=jnp.eye(3)[0],
    )
    np.testing.assert_allclose(measured.sharpness, 5, rtol=1e-5)


def test_a_start_finds_a_direction_that_is_orthogonal_to_it():
    """The start lies in an invariant subspace that the few steps do not exhaust."""
    curvatures = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])

    @jax.jit
    def measured(tolerance):
        return measures.stability(
            lambda w: jnp.sum(curvatures * w**2) / 2,
            jnp.ones(7),
            KEY,
            learning_rate=0.1,
            start=jnp.ones(7).at[6].set(0),
            tolerance=tolerance,
        )

    default, exact = measured(0.1), measured(0.0)
    assert default.residual <= 0.1 * default.sharpness
    np.testing.assert_allclose(default.sharpness, 100, rtol=1e-2)
    np.testing.assert_allclose(exact.sharpness, 100, rtol=1e-4)


def test_batch_sharpness_is_the_mean_over_the_batches(x64):
    """Each batch is computed from its dense Hessian."""
    x, labels = (np.reshape(a[:60], (6, 10, *a.shape[1:])) for a in digits())
    x, scale = x[:, :, 20:24].astype(float), jnp.array([0.3, -0.5, 0.9, 0.2])

    def loss_fn(w, batch):
        x, labels = batch
        return jnp.mean((jnp.tanh(x @ w) - labels / 10) ** 2)

    derivatives = jax.jit(lambda batch: [f(loss_fn)(scale, batch) for f in (jax.hessian, jax.grad)])
    expected = []
    for batch in zip(x, labels, strict=True):
        h, g = map(np.asarray, derivatives(batch))
        expected.append(g @ h @ g / (g @ g))
    measured = jax.jit(functools.partial(measures.batch_sharpness, loss_fn))(scale, (x, labels))
    np.testing.assert_allclose(measured.value, np.mean(expected), rtol=1e-9)
    standard_error = np.std(expected, ddof=1) / 6**0.5
    np.testing.assert_allclose(measured.standard_error, standard_error, rtol=1e-9)


def test_batch_sharpness_of_wrong_batches_is_an_error():
    loss_fn = lambda w, x: jnp.sum(w * x)  # noqa: E731
    with pytest.raises(ValueError, match="at least two batches"):
        measures.batch_sharpness(loss_fn, jnp.ones(2), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="same leading axis"):
        measures.batch_sharpness(loss_fn, jnp.ones(2), (jnp.ones(3), jnp.ones(2)))
    flat = measures.batch_sharpness(loss_fn, jnp.zeros(2), jnp.zeros((2, 2)))
    assert flat.value == 0


def test_critical_sharpness_of_quadratics_is_exact():
    """uᵀHu/(−gᵀu) for updates over eight orders of magnitude, in at most 8 forward passes."""
    calls = []

    @jax.jit
    def measured(h, w, update):
        def loss_fn(w):
            return counted(calls)(1 + w @ h @ w / 2)

        return measures.critical_sharpness(loss_fn, w, update)

    random = np.random.default_rng(0)
    for scale in 10.0 ** np.arange(-4, 5):
        a = random.normal(size=(5, 5))
        h, w = a @ a.T, random.normal(size=5)
        update = -scale * (np.eye(5) + np.diag(random.uniform(0, 1, 5))) @ h @ w
        calls.clear()
        value = float(measured(jnp.float32(h), jnp.float32(w), jnp.float32(update)))
        jax.effects_barrier()
        assert len(calls) <= 8
        np.testing.assert_allclose(value, update @ h @ update / -(w @ h @ update), rtol=1e-2)


@pytest.mark.slow
def test_critical_sharpness_of_a_network_is_that_of_the_root():
    """The root of L(θ − ηg) − L(θ) in float64, by another method."""
    params = jax.tree.map(lambda w: 0.5 * w, trained())
    g = jax.grad(batch_loss)(params, digits())
    update = jax.tree.map(jnp.negative, g)
    measured = jax.jit(measures.critical_sharpness, static_argnums=0)
    loss_fn = lambda w: batch_loss(w, digits())  # noqa: E731
    with jax.enable_x64(True):
        wide, step = (jax.tree.map(np.float64, jax.device_get(t)) for t in (params, g))

        @jax.jit
        def rise(eta):
            return loss_fn(jax.tree.map(lambda w, g: w - eta * g, wide, step)) - loss_fn(wide)

        etas = np.geomspace(1e-2, 1e3, 60)
        first = next(i for i, eta in enumerate(etas) if rise(eta) > 0)
        root = brentq(lambda eta: float(rise(eta)), etas[first - 1], etas[first])
    np.testing.assert_allclose(measured(loss_fn, params, update), 2 / root, rtol=1e-2)


def test_critical_sharpness_without_a_root():
    """Zero if the loss never rises, infinite if it always does, and safe where it overflows."""
    critical = measures.critical_sharpness
    w = jnp.ones(2)
    assert critical(lambda w: jnp.sum(w), w, -w) == 0
    assert critical(lambda w: jnp.sum(w**2), w, 0 * w) == 0
    assert critical(lambda w: jnp.sum(jnp.exp(w)), w, -w) == 0  # falls ever more slowly
    assert critical(lambda w: jnp.sum(w**2), w, w) == jnp.inf
    for length in (5, 30, 50):  # The last one overflows in the first trial.
        steep = critical(lambda w: jnp.sum(jnp.cosh(3 * w)), w, -length * w)
        np.testing.assert_allclose(steep, length, rtol=1e-2)
    with pytest.raises(ValueError, match="update with the shapes of params"):
        critical(lambda w: jnp.sum(w**2), w, jnp.ones(3))


def tanh_network(width=20, count=100):
    """The mean squared error of a tanh network on centered digits."""
    keys = jax.random.split(jax.random.key(3), 2)
    x, labels = digits(count)
    x = x - x.mean(axis=0)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, width)) / 8, "bias": jnp.zeros(width)},
        "out": {
            "kernel": jax.random.normal(keys[1], (width, 10)) / width**0.5,
            "bias": jnp.zeros(10),
        },
    }

    def loss_fn(params):
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        outputs = hidden @ params["out"]["kernel"] + params["out"]["bias"]
        return jnp.mean(jnp.sum((outputs - jax.nn.one_hot(labels, 10)) ** 2, axis=1)) / 2

    return loss_fn, params


class Classifier(nn.Module):
    """A small Linen network with BatchNorm."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(10)(nn.tanh(x))


@pytest.mark.slow
def test_the_tracker_follows_a_linen_training():
    """Every third step is measured, from the state after it, and nothing else runs in between."""
    batch = jax.tree.map(jnp.asarray, digits(64))
    tx = optax.chain(flatreg.sam(0.05), optax.adam(0.01))
    state = flatreg.linen.TrainState.init(Classifier(), tx, KEY, batch[0], train=False)
    loss = flatreg.linen.classification_loss
    train_step = jax.jit(flatreg.linen.make_train_step(loss))
    evaluate = flatreg.linen.make_eval_step(loss)

    def loss_fn(params, state):
        return evaluate(state.replace(params=params), batch)["loss"]

    compiled = []

    def jit(function):
        compiled.append(jax.jit(function))
        return compiled[0]

    track = measures.stability_tracker(loss_fn, KEY, every=3, learning_rate=0.01, jit=jit)
    history = measures.StabilityHistory()
    for step in range(7):
        before = history
        state, _ = train_step(state, batch)
        history = track(history, step, state.params, state.opt_state, state)
        assert (history is before) == (step % 3 != 0)
    assert [record.step for record in history.records] == [0, 3, 6]
    assert compiled[0]._cache_size() == 2  # without a start, and with one
    last = history.records[-1]
    expected = jax.jit(
        lambda params, opt_state: measures.stability(
            lambda p: loss_fn(p, state), params, KEY, learning_rate=0.01, opt_state=opt_state
        )
    )(state.params, state.opt_state)
    np.testing.assert_allclose(last.ratio, expected.ratio, rtol=2e-2)
    np.testing.assert_allclose(last.threshold, 3800, rtol=1e-5)


def nnx_classifier():
    """A network with BatchNorm, and its loss in evaluation mode: (batch, params, rest) -> loss."""
    model = nnx.Sequential(nnx.Linear(64, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    model.eval()
    graphdef = nnx.graphdef(model)
    model.train()

    def loss_of(batch, params, rest):
        return flatreg.nnx.classification_loss(nnx.merge(graphdef, params, rest), batch)[0]

    return model, loss_of


@pytest.mark.slow
def test_the_tracker_follows_an_nnx_training():
    """The states of NNX contain Variables in place of arrays."""
    batch = jax.tree.map(jnp.asarray, digits(64))
    model, loss_of = nnx_classifier()
    optimizer = flatreg.nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    train_step = nnx.jit(flatreg.nnx.make_train_step(flatreg.nnx.classification_loss))
    loss_fn = functools.partial(loss_of, batch)
    schedule = optax.constant_schedule(0.01)
    track = measures.stability_tracker(loss_fn, KEY, every=1, learning_rate=schedule)
    history = measures.StabilityHistory()
    for step in range(2):
        train_step(model, optimizer, batch)
        _, params, rest = nnx.split(model, nnx.Param, ...)
        history = track(history, step, params, optimizer.opt_state, rest)
    ratios = [record.ratio for record in history.records]
    assert all(jnp.isfinite(ratio) and ratio > 0 for ratio in ratios)
    np.testing.assert_allclose(history.records[-1].threshold, 3800, rtol=1e-5)


def linen_ratios(batch, placed):
    """The ratios after each of three steps of a Linen training, with BatchNorm in eval mode."""
    tx = optax.chain(flatreg.sam(0.05), optax.sgd(0.1, momentum=0.9))
    state = placed(flatreg.linen.TrainState.init(Classifier(), tx, KEY, batch[0], train=False))
    loss = flatreg.linen.classification_loss
    train_step = jax.jit(flatreg.linen.make_train_step(loss))
    evaluate = flatreg.linen.make_eval_step(loss)

    def loss_fn(params, state):
        return evaluate(state.replace(params=params), batch)["loss"]

    track = measures.stability_tracker(loss_fn, KEY, every=1, learning_rate=0.1, momentum=0.9)
    history = measures.StabilityHistory()
    for step in range(3):
        state, _ = train_step(state, batch)
        history = track(history, step, state.params, state.opt_state, state)
    return [float(record.ratio) for record in history.records]


def nnx_ratios(batch, placed):
    """The same of an NNX training."""
    model, loss_of = nnx_classifier()
    tx = optax.chain(flatreg.sam(0.05), optax.sgd(0.1, momentum=0.9))
    optimizer = flatreg.nnx.Optimizer(model, tx, wrt=nnx.Param)
    for node in (model, optimizer):
        nnx.update(node, placed(nnx.state(node)))
    train_step = nnx.jit(flatreg.nnx.make_train_step(flatreg.nnx.classification_loss))
    loss_fn = functools.partial(loss_of, batch)
    track = measures.stability_tracker(loss_fn, KEY, every=1, learning_rate=0.1, momentum=0.9)
    history = measures.StabilityHistory()
    for step in range(3):
        train_step(model, optimizer, batch)
        _, params, rest = nnx.split(model, nnx.Param, ...)
        history = track(history, step, params, optimizer.opt_state, rest)
    return [float(record.ratio) for record in history.records]


@pytest.mark.nightly_except("8-linen_ratios", "8-nnx_ratios")
@pytest.mark.slow
@pytest.mark.parametrize("ratios", [linen_ratios, nnx_ratios], ids=lambda f: f.__name__)
@pytest.mark.parametrize("devices", [2, 8])
def test_the_tracker_is_the_same_on_several_devices(ratios, devices):
    """Data parallel: the examples are divided, and the state is copied."""
    x, labels = digits(64)
    batch = jnp.asarray(x), jnp.asarray(labels) % 8
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    divided = jax.device_put(batch, NamedSharding(mesh, P("data")))
    many = ratios(divided, lambda state: jax.device_put(state, NamedSharding(mesh, P())))
    np.testing.assert_allclose(many, ratios(batch, lambda state: state), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.6, 0.7])
def test_full_batch_training_hovers_at_the_threshold(eta):
    """Progressive sharpening (Cohen et al. 2021): the ratio rises to 1 and stays there."""
    loss_fn, params = tanh_network()
    track = measures.stability_tracker(loss_fn, KEY, every=50, learning_rate=eta)
    history = measures.StabilityHistory()

    @jax.jit
    def step(params):
        return jax.tree.map(lambda w, g: w - eta * g, params, jax.grad(loss_fn)(params))

    for i in range(3000):
        history = track(history, i, params)
        params = step(params)
    ratios = np.array([record.ratio for record in history.records])
    late = ratios[len(ratios) // 2 :]
    assert ratios[0] < 0.95
    assert late.min() > 0.9
    assert late.max() < 1.1
    exact = measures.top_eigenpairs(loss_fn, params, KEY).values[0]
    last = track(history, 3000, params).records[-1]
    assert last.residual < 0.1 * exact
    np.testing.assert_allclose(last.sharpness, exact, rtol=5e-2)
    thorough = measures.stability_tracker(loss_fn, KEY, every=50, learning_rate=eta, tolerance=0)
    last = thorough(history, 3000, params).records[-1]
    np.testing.assert_allclose(last.sharpness, exact, rtol=1e-2)
