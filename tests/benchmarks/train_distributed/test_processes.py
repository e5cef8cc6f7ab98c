"""Several processes, and a run that is killed: tests that need processes of their own.

The processes communicate over the loopback interface. Each test starts them only once, because
starting takes most of the time.
"""

import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from benchmarks.train_distributed.__main__ import main, parse
from benchmarks.train_distributed.devices import make_mesh
from benchmarks.train_distributed.run import run
from tests.benchmarks.train_distributed.test_training import tolerance, trained_together
from tests.support.problems import assert_close

ROOT = pathlib.Path(__file__).parents[3]
MODULE = "benchmarks.train_distributed"
STEPS = 20
TOGETHER = ("sgd", "sam", "gam")
FSDP = "--method sam:rho=0.1 --sharding fsdp --axes explicit"
SAVED = "--method sam:rho=0.1:every=3 --optimizer adamw --save-every 5"

# Kills the process just before the checkpoint of step 15 gets its name, at the latest at step 17.
KILLED = """
import os, signal, sys
from benchmarks.train_distributed import __main__ as train_distributed
from benchmarks.train_distributed import batches

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def rename(source, target, *args, rename=os.rename, **kwargs):
    return die() if os.path.basename(target) == "15" else rename(source, target, *args, **kwargs)

class Batches(batches.Batches):
    def __next__(self):
        return die() if self.get_state() == {"next_index": 17} else super().__next__()

os.rename, batches.Batches = rename, Batches
sys.exit(train_distributed.main(sys.argv[1:]))
"""


@pytest.fixture
def start():
    """Starts Python processes with a number of CPU devices each; they end with the test."""
    started = []

    def start(devices, *arguments):
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def ends(*processes):
    """Waits for processes; returns their exit codes and what they printed."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], "\n".join(outputs)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def trained(devices, arguments, steps=STEPS):
    """Trains in this process, on some of its devices."""
    options = parse(shlex.split(f"{arguments} --steps {steps}"))
    return run(options, make_mesh(options.axes, devices))


def work(folder, place):
    """The work of each of two processes."""
    command = f"{FSDP} --steps {STEPS} --save-every 10 --checkpoint {folder}/saved {place}"
    assert main([*shlex.split(command), "--out", f"{folder}/fsdp.npz"]) == 0
    ends = trained_together(make_mesh("auto"), TOGETHER)
    if jax.process_index() == 0:
        np.savez(f"{folder}/together.npz", **flatten_dict(ends, sep="/"))


@pytest.mark.nightly
@pytest.mark.slow
def test_two_processes_train_as_one_device(start, tmp_path):
    """Two processes with two devices each agree with one device, and a single process resumes."""
    place = f"--coordinator 127.0.0.1:{free_port()} --processes 2 --process-id"
    pair = [start(2, __file__, str(tmp_path), f"{place} {i}") for i in range(2)]
    expected = trained_together(make_mesh("auto", 1), TOGETHER)  # in the meantime
    one = trained(1, f"{FSDP} --out {tmp_path}/one.npz")
    codes, output = ends(*pair)
    assert codes == [0, 0], output

    with np.load(tmp_path / "together.npz") as params:
        for path, expected_leaf in flatten_dict(expected, sep="/").items():
            assert_close(params[path], expected_leaf, tolerance(path.split("/")[0]))
    with np.load(tmp_path / "fsdp.npz") as two, np.load(tmp_path / "one.npz") as whole:
        assert_close(dict(two), dict(whole), 1e-6)

    shutil.rmtree(tmp_path / "saved" / str(STEPS))
    resumed = trained(8, f"{FSDP} --save-every 10 --checkpoint {tmp_path}/saved")
    assert resumed.first_step == 10
    assert_close(arrays(resumed.state), arrays(one.state), 1e-6)


@pytest.mark.slow
def test_a_killed_run_resumes(start, tmp_path):
    """It resumes exactly on the same devices, and up to rounding on other devices or shardings."""
    folder = tmp_path / "killed"
    command = f"{SAVED} --steps {STEPS} --checkpoint {folder}"
    (code,), output = ends(start(4, "-c", KILLED, *shlex.split(command)))
    assert code == -signal.SIGKILL, output
    assert {"5", "10"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "15").exists()
    for name in ("other", "fsdp"):
        shutil.copytree(folder, tmp_path / name)

    whole, resumed = trained(4, SAVED), trained(4, f"{SAVED} --checkpoint {folder}")
    assert resumed.first_step == 10
    np.testing.assert_array_equal(resumed.losses, whole.losses[10:])
    jax.tree.map(np.testing.assert_array_equal, arrays(resumed.state), arrays(whole.state))
    assert {"15", "20"} <= {path.name for path in folder.iterdir()}

    other = trained(1, f"{SAVED} --checkpoint {tmp_path / 'other'}")
    layout = "--sharding fsdp --axes explicit"
    fsdp = trained(8, f"{SAVED} {layout} --checkpoint {tmp_path / 'fsdp'}")
    for resumed in (other, fsdp):
        assert resumed.first_step == 10
        np.testing.assert_allclose(resumed.losses, whole.losses[10:], rtol=1e-6, atol=1e-6)
        assert_close(arrays(resumed.state), arrays(whole.state), 1e-6)


@pytest.mark.slow
def test_kill_9_at_any_moment_resumes_exactly(start, tmp_path):
    """The run is killed twice while it trains and saves every step, wherever it is then."""
    folder, steps = tmp_path / "killed", 100
    command = "--method sam:rho=0.1 --batch-size 128 --save-every 1"  # 11 steps per epoch
    for reached in (5, 20):
        arguments = f"{command} --steps {steps} --checkpoint {folder}"
        process = start(1, "-m", MODULE, *shlex.split(arguments))
        while newest(folder) < reached and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        (code,), output = ends(process)
        assert code == -signal.SIGKILL, output
    killed_at = newest(folder)
    resumed = trained(1, f"{command} --checkpoint {folder}", steps)
    whole = trained(1, command, steps)
    assert resumed.first_step == killed_at
    np.testing.assert_array_equal(resumed.losses, whole.losses[killed_at:])
    jax.tree.map(np.testing.assert_array_equal, arrays(resumed.state), arrays(whole.state))


def newest(folder):
    """The number of steps of the newest checkpoint that is complete, or 0."""
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def arrays(state):
    """Returns all arrays of the state, including its key, as NumPy arrays."""
    return jax.device_get(jax.tree.leaves(state.replace(key=jax.random.key_data(state.key))))


if __name__ == "__main__":
    work(*sys.argv[1:])
