"""What `python -m benchmarks.curvature` measures by `flatreg.measures`, and against what."""

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.common import data as _data
from benchmarks.common import methods as _methods
from benchmarks.common import options as _options
from benchmarks.common import training as _train
from flatreg import measures

Found = dict[str, Any]  # eigenvalues, trace, standard_error: what of them a run measures


class Compiled(NamedTuple):
    """A measurement, ready to run; each run draws its own start and probes."""

    run: Callable[[], Found]
    compile_seconds: float
    temporary_bytes: int


def trained(model: nn.Module, data: _data.Dataset, name: str, epochs: int) -> Any:
    """The parameters after some epochs of SGD, as `benchmarks.compare` trains."""
    options, _ = _options.parse([f"--data={name}", "--methods=sgd", f"--epochs={epochs}"])
    (method,) = _methods.parse("sgd", "sgd")
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    for epoch in _train.epochs(_train.build(method, model, options, x, y), 0, x, y):
        params = epoch.state.variables["params"]
    params = jax.device_get(params)
    return params


def loss(model: nn.Module, params: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy of a batch."""
    x, labels = batch
    logits = model.apply({"params": params}, x, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def plan(k: int, probes: int) -> dict[str, Callable[..., Found]]:
    """The measurements by name, each a function of loss, parameters and key."""
    outer = 4 * k

    def top(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> Found:
        pairs = measures.top_eigenpairs(loss_fn, params, key, k)
        return {"eigenvalues": pairs.values, "residuals": pairs.residuals}

    def trace(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> Found:
        return measures.trace(loss_fn, params, key, probes=probes)._asdict()

    def both(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> Found:
        keys = jax.random.split(key)
        pairs = measures.top_eigenpairs(loss_fn, params, keys[0], outer, steps=3 * outer)
        found = measures.trace(loss_fn, params, keys[1], probes=probes, deflate=pairs)
        return {"eigenvalues": pairs.values[:k], **found._asdict()}

    return {
        f"flatreg, top {k}": top,
        f"flatreg, trace, {probes} probes": trace,
        f"flatreg, top {k} and trace, {probes} probes beyond the top {outer}": both,
    }


def compiled(measure: Callable[..., Found], loss_fn: measures.LossFn, params: Any) -> Compiled:
    """Compiles a measurement of the plan."""
    begin = time.perf_counter()
    program = jax.jit(measure).lower(loss_fn, params, jax.random.key(0)).compile()
    seconds = time.perf_counter() - begin
    keys = map(jax.random.key, itertools.count())

    def run() -> Found:
        found = jax.device_get(program(loss_fn, params, next(keys)))
        return {"trace" if n == "value" else n: np.asarray(x).tolist() for n, x in found.items()}

    run()  # what the first run does besides
    return Compiled(run, seconds, program.memory_analysis().temp_size_in_bytes)


def reference(loss_fn: measures.LossFn, params: Any, k: int, probes: int) -> Found:
    """Eigenvalues by SciPy's ARPACK on products in float64, and the trace of many probes.

    The trace is taken in float32, whose rounding is far below its standard error.
    """
    with jax.enable_x64(True):
        wide_loss, wide_params = jax.tree.map(
            lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, (loss_fn, params)
        )
        flat, unravel = ravel_pytree(wide_params)

        @jax.jit
        def product(loss_fn: measures.LossFn, w: jax.Array, v: jax.Array) -> jax.Array:
            return jax.jvp(jax.grad(lambda w: loss_fn(unravel(w))), (w,), (v,))[1]

        matrix = LinearOperator(
            (flat.size, flat.size),
            matvec=lambda v: np.asarray(product(wide_loss, flat, jnp.asarray(v.ravel()))),
            dtype=np.float64,
        )
        start = np.random.default_rng(0).normal(size=flat.size)
        values = eigsh(matrix, k, which="LA", v0=start, tol=1e-9, return_eigenvectors=False)
    found = jax.jit(partial(_long_trace, k=8 * k, probes=probes))(loss_fn, params)
    return {
        "eigenvalues": sorted(values.tolist(), reverse=True),
        "trace": float(found.value),
        "standard_error": float(found.standard_error),
    }


def _long_trace(loss_fn: measures.LossFn, params: Any, k: int, probes: int) -> measures.Estimate:
    keys = jax.random.split(jax.random.key(1))
    pairs = measures.top_eigenpairs(loss_fn, params, keys[0], k, steps=2 * k)
    return measures.trace(loss_fn, params, keys[1], probes=probes, deflate=pairs)
