"""The command's answers: mistakes and checkpoints get one paragraph and exit code 2."""

import shutil

import pytest

from benchmarks.train_distributed.__main__ import main


def complaint(arguments, capsys):
    """The one paragraph that a mistake is answered with, beside exit code 2."""
    alone = "" if "--processes" in arguments else " --processes 1"
    assert main((arguments + alone).split()) == 2
    (paragraph,) = capsys.readouterr().err.splitlines()
    assert paragraph.startswith("error: ")
    return paragraph


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch-size 20", "give a multiple of 8, such as 24"),
        ("--batch-size 40 --microbatches 4", "give a multiple of 32, such as 64"),
        ("--batch-size 2000", "more than the 1437 training examples"),
        ("--shards 4", "give a multiple of 8"),
        ("--shards 8 --sharding fsdp", "give --sharding data"),
        ("--shards 8 --method sam:ascent_fraction=0.5", "take one of them away"),
        ("--axes explicit --method sam:ascent_fraction=0.5", "give --axes auto"),
        ("--method sam,asam", "train one at a time"),
        ("--method salm", "Unknown method 'salm'"),
        ("--steps 0", "--steps 0 must be at least 1"),
        ("--learning-rate -1", "must be a positive number"),
        ("--stepz 3", "unrecognized arguments: --stepz 3"),
        ("--processes 2 --process-id 2 --coordinator localhost:1234", "out of range"),
        ("--processes 2 --process-id 0", "--coordinator missing"),
        ("--processes 2 --process-id 0 --coordinator localhost", "give HOST:PORT"),
    ],
)
def test_mistakes_get_one_paragraph_and_exit_code_2(arguments, message, capsys):
    assert message in complaint(arguments, capsys)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of a short run, and the command that made it."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    command = "--steps 4 --save-every 1 --processes 1 --checkpoint"
    assert main(f"{command} {folder}".split()) == 0
    return folder, command


def test_the_newest_two_checkpoints_stay(saved):
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4", "configuration.json"]


def test_the_checkpoint_of_another_run_says_what_differs(saved, capsys):
    folder, command = saved
    answer = complaint(f"{command} {folder} --seed 1 --method sam:rho=0.2", capsys)
    assert "method is 'sam:rho=0.1' there and 'sam:rho=0.2' here; seed is 0 there" in answer


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(
    saved, damage, tmp_path, capsys
):
    folder, command = saved
    shutil.copytree(folder, tmp_path / "run")
    newest = tmp_path / "run" / "4"
    for weights in newest.glob("ocdbt.process_0/d/*"):
        content = bytearray(weights.read_bytes())
        middle = len(content) // 2
        content[middle] ^= 255
        weights.write_bytes(content if damage == "flipped" else content[:middle])
    answer = complaint(f"{command} {tmp_path}/run", capsys)
    assert "damaged" in answer
    assert f"delete {newest}" in answer
    shutil.rmtree(newest)
    assert main(f"{command} {tmp_path}/run".split()) == 0
    assert "steps 3 to 4" in capsys.readouterr().out


def test_what_is_no_run_is_no_place_for_checkpoints(saved, tmp_path, capsys):
    folder, command = saved
    (tmp_path / "weights.pt").touch()
    assert "holds other files" in complaint(f"{command} {tmp_path}", capsys)
    assert "is a file" in complaint(f"{command} {tmp_path}/weights.pt", capsys)
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "configuration.json").write_text("{")
    assert "configuration.json cannot be read" in complaint(f"{command} {tmp_path}/run", capsys)
