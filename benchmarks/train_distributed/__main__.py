r"""Trains one method on any number of devices and processes, with one program for all of them.

    one CPU         python -m benchmarks.train_distributed --method sam:rho=0.1
    8 host devices  JAX_NUM_CPU_DEVICES=8 python -m benchmarks.train_distributed --sharding fsdp
    processes       on one machine, one command per process, with I = 0 and I = 1:
                    python -m benchmarks.train_distributed --coordinator 127.0.0.1:9876 \
                        --processes 2 --process-id I
    GPUs            the first command, on all GPUs of the machine, after pip install 'jax[cuda13]';
                    with CUDA_VISIBLE_DEVICES=0 on one GPU
    TPU slice       the first command on all hosts at the same time; JAX finds the other hosts:
                    gcloud compute tpus tpu-vm ssh NAME --worker=all \
                        --command='cd flatreg && python -m benchmarks.train_distributed'
    Slurm           srun --ntasks-per-node=1 python -m benchmarks.train_distributed
    other clusters  as for processes, with HOST:PORT of process 0 as --coordinator

With --checkpoint DIR, a folder that all processes can access, the run saves its state during
training. After a crash, the same command resumes from the newest checkpoint, also on another number
of devices or processes.
"""

import argparse
from collections.abc import Sequence

from benchmarks.common import cli
from benchmarks.train_distributed.devices import connect, make_mesh
from benchmarks.train_distributed.options import DistributedOptions, complete
from benchmarks.train_distributed.run import run

STEPS, QUICK_STEPS = 300, 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a usage error, 130 if interrupted."""

    def command() -> None:
        options = parse(argv)
        connect(options.coordinator, options.processes, options.process_id)
        run(options, make_mesh(options.axes))

    return cli.exit_code(
        command, "Interrupted. With --checkpoint, the same command resumes the run."
    )


def parse(argv: Sequence[str] | None) -> DistributedOptions:
    """Returns the options of a command line, after the checks that need no devices."""
    args = _parser().parse_args(argv)
    if args.steps is None:
        args.steps = QUICK_STEPS if args.quick else STEPS
    return complete(**{name: getattr(args, name) for name in DistributedOptions._fields})


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser("train_distributed", description=__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    training = parser.add_argument_group("training")
    training.add_argument(
        "--method",
        default="sam:rho=0.1",
        help="one method, as for benchmarks.compare: for example sam:rho=0.2:every=5, or sgd for "
        "plain gradients (default: sam:rho=0.1)",
    )
    training.add_argument(
        "--model", choices=("mlp", "cnn"), default="mlp", help="the network (default: mlp)"
    )
    training.add_argument("--data", default="digits", help=cli.DATA_HELP)
    training.add_argument("--data-dir", help=cli.DATA_DIR_HELP)
    training.add_argument(
        "--optimizer", choices=cli.OPTIMIZERS, default="sgd", help="base optimizer (default: sgd)"
    )
    training.add_argument(
        "--learning-rate",
        type=float,
        help="start of the cosine schedule (default: 0.05 for sgd, 0.001 for adamw)",
    )
    training.add_argument("--steps", type=int, help=f"training steps (default: {STEPS})")
    training.add_argument(
        "--batch-size",
        type=int,
        default=64,
        help="examples per step, on all devices together (default: 64)",
    )
    training.add_argument(
        "--seed", type=int, default=0, help="seed of parameters and batches (default: 0)"
    )
    devices = parser.add_argument_group("devices")
    devices.add_argument(
        "--sharding",
        choices=("data", "fsdp"),
        default="data",
        help="data shards the batch only; fsdp also shards each parameter and its optimizer state "
        "along the largest axis that the number of devices divides (default: data)",
    )
    devices.add_argument(
        "--axes",
        choices=("auto", "explicit"),
        default="auto",
        help="type of the mesh axis: with auto, XLA chooses the shardings; with explicit, they "
        "are part of JAX's types (default: auto)",
    )
    devices.add_argument(
        "--microbatches",
        type=int,
        default=1,
        help="number of parts of the batch that are processed one after another (default: 1)",
    )
    devices.add_argument(
        "--shards",
        type=int,
        default=1,
        help="m-sharpness: the number of parts of the batch that are each perturbed by their own "
        "gradient; a multiple of the number of devices (default: 1)",
    )
    devices.add_argument("--coordinator", help="HOST:PORT of process 0")
    devices.add_argument("--processes", type=int, help="number of processes")
    devices.add_argument("--process-id", type=int, help="number of this process, from 0")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--checkpoint", help="folder for checkpoints; the run resumes from the newest one in it"
    )
    output.add_argument(
        "--save-every", type=int, default=100, help="steps between checkpoints (default: 100)"
    )
    output.add_argument(
        "--out", metavar="FILE.npz", help="file for the final parameters and the losses"
    )
    cli.add_quick(parser, f"{QUICK_STEPS} steps")
    return parser


if __name__ == "__main__":
    cli.start(main)
