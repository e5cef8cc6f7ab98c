"""The public names of each module: ``__all__``, ``help`` and the star import agree."""

import importlib
import inspect
import pydoc
import subprocess
import sys

import pytest

import flatreg
from tests.support.public_modules import PUBLIC_MODULES

FRAMEWORKS = "sorted({'flax', 'orbax', 'matplotlib'} & set(sys.modules))"
every_module = pytest.mark.parametrize("name", PUBLIC_MODULES)


def run_in_fresh_process(code):
    """The lines that the code prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@every_module
def test_all_names_exist_once(name):
    module = importlib.import_module(name)
    assert all(hasattr(module, public) for public in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


@every_module
def test_help_shows_every_public_name_with_its_text(name):
    module = importlib.import_module(name)
    text = pydoc.plain(pydoc.render_doc(module))
    for public in module.__all__:
        value = getattr(module, public)
        if public == "__version__":
            assert value in text
            continue
        assert f"\n    {public}" in text or f"\n    class {public}" in text, public
        if inspect.isfunction(value) or inspect.isclass(value):
            first_line = inspect.getdoc(value).partition("\n")[0]
            assert first_line in text, public


@every_module
def test_star_import_brings_exactly_all(name):
    brought = {}
    exec(f"from {name} import *", brought)
    assert set(brought) - {"__builtins__"} == set(importlib.import_module(name).__all__)


def test_star_import_of_flatreg_needs_no_framework():
    assert run_in_fresh_process(f"import sys; from flatreg import *; print({FRAMEWORKS})") == ["[]"]
    assert not {"linen", "nnx", "measures", "lipschitz", "plots"} & set(flatreg.__all__)


def test_help_works_without_the_optional_frameworks():
    (shown,) = run_in_fresh_process(
        "import sys; sys.modules |= dict.fromkeys(['flax', 'orbax', 'matplotlib'])\n"
        "import flatreg, pydoc; print('gam_accelerated' in pydoc.plain(pydoc.render_doc(flatreg)))"
    )
    assert shown == "True"


def test_packages_load_at_first_use_and_no_framework_before():
    used = "flatreg.linen.TrainState, flatreg.nnx.Optimizer, flatreg.measures.loss_slice"
    before, after = run_in_fresh_process(
        f"import sys, flatreg; print({FRAMEWORKS}); {used}; "
        f"flatreg.checkpoint.save, flatreg.plots.plot_slice; print({FRAMEWORKS})"
    )
    assert before == "[]"
    assert after == "['flax', 'matplotlib', 'orbax']"


def test_a_missing_framework_raises_with_the_extra_to_install():
    messages = run_in_fresh_process(
        "import sys; sys.modules |= dict.fromkeys(['flax', 'orbax', 'matplotlib'])\n"
        "import flatreg\n"
        "for name in ['linen', 'nnx', 'checkpoint', 'plots']:\n"
        "    try: getattr(flatreg, name)\n"
        "    except ImportError as error: print(error)"
    )
    extras = ["flax", "flax", "flax", "plots"]
    assert [text.partition("pip install ")[2] for text in messages] == [
        f'"flatreg[{extra}]".' for extra in extras
    ]


def test_import_needs_no_optional_class_of_optax():
    """Deletes every state class whose name the library knows, then imports and uses it."""
    (recognized,) = run_in_fresh_process(
        "import optax; adam = optax.adam(0.1)\n"
        "from flatreg._core.directions import _OPTIMIZER_STATES as names\n"
        "import sys; [sys.modules.pop(x) for x in list(sys.modules) if x.startswith('flatreg')]\n"
        "for name in names: delattr(optax, name)\n"
        "import flatreg, flatreg.linen, flatreg.nnx, flatreg.lipschitz, flatreg.measures\n"
        "tx = flatreg.every(flatreg.sam(), 2)\n"
        "tx.init({'w': 1.0}); print(flatreg._core.directions.holds_optimizer(adam.init(1.0)))"
    )
    assert recognized == "False"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'flatreg' has no attribute 'samm'"):
        flatreg.samm  # noqa: B018
