"""Estimates of curvature in PyTorch, by PyHessian and curvlinops, for the same weights and data."""

import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse.linalg import eigsh  # type: ignore[import-untyped]

from benchmarks.common.cli import UsageError
from benchmarks.common.statistics.estimates import estimate

PACKAGES = {"torch": "torch", "pyhessian": "pyhessian", "curvlinops": "curvlinops-for-pytorch"}
TOLERANCES = (1e-3, 1e-6)  # PyHessian stops when an estimate changes less; 1e-3 is its default

Found = dict[str, Any]  # eigenvalues, or trace with standard_error and probes


def check_installed() -> None:
    """Raises `UsageError` if a package is missing."""
    missing = [pip for name, pip in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--peers needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            f"not installed. Run pip install {' '.join(PACKAGES.values())}, or leave out --peers."
        )


def estimates(
    params: Any,
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    probes: int,
    batch_size: int,
    threads: int,
) -> dict[str, Callable[[], Found]]:
    """Returns the estimates by name. Every call of an estimate draws another start.

    Args:
      params: the parameters of a `benchmarks.common.models.mlp.Mlp`.
      x: the examples.
      y: their labels.
      k: the number of eigenvalues.
      probes: the number of random vectors for the trace by curvlinops; PyHessian chooses its own
        number.
      batch_size: the number of examples that are in memory at a time, except for the estimates of
        PyHessian "in one batch".
      threads: the number of threads for PyTorch, the same as for XLA.
    """
    # Without this setting, waiting threads spin, which slows down small products by a factor of 30
    # when other processes run.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch  # type: ignore[import-not-found]
    from curvlinops import HessianLinearOperator  # type: ignore[import-not-found]
    from pyhessian import hessian  # type: ignore[import-not-found]

    warnings.filterwarnings("ignore", "Using backward")  # by PyHessian, which frees the graph
    torch.set_num_threads(threads)
    net, loss = _network(torch, params), torch.nn.CrossEntropyLoss()
    inputs = torch.tensor(x.reshape(len(x), -1))
    labels = torch.tensor(y.astype(np.int64))
    batches = list(zip(inputs.split(batch_size), labels.split(batch_size), strict=True))
    in_batches, whole = {"dataloader": batches}, {"data": (inputs, labels)}

    def pyhessian_top(data: dict[str, Any], tolerance: float) -> Found:
        found, _ = hessian(net, loss, cuda=False, **data).eigenvalues(tol=tolerance, top_n=k)
        return {"eigenvalues": [float(value) for value in found]}

    def pyhessian_trace(data: dict[str, Any]) -> Found:
        return _mean(hessian(net, loss, cuda=False, **data).trace())

    def operator() -> Any:
        weights = list(net.parameters())
        return HessianLinearOperator(net, loss, weights, batches, check_deterministic=False)

    def curvlinops_top() -> Found:
        found = eigsh(operator().to_scipy(), k, which="LA", tol=1e-4, return_eigenvectors=False)
        return {"eigenvalues": sorted(map(float, found), reverse=True)}

    def curvlinops_trace() -> Found:
        matrix = operator()
        size = matrix.shape[0]
        signs = (torch.randint(0, 2, (size,)) * 2.0 - 1 for _ in range(probes))
        return _mean([float(v @ (matrix @ v)) for v in signs])

    return {
        **{
            f"PyHessian, top {k}, tol={tolerance:g}": partial(pyhessian_top, in_batches, tolerance)
            for tolerance in TOLERANCES
        },
        f"PyHessian, top {k}, in one batch": partial(pyhessian_top, whole, TOLERANCES[0]),
        "PyHessian, trace": partial(pyhessian_trace, in_batches),
        "PyHessian, trace, in one batch": partial(pyhessian_trace, whole),
        f"curvlinops and SciPy, top {k}": curvlinops_top,
        f"curvlinops, trace, {probes} probes": curvlinops_trace,
    }


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages."""
    return {name: importlib.metadata.version(pip) for name, pip in PACKAGES.items()}


def _mean(drawn: list[float]) -> Found:
    """Returns the mean of the draws with its standard error."""
    found = estimate(drawn)
    return {"trace": found.mean, "standard_error": found.standard_error, "probes": found.count}


def _network(torch: Any, params: Any) -> Any:
    """Builds the same MLP in PyTorch, with the tanh approximation of GELU that Flax uses."""
    layers = []
    for _, dense in sorted(params.items()):
        layer = torch.nn.Linear(*dense["kernel"].shape)
        layer.weight.data = torch.tensor(np.array(dense["kernel"]).T.copy())
        layer.bias.data = torch.tensor(np.array(dense["bias"]))
        layers += [layer, torch.nn.GELU(approximate="tanh")]
    return torch.nn.Sequential(*layers[:-1])
