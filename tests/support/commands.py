"""Runs a command of benchmarks/ in the test's own process, and looks at what it wrote."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common import results

Main = Callable[[Sequence[str]], int]


def run(main: Main, arguments: Sequence[str], out: pathlib.Path) -> dict[str, Any]:
    """Runs a command that must succeed, and returns the results that it wrote to `out`."""
    assert main([*arguments, f"--out={out}"]) == 0
    return results.read(out)


def usage_error(main: Main, arguments: Sequence[str], capsys: Any) -> str:
    """Runs a command that must fail with a usage error, and returns its message.

    A usage error is one paragraph on standard error, and exit code 2.
    """
    capsys.readouterr()
    assert main(list(arguments)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1, f"not one paragraph: {message}"
    return message


def is_png(path: pathlib.Path) -> bool:
    """Whether a file is a PNG picture."""
    return path.read_bytes().startswith(b"\x89PNG")
