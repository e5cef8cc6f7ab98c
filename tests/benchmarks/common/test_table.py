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


@pytest.mark.parametrize("width", [60, 80, 120])
def test_several_long_columns_cost_no_digit_and_no_star(width):
    """Columns that are aligned left give room to numbers, which are whole with their stars."""
    label = "gradient_norm_penalty:penalty=0.2:ord=1.5+scaled_perturbed_gradient:sigma=0.01:every=5"
    rows = [
        [
            label,
            *(Cell(f"{i}{j}.25 ± 0.{i}{j} (0.98 to 1.23)", best=True) for j in range(3)),
            "accuracy of sam minus accuracy of sgd, points",
            Cell(f"{i}.50", best=True),
            label,
        ]
        for i in range(1, 4)
    ]
    headings = ["method", "a", "b", "c", "effect", "mean", "other"]
    text = printed(Table("Wide", headings, rows, align="lrrrlrl"), width)
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        for cell in row:
            if isinstance(cell, Cell):
                assert f"{cell.text} *" in text
    assert text.count("*") == 12
    assert "points" in text


def test_a_cell_wider_than_the_terminal_is_wrapped():
    cell = "12.50 ± 0.25 (0.98 to 1.23)"
    rows = [["penalized_gradient:r=0.1", Cell(cell, best=True)]]
    text = printed(Table("", ["method", "a"], rows), 24)
    assert max(map(len, text.splitlines())) <= 24
    for part in ("12.50", "0.25", "(0.98", "1.23)", "*"):
        assert part in text


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
