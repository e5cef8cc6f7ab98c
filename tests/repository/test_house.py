"""The house rules: imports point one way, files are short, public names have a tested example."""

import ast
import graphlib
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import flatreg

ROOT = Path(flatreg.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
# A module imports from the layers before its own. Packages of one layer stand side by side.
LAYERS = [
    {"typing"},
    {"_core"},
    {"methods", "measures", "lipschitz", "checkpoint", "plots"},
    {"_flax"},
    {"linen", "nnx"},
]
PACKAGES = set().union(*LAYERS)
PUBLIC = {name for name in PACKAGES if not name.startswith("_")} - {"typing", "methods"}
# What else than jax and optax is imported, and where it may be.
FRAMEWORKS = {
    "flax": {"linen", "nnx"},
    "orbax": {"checkpoint"},
    "etils": {"checkpoint"},
    "matplotlib": {"plots"},
    "numpy": PACKAGES,
}
STANDARD = {"jax", "optax", "flatreg"}

every_file = pytest.mark.parametrize("module", FILES)


def public_modules():
    yield flatreg
    for module in pkgutil.iter_modules(flatreg.__path__, "flatreg."):
        if not module.name.startswith("flatreg._"):
            yield importlib.import_module(module.name)


def is_own(module, value):
    """Whether a module defines the value, or a package offers it."""
    inside = hasattr(module, "__path__") and value.__module__.startswith(f"{module.__name__}.")
    return inside or value.__module__ == module.__name__


def public(kind):
    """Public functions or classes, as test parameters."""
    return [
        pytest.param(value, id=f"{module.__name__}.{name}")
        for module in public_modules()
        for name, value in vars(module).items()
        if kind(value) and not name.startswith("_") and is_own(module, value)
    ]


def imported(module):
    """The modules that a file imports, a name taken from a package as a module where it is one."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in FILES else node.module


def area(module):
    """The module of the core, or the package beside it, that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def layer(module):
    return next((i for i, names in enumerate(LAYERS) if area(module) in names), None)


def test_every_module_has_its_layer():
    assert [module for module in FILES if layer(module) is None] == ["flatreg"]


@every_file
def test_imports_point_one_way(module):
    if module == "flatreg":
        return
    for other in imported(module):
        if other == "flatreg" or other.startswith("flatreg."):
            same_package = area(other) == area(module) != "methods"
            assert same_package or layer(other) < layer(module), f"{module} imports {other}"


def test_imports_go_round_in_no_circle():
    graph = {m: {o for o in imported(m) if o in FILES} - {m} for m in FILES}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@every_file
def test_nobody_imports_private_parts_of_other_packages(module):
    for other in imported(module):
        package, *parts = other.split(".")
        assert package == "flatreg" or not any(part.startswith("_") for part in parts)


@every_file
def test_frameworks_stay_where_they_belong(module):
    for other in imported(module):
        package = other.partition(".")[0]
        if package not in STANDARD | sys.stdlib_module_names:
            assert area(module) in FRAMEWORKS.get(package, ()), f"{module} imports {other}"


@every_file
def test_files_have_a_docstring(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text()))


def test_the_public_face_is_one_explicit_reexport_a_name():
    body = ast.parse(FILES["flatreg"].read_text()).body[2:]  # after TYPE_CHECKING
    reexports = [node for node in body if isinstance(node, ast.ImportFrom)]
    lazy, version, packages, listing = [node for node in body if node not in reexports]
    assert [node.names[0].name for node in lazy.body] == sorted(PUBLIC)
    assert [node.name for node in [*lazy.orelse, listing]] == ["__getattr__", "__dir__"]
    assert ast.unparse(version.targets[0]) == "__version__"
    assert ast.literal_eval(packages.value) == PUBLIC
    assert all(len(node.names) == 1 for node in reexports)
    names = [node.names[0] for node in reexports]
    assert all(alias.asname == alias.name for alias in names)
    assert {alias.name for alias in names} | PUBLIC | {"methods", "typing"} == {
        name for name in dir(flatreg) if not name.startswith("_")
    }


def in_a_fresh_process(code):
    """What the code prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.split("\n")[:-1]


def test_packages_load_when_they_are_named_and_no_framework_before():
    loaded = "sorted({'flax', 'orbax', 'matplotlib'} & set(sys.modules))"
    used = "flatreg.linen.TrainState, flatreg.nnx.Optimizer, flatreg.measures.loss_slice"
    before, after = in_a_fresh_process(
        f"import sys, flatreg; print({loaded}); {used}; "
        f"flatreg.checkpoint.save, flatreg.plots.plot_slice; print({loaded})"
    )
    assert before == "[]"
    assert after == "['flax', 'matplotlib', 'orbax']"


def test_a_missing_framework_is_told_which_extra_brings_it():
    told = in_a_fresh_process(
        "import sys; sys.modules |= dict.fromkeys(['flax', 'orbax', 'matplotlib'])\n"
        "import flatreg\n"
        "for name in ['linen', 'nnx', 'checkpoint', 'plots']:\n"
        "    try: getattr(flatreg, name)\n"
        "    except ImportError as error: print(error)"
    )
    extras = ["flax", "flax", "flax", "plots"]
    assert [text.partition("pip install ")[2] for text in told] == [
        f'"flatreg[{extra}]".' for extra in extras
    ]


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'flatreg' has no attribute 'samm'"):
        flatreg.samm  # noqa: B018


@pytest.mark.parametrize("function", public(inspect.isfunction))
def test_every_public_function_documents_its_arguments_with_a_tested_example(function):
    text = inspect.getdoc(function)
    assert "Examples:" in text
    assert ">>> " in text
    for name in inspect.signature(function).parameters:
        assert f" {name}:" in text.replace("*", ""), f"{function.__name__} says nothing of {name}"


@pytest.mark.parametrize("cls", public(inspect.isclass))
def test_every_public_class_is_documented(cls):
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")  # what a NamedTuple would say by itself


@pytest.mark.parametrize("name", ["typing"])
def test_every_type_alias_is_documented(name):
    body = ast.parse(FILES[f"flatreg.{name}"].read_text()).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(following, ast.Expr), f"{ast.unparse(node.target)} has no docstring"


def test_the_core_exports_what_the_readme_promises():
    promised = """
        sam asam penalized_gradient gradient_norm_penalty gradient_regularization gam
        gam_accelerated combine every after randomly per_shard value_and_grad_fn exact_hvp
        forward_hvp reverse_hvp finite_difference_hvp from_direction from_stateful_direction
        perturbed_gradient
    """
    assert set(promised.split()) <= set(dir(flatreg))
