"""A MkDocs hook that executes the notebooks and adds each of them to the site as a page.

The notebooks are committed without outputs. They run here at the size that
``FLATREG_NOTEBOOK_QUICK=1`` asks for, all at once, each in its own kernel. If the environment
variable ``FLATREG_EXECUTED_NOTEBOOKS`` names a folder, a notebook that was executed there before
is taken from there, and one that was not is saved there. CI uses this to run each notebook once,
for the tests and for the site. ``FLATREG_SKIP_NOTEBOOKS=1`` shows the notebooks without their
outputs, for a quick look at the other pages.
"""

import base64
import concurrent.futures
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parents[2] / "notebooks"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_COLAB = "https://colab.research.google.com/github/flatreg/flatreg/blob/main/notebooks/"
_BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook, and a file for each of its pictures."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    if "FLATREG_SKIP_NOTEBOOKS" in os.environ:
        notebooks = [nbformat.read(path, as_version=4) for path in paths]
    else:
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            notebooks = list(pool.map(executed, paths))
    for path, notebook in zip(paths, notebooks, strict=True):
        page, pictures = as_page(path.stem, notebook)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, png in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=png))
    return files


def executed(path: Path, *, reuse: bool = True) -> Any:
    """Returns the notebook with its outputs.

    Args:
      path: the notebook.
      reuse: whether to return the outputs of an earlier run if one was saved.
    """
    notebook = nbformat.read(path, as_version=4)
    folder = os.environ.get("FLATREG_EXECUTED_NOTEBOOKS")
    saved = Path(folder) / path.name if folder else None
    if reuse and saved is not None and saved.is_file():
        earlier = nbformat.read(saved, as_version=4)
        if [cell.source for cell in earlier.cells] == [cell.source for cell in notebook.cells]:
            return earlier
    with tempfile.TemporaryDirectory() as directory:
        quick = {"FLATREG_NOTEBOOK_QUICK": "1", "JAX_NUM_CPU_DEVICES": "2"}
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": directory}},
        )
        client.execute(env={**os.environ, **quick, "IPYTHONDIR": directory})
    if saved is not None:
        saved.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, saved)
    return notebook


def as_page(name: str, notebook: Any) -> tuple[str, dict[str, bytes]]:
    """Returns the notebook as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(_markdown(cell.source, name))
        else:
            parts.append(_fenced(cell.source, "python"))
            parts += _outputs(cell.get("outputs", []), name, pictures)
    wide = "---\nhide: [toc]\n---"  # code and figures of notebooks need the width of the page
    return "\n\n".join([wide, *parts]) + "\n", pictures


def _markdown(source: str, name: str) -> str:
    """Returns a text cell with links to pages, and with a sentence instead of the badge."""
    colab = (
        f"[Open this notebook on Colab]({_COLAB}{name}.ipynb), where it runs at full size. The "
        "outputs on this page come from a shorter run."
    )
    return re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", _BADGE.sub(colab, source))


def _outputs(outputs: Any, name: str, pictures: dict[str, bytes]) -> list[str]:
    """Returns the outputs of a cell as Markdown, collecting its pictures."""
    parts: list[str] = []
    printed = ""
    for output in outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            printed += output.text if output.name == "stdout" else ""
        elif "image/png" in data:
            file = f"{name}_{len(pictures) + 1}.png"
            pictures[file] = base64.b64decode(data["image/png"])
            width = output.get("metadata", {}).get("image/png", {}).get("width")
            size = f'{{ width="{width}" }}' if width else ""
            parts.append(f"![Figure {len(pictures)} of this notebook]({file}){size}")
        elif "text/plain" in data:
            printed += data["text/plain"] + "\n"
    return ([_fenced(_ANSI.sub("", printed), "text")] if printed.strip() else []) + parts


def _fenced(text: str, language: str) -> str:
    kind = ' title="Output"' if language == "text" else ""
    return f"```{language}{kind}\n{text.rstrip()}\n```"
