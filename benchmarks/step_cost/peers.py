"""Training steps in PyTorch for the same MLP and batch: one gradient, and SAM.

SAM is the one of pytorch_optimizer.
"""

import importlib.metadata
import importlib.util
import os
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from benchmarks.common.cli import UsageError
from benchmarks.common.methods import METHODS
from benchmarks.common.models.mlp import Mlp
from benchmarks.step_cost.timing import Contestant

PACKAGES = ("torch", "pytorch_optimizer")
GRADIENT, SAM = "PyTorch, one gradient", "PyTorch, pytorch_optimizer's SAM"


def check_installed() -> None:
    """Raises `UsageError` if a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--peers needs {' and '.join(missing)}, which is not installed. Run pip install "
            f"{' '.join(PACKAGES)}, or leave out --peers."
        )


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def contestants(
    model: nn.Module, batch: tuple[jax.Array, jax.Array], optimizer: str
) -> list[Contestant]:
    """Returns PyTorch's steps.

    They run eagerly, as is usual in PyTorch, on the same device and with as many threads as XLA.

    Args:
      model: an `Mlp`, whose layers are built again in PyTorch.
      batch: images and labels.
      optimizer: `sgd` or `adamw`.
    """
    # Without this setting, waiting threads spin, which slows down small products by a factor of 30
    # when other processes run.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import pytorch_optimizer  # type: ignore[import-not-found]
    import torch  # type: ignore[import-not-found]

    assert isinstance(model, Mlp)
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    if sys.platform == "linux":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    x = torch.tensor(np.array(batch[0]).reshape(len(batch[0]), -1), device=device)
    labels = torch.tensor(np.array(batch[1], np.int64), device=device)
    base, settings = {
        "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
        "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 1e-4}),
    }[optimizer]
    loss_fn = torch.nn.CrossEntropyLoss()

    def network() -> Any:
        layers, width = [], x.shape[1]
        for hidden in model.hidden:
            layers += [torch.nn.Linear(width, hidden), torch.nn.GELU(approximate="tanh")]
            width = hidden
        return torch.nn.Sequential(*layers, torch.nn.Linear(width, model.num_classes)).to(device)

    def contestant(name: str, gradients: float, net: Any, stepper: Any) -> Contestant:
        def closure() -> Any:
            net.zero_grad()
            loss = loss_fn(net(x), labels)
            loss.backward()
            return loss

        def run(steps: int) -> None:
            for _ in range(steps):
                closure()
                stepper.step(closure) if name == SAM else stepper.step()
            if on_gpu:
                torch.cuda.synchronize()

        return Contestant(name, gradients, run, {})

    plain, sharp = network(), network()
    rho = METHODS["sam"].hyperparameters["rho"]
    sam = pytorch_optimizer.SAM(sharp.parameters(), base, rho=rho, **settings)
    return [
        contestant(GRADIENT, 1, plain, base(plain.parameters(), **settings)),
        contestant(SAM, 2, sharp, sam),
    ]
