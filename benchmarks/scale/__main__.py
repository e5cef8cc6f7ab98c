"""Will it fit? Compiles training steps for many chips, without running them and without the chips.

    python -m benchmarks.scale
    python -m benchmarks.scale --quick
    python -m benchmarks.scale --networks transformer-7b --devices v5e:16x16 --layouts fsdp
    python -m benchmarks.scale --config sizes.toml --networks mine --devices v5e:4x8

XLA compiles the whole training step, with the method, AdamW and flatreg's check for steps that are
not finite, for CPU devices of this machine or for a slice of a TPU. For a TPU it uses the TPU's own
compiler, which runs on any machine with Linux and an x86 processor. The compiled program says how
much memory a chip needs and what the chips communicate.

The networks compute in bfloat16 and have float32 parameters. The transformers are one loop over
their layers, and compute activations inside a layer again in the backward pass.

Where the goal for memory is missed, these are the causes:

1. transformer-7b on v5e:16x16: the temporary arrays that exist at the same time are only 0.2 shards
   more than those of AdamW (columns "alive" of the table). The rest is gaps between the places of
   the arrays, which XLA's dumps show: 0.11 GB with AdamW and 0.32 GB with SAM, where a shard has
   0.105 GB. The compiler makes the gaps, and they do not follow the method: with 4 layers instead
   of 32, they are 0.26 GB with AdamW and 0.05 GB with SAM. What the compiler reports as temporary
   memory is larger than arrays and gaps together, by 0.74 GB with AdamW and 0.97 GB with SAM.
2. transformer-0.1b on cpu:8: arrays that do not depend on the parameters are the same in both
   passes. The compiler for CPUs computes them once and keeps them until the second pass, also at
   the peak of the first one: a scattered array of the size of the float32 logits, which the labels
   decide (1.07 GB), the constant and the mask of the causal attention (0.67 GB and 0.17 GB), and
   zeros. They are 40 of the 42 shards. The activations of the first pass are not kept.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import cli, results
from benchmarks.scale.layout import LAYOUTS
from benchmarks.scale.networks import EXAMPLE, NETWORKS, QUICK, read
from benchmarks.scale.run import ScaleOptions, run

METHODS = (
    "adamw",
    "sam",
    "penalized_gradient",
    "gam_accelerated",
    "gam:rho=0.1:alpha=1",
    "gradient_regularization:mu=0.05",
    "sam:rho=0.05:ascent_fraction=0.25",
    "revisit",
)
FULL: dict[str, Any] = {
    "devices": "cpu:8,v5e:2x2,v5e:4x4,v5e:16x16",
    "layouts": ",".join(LAYOUTS),
    "methods": ",".join(METHODS),
}
SMALL: dict[str, Any] = {
    "devices": "cpu:8",
    "layouts": "fsdp",
    "methods": "adamw,sam",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a usage error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv

    def command() -> int:
        args = _parse(argv)
        folder = results.folder(args.out, "scale", args.resume)
        line = cli.command_line("scale", argv)
        return cli.resumable(
            lambda: run(_options(args), folder, resume=args.resume, command=line),
            "scale",
            argv,
            folder,
            "programs",
        )

    return cli.exit_code(command)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        "scale",
        description=(__doc__ or "").split("\n")[0],
        epilog=f"A configuration file:\n\n{EXAMPLE}",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--networks",
        help=f"names from {', '.join(NETWORKS)}, or from --config, separated by commas "
        "(default: all, or those of --config)",
    )
    parser.add_argument(
        "--config", help="file in TOML with the sizes of your networks; see the end of this help"
    )
    parser.add_argument(
        "--devices",
        help="cpu:8 for eight CPU devices of this machine, or topologies of TPU slices, which need "
        f"the extra flatreg[tpu-compiler] (default: {FULL['devices']})",
    )
    parser.add_argument(
        "--layouts",
        help="data (every chip has all parameters), fsdp (every chip has a part of each "
        "parameter) or both (default: both)",
    )
    parser.add_argument(
        "--methods",
        help="methods separated by commas, as for benchmarks.compare, and revisit; adamw is the "
        f"plain step (default: {FULL['methods']})",
    )
    cli.add_output(
        parser,
        default="a new one, such as results/scale-2",
        resume="compile only what the newest results, or those in --out, do not have yet",
    )
    cli.add_quick(parser, "SAM for a tiny transformer, on eight CPU devices")
    args = parser.parse_args(argv)
    cli.fill_in(args, SMALL if args.quick else FULL)
    return args


def _options(args: argparse.Namespace) -> ScaleOptions:
    own = read(args.config) if args.config else {}
    known = NETWORKS | QUICK | own
    default = list(own) or list(QUICK if args.quick else NETWORKS)
    chosen = args.networks.split(",") if args.networks else default
    for name, values, allowed in (
        ("networks", chosen, known),
        ("layouts", args.layouts.split(","), LAYOUTS),
    ):
        for one in values:
            if one not in allowed:
                raise cli.UsageError(
                    f"--{name} cannot take {one!r}: give names from {', '.join(allowed)}, "
                    "separated by commas."
                )
    return ScaleOptions(
        networks={name: known[name] for name in chosen},
        devices=args.devices.split(","),
        layouts=args.layouts.split(","),
        methods=args.methods.split(","),
    )


if __name__ == "__main__":
    cli.start(main)
