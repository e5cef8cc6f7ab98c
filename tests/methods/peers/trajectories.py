"""Trains with pytorch_optimizer's GSAM, Friendly SAM and LookSAM, and writes ``trajectories.json``.

The tests compare flatreg with the numbers in this file, so that they need no PyTorch. The package
computes the norm that it divides by in float32, whatever the dtype of the parameters. The file has
the trajectories of the package as it is, and those with this norm in float64. To make the file
again::

    pip install numpy torch==2.13.0 pytorch_optimizer==4.1.0
    python tests/methods/peers/trajectories.py
"""

import importlib.metadata
import json
import math
import pathlib
from unittest import mock

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".json")
PACKAGES = "torch", "pytorch_optimizer"
STEPS, FEATURES = 20, 5
RHO, RHO_MIN, ALPHA, PERIOD, SIGMA = 0.3, 0.1, 0.4, 4, 0.5
RATES = {"momentum": 0.1, "adamw": 0.05}
METHODS = "gsam", "friendly_sam", "looksam"
CASES = [
    *((method, base, "two_tensors") for method in METHODS for base in RATES),
    *(("looksam", base, "one_tensor") for base in RATES),
]


def problem():
    """Batches of a logistic regression: inputs, labels of 1 and −1, and the first parameters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, 8, FEATURES))
    y = np.sign(x.sum(-1) + 2 * rng.normal(size=(STEPS, 8)))
    return x, y, rng.normal(size=FEATURES + 1)


def share(step):
    """The learning rate of a step relative to that of the first."""
    return (1 + math.cos(math.pi * step / STEPS)) / 2


def squared_norm(param_groups, **options):
    """The sum of squares of all gradients, in their dtype, in place of the package's function."""
    grads = [p.grad for group in param_groups for p in group["params"]]
    return sum((grad**2).sum() for grad in grads).reshape(1)


def train(method, base, tensors):
    """The parameters (weights, bias) after each step, of shape (steps, parameters), in float64."""
    import pytorch_optimizer
    import torch

    x, y, start = (torch.tensor(one) for one in problem())
    parts = [start] if tensors == "one_tensor" else [start[:FEATURES], start[FEATURES:]]
    params = [torch.nn.Parameter(part.clone()) for part in parts]
    kind, options = {
        "momentum": (torch.optim.SGD, {"lr": RATES["momentum"], "momentum": 0.9}),
        "adamw": (torch.optim.AdamW, {"lr": RATES["adamw"], "weight_decay": 0.1}),
    }[base]
    scheduler = None
    if method == "gsam":
        inner = kind(params, **options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(inner, share)
        proportion = pytorch_optimizer.ProportionScheduler(
            scheduler, max_lr=RATES[base], max_value=RHO, min_value=RHO_MIN
        )
        model = torch.nn.ParameterList(params)
        optimizer = pytorch_optimizer.GSAM(params, inner, model, proportion, alpha=ALPHA)
    elif method == "friendly_sam":
        optimizer = pytorch_optimizer.FriendlySAM(params, kind, rho=RHO, sigma=SIGMA, **options)
    else:
        optimizer = pytorch_optimizer.LookSAM(params, kind, rho=RHO, k=PERIOD, **options)

    points = []
    for batch, labels in zip(x, y, strict=True):

        @torch.enable_grad()
        def closure(batch=batch, labels=labels):
            optimizer.zero_grad()
            w = torch.cat(list(params))
            scores = batch @ w[:FEATURES] + w[FEATURES]
            loss = torch.nn.functional.softplus(-labels * scores).mean()
            loss.backward()
            return scores, loss

        if method != "gsam":
            closure()
        optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()
            optimizer.update_rho_t()
        points.append(torch.cat(list(params)).tolist())
    return points


def main():
    found = {"versions": {name: importlib.metadata.version(name) for name in PACKAGES}}
    found["as_it_is"] = {"-".join(case): train(*case) for case in CASES}
    with mock.patch("pytorch_optimizer.optimizer.sam.get_global_gradient_norm", squared_norm):
        found["float64_norm"] = {"-".join(case): train(*case) for case in CASES}
    FILE.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
