"""What the command lines of all benchmarks share: the parser, common options, errors, exit codes.

A command's `__main__.py` builds a `Parser`, adds the options that it shares with other commands by
the `add_...` functions and its own options by `add_argument`, and hands the work to `exit_code`:

    parser = Parser("toy", description="Draws the toy problem of the PACGen paper.")
    add_output(parser, default="results/toy")
    add_quick(parser, "a plane of 5 by 5 points")
"""

import argparse
import importlib.util
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

OPTIMIZERS = ("sgd", "adamw")
DTYPES = ("float32", "bfloat16")
INTERRUPTED = 130  # the conventional exit code after SIGINT: 128 + 2
METHODS_OF_STEPS = (
    "methods separated by commas, as for benchmarks.compare; a name without settings uses typical "
    "hyperparameters (default: all methods with more than one gradient per step)"
)
DATA_HELP = (
    "digits (bundled with scikit-learn, the default), mnist, fashion_mnist, cifar10, or PATH.npz "
    "with the arrays x_train, y_train, x_test, y_test; with --model transformer also text (the "
    "documentation of Python, in the standard library)"
)
DATA_DIR_HELP = (
    "folder that contains mnist.npz, fashion_mnist.npz, or cifar10/train_*.npz and test.npz; "
    "without it, scikit-learn downloads these data sets from OpenML"
)


class UsageError(Exception):
    """An error that the user can correct. It is printed as one paragraph, without a traceback."""


