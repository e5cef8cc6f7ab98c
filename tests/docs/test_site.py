"""The documentation covers every public name, and the files that surround it are valid.

Whether the site builds is checked by ``mkdocs build --strict``, which fails on a broken link.
"""

import importlib
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import flatreg
from tests.support.public_modules import PUBLIC_MODULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
YAML = [
    ROOT / "CITATION.cff",
    ROOT / ".pre-commit-config.yaml",
    *sorted((ROOT / ".github").rglob("*.yml")),
]


def hook(name):
    """A module of docs/hooks, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented():
    """The path of every name in the API reference."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)


def value_at(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_the_api_reference_has_every_public_name(name):
    module = importlib.import_module(name)
    assert module.__all__
    pages = {}
    for path in documented():
        pages.setdefault(path.rpartition(".")[2], []).append(value_at(path))
    for public in module.__all__:
        if not public.startswith("__"):
            value = getattr(module, public)
            same = [found for found in pages.get(public, []) if found is value]
            assert same, f"write ::: {name}.{public} on a page in docs/api/"


def test_the_api_reference_names_nothing_twice():
    paths = documented()
    assert len(paths) == len(set(paths))


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    missing = [page for page in pages if f"{page}\n" not in nav]
    assert missing == []


def test_every_path_in_the_documentation_exists():
    pages = [*DOCS.rglob("*.md"), ROOT / ".github" / "CONTRIBUTING.md"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    paths = set(re.findall(r"`((?:flatreg|tests|benchmarks|docs)/[\w/]*(?:\.\w+)?)`", text))
    assert len(paths) > 20
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_the_site_loads_nothing_from_other_servers():
    """Pages show offline: no font, script, style or picture is on another server."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^  font: false", config, flags=re.MULTILINE)
    assert "extra_javascript" not in config
    for page in DOCS.rglob("*.md"):
        assert not re.search(r"!\[[^]]*\]\(https?:", page.read_text(encoding="utf-8")), page


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    to_mathml = hook("mathml").to_mathml
    page = r'<p><span class="arithmatex">\(\lVert g\rVert &lt; 1\)</span> and \(x\)</p>'
    found = to_mathml(page)
    assert 'aria-label="\\lVert g\\rVert &lt; 1"' in found
    assert "arithmatex" not in found
    assert found.endswith(r"and \(x\)</p>")  # not marked as a formula


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_formulas_use_known_commands_only(path):
    """A command that the converter does not know comes out as text that starts with a backslash."""
    converter = pytest.importorskip("latex2mathml.converter")
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for display, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, flags=re.DOTALL):
        math = converter.convert(display or inline)
        assert not re.search(r">\\[a-zA-Z]", math), display or inline


def test_a_displayed_maximum_has_its_set_below():
    pytest.importorskip("latex2mathml")
    formula = hook("mathml").formula
    assert "<munder><mo>max</mo>" in formula(r"\max_{x \le 1} f", display=True)
    assert "<msub><mo>max</mo>" in formula(r"\max_{x \le 1} f", display=False)
    assert "<mi>max</mi>" in formula(r"\lambda_{\max}", display=True)


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    to_markdown = hook("docstrings").to_markdown
    names = {"flatreg.sam": "flatreg.sam", "sam": "flatreg.sam"}
    assert to_markdown("See :func:`flatreg.sam`.", names) == "See [`flatreg.sam`][flatreg.sam]."
    assert to_markdown("As :func:`sam`.", names) == "As [`sam`][flatreg.sam]."
    assert to_markdown("By :func:`jax.jvp`.", names) == "By `jax.jvp`."
    assert to_markdown("``x``, `A\nB <https://x.org>`_", names) == "`x`, [A B](https://x.org)"
    assert to_markdown("Write::\n\n    f(x)\n\nEnd.", names) == (
        "Write:\n\n```python\nf(x)\n```\n\nEnd."
    )
    assert to_markdown("With\n\n.. code-block:: text\n\n  a  b\n    c\n\nEnd.", names) == (
        "With\n\n```text\na  b\n  c\n```\n\nEnd."
    )
    table = "====  =====\nname  value\n====  =====\nη     2/η, or more\nβ     1\n====  =====\n"
    assert to_markdown(table, names) == (
        "| name | value |\n| --- | --- |\n| η | 2/η, or more |\n| β | 1 |\n"
    )


def test_no_docstring_keeps_its_restructured_text():
    pytest.importorskip("griffe")
    docstrings = hook("docstrings")
    names = docstrings.public_names()
    for path in documented():
        text = docstrings.to_markdown(inspect.getdoc(value_at(path)) or "", names)
        text = re.sub(r"```.*?```|^ *>>>.*", "", text, flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"^ *(\.\. |={3,})|:\w+:`|``", text, flags=re.MULTILINE), path


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_the_file_is_valid_yaml(path):
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name
)
def test_every_workflow_has_jobs_with_steps(path):
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all("uses" in step or "run" in step for step in job["steps"])


def test_the_citation_and_the_changelog_name_this_version():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "license"} <= citation.keys()
    assert citation["version"] == flatreg.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{flatreg.__version__}] - {citation['date-released']}" in changelog
    citing = (DOCS / "project" / "citing.md").read_text(encoding="utf-8")
    assert f"version = {{{flatreg.__version__}}}" in citing
    assert f"year    = {{{citation['date-released'][:4]}}}" in citing


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_name_the_oldest_supported_versions(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    jax, optax = project["dependencies"]
    text = f"Python{project['requires-python']}, {jax} and {optax}, or newer versions"
    text = text.replace("jax", "JAX").replace("optax", "Optax").replace(">=", " ")
    assert text in " ".join((ROOT / page).read_text(encoding="utf-8").split())
