"""The same curvature by PyTorch: PyHessian and curvlinops, on the same weights and examples."""

import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse.linalg import eigsh

from benchmarks.common.cli import UsageError

PACKAGES = {"torch": "torch", "pyhessian": "pyhessian", "curvlinops": "curvlinops-for-pytorch"}
TOLERANCES = (1e-3, 1e-6)  # of PyHessian, on an estimate's change; its own default first

Contestant = Callable[[], dict[str, Any]]


def check_installed() -> None:
    """Says before any work what is missing."""
    missing = [pip for name, pip in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--peers needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: pip install {' '.join(PACKAGES.values())}, or leave --peers out."
        )


def contestants(
    params: Any,
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    probes: int,
    batch_size: int,
    threads: int,
) -> dict[str, Contestant]:
    """Name and run of each measurement; a run draws its own start.

    Args:
      params: of `benchmarks.common.models.build.Mlp`.
      x: the examples.
      y: their labels.
      k: how many eigenvalues.
      probes: for the trace of curvlinops; PyHessian decides for itself.
      batch_size: examples in memory, for all but PyHessian's rows "in one batch".
      threads: for PyTorch, as many as XLA has.
    """
    # Beside other work, threads that spin while they wait slow small products down 30-fold.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch  # type: ignore[import-not-found]
    from curvlinops import HessianLinearOperator  # type: ignore[import-not-found]
    from pyhessian import hessian  # type: ignore[import-not-found]

    warnings.filterwarnings("ignore", "Using backward")  # PyHessian does so, and frees it
    torch.set_num_threads(threads)
    net, loss = _network(torch, params), torch.nn.CrossEntropyLoss()
    inputs = torch.tensor(x.reshape(len(x), -1))
    labels = torch.tensor(y.astype(np.int64))
    batches = list(zip(inputs.split(batch_size), labels.split(batch_size), strict=True))
    in_batches, whole = {"dataloader": batches}, {"data": (inputs, labels)}

    def pyhessian_top(data: dict[str, Any], tolerance: float) -> dict[str, Any]:
        found, _ = hessian(net, loss, cuda=False, **data).eigenvalues(tol=tolerance, top_n=k)
        return {"eigenvalues": [float(value) for value in found]}

    def pyhessian_trace(data: dict[str, Any]) -> dict[str, Any]:
        return _mean(hessian(net, loss, cuda=False, **data).trace())

    def operator() -> Any:
        weights = list(net.parameters())
        return HessianLinearOperator(net, loss, weights, batches, check_deterministic=False)

    def curvlinops_top() -> dict[str, Any]:
        found = eigsh(operator().to_scipy(), k, which="LA", tol=1e-4, return_eigenvectors=False)
        return {"eigenvalues": sorted(map(float, found), reverse=True)}

    def curvlinops_trace() -> dict[str, Any]:
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
    """Of what is installed."""
    return {name: importlib.metadata.version(pip) for name, pip in PACKAGES.items()}


def _mean(drawn: list[float]) -> dict[str, Any]:
    error = np.std(drawn, ddof=1) / len(drawn) ** 0.5
    return {"trace": float(np.mean(drawn)), "standard_error": float(error), "probes": len(drawn)}


def _network(torch: Any, params: Any) -> Any:
    """`benchmarks.common.models.build.Mlp` with its weights; Flax's GELU is the tanh one."""
    layers = []
    for _, dense in sorted(params.items()):
        layer = torch.nn.Linear(*dense["kernel"].shape)
        layer.weight.data = torch.tensor(np.array(dense["kernel"]).T.copy())
        layer.bias.data = torch.tensor(np.array(dense["bias"]))
        layers += [layer, torch.nn.GELU(approximate="tanh")]
    return torch.nn.Sequential(*layers[:-1])
