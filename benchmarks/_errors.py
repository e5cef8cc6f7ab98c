"""The one exception by which every module of the benchmarks speaks to the user."""


class UsageError(Exception):
    """Something that the user can mend: printed as one paragraph, exit code 2, no traceback."""
