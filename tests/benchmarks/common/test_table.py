"""The table that is printed and written as Markdown."""

import io

import pytest
from rich.console import Console

from benchmarks.common.table import Cell, Table

TABLE = Table(
    title="Results",
    headings=("method", "accuracy,\n%", "time"),
    rows=[
        (Cell("sgd"), Cell("97.2"), "1.00"),
        (Cell("sam:rho=0.3"), Cell("98.1", best=True), "2.01"),
    ],
    caption="{best} marks the best.",
)


def printed(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    table.print(console)
    return console.file.getvalue()


def test_markdown_has_title_commands_table_and_caption():
    assert TABLE.markdown(level=2, commands=["python -m benchmarks.compare"]) == (
        "## Results\n"
        "\n"
        "    python -m benchmarks.compare\n"
        "\n"
        "| method | accuracy, % | time |\n"
        "| --- | ---: | ---: |\n"
        "| sgd | 97.2 | 1.00 |\n"
        "| sam:rho=0.3 | **98.1** | 2.01 |\n"
        "\n"
        "bold marks the best.\n"
    )


def test_the_terminal_shows_the_same_cells():
    text = printed(TABLE)
    for line in (["sgd", "97.2", "1.00"], ["sam", "rho=0.3", "98.1", "*", "2.01"]):
        assert line in [written.split() for written in text.splitlines()]
    assert "* marks the best." in text


@pytest.mark.parametrize("width", [100, 60, 40])
def test_a_wide_table_is_printed_in_parts_that_fit(width):
    headings = ["method", *(f"column {i}" for i in range(12))]
    table = Table("Wide", headings, [["sam", *(f"{i}.00 ± 0.01" for i in range(12))]])
    lines = printed(table, width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.split()[:1] == ["sam"] for line in lines) > 1
    cells = [f"{i}.00 ± 0.01" for i in range(12)]
    assert all("".join(lines).count(f" {cell}") == 1 for cell in cells), "whole and once"


def test_markup_and_bars_are_printed_as_they_are():
    table = Table("", ["interval"], [["[0.1, 0.2] |x|"], [Cell("[bold]", style="green")]])
    assert "[0.1, 0.2] |x|" in printed(table)
    assert "[bold]" in printed(table)
    assert "| [0.1, 0.2] \\|x\\| |" in table.markdown()
    assert "| **[bold]** |" in table.markdown()


def test_alignment_can_be_chosen_per_column():
    table = Table("", ["a", "b"], [["x", "y"]], align="ll")
    assert "| --- | --- |" in table.markdown()


def test_a_caption_of_several_lines_is_a_list_in_markdown():
    table = Table("", ["a"], [["x"]], caption="first\nsecond {best}")
    assert table.markdown().endswith("\n\n- first\n- second bold\n")
    assert "first\nsecond *" in printed(table)
