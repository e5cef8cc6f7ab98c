"""Usage errors and problems with checkpoints print one paragraph and give exit code 2."""

import shutil

import pytest

from benchmarks.train_distributed.__main__ import main
from tests.support import commands


def complaint(arguments, capsys):
    """Returns the message of a usage error."""
    alone = "" if "--processes" in arguments else " --processes 1"
    return commands.usage_error(main, (arguments + alone).split(), capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch-size 20", "give a multiple of 8, such as 24"),
        ("--batch-size 40 --microbatches 4", "give a multiple of 32, such as 64"),
        ("--batch-size 2000", "more than the 1437 training examples"),
        ("--shards 4", "give a multiple of 8"),
        ("--shards 8 --sharding fsdp", "give --sharding data"),
        ("--shards 8 --method sam:ascent_fraction=0.5", "leave out one of them"),
        ("--axes explicit --method sam:ascent_fraction=0.5", "give --axes auto"),
        ("--method sam,asam", "train one at a time"),
        ("--method salm", "Unknown method 'salm'"),
        ("--steps 0", "--steps 0 is out of range: it must be at least 1"),
        ("--seed -1", "--seed -1 is out of range: it must be at least 0"),
        ("--learning-rate -1", "must be a positive number"),
        ("--stepz 3", "unrecognized arguments: --stepz 3"),
        ("--processes 2 --process-id 2 --coordinator localhost:1234", "out of range"),
        ("--processes 2 --process-id 0", "--coordinator missing"),
        ("--processes 2 --process-id 0 --coordinator localhost", "give HOST:PORT"),
    ],
)
def test_a_usage_error_says_what_to_write(arguments, message, capsys):
    assert message in complaint(arguments, capsys)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a folder with the checkpoints of a short run, and the command that made them."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    command = "--steps 4 --save-every 1 --processes 1 --checkpoint"
    assert main(f"{command} {folder}".split()) == 0
    return folder, command


@pytest.mark.slow
def test_the_two_newest_checkpoints_are_kept(saved):
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4", "configuration.json"]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_checkpoint_of_another_run_names_the_differences(saved, capsys):
    folder, command = saved
    answer = complaint(f"{command} {folder} --seed 1 --method sam:rho=0.2", capsys)
    assert "method is 'sam:rho=0.1' there and 'sam:rho=0.2' here; seed is 0 there" in answer


@pytest.mark.nightly_except("truncated")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # from threads of Orbax
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_named(saved, damage, tmp_path, capsys):
    """After it is deleted, the run resumes from the checkpoint before it."""
    folder, command = saved
    shutil.copytree(folder, tmp_path / "run")
    newest = tmp_path / "run" / "4"
    for weights in newest.glob("state/ocdbt.process_0/d/*"):
        content = bytearray(weights.read_bytes())
        middle = len(content) // 2
        content[middle] ^= 255
        weights.write_bytes(content if damage == "flipped" else content[:middle])
    assert list(newest.glob("state/ocdbt.process_0/d/*"))
    answer = complaint(f"{command} {tmp_path}/run", capsys)
    assert "damaged" in answer
    assert f"delete {newest}" in answer
    shutil.rmtree(newest)
    assert main(f"{command} {tmp_path}/run".split()) == 0
    assert "steps 3 to 4" in capsys.readouterr().out


def test_other_files_and_folders_are_not_taken_for_a_run(saved, tmp_path, capsys):
    folder, command = saved
    (tmp_path / "weights.pt").touch()
    assert "contains other files" in complaint(f"{command} {tmp_path}", capsys)
    assert "is a file" in complaint(f"{command} {tmp_path}/weights.pt", capsys)
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "configuration.json").write_text("{")
    assert "configuration.json cannot be read" in complaint(f"{command} {tmp_path}/run", capsys)