class _Paragraphs(argparse.HelpFormatter):
    """Wraps each paragraph of a description or epilog by itself; a blank line separates them."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            super(_Paragraphs, self)._fill_text(p, width, indent) for p in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UsageError`s.

    Args:
      command: the package in `benchmarks/`, for example `compare`. The help shows the program as
        `python -m benchmarks.compare`.
      description: the text at the head of the help; a blank line begins a new paragraph.
      epilog: the text at its end.
    """

    def __init__(self, command: str, description: str | None, epilog: str | None = None):
        super().__init__(
            prog=program(command),
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Paragraphs,
        )

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`."""
        raise UsageError(f"{message}. {self.prog} --help lists all options.")


def program(command: str) -> str:
    """Returns how a command is started: `python -m benchmarks.compare`."""
    return f"python -m benchmarks.{command}"


def command_line(command: str, argv: Sequence[str]) -> str:
    """Returns the command as it can be pasted into a shell."""
    return shlex.join([*program(command).split(), *argv])


def equivalent_command(
    command: str,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    always: Collection[str] = ("data",),
) -> str:
    """Returns the shortest command with these options.

    Args:
      command: the package in `benchmarks/`, for example `compare`.
      options: all options with their values.
      defaults: the defaults of these options. Options that have them are left out.
      always: the options that are never left out.
    """
    words = [
        flag(name) if value is True else f"{flag(name)}={value}"
        for name, value in options.items()
        if name in always or value != defaults[name]
    ]
    return command_line(command, words)


def flag(name: str) -> str:
    """Returns the flag of an option: `--train-size` for `train_size`."""
    return "--" + name.replace("_", "-")


def exit_code(command: Callable[[], int | None], interrupted: str = "Interrupted.") -> int:
    """Runs a command and returns its exit code.

    Args:
      command: the work to do.
      interrupted: what to print when the user interrupts the command.

    Returns:
      What `command` returns (0 if None), 2 after a `UsageError`, 130 after an interruption.
    """
    try:
        return command() or 0
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED


def resumable(
    work: Callable[[], Any], command: str, argv: Sequence[str], folder: pathlib.Path, kept: str
) -> int:
    """Does the work of a command that --resume continues, and returns its exit code.

    Args:
      work: writes what it has finished to the folder.
      command: the package in `benchmarks/`, for example `compare`.
      argv: the arguments of the command.
      folder: the folder of the results.
      kept: what the finished parts are, for example `runs`.

    Returns:
      0, or 130 after an interruption. Then it also prints the command that continues.
    """
    try:
        work()
    except KeyboardInterrupt:
        again = [word for word in argv if word != "--resume"]
        if not any(word == "--out" or word.startswith("--out=") for word in argv):
            again += ["--out", str(folder)]
        print(
            f"Interrupted. The finished {kept} are kept in {folder}. To continue, run\n"
            f"{command_line(command, [*again, '--resume'])}"
        )
        return INTERRUPTED
    return 0


def start(main: Callable[[], int]) -> NoReturn:
    """Runs the `main` of a command as a program, which Ctrl-C and `kill` interrupt.

    A shell starts background jobs with SIGINT ignored, and Python then leaves it so. SIGINT and
    SIGTERM are handled nevertheless, so that an interrupted command can say how to continue.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    code = main()
    if code == INTERRUPTED:
        # XLA's threads still run dispatched work and would crash during interpreter shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def add_data(parser: argparse.ArgumentParser, *, default: str = "digits") -> Any:
    """Adds --data, --data-dir and --train-size; returns their group, to which more can be added."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", default=default, help=DATA_HELP)
    group.add_argument("--data-dir", help=DATA_DIR_HELP)
    group.add_argument(
        "--train-size",
        type=int,
        help="number of training examples, drawn at random with the classes in proportion "
        "(default: all)",
    )
    return group


def add_evaluate_on(group: Any, default: str = "test", shown: str | None = None) -> None:
    """Adds --evaluate-on; `shown` describes the default where it depends on other options."""
    group.add_argument(
        "--evaluate-on",
        choices=("test", "validation"),
        default=default,
        help="the examples for evaluation. validation holds out a fifth of the training set and "
        "does not touch the test set; use it to choose hyperparameters "
        f"(default: {shown or default})",
    )


def add_model(
    group: Any, names: Sequence[str], *, settings: bool = True, filled_in: bool = False
) -> None:
    """Adds --model.

    Args:
      group: where the option is added.
      names: the networks, of which the first one is the default.
      settings: whether the command accepts `mlp:width=64`.
      filled_in: whether the command fills in the default, which then depends on the data.
    """
    if filled_in:
        text = (
            f"{', '.join(names)}; settings follow after colons, as in vit:width=48:depth=2:heads=2 "
            f"or mlp:dropout=0.5 (default: {names[0]}; transformer for text)"
        )
        group.add_argument("--model", help=text)
    elif settings:
        text = (
            f"{', '.join(names)}; settings follow after colons, as in vit:width=48:depth=2:heads=2 "
            f"or mlp:dropout=0.5 (default: {names[0]})"
        )
        group.add_argument("--model", default=names[0], help=text)
    else:
        text = f"the network (default: {names[0]})"
        group.add_argument("--model", choices=names, default=names[0], help=text)


def add_seeds(group: Any, default: str) -> None:
    """Adds --seeds, whose default the command fills in; `default` describes it."""
    group.add_argument(
        "--seeds",
        type=int,
        help=f"number of runs of each method, with the seeds 0, 1, … (default: {default})",
    )


def add_output(parser: argparse.ArgumentParser, *, default: str, resume: str | None = None) -> Any:
    """Adds --out and, if `resume` describes what it does, --resume; returns their group.

    Args:
      parser: the parser of the command.
      default: the folder that results go to without --out, for the help.
      resume: the help of --resume; None if the command cannot resume.
    """
    group = parser.add_argument_group("output")
    group.add_argument("--out", help=f"folder for the results (default: {default})")
    if resume is not None:
        group.add_argument("--resume", action="store_true", help=resume)
    return group


def add_quick(parser: argparse.ArgumentParser, size: str) -> None:
    """Adds --quick; `size` describes the small job that it selects."""
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a small job that only shows that the command works: {size}",
    )


def fill_in(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Sets the options that the user did not give, which are None."""
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def suited(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of a training: the given ones, and defaults that suit the data.

    Args:
      given: the options that the user gave; None stands for the default.
    """
    given = {name: value for name, value in given.items() if value is not None}
    data = given.get("data", "digits")
    text, digits = data == "text", data == "digits"
    return {
        "data": data,
        "label_noise": 0.0,
        "model": "transformer" if text else "mlp",
        "dtype": "float32",
        "augment": False,
        "optimizer": base_optimizer(data),
        "batch_size": 50 if digits else 32 if text else 100,
        "epochs": 40 if digits else 5 if text else 25,
        "seeds": 5,
        **given,
    }


def base_optimizer(data: str) -> str:
    """Returns the optimizer that suits a data set."""
    return "adamw" if data == "text" else "sgd"


def check_training(values: Mapping[str, Any], choices: Mapping[str, Sequence[str]]) -> None:
    """Raises `UsageError` if an option of a training is not one of its choices or needs a package.

    Args:
      values: all options, with `optimizer`, `dtype` and `augment`.
      choices: the choices of further options.
    """
    if values["augment"] and importlib.util.find_spec("dm_pix") is None:
        raise UsageError(
            "--augment needs dm-pix, which is not installed. Run pip install dm-pix, or leave out "
            "--augment."
        )
    for name, allowed in {"optimizer": OPTIMIZERS, "dtype": DTYPES, **choices}.items():
        if values[name] not in allowed:
            raise UsageError(
                f"{flag(name)} {values[name]} is unknown. Choose {', '.join(allowed)}."
            )


def check_at_least(values: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Raises `UsageError` if an option is below its least value; None means not given."""
    for name, bound in least.items():
        value = values[name]
        if value is not None and not value >= bound:
            raise UsageError(f"{flag(name)} {value} is out of range: it must be at least {bound}.")
