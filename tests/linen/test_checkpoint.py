"""A checkpoint of the Linen train state restores it exactly, and damage is detected."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import NamedSharding, PartitionSpec

import flatreg
from flatreg import checkpoint
from flatreg.linen import classification_loss, make_train_step
from tests.support.assertions import assert_close, assert_equal
from tests.support.networks.linen_models import Noisy, Plain, state_of
from tests.support.steps import examples

STEPS = 10
MODEL = Noisy()
METHOD = flatreg.randomly(
    flatreg.sam(optax.linear_schedule(0.0, 0.3, STEPS)), 0.5, jax.random.key(6)
)
TX = optax.chain(flatreg.observe(METHOD), optax.adamw(optax.cosine_decay_schedule(0.1, STEPS)))
STEP = jax.jit(make_train_step(classification_loss))


def start():
    """A state with schedules, random keys, statistics and a loss scale."""
    key = jax.random.key(7, impl="rbg")
    scale = DynamicScale(growth_interval=3)
    return state_of(MODEL, TX, examples()[0], key=key, dynamic_scale=scale)


def train(state, folder=None):
    """Trains to the last step. The step count selects the batch; optionally saves every step."""
    while state.step < STEPS:
        state, _ = STEP(state, examples(seed=int(state.step)))
        if folder is not None:
            checkpoint.save(f"{folder}/{state.step}", state)
    return state


def test_a_restart_continues_the_same_trajectory_bitwise(tmp_path):
    end = train(start(), tmp_path)
    for step in (1, 4, 9):
        restored = checkpoint.restore(tmp_path / str(step), start())
        assert restored.step == step
        assert_equal(train(restored), end)


@pytest.mark.slow
def test_a_killed_run_continues_bitwise(tmp_path):
    """The run gets ``kill -9`` after its third checkpoint, possibly in the middle of a save."""
    command = f"from tests.linen import test_checkpoint as t; t.train(t.start(), {str(tmp_path)!r})"
    root = pathlib.Path(__file__).parents[2]
    run = subprocess.Popen([sys.executable, "-c", command], cwd=root)
    patience = time.monotonic() + 240
    while not (tmp_path / "3").exists():
        assert run.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    last = max(int(folder.name) for folder in tmp_path.iterdir() if folder.name.isdigit())
    assert last < STEPS
    restored = checkpoint.restore(tmp_path / str(last), start())
    assert_equal(train(restored), train(start()))


def sharded(state, devices):
    """The state with the rows of every matrix sharded, and the rest replicated."""
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])

    def place(x):
        split = x.ndim == 2 and len(x) % devices == 0
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*["data"] * split)))

    return jax.tree.map(place, state)


@pytest.mark.slow
def test_a_sharded_state_moves_to_another_number_of_devices(tmp_path):
    tx = optax.chain(flatreg.sam(), optax.adam(0.01))
    begin = state_of(Plain(), tx, examples()[0])
    on_eight, _ = STEP(sharded(begin, 8), examples())
    checkpoint.save(tmp_path / "1", on_eight)
    expected, _ = STEP(on_eight, examples(seed=1))
    for devices in (8, 4, 1):
        like = sharded(begin, devices)
        restored = checkpoint.restore(tmp_path / "1", like)
        assert_equal(restored, on_eight)
        for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        kernel = restored.params["head"]["kernel"]
        assert len(kernel.addressable_shards) == devices
        assert kernel.addressable_shards[0].data.shape == (8 // devices, 3)
        onward, _ = STEP(restored, examples(seed=1))
        assert_close(onward.params, expected.params, 1e-6)


def test_an_abstract_state_can_describe_what_to_restore(tmp_path):
    state = start()
    checkpoint.save(tmp_path / "0", state)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    assert_equal(checkpoint.restore(tmp_path / "0", shapes), state)


def test_checkpoints_of_orbax_s_manager_can_be_restored(tmp_path):
    state = start()
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.StandardSave(state))
    assert_equal(checkpoint.restore(tmp_path / "5" / "default", start()), state)


def test_orbax_s_manager_stores_checksums_with_save_args(tmp_path):
    state = {"w": jnp.arange(4.0), "key": jax.random.key(0)}
    with ocp.CheckpointManager(tmp_path) as manager:
        good = checkpoint.save_args(state)
        wrong = ocp.args.StandardSave(state | {"w": jnp.ones(4)}, None, good.custom_metadata)
        for step, args in enumerate((good, wrong)):
            manager.save(step, args=ocp.args.Composite(state=args))
    assert_equal(checkpoint.restore(tmp_path / "0" / "state", state), state)
    with pytest.raises(ValueError, match=r"checksums of \['w'\] do not match"):
        checkpoint.restore(tmp_path / "1" / "state", state)
    with pytest.raises(TypeError, match="leaves are not: 'w'"):
        checkpoint.save_args({"w": "text"})


@pytest.fixture
def saved(tmp_path):
    """A small state whose table is large enough to be stored in a file of values."""
    state = {
        "params": jnp.arange(6.0).reshape(2, 3),
        "key": jax.random.key(0),
        "step": 3,
        "table": jnp.sin(jnp.arange(1024.0)),
    }
    checkpoint.save(tmp_path / "good", state)
    return tmp_path / "good", state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"params": jnp.zeros((3, 3))},
            r"params is float32\[2, 3\] in .*, float32\[3, 3\] in like",
        ),
        (
            {"params": jnp.zeros((2, 3), jnp.bfloat16)},
            r"checkpoint, bfloat16\[2, 3\] in like",
        ),
        ({"step": jnp.zeros(())}, "step is int64"),
        (
            {"key": jax.random.key(0, impl="rbg")},
            r"key is uint32\[2\] in .*, uint32\[4\] in like",
        ),
        ({"ema": jnp.zeros(2)}, r"ema is missing in the checkpoint, float32\[2\] in like"),
        (
            {"params": {"w": jnp.zeros((2, 3))}},
            "params is float32.*, missing in like; params/w",
        ),
    ],
)
def test_the_checkpoint_of_a_different_state_names_differences(saved, changes, message):
    folder, state = saved
    with pytest.raises(
        ValueError, match=f"checkpoint of a different state.*{message}.*TrainState.init"
    ):
        checkpoint.restore(folder, state | changes)


def test_the_checkpoint_of_a_different_optimizer_is_refused(tmp_path):
    x, _ = examples()
    adam, sgd = (state_of(Plain(), tx, x) for tx in (optax.adam(0.1), optax.sgd(0.1)))
    checkpoint.save(tmp_path / "adam", adam)
    with pytest.raises(ValueError, match=r"opt_state/0/count is int32\[\] in .*, missing in like"):
        checkpoint.restore(tmp_path / "adam", sgd)


def test_a_path_without_a_checkpoint_is_refused(saved, tmp_path):
    _, state = saved
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "weights.pt").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*missing"):
        checkpoint.restore(tmp_path / "missing", state)
    for folder in ("foreign", "foreign/weights.pt"):
        with pytest.raises(ValueError, match=r"not a readable Orbax .*restore an earlier"):
            checkpoint.restore(tmp_path / folder, state)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d/*", "ocdbt.process_*/d/*"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_a_damaged_checkpoint_is_refused(saved, tmp_path, name, damage):
    folder, state = saved
    shutil.copytree(folder, tmp_path / "bad")
    files = list((tmp_path / "bad").glob(name))
    assert files
    for file in files:
        content = file.read_bytes()
        file.unlink()
        if damage == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "flipped":
            middle = len(content) // 2
            file.write_bytes(
                content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
            )
    with pytest.raises(ValueError, match="restore an earlier checkpoint"):
        checkpoint.restore(tmp_path / "bad", state)
    assert_equal(checkpoint.restore(folder, state), state)


def test_nothing_is_overwritten(saved):
    folder, state = saved
    with pytest.raises(FileExistsError, match=r"one folder per step: save\(f\"{path}/{step}\""):
        checkpoint.save(folder, state)
    np.testing.assert_array_equal(checkpoint.restore(folder, state)["params"], state["params"])


def test_leaves_of_every_kind_come_back_as_they_were(tmp_path):
    """Small types of numbers, NumPy scalars, complex numbers and keys of all implementations."""
    dtypes = (jnp.int2, jnp.int4, jnp.float4_e2m1fn, jnp.float8_e5m2, jnp.bfloat16)
    state = {
        **{jnp.dtype(dtype).name: jnp.arange(5).astype(dtype) % 2 for dtype in dtypes},
        **{impl: jax.random.key(1, impl=impl) for impl in ("threefry2x32", "rbg", "unsafe_rbg")},
        "scalars": [np.float32(0.1), np.int64(2**40), np.bool_(True), np.float16(0.5), 0.1 + 1j],
        "numbers": [3, 0.1, True, None],
        "array": np.arange(3),
    }
    checkpoint.save(tmp_path / "0", state)
    restored = checkpoint.restore(tmp_path / "0", state)
    assert_equal(restored, state)
    assert jax.tree.map(type, restored) == jax.tree.map(type, state)


def test_a_flipped_bit_of_a_small_type_changes_the_checksum():
    for dtype in (jnp.int4, jnp.float4_e2m1fn):
        x = jnp.zeros(8, dtype)
        sums = [checkpoint._checksums({"x": x.at[3].set(value)}) for value in (0, 1)]
        assert sums[0] != sums[1]


@pytest.mark.parametrize(
    "other", [jnp.tanh, "name", np.array(["a"]), object()], ids=["function", "text", "texts", "any"]
)
def test_leaves_that_are_not_arrays_are_named(tmp_path, other):
    state = {"model": {"w": jnp.ones(2), "activation": other}}
    message = r"'model/activation'.*eqx\.partition\(model, eqx\.is_array\).*eqx\.combine"
    with pytest.raises(TypeError, match=message):
        checkpoint.save(tmp_path / "0", state)
    assert not (tmp_path / "0").exists()


def test_types_that_orbax_cannot_store_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"uint2 and uint4.*'w'\. Save x\.astype\(jnp\.uint8\)"):
        checkpoint.save(tmp_path / "0", {"w": jnp.zeros(2, jnp.uint4), "b": jnp.zeros(2)})


@pytest.mark.parametrize(
    "state",
    [
        {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
        {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
        {"x": {"0": {"y": jnp.ones(2)}, "0.y": jnp.zeros(2)}},
        {"w.": {"m": jnp.ones(2)}, "w": {".m": jnp.zeros(2)}},
    ],
    ids=["dot", "slash", "digits", "ends"],
)
def test_leaves_with_one_name_are_refused(tmp_path, state):
    """One array would overwrite the other, or share its checksum."""
    with pytest.raises(ValueError, match=r"would both be named .*Rename a key"):
        checkpoint.save(tmp_path / "0", state)
    assert not (tmp_path / "0").exists()


def test_keys_of_another_implementation_are_refused(tmp_path):
    """Keys of "rbg" and "unsafe_rbg" are the same arrays but draw different numbers."""
    checkpoint.save(tmp_path / "0", {"key": jax.random.key(0, impl="rbg")})
    with pytest.raises(ValueError, match=r"key is a random key of type key<rbg>.*impl='rbg'"):
        checkpoint.restore(tmp_path / "0", {"key": jax.random.key(0, impl="unsafe_rbg")})
