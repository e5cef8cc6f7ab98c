"""The verdicts on the screen, and in Markdown for benchmarks/results."""

from typing import Any

from rich.console import Console

from benchmarks.claims.experiments import Setting
from benchmarks.common.summary import number

COLORS = {"reproduced": "green", "not reproduced": "red", "inconclusive": "yellow"}


def show(claims: dict[str, Any], console: Console) -> None:
    """Prints each claim with its effects."""
    console.rule("effects above zero are as claimed: mean [95% interval]")
    for claim in claims.values():
        verdict = f"[{COLORS[claim['verdict']]}]{claim['verdict']}[/]"
        console.print(f"{verdict}: {claim['statement']} ({claim['source']})", highlight=False)
        for effect in claim["effects"]:
            mean, low, high = _written(effect)
            size = f"{mean} [{low}, {high}]"
            line = f"    {effect['what']}: {size}, {effect['seeds']} seeds"
            console.print(line, highlight=False, markup=False)


def markdown(claims: dict[str, Any], setting: Setting) -> str:
    """The table, under the commands that made it."""
    counts = [claim["verdict"] for claim in claims.values()]
    summary = ", ".join(f"{counts.count(v)} {v}" for v in COLORS if v in counts)
    commands = dict.fromkeys(claim["command"] for claim in claims.values())
    lines = [
        f"# Claims on {setting.data}, {setting.model}",
        "",
        *(f"    {command}" for command in commands),
        "",
        f"{summary}. An effect above zero is as claimed; mean and 95% t-interval over the seeds, "
        "which are paired. A claim is reproduced if all of its intervals lie above zero, not "
        "reproduced if one lies below, else inconclusive. Accuracies are those of the test set, "
        "hyperparameters were chosen on the validation split. Seeds are those with a finite value: "
        "a run that diverged has none, and no ratio to a λ_max that float32 rounds to zero.",
        "",
        "| claim | effect | mean | 95% interval | seeds | verdict |",
        "|---|---|---:|---:|---:|---|",
    ]
    for claim in claims.values():
        first = f"{claim['statement']} ({claim['source']})", f"**{claim['verdict']}**"
        for effect in claim["effects"]:
            mean, low, high = _written(effect)
            what = effect["what"].replace("|", "\\|")
            cells = (first[0], what, mean, f"{low} to {high}", str(effect["seeds"]), first[1])
            lines.append(f"| {' | '.join(cells)} |")
            first = "", ""
    return "\n".join([*lines, ""])


def _written(effect: dict[str, Any]) -> list[str]:
    """Mean and interval, which a single seed has not: NaN, or None out of a file."""
    return [f"{number(effect[name]):.3g}" for name in ("mean", "low", "high")]
