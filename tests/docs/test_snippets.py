"""Every code block of the documentation runs, and prints what the page says that it prints.

The Python blocks of a page run in order in one namespace. If a block is followed by one titled
"Output", its output is compared. Blocks titled "PyTorch" show other libraries: they must parse.

The recipes need Equinox, Haiku and Keras, which ``pip install -e '.[dev]'`` installs.
"""

import ast
import contextlib
import io
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FENCE = re.compile(
    r"^(?P<indent>[ ]*)```(?P<info>[^`\n]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: its language, its title, its text and the line where the text starts."""

    language: str
    title: str
    code: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, without their indentation."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language = match["info"].strip().partition(" ")[0]
        title = re.search(r'title="([^"]*)"', match["info"])
        width = len(match["indent"])
        code = "".join(line[width:] or "\n" for line in match["code"].splitlines(keepends=True))
        line = text[: match.start("code")].count("\n")
        found.append(Block(language, title[1] if title else "", code, line))
    return found


def is_run(block: Block) -> bool:
    return block.language == "python" and block.title != "PyTorch"


def run(page: str) -> None:
    """Runs the blocks of a page and compares their output."""
    namespace = {"__name__": "__main__"}
    found = blocks(page)
    for block, following in zip(found, [*found[1:], None], strict=True):
        if not is_run(block):
            continue
        # The line numbers of an error are those of the page.
        code = compile("\n" * block.line + block.code, str(DOCS / page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if following is not None and following.title == "Output":
            assert printed.getvalue().rstrip() == following.code.rstrip()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks(page)))])
def test_the_code_of_the_page_runs(page):
    precision = jax.config.jax_default_matmul_precision
    try:
        run(page)
    finally:  # one of the pages changes it
        jax.config.update("jax_default_matmul_precision", precision)


@pytest.mark.parametrize("page", PAGES)
def test_no_block_escapes_the_tests(page):
    """Every fence of a page is found by the pattern above, and its language is known."""
    found = blocks(page)
    assert {block.language for block in found} <= {"python", "text", "bash", "toml", "yaml"}
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    assert sum(line.lstrip().startswith("```") for line in lines) == 2 * len(found)
    for block in found:
        if block.title == "PyTorch":
            ast.parse(block.code)
        if block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
