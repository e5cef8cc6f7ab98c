"""How benchmarks/ is built: no circular imports, short import chains, small folders, a README.

The imports are read from the syntax trees, including those inside functions.
"""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
LONGEST_CHAIN = 6  # modules, from one that imports no other to a `__main__`
MOST_ENTRIES = 14  # modules and packages in a folder of code

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(FOLDER.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
COMMANDS = sorted(path.parent.name for path in FOLDER.glob("*/__main__.py"))


def imported(tree):
    """Returns the modules of benchmarks/ that a module imports, without the empty packages."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & FILES.keys() or {node.module}
    return {name for name in found & FILES.keys() if FILES[name].name != "__init__.py"}


IMPORTS = {name: imported(tree) for name, tree in TREES.items()}


@functools.cache
def longest_chain(name, importers=()):
    """Returns the longest chain of imports that begins at a module."""
    assert name not in importers, f"circular import: {' → '.join([*importers, name])}"
    chains = [longest_chain(other, (*importers, name)) for other in sorted(IMPORTS[name])]
    return (name, *max(chains, key=len, default=()))


def test_no_import_chain_is_long_or_circular():
    longest = max(map(longest_chain, IMPORTS), key=len)
    assert len(longest) <= LONGEST_CHAIN, " → ".join(longest)


def test_packages_import_nothing():
    for name, path in FILES.items():
        if path.name == "__init__.py":
            (docstring,) = TREES[name].body
            assert ast.get_docstring(TREES[name]), f"{name} needs a docstring"
            assert isinstance(docstring, ast.Expr)


def test_common_imports_no_command():
    for name, others in IMPORTS.items():
        if name.startswith("benchmarks.common"):
            assert all(other.startswith("benchmarks.common") for other in others), name


def test_folders_of_code_are_small():
    for folder in {path.parent for path in FILES.values()}:
        code = [path for path in folder.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))]
        entries = [path.name for path in code]
        assert len(entries) <= MOST_ENTRIES, f"{folder}: {sorted(entries)}"


def test_no_command_imports_another_commands_main():
    for name, others in IMPORTS.items():
        for other in others:
            assert not other.endswith(".__main__"), f"{name} imports {other}"


def test_every_package_but_common_is_a_command():
    code = {path.relative_to(FOLDER).parts[0] for path in FILES.values()} - {"__init__.py"}
    assert code - {"common"} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_describes_each_command(command):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"python -m benchmarks.{command}`" in text
    assert "`--help`" in text
    assert "`--quick`" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_a_quick_size_and_a_start(command):
    """Each command makes its parser by `cli.Parser`, which has --help, and adds --quick.

    It runs as a program by `cli.start`, so that Ctrl-C and `kill` interrupt it in the background.
    """
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in (FOLDER / command).rglob("*.py")
    )
    assert "add_quick(" in source or '"--quick"' in source
    main = (FOLDER / command / "__main__.py").read_text(encoding="utf-8")
    assert re.search(r'\nif __name__ == "__main__":\n    (cli\.)?start\(main\)\n$', main)
    assert f'Parser(\n        "{command}"' in source or f'Parser("{command}"' in source
