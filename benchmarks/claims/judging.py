"""Judges claims: effects from runs, and verdicts that are corrected together over a page.

A record is the content of claims.json:

    setting   what the claims were tested on
    seeds     the number of seeds of each claim, which is fixed before its first run
    page      the names of the folders whose claims are judged together, beside each other
    claims    statement, source, caveat, verdict, p-value, effects and folders of each claim
    checks    the same of the statements that hold by construction, without a verdict
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.claims.claim import Checked, Claim
from benchmarks.claims.experiments import (
    Experiments,
    MissingRunsError,
    Setting,
    recorded_comparison,
    recorded_lipschitz,
)
from benchmarks.claims.verdict import NAMES, Effect, question
from benchmarks.common import results
from benchmarks.common.cli import UsageError
from benchmarks.common.statistics import questions
from benchmarks.common.statistics.estimates import number

FILE = "claims.json"
NUMBERS = ("mean", "low", "high", "p_for", "p_against")
Record = dict[str, Any]
Statements = Mapping[str, Claim | Checked]


def folders(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns `path` if it has a claims.json, and otherwise the folders in it that have one.

    Raises:
      UsageError: if there is not any.
    """
    if (path / FILE).exists():
        return [path]
    found = sorted(file.parent for file in path.glob(f"*/{FILE}"))
    if not found:
        raise UsageError(
            f"{path} does not contain {FILE}, and neither does a folder in it. Name a folder that "
            "python -m benchmarks.claims wrote, or the folder that holds several of them."
        )
    return found


def judge(path: pathlib.Path, statements: Statements) -> dict[pathlib.Path, Record]:
    """Judges claims again by the runs that are in one or several folders, without training.

    If `path` is the folder that holds several folders with claims, all of them form one page, over
    which the verdicts are corrected together. If it is one of them, the page is the one that it was
    judged with before; the others of that page are read as they are.

    Args:
      path: a folder with claims.json, or the folder that holds such folders.
      statements: the claims and checks to judge again, by name.

    Returns:
      The record of each folder. Nothing is written.

    Raises:
      UsageError: if a folder lacks claims.json or a run that a claim needs.
    """
    found = folders(path)
    records = {folder: read(folder) for folder in found}
    read_once = functools.cache(results.read)  # several claims share their runs
    for folder, record in records.items():
        for name in [one for one in statements if one in record["seeds"]]:
            experiments = Experiments(
                folder,
                Setting(**record["setting"]),
                record["seeds"][name],
                functools.partial(recorded_comparison, read=read_once),
                functools.partial(recorded_lipschitz, read=read_once),
            )
            try:
                add(record, name, statements[name], experiments)
            except MissingRunsError:
                if name in {**record["claims"], **record["checks"]}:
                    raise
                # The command was interrupted before this claim had all of its runs.
        if found != [path]:
            record["page"] = [one.name for one in found]
    for folder, record in records.items():
        decide(folder, record, records)
    return records


def add(
    record: Record,
    name: str,
    statement: Claim | Checked,
    experiments: Experiments,
    command: str | None = None,
) -> None:
    """Adds the effects of a claim, or what a check found, to a record.

    Args:
      record: the content of claims.json.
      name: the name of the claim or check.
      statement: the claim or check.
      experiments: makes or reads the runs.
      command: the command that made the runs; None for the one that is recorded.
    """
    claims, checks = record["claims"], record["checks"]
    kept = {**claims, **checks}.get(name, {})
    if isinstance(statement, Claim):
        found = [one._asdict() for one in statement.effects(experiments)]
        section, key = claims, "effects"
    else:
        found = [one._asdict() for one in statement.checks(experiments)]
        section, key = checks, "checks"
    for one in (claims, checks):
        one.pop(name, None)
    section[name] = {
        "statement": statement.statement,
        "source": statement.source,
        **({"caveat": statement.caveat} if isinstance(statement, Claim) else {}),
        key: found,
        "folders": experiments.folders,
        "seeds": record["seeds"][name],
        "command": command or kept.get("command") or _any_command(record),
    }


def _any_command(record: Record) -> str:
    """The command that is recorded for some other claim."""
    found = [*record["claims"].values(), *record["checks"].values()]
    return next((str(one["command"]) for one in found), "")


def decide(
    folder: pathlib.Path, record: Record, known: Mapping[pathlib.Path, Record] | None = None
) -> None:
    """Adds the verdicts to a record, corrected together with all others of its page.

    Args:
      folder: the folder of the record.
      record: the content of its claims.json.
      known: records of other folders; those that are missing are read.

    Raises:
      UsageError: if a folder of the page is missing.
    """
    folder = folder.resolve()  # whose name and neighbors are known
    records = {one.resolve(): page for one, page in (known or {}).items()} | {folder: record}
    asked = []
    for name in record["page"]:
        other = folder.parent / name
        page = records[other] if other in records else read(other)
        asked += [(name, claim, _question(page, claim)) for claim in page["claims"]]
    found = questions.verdicts([one for _, _, one in asked])
    for (name, claim, _), verdict in zip(asked, found, strict=True):
        if name == folder.name:
            record["claims"][claim] |= {
                "verdict": NAMES[verdict.verdict],
                "p": verdict.p,
                "reason": verdict.reason,
            }
    record["corrected_over"] = sum(math.isfinite(one.p) for one in found)


def _question(record: Record, name: str) -> questions.Question:
    effects = [
        Effect(**one | {key: number(one[key]) for key in NUMBERS})
        for one in record["claims"][name]["effects"]
    ]
    return question(effects, record["setting"]["quick"])


def read(folder: pathlib.Path) -> Record:
    """Returns the record of a folder.

    Raises:
      UsageError: if the folder does not contain a claims.json that can be read.
    """
    try:
        record: Record = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Cannot read {folder / FILE} ({error}). Name a folder that python -m "
            "benchmarks.claims wrote."
        ) from error
    # Older results lack what follows.
    seeds = {name: claim["seeds"] for name, claim in record["claims"].items()}
    if "checks" not in record and (part := record["claims"].get("partial_penalty")):
        seeds["ends_of_the_penalty"] = part["seeds"]  # which was a part of this claim
    return {"seeds": seeds, "page": [folder.resolve().name], "checks": {}} | record


def save(folder: pathlib.Path, record: Record, order: Sequence[str]) -> None:
    """Writes the record of a folder, with its claims and checks in an order."""
    for section in ("claims", "checks"):
        record[section] = {name: record[section][name] for name in order if name in record[section]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results.write_json(folder / FILE, record)
    except OSError as error:
        raise UsageError(
            f"Cannot write to {folder} ({error}). Name a folder for the results with --out."
        ) from error
