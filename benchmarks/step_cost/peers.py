"""The same MLP on the same batch in PyTorch: a gradient step, and SAM by pytorch_optimizer."""

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
from benchmarks.common.models.build import Mlp
from benchmarks.step_cost.measuring import Batch, Contestant

PACKAGES = ("torch", "pytorch_optimizer")
GRADIENT, SAM = "PyTorch, one gradient", "PyTorch, pytorch_optimizer's SAM"


def check_installed() -> None:
    """Says before any work what is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--peers needs {' and '.join(missing)}, not installed here: pip install "
            f"{' '.join(PACKAGES)}, or leave --peers out."
        )


def versions() -> dict[str, str]:
    """Of what is installed."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def contestants(model: nn.Module, batch: Batch, optimizer: str) -> list[Contestant]:
    """PyTorch's steps, eager as its users run them, on the device and the threads that XLA has."""
    # Beside other work, threads that spin while they wait slow small products down 30-fold.
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
