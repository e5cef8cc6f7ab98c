"""A strict pyright accepts correct calls of the library and flags wrong ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import flatreg

REPOSITORY = Path(flatreg.__file__).parent.parent

pytestmark = pytest.mark.slow

CORRECT = """
import jax
import jax.numpy as jnp
import optax
import flatreg
from flatreg import measures
from flatreg.typing import GradFn, Grads, Method, Params, Scalar


def my_method(rho: float = 0.1) -> Method:
    def direction(grad_fn: GradFn, params: Params, g: Grads, *, rho: Scalar) -> Grads:
        return grad_fn(optax.tree.add_scale(params, rho, g))

    return flatreg.from_direction(direction, rho=rho)


def loss_fn(params: Params) -> jax.Array:
    return jnp.sum(params**2)


def grad_fn(params: Params) -> Grads:
    return jax.grad(loss_fn)(params)


key = jax.random.key(0)
kernels = flatreg.on(lambda path: "kernel" in path)
methods = [
    flatreg.sam(0.05, scale=kernels),
    flatreg.sam(optax.linear_schedule(0.0, 0.1, 100)),
    flatreg.asam(jnp.asarray(0.5)),
    flatreg.gam(hvp=flatreg.forward_hvp, ascent_hvp=flatreg.finite_difference_hvp(0.01)),
    flatreg.perturbed_gradient(key, distribution="normal"),
    flatreg.perturbed_gradient(key, distribution=jax.random.rademacher),
    flatreg.every(my_method(), 2),
]
tx = optax.chain(flatreg.combine(*methods), optax.sgd(0.1))
oracle: GradFn = grad_fn
pairs = measures.top_eigenpairs(loss_fn, jnp.ones(3), key, which="LM")
"""
WRONG = {
    "a name for a radius": 'flatreg.sam("big")',
    "an unknown eigenvalue option": 'measures.top_eigenpairs(loss_fn, 1.0, key, which="XX")',
    "an unknown distribution": 'flatreg.perturbed_gradient(key, distribution="gaussian")',
    "a scale that is a number": "flatreg.sam(scale=0.5)",
    "a predicate that is a string": 'flatreg.on("kernel")',
    "an hvp without its length": "flatreg.gam(hvp=flatreg.finite_difference_hvp)",
    "a method that was not called": "flatreg.every(flatreg.sam, 2)",
    "a misspelled argument": "flatreg.sam(roh=0.1)",
    "an oracle that takes a step": "oracle = lambda params, step: params",
}


def pyright(folder):
    """The errors of a strict pyright: a dictionary from line numbers to messages.

    Some types of JAX are partially unknown, and Optax comes without stubs, so these errors are
    ignored.
    """
    pytest.importorskip("pyright")
    version = [sys.executable, "-m", "pyright", "--version"]  # The first call downloads pyright.
    if subprocess.run(version, capture_output=True, check=False).returncode:
        pytest.skip("pyright cannot be downloaded here")
    settings = {"strict": ["user.py"], "extraPaths": [str(REPOSITORY)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(folder)]
    command += ["--pythonpath", sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    errors = {}
    for found in json.loads(run.stdout)["generalDiagnostics"]:
        rule = found.get("rule", "")
        if "Unknown" not in rule and rule != "reportMissingTypeStubs":
            errors[found["range"]["start"]["line"] + 1] = found["message"]
    return errors


def test_pyright_flags_wrong_calls_and_accepts_correct_ones(tmp_path):
    (tmp_path / "user.py").write_text(CORRECT + "\n".join(WRONG.values()) + "\n")
    first = CORRECT.count("\n") + 1
    errors = pyright(tmp_path)
    assert {line: text for line, text in errors.items() if line < first} == {}
    assert [what for line, what in enumerate(WRONG, first) if line not in errors] == []
