"""Measures what a training step of each method costs: operations, memory, compilation and time.

    python -m benchmarks.step_cost
    python -m benchmarks.step_cost --quick
    python -m benchmarks.step_cost --models mlp,vit --methods sam,sam:rho=0.1:every=5 --peers
    python -m benchmarks.step_cost --alternatives

The networks have the sizes of benchmarks.compare and see random images of 32×32×3. XLA reports the
number of operations and the temporary memory of the compiled step. It counts the body of a loop
once and all branches of a condition. The steps take turns in one process. Each ratio compares steps
that are adjacent in time, and is reported as a median with its 95% interval.

Each step is compared with a gradient step that is written by hand without flatreg, with the floor
of the method (the time of that step times the method's number of gradients), and with
`optax.contrib.sam`. flatreg's SAM is also measured without its test for NaN and infinity, and
Optax's with one, `optax.apply_if_finite`. With `--peers`, the steps are also compared with PyTorch
and the SAM of pytorch_optimizer. The goals for time, memory and compilation are in
`benchmarks/step_cost/goals.py`.

Where a goal is missed, these are the causes:

1. A step of flatreg checks whether it is finite, and keeps the old state until it knows. Compared
   with a step by hand it therefore reads the updates and writes the new state once more. If the
   gradient has few operations per weight, as for the MLP with a batch of 128, this adds a tenth of
   a gradient per step. The longer a gradient takes, the less it adds.
2. In the meantime, the two new moments of AdamW occupy temporary memory: two copies of the
   parameters.
3. The sums and norms of the four gradients of gam_accelerated also read and write memory.
4. On a CPU, convolutions in a `lax.cond`, a loop or a `vmap` over kernels are computed as products
   of patches (`benchmarks/common/models/convolution.py`), because XLA's own convolution takes 40
   times as long there. An exact Hessian-vector product keeps the patches.
5. penalized_gradient mixes the clean gradient with the second one and therefore keeps it during the
   second pass: one copy of the parameters more than SAM.
6. XLA compiles kernels. In the plain step of the ViT, the test needs the updates, and a choice
   between old and new state, in kernels of their own. The step has 1.2 times the kernels of the
   step by hand, and takes 1.2 times as long to compile. SAM has as many kernels as Optax's SAM,
   which tests nothing, and takes 1.1 to 1.3 times as long; accelerated GAM, which has four
   gradients, has 2.1 times the kernels of SAM.

With `--alternatives`, the command compares parts of flatreg with functions of JAX and Optax that
could replace them, and prints one table: its microbatches with `optax.microbatch`, its statistics
of per-example gradients with `optax.microbatching.micro_grad`, the dense `jnp.linalg.eigh` of the
matrix of a Lanczos iteration with `jax.scipy.linalg.eigh_tridiagonal`, and the convolutions of the
benchmarks with XLA's. The docstrings of `flatreg/_core/batches.py`, `flatreg/_core/krylov.py`,
`flatreg/measures/implicit_regularization/gradient_noise.py` and
`benchmarks/common/models/convolution.py` say what follows from it.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import cli, results
from benchmarks.common.methods import METHODS
from benchmarks.common.models.build import NAMES
from benchmarks.step_cost.alternatives.pairs import LARGE, SMALL
from benchmarks.step_cost.alternatives.table import compare
from benchmarks.step_cost.contestants import OPTIMIZERS
from benchmarks.step_cost.run import StepCostOptions, run

QUICK = {
    "models": "mlp",
    "methods": "sam,gradient_norm_penalty",
    "optimizers": "sgd",
    "batch_size": 8,
    "rounds": 3,
}
FULL: dict[str, Any] = {
    "models": ",".join(NAMES),
    "methods": ",".join(name for name, entry in METHODS.items() if entry.gradients > 1),
    "optimizers": ",".join(OPTIMIZERS),
    "batch_size": 128,
    "rounds": 20,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv

    def command() -> None:
        args = _parse(argv)
        if args.alternatives:
            compare(SMALL if args.quick else LARGE)
            return
        options = StepCostOptions(
            models=args.models.split(","),
            methods=args.methods.split(","),
            optimizers=args.optimizers.split(","),
            batch_size=args.batch_size,
            rounds=args.rounds,
            peers=args.peers,
            quick=args.quick,
        )
        folder = results.folder(args.out, "step_cost", resume=False)
        run(options, folder, command=cli.command_line("step_cost", argv))

    return cli.exit_code(command)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser("step_cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", help=f"networks from {FULL['models']} (default: all)")
    parser.add_argument(
        "--methods",
        help=cli.METHODS_OF_STEPS,
    )
    parser.add_argument("--optimizers", help=f"optimizers from {FULL['optimizers']} (default: all)")
    parser.add_argument(
        "--batch-size", type=int, help=f"examples per step (default: {FULL['batch_size']})"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"how often each step is timed; intervals need 6 (default: {FULL['rounds']})",
    )
    parser.add_argument(
        "--peers", action="store_true", help="also measure PyTorch and pytorch_optimizer, for mlp"
    )
    parser.add_argument(
        "--alternatives",
        action="store_true",
        help="instead compare functions of JAX and Optax with parts of flatreg, and print a table",
    )
    cli.add_output(parser, default="a new one, such as results/step_cost-2")
    cli.add_quick(
        parser,
        "a small MLP on a batch of 8 images of 8×8×3, SGD and two methods, compiled without "
        "optimization",
    )
    args = parser.parse_args(argv)
    cli.fill_in(args, QUICK if args.quick else FULL)
    for name, known in (("models", NAMES), ("optimizers", tuple(OPTIMIZERS))):
        for one in getattr(args, name).split(","):
            if one not in known:
                raise cli.UsageError(
                    f"--{name} cannot take {one!r}: give names from {', '.join(known)}, separated "
                    "by commas."
                )
    cli.check_at_least(vars(args), {"batch_size": 1, "rounds": 1})
    return args


if __name__ == "__main__":
    cli.start(main)
