"""The journal of a frontier: one line per finished trial or test run, written as soon as it ends.

A process that is killed at any moment loses only what it was training. The last line may then be
incomplete; it is ignored and cut off when the command resumes. When all runs are finished, they go
to the files that `benchmarks.common.results` describes, and the journal stays empty.
"""

import json
import os
import pathlib

from benchmarks.common import results
from benchmarks.common.cli import UsageError
from benchmarks.frontier.records import Key, Record, key_of

FILE = "journal.jsonl"


def start(folder: pathlib.Path, fresh: results.Results, resume: bool) -> dict[Key, Record]:
    """Returns the finished records of a folder, and prepares it for more.

    Args:
      folder: the folder of the results.
      fresh: the results of a command that has not made any runs, with `configuration`, `dataset`,
        `measurement` and `training_code`.
      resume: whether to continue the results in the folder, if there are any.

    Raises:
      UsageError: if the folder has results and `resume` is False, or if they were made with another
        configuration, data set or measurement, or by other training code.
    """
    if not results.exist(folder):
        results.save(folder, fresh)
        return {}
    if not resume:
        raise UsageError(
            f"{folder} already has results. Add --resume to continue them, or name another folder "
            "with --out."
        )
    try:
        kept = results.read(folder)
        records = [*kept["runs"], *_lines(folder / FILE)]
        found = {key_of(record): record for record in records}
        differing = [
            f"{key} was {old.get(key)!r} and is now {value!r}"
            for old, new in ((kept[name], fresh[name]) for name in ("configuration", "dataset"))
            for key, value in new.items()
            if old.get(key) != value
        ]
        differing += [
            f"{name} differs"
            for name in ("measurement", "training_code")
            if kept[name] != fresh[name]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder} does not hold results of this command ({type(error).__name__}: {error}). "
            "Name another folder with --out."
        ) from error
    if differing:
        raise UsageError(
            f"Cannot resume {folder}: {'; '.join(differing)}. Use the settings and the code of the "
            f"command that made it ({kept.get('command')}), or name another folder with --out."
        )
    return found


def append(folder: pathlib.Path, record: Record) -> None:
    """Writes a record to the journal, and waits until it is on the disk."""
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def finish(folder: pathlib.Path, found: results.Results) -> None:
    """Writes the results with all runs to their files, and then removes the journal."""
    results.save(folder, found)
    (folder / FILE).unlink(missing_ok=True)


def _lines(file: pathlib.Path) -> list[Record]:
    """Returns the complete lines, and cuts off an incomplete one so that more can be appended."""
    if not file.exists():
        return []
    data = file.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if complete != data:
        with file.open("r+b") as opened:
            opened.truncate(len(complete))
    return [json.loads(line) for line in complete.splitlines()]
