"""Rules of the source tree: layers of imports, documented public names, folders that stay small."""

import ast
import graphlib
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import flatreg

ROOT = Path(flatreg.__file__).parent
REPOSITORY = ROOT.parent
FILES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
# A module may import from its own area and from the layers before its own.
LAYERS = [
    {"typing"},
    {"_core"},
    {"methods", "wrappers", "measures", "lipschitz", "checkpoint", "plots"},
    {"_flax"},
    {"linen", "nnx"},
]
AREAS = set().union(*LAYERS)
PUBLIC = ["", "typing", "methods", "measures", "lipschitz", "linen", "nnx", "plots", "checkpoint"]
# Packages other than JAX and Optax, and the areas that may import them.
FRAMEWORKS = {
    "flax": {"linen", "nnx"},
    "orbax": {"checkpoint"},
    "etils": {"checkpoint"},
    "matplotlib": {"plots"},
    "numpy": AREAS,
}
ALWAYS_INSTALLED = {"jax", "optax", "flatreg"} | sys.stdlib_module_names
MOST_ENTRIES = 14
LONGEST_TEST_NAME = 60

every_file = pytest.mark.parametrize("module", FILES)


def public(kind):
    """The functions or classes in ``__all__`` of the public modules, as test parameters."""
    found = {}
    for name in PUBLIC:
        module = importlib.import_module(f"flatreg.{name}".rstrip("."))
        for public_name in getattr(module, "__all__", []):
            value = getattr(module, public_name)
            if kind(value) and value.__module__.startswith("flatreg"):
                found.setdefault(value, f"{module.__name__}.{public_name}")
    return [pytest.param(value, id=name) for value, name in found.items()]


def imports_of(module):
    """The modules that a file imports. ``from package import module`` counts as the module."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in FILES else node.module


def area_of(module):
    """The part of the library that a module belongs to, such as ``"_core"`` or ``"measures"``."""
    return module.split(".")[1] if "." in module else "flatreg"


def layer_of(module):
    """The index of the module's layer; None for flatreg itself, which imports everything."""
    return next((i for i, areas in enumerate(LAYERS) if area_of(module) in areas), None)


def test_every_module_has_a_layer():
    assert [module for module in FILES if layer_of(module) is None] == ["flatreg"]


@every_file
def test_imports_follow_the_layers(module):
    """Within a layer, an area imports only itself."""
    if module == "flatreg":
        return
    for other in imports_of(module):
        if other == "flatreg" or other.startswith("flatreg."):
            same_area = area_of(other) == area_of(module)
            assert same_area or layer_of(other) < layer_of(module), f"{module} imports {other}"


@pytest.mark.parametrize("area", ["methods", "wrappers"])
def test_methods_do_not_import_each_other(area):
    for module in FILES:
        if module.startswith(f"flatreg.{area}."):
            siblings = {x for x in imports_of(module) if area_of(x) == area}
            assert siblings <= {"flatreg.wrappers._shifted"}, module


def test_there_are_no_import_cycles():
    graph = {m: {o for o in imports_of(m) if o in FILES} - {m} for m in FILES}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@every_file
def test_no_private_parts_of_other_packages_are_imported(module):
    for other in imports_of(module):
        package, *parts = other.split(".")
        assert package == "flatreg" or not any(part.startswith("_") for part in parts)


@every_file
def test_frameworks_are_imported_only_where_they_belong(module):
    for other in imports_of(module):
        package = other.partition(".")[0]
        if package not in ALWAYS_INSTALLED:
            assert area_of(module) in FRAMEWORKS.get(package, ()), f"{module} imports {other}"


@every_file
def test_every_file_has_a_docstring(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text()))


@pytest.mark.parametrize("function", public(inspect.isfunction))
def test_public_functions_document_arguments_and_examples(function):
    text = inspect.getdoc(function)
    assert "Examples:" in text
    assert ">>> " in text
    for name in inspect.signature(function).parameters:
        assert f" {name}:" in text.replace("*", ""), f"{function.__name__} does not describe {name}"


@pytest.mark.parametrize("cls", public(inspect.isclass))
def test_public_classes_are_documented(cls):
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")  # the default text of a NamedTuple
    attributes = getattr(cls, "_fields", ())
    assert all(f" {name}:" in cls.__doc__ for name in attributes), f"{cls.__name__}: {attributes}"


def test_type_aliases_are_documented():
    body = ast.parse(FILES["flatreg.typing"].read_text()).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(following, ast.Expr), f"{ast.unparse(node.target)} needs a docstring"


def folders_of_code():
    """The folders of the repository that contain Python files, without results and caches."""
    parents = {
        parent
        for top in ("flatreg", "tests", "benchmarks")
        for path in (REPOSITORY / top).rglob("*.py")
        for parent in path.relative_to(REPOSITORY).parents
    }
    return sorted(map(str, parents - {Path()}))


@pytest.mark.parametrize("folder", folders_of_code())
def test_folders_of_code_have_few_entries(folder):
    entries = [
        path.name
        for path in (REPOSITORY / folder).iterdir()
        if path.suffix == ".py" or f"{folder}/{path.name}" in folders_of_code()
    ]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


@pytest.mark.parametrize(
    "file",
    sorted((REPOSITORY / "tests").rglob("test_*.py")),
    ids=lambda path: "/".join(path.parts[-2:]),
)
def test_names_of_tests_are_short(file):
    names = re.findall(r"def (test_\w+)\(", file.read_text())
    assert [name for name in names if len(name) > LONGEST_TEST_NAME] == []


def test_flatreg_offers_the_promised_names():
    promised = """
        sam asam penalized_gradient gradient_norm_penalty gradient_regularization gam
        gam_accelerated combine every after randomly per_shard observe on value_and_grad_fn
        exact_hvp forward_hvp reverse_hvp finite_difference_hvp from_direction
        from_stateful_direction perturbed_gradient gsam friendly_sam looksam stable_sam when_sharp
        functional_value_and_grad_fn revisit revisited momentum_sam previous_gradient_sam
        eval_params
    """
    assert set(promised.split()) <= set(flatreg.__all__)
