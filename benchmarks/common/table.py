"""One table for the terminal and for Markdown, written from the same cells.

table = Table(
title="Accuracy",
headings=("method", "accuracy, %"),
rows=[(Cell("sgd"), Cell("97.2")), (Cell("sam:rho=0.3"), Cell("98.1", best=True))],
caption="{best} marks the best mean.",
)
table.print(Console())
table.write(pathlib.Path("results"), "python -m benchmarks.mine")
"""

import pathlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import rich.table
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

MARK = {"terminal": "*", "markdown": "bold"}  # what `{best}` in a caption becomes
GAP = 2  # the space between columns, of which the box takes one


class Cell(NamedTuple):
    """The text of a cell.

    Attributes:
      text: what it says.
      best: whether it is one of the best in its column: bold, and starred in the terminal.
      style: a style of rich such as `green`, for the terminal only. A cell with a style is bold in
        Markdown.
    """

    text: str
    best: bool = False
    style: str = ""


@dataclass(frozen=True)
class Table:
    r"""A table with a title and a caption.

    Attributes:
      title: a line above the table; empty for none.
      headings: one heading per column; `\n` breaks the line in the terminal.
      rows: the cells of each row; a plain string is a cell without emphasis.
      caption: what the numbers mean, below the table; empty for none. Several lines become a list
        in Markdown. `{best}` becomes how the best values are marked: `*` in the terminal, `bold` in
        Markdown.
      align: one letter per column, `l` or `r`; by default the first column is aligned left and the
        others right. Columns that are aligned right break a cell only where it is wider than the
        console.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    align: str = ""

    def print(self, console: Console) -> None:
        """Prints the table, in several parts if it is wider than the console.

        Each part repeats the first column. `name:key=value` is written `name key=value`, so that
        a long label can break between its settings.
        """
        parts = self._parts(console)
        parts[0].title = Text(self.title, style="italic") if self.title else None
        for part in parts:
            console.print(part)
            console.print()
        if self.caption:
            console.print(Text(self._caption("terminal")))

    def markdown(self, *, level: int = 1, commands: Iterable[str] = ()) -> str:
        """Returns the table in Markdown.

        Args:
          level: the level of the heading that holds the title.
          commands: the commands that made the table, written below the title.
        """
        rule = ["---:" if side == "r" else "---" for side in self._sides()]
        headings = [heading.replace("\n", " ").strip() for heading in self.headings]
        rows = [[_markdown(_cell(cell)) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]
        caption = self._caption("markdown").replace("\n", "\n- ")
        blocks = [
            f"{'#' * level} {self.title}" if self.title else "",
            "\n".join(f"    {command}" for command in commands),
            "\n".join(lines),
            f"- {caption}" if "\n" in self.caption else caption,
        ]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def write(self, folder: pathlib.Path, command: str) -> None:
        """Writes the table to `table.md` in a folder, below the command that made it."""
        text = self.markdown(commands=[command])
        (folder / "table.md").write_text(text, encoding="utf-8")

    def _caption(self, where: str) -> str:
        return self.caption.replace("{best}", MARK[where])

    def _sides(self) -> str:
        return self.align or "l" + "r" * (len(self.headings) - 1)

    def _parts(self, console: Console) -> list[rich.table.Table]:
        """As few parts as fit, each filled with columns from the left."""
        least = [self._least_width(column, console) for column in range(len(self.headings))]
        columns: list[list[int]] = [[]]
        for column in range(1, len(self.headings)):
            if (
                columns[-1]
                and _total([least[c] for c in (0, *columns[-1], column)]) > console.width
            ):
                columns.append([])
            columns[-1].append(column)
        return [self._part((0, *some), least, console.width) for some in columns]

    def _least_width(self, column: int, console: Console) -> int:
        """The longest line or, in a column that is aligned left, the longest word up to a limit."""
        lines, words = self._lengths(column)
        return lines if self._sides()[column] == "r" else min(words, console.width // 3)

    def _lengths(self, column: int) -> tuple[int, int]:
        """The lengths of the longest line and of the longest word of a column."""
        texts = [self.headings[column], *(_terminal(_cell(row[column])).plain for row in self.rows)]
        return (
            max(cell_len(line) for text in texts for line in text.split("\n")),
            max(cell_len(word) for text in texts for word in text.split() or [""]),
        )

    def _part(self, columns: Sequence[int], least: Sequence[int], room: int) -> rich.table.Table:
        """A table whose columns have given widths, because Rich would cut cells off to make room.

        What is left of the room goes to the columns that are aligned left. If the first column and
        another one do not fit beside each other, the first one is folded, and in the extreme case
        the other one, too.
        """
        widths = {column: least[column] for column in columns}
        for column in columns:
            if self._sides()[column] == "l":
                spare = room - _total(widths.values())
                widths[column] += max(0, min(spare, self._lengths(column)[0] - widths[column]))
        for column, narrowest in zip(columns, (8, *[1] * len(columns)), strict=False):
            excess = _total(widths.values()) - room
            if excess > 0:
                widths[column] = max(min(narrowest, widths[column]), widths[column] - excess)
        table = rich.table.Table(
            box=box.SIMPLE_HEAD, padding=(0, 0, 0, GAP - 1), pad_edge=False, show_edge=False
        )
        table.title_justify = "left"
        for column in columns:
            table.add_column(
                Text(self.headings[column]),
                justify="right" if self._sides()[column] == "r" else "left",
                overflow="fold",
                width=widths[column],
            )
        for row in self.rows:
            table.add_row(*(_terminal(_cell(row[column])) for column in columns))
        return table


def _total(widths: Collection[int]) -> int:
    """The width of columns with their gaps."""
    return sum(widths) + GAP * (len(widths) - 1)


def _cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _terminal(cell: Cell) -> Text:
    text = re.sub(r":(?=\w+=)", " ", cell.text)
    if cell.best:
        return Text(f"{text} *", style=f"bold {cell.style}".strip())
    return Text(text, style=cell.style)


def _markdown(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|").replace("\n", " ")
    return f"**{text}**" if text and (cell.best or cell.style) else text
