"""The notebooks are committed without outputs, use public names only, and run from start to end.

They run at the size that ``FLATREG_NOTEBOOK_QUICK=1`` asks for, each in a kernel of its own.
"""

import ast
import json
import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
COLAB = "https://colab.research.google.com/github/flatreg/flatreg/blob/main/notebooks/"
PACKAGE = "flatreg[bench] @ git+https://github.com/flatreg/flatreg"

each = pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)


def cells(path, kind):
    """The sources of a notebook's cells of a kind."""
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def code(path):
    """A notebook's Python, without IPython's own commands."""
    return re.sub(r"^( *)%.*$", r"\1pass", "\n".join(cells(path, "code")), flags=re.MULTILINE)


def test_there_are_five():
    assert [path.name[:2] for path in sorted(FOLDER.glob("*.ipynb"))] == [
        f"{i}_" for i in range(1, 6)
    ]


@each
def test_it_is_committed_without_outputs(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert all(not cell["metadata"] for cell in book["cells"])
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), (
                "clear all outputs before committing"
            )


@each
def test_it_opens_on_colab_and_leaves_its_jax_alone(path):
    """One install cell, the first: it does nothing where flatreg is, and pins the JAX there is."""
    assert f"]({COLAB}{path.name})" in cells(path, "markdown")[0]
    first, *others = cells(path, "code")
    assert 'if importlib.util.find_spec("flatreg") is None:' in first
    assert f'%pip install -q "{PACKAGE}" "jax=={{jax.__version__}}"' in first
    assert not any("pip install" in source for source in others)


@each
def test_it_uses_public_names_only(path):
    modules, names = set(), set()
    for node in ast.walk(ast.parse(code(path))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    parts = {part for module in modules for part in module.split(".")}
    assert {name for name in names | parts if re.match("_(?!_)", name)} == set()
    assert parts.isdisjoint({"benchmarks", "tests"})  # which an installed flatreg does not have


@each
def test_it_reads_as_a_story(path):
    text = "\n".join(cells(path, "markdown"))
    assert len(cells(path, "markdown")) >= len(cells(path, "code")) // 2
    assert max(len(source.splitlines()) for source in cells(path, "code")) <= 45
    for link in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (FOLDER / link).is_file()


@pytest.mark.slow
@each
def test_it_runs_from_start_to_end_and_ends_in_pictures(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    quick = {"FLATREG_NOTEBOOK_QUICK": "1", "JAX_NUM_CPU_DEVICES": "2", "IPYTHONDIR": str(tmp_path)}
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**os.environ, **quick})
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert outputs[-1] in pictures
