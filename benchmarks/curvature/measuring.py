"""The estimates of curvature by `flatreg.measures`, and the reference values."""

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
from scipy.sparse.linalg import LinearOperator, eigsh  # type: ignore[import-untyped]

from benchmarks.common import training
from benchmarks.common.data.dataset import Dataset
from benchmarks.common.methods import parse
from benchmarks.common.options import complete
from flatreg import measures

Found = dict[str, Any]  # some of: eigenvalues, residuals, trace, standard_error


class CompiledEstimate(NamedTuple):
    """An estimate that is ready to run.

    Attributes:
      run: computes the estimate. Every call draws another start and other probes.
      compile_seconds: the time for tracing and compiling.
      temporary_bytes: the temporary memory that XLA reports.
    """

    run: Callable[[], Found]
    compile_seconds: float
    temporary_bytes: int


def trained(model: nn.Module, data: Dataset, name: str, epochs: int) -> Any:
    """Returns the parameters after some epochs of SGD with the settings of `benchmarks.compare`."""
    options = complete(data=name, methods="sgd", epochs=epochs)
    (method,) = parse("sgd", "sgd")
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    for epoch in training.epochs(training.build(method, model, options, x, y), 0, x, y):
        params = epoch.state.variables["params"]
    return jax.device_get(params)


def loss(model: nn.Module, params: Any, batch: Any) -> jax.Array:
    """Returns the mean cross-entropy of a batch of examples and labels."""
    x, labels = batch
    logits: Any = model.apply({"params": params}, x, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def plan(k: int, probes: int) -> dict[str, Callable[..., Found]]:
    """Returns the estimates by name, as functions of the loss, the parameters and a key.

    Args:
      k: the number of eigenvalues.
      probes: the number of random vectors for the trace.
    """
    outer, krylov = 4 * k, 12 * k

    def top(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> Found:
        pairs = measures.top_eigenpairs(loss_fn, params, key, k)
        return {"eigenvalues": pairs.values, "residuals": pairs.residuals}

    def trace(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> Found:
        return measures.trace(loss_fn, params, key, probes=probes)._asdict()

    def deflated(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> Found:
        return measures.trace(loss_fn, params, key, probes=probes, deflate=krylov)._asdict()

    def both(loss_fn: measures.LossFn, params: Any, key: jax.Array) -> Found:
        keys = jax.random.split(key)
        pairs = measures.top_eigenpairs(loss_fn, params, keys[0], outer, steps=3 * outer)
        found = measures.trace(loss_fn, params, keys[1], probes=probes, deflate=pairs)
        return {"eigenvalues": pairs.values[:k], **found._asdict()}

    return {
        f"flatreg, top {k}": top,
        f"flatreg, trace, {probes} probes": trace,
        f"flatreg, trace, {probes} probes beyond {krylov} Lanczos steps": deflated,
        f"flatreg, top {k} and trace, {probes} probes beyond the top {outer}": both,
    }


def compiled(
    measure: Callable[..., Found], loss_fn: measures.LossFn, params: Any
) -> CompiledEstimate:
    """Compiles an estimate of the plan."""
    begin = time.perf_counter()
    program = jax.jit(measure).lower(loss_fn, params, jax.random.key(0)).compile()
    seconds = time.perf_counter() - begin
    keys = map(jax.random.key, itertools.count())

    def run() -> Found:
        found = jax.device_get(program(loss_fn, params, next(keys)))
        return {"trace" if n == "value" else n: np.asarray(x).tolist() for n, x in found.items()}

    run()  # the first run does more than the later ones
    memory: Any = program.memory_analysis()
    return CompiledEstimate(run, seconds, memory.temp_size_in_bytes)


def reference(loss_fn: measures.LossFn, params: Any, k: int, probes: int) -> Found:
    """Returns precise eigenvalues and a precise trace.

    The eigenvalues come from SciPy's ARPACK with Hessian-vector products in float64. The trace is
    an estimate with many probes. It is computed in float32, whose rounding errors are far below the
    standard error of the estimate.

    Args:
      loss_fn: the loss.
      params: the parameters.
      k: the number of eigenvalues.
      probes: the number of random vectors for the trace.
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
