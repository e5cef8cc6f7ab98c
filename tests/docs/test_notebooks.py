"""The notebooks are committed without outputs, use public names only, and run from start to end.

They run at the size that ``FLATREG_NOTEBOOK_QUICK=1`` asks for, each in its own kernel. If the
environment variable ``FLATREG_EXECUTED_NOTEBOOKS`` names a folder, the executed notebooks are saved
there, and the documentation shows them without executing them again.
"""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
COLAB = "https://colab.research.google.com/github/flatreg/flatreg/blob/main/notebooks/"
PACKAGE = "flatreg[bench] @ git+https://github.com/flatreg/flatreg"

each = pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)


def cells(path, kind):
    """Returns the sources of all cells of one kind."""
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def code(path):
    """Returns the Python code of a notebook, without the commands of IPython."""
    return re.sub(r"^( *)%.*$", r"\1pass", "\n".join(cells(path, "code")), flags=re.MULTILINE)


def test_the_notebooks_are_numbered():
    paths = sorted(FOLDER.glob("*.ipynb"))
    assert [path.name[:2] for path in paths] == [f"{i}_" for i in range(1, 7)]


@each
def test_notebooks_have_no_outputs(path):
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
def test_the_first_cell_installs_flatreg_on_colab(path):
    """Only the first cell installs, only if flatreg is missing, and it pins the installed JAX."""
    assert f"]({COLAB}{path.name})" in cells(path, "markdown")[0]
    first, *others = cells(path, "code")
    assert 'if importlib.util.find_spec("flatreg") is None:' in first
    assert f'%pip install -q "{PACKAGE}" "jax=={{jax.__version__}}"' in first
    assert not any("pip install" in source for source in others)


@each
def test_notebooks_use_public_names_only(path):
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
    assert parts.isdisjoint({"benchmarks", "tests"})  # not part of an installed flatreg


@each
def test_text_and_code_are_balanced_and_links_exist(path):
    text = "\n".join(cells(path, "markdown"))
    assert len(cells(path, "markdown")) >= len(cells(path, "code")) // 2
    assert max(len(source.splitlines()) for source in cells(path, "code")) <= 45
    for link in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (FOLDER / link).is_file()


@pytest.mark.slow
@each
def test_the_notebook_runs_and_ends_in_a_picture(path):
    for package in ("nbclient", "ipykernel", "mkdocs"):
        pytest.importorskip(package)
    nbformat = pytest.importorskip("nbformat")
    hook = ROOT / "docs" / "hooks" / "notebooks.py"
    spec = importlib.util.spec_from_file_location("docs_notebooks", hook)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    book = module.executed(path, reuse=False)
    nbformat.validate(book)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert outputs[-1] in pictures
