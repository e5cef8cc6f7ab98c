"""The command that compiles for many devices: what it writes, its goals, its configuration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatreg
from benchmarks.common.models.resnet import ResNet50
from benchmarks.scale import devices, networks
from benchmarks.scale.__main__ import main
from benchmarks.scale.arithmetic import lower_bound, shard_bytes
from benchmarks.scale.goals import goals
from benchmarks.scale.layout import Layout
from benchmarks.scale.steps import _out_of_memory
from tests.support import commands


def run(method, **changed):
    """A run as the command records it, of one billion parameters on 100 chips."""
    counts = {"all_gather": {"count": 10, "bytes": 1e9}, "all_reduce": {"count": 5, "bytes": 2e9}}
    return {
        "network": "mine",
        "devices": "v5e:10x10",
        "layout": "fsdp",
        "method": method,
        "chips": 100,
        "parameters": 1_000_000_000,
        "compiles": True,
        "needed_bytes": 7e8,
        "temporary_bytes": 5e8,
        "collectives": counts,
    } | changed


def test_a_step_needs_three_copies_and_what_a_method_adds():
    plain, sam, unknown = run("adamw"), run("sam:rho=0.1"), run("asam")
    assert shard_bytes(plain) == 4e9 / 100
    assert shard_bytes(run("adamw", layout="data")) == 4e9
    assert lower_bound(plain) == (12 + 2) * 1e9 / 100
    assert lower_bound(sam) == (12 + 2 + 2) * 1e9 / 100
    assert lower_bound(run("revisit")) == (12 + 16 + 2) * 1e9 / 100
    assert lower_bound(unknown) is None


def test_goals_limit_memory_and_communication():
    twice = {
        "all_gather": {"count": 20, "bytes": 2e9},
        "all_reduce": {"count": 9, "bytes": 3.5e9},
        "reduce_scatter": {"count": 1, "bytes": 0.5e9},
    }
    shard = 4e7
    good = run("sam", collectives=twice, temporary_bytes=5e8 + shard)
    found = goals([run("adamw"), good])
    assert [goal.measured for goal in found] == pytest.approx([1.4 / 7, 1.6 / 7, 1, 2, 2])
    assert all(goal.met for goal in found)
    for worse in (
        {"needed_bytes": 1.5e8},
        {"temporary_bytes": 5e8 + 1.2 * shard},
        {"collectives": twice | {"all_gather": {"count": 20, "bytes": 2.1e9}}},
        {"collectives": twice | {"reduce_scatter": {"count": 1, "bytes": 0.7e9}}},
    ):
        met = [goal.met for goal in goals([run("adamw"), good | worse])]
        assert met.count(False) == 1
    product = run("gradient_regularization:mu=0.1", collectives=twice)
    assert all(goal.met for goal in goals([run("adamw"), product]))
    without_plain = goals([run("adamw", compiles=False), good])
    assert {goal.goal for goal in without_plain} == {"copies / total"}


def test_the_compiler_says_what_a_program_needs():
    message = "Ran out of memory in memory space hbm. Used 26.50G of 15.75G hbm. Exceeded hbm"
    assert _out_of_memory(RuntimeError(message)) == (26.5 * 2**30, 15.75 * 2**30)
    with pytest.raises(RuntimeError, match="another fault"):
        _out_of_memory(RuntimeError("another fault"))


def test_the_compiler_may_stop_at_the_temporary_memory():
    message = (
        "the total memory required for HLO temporaries (38.51G) exceeds available HBM (15.75G)."
    )
    assert _out_of_memory(RuntimeError(message)) == (38.51 * 2**30, 15.75 * 2**30)


def test_the_networks_have_their_number_of_parameters():
    """ResNet-50 has 25,557,032 parameters, as in torchvision and in Keras."""
    model, image = ResNet50(), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    assert sum(w.size for w in jax.tree.leaves(shapes["params"])) == 25_557_032
    mesh = devices.chips("cpu:8").mesh
    for name, billions in (("0.1b", 0.102), ("1b", 1.04), ("7b", 6.72)):
        problem = networks.build(networks.NETWORKS[f"transformer-{name}"], Layout("fsdp", mesh))
        shapes = jax.eval_shape(
            lambda x, model=problem.model: model.init(jax.random.key(0), x, train=False),
            problem.inputs,
        )
        leaves = jax.tree.leaves(shapes["params"])
        assert {w.dtype.name for w in leaves} == {"float32"}
        assert sum(w.size for w in leaves) / 1e9 == pytest.approx(billions, rel=0.01)


def test_fsdp_shards_all_but_the_layers():
    """Each array of a transformer, of a convolution and of revisit, on its largest other axis."""
    layout = Layout("fsdp", devices.chips("cpu:8").mesh)
    shapes = {
        "layers": {"kernel": (16, 8, 32), "scale": (16, 8)},
        "logits": (24, 16),
        "bias": (16,),
        "directions": {"layers": {"kernel": (4, 16, 8, 32)}, "bias": (4, 16)},
        "count": (),
    }
    state = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    found = jax.tree.map(lambda sharding: tuple(sharding.spec), layout.of_state(state))
    assert found == {
        "layers": {"kernel": (None, None, "data"), "scale": ()},
        "logits": ("data",),
        "bias": (),
        "directions": {"layers": {"kernel": (None, None, None, "data")}, "bias": ()},
        "count": (),
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--devices=v5e"], "--devices cannot take 'v5e'. Give cpu:8"),
        (["--layouts=tensor"], "--layouts cannot take 'tensor': give names from data, fsdp"),
        (["--networks=gpt"], "--networks cannot take 'gpt': give names from resnet50"),
        (["--methods=sma"], "Unknown method 'sma'"),
        (["--config=none.toml"], "--config none.toml cannot be read"),
        (["--devices=cpu:99"], "Set the environment variable JAX_NUM_CPU_DEVICES=99"),
        (["--devices=v5e:2x2"], "Run pip install 'flatreg[tpu-compiler]', or give --devices cpu:8"),
    ],
)
def test_usage_errors_say_what_to_write(arguments, expected, capsys, monkeypatch):
    monkeypatch.setattr(devices, "has_tpu_compiler", lambda: False)
    assert expected in commands.usage_error(main, ["--quick", *arguments], capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kind = "gpt"', "has the kind 'gpt'. Write kind = 'transformer' or kind = 'resnet'"),
        ("width = 0", "width = 0 of network mine is not valid"),
        ("breadth = 8", "breadth = 8 of network mine is not valid"),
        ("width = 100", "must be a multiple of its heads, such as width = 112"),
        ('kind = "resnet"\nblocks = [2, 0]', "blocks = [2, 0] of network mine is not valid"),
    ],
)
def test_mistakes_in_a_configuration_are_named(text, expected, tmp_path, capsys):
    file = tmp_path / "sizes.toml"
    file.write_text(f"[networks.mine]\n{text}\n")
    assert expected in commands.usage_error(main, [f"--config={file}"], capsys)


@pytest.mark.nightly
@pytest.mark.slow
def test_the_quick_run_meets_its_goals_and_resumes(tmp_path, capsys, monkeypatch):
    """SAM communicates twice as much as the plain step, and a method can be added later."""
    monkeypatch.setattr(devices, "has_tpu_compiler", lambda: False)
    quick = ("--quick", "--devices=cpu:8,v5e:2x2")
    found = commands.run(main, quick, tmp_path)
    assert "Left out: v5e:2x2, because libtpu" in capsys.readouterr().out
    assert [one["method"] for one in found["runs"]] == ["adamw", "sam"]
    met = {(goal.method, goal.goal): goal.met for goal in goals(found["runs"])}
    assert met["sam", "reductions / adamw's"]
    assert met["sam", "gathers / adamw's"]
    for one in found["runs"]:
        assert one["needed_bytes"] >= lower_bound(one)
        assert one["argument_bytes"] == pytest.approx(3 * shard_bytes(one), rel=0.1)
    again = commands.run(main, (*quick, "--methods=revisit", "--resume"), tmp_path)
    assert again["runs"][:2] == found["runs"]
    assert again["runs"][2]["argument_bytes"] == pytest.approx(
        7 * shard_bytes(again["runs"][2]), rel=0.1
    )
    assert again["configuration"]["methods"] == ["adamw", "sam", "revisit"]
    assert "| revisit |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not devices.has_tpu_compiler(), reason="libtpu is not installed")
def test_the_tpu_compiler_compiles_a_step(tmp_path):
    (one,) = commands.run(main, ("--quick", "--devices=v5e:2x2", "--methods=adamw"), tmp_path)[
        "runs"
    ]
    assert one["compiles"]
    assert one["memory_bytes"] == 15.75 * 2**30
    assert one["collectives"]["all_gather"]["count"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not devices.has_tpu_compiler(), reason="libtpu is not installed")
def test_a_chip_keeps_its_shards_of_the_gradients():
    """Accelerated GAM uses all four gradients at the end. Each of them has 67 MB in bfloat16."""
    mesh = devices.chips("v5e:16x16").mesh
    layout = Layout("fsdp", mesh)
    params = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((512, 32768), (32768, 512))]
    shardings = layout.of_state(params)
    params = jax.tree.map(lambda w, s: w.update(sharding=s), params, shardings)
    x = jax.ShapeDtypeStruct((mesh.size, 512), jnp.bfloat16, sharding=layout.of_batch())

    def loss_fn(params, x):
        first, second = layout.gather(params)
        return jnp.mean((jnp.tanh(x @ first) @ second).astype(np.float32) ** 2)

    def temporary_bytes(method):
        def step(params, x):
            _, g, grad_fn = flatreg.value_and_grad_fn(loss_fn)(params, x)
            return method.update(g, method.init(params), params, grad_fn=grad_fn)[0]

        compiled = jax.jit(step, out_shardings=shardings).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(flatreg.gam_accelerated()) < 1.2 * temporary_bytes(flatreg.sam(0.05))
