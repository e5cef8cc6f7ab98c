"""How every command of the benchmarks speaks to the user when something is amiss."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130  # the exit code by convention, 128 + SIGINT


class UsageError(Exception):
    """Something that the user can mend: printed as one paragraph, exit code 2, no traceback."""


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}. {self.prog} --help lists every option.")


def exit_code(command: Callable[[], int | None], interrupted: str = "Interrupted.") -> int:
    """Runs a command; returns its code or 0, 2 after a mistake of usage, 130 when interrupted."""
    try:
        return command() or 0
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
