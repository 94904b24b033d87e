"""Checkpoints are whole or not there, and a damaged one is passed over."""

import hashlib
import logging
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from sharpreid.checkpoint_files import (
    DamagedCheckpointError,
    digest_path,
    newest_whole,
    remove_unfinished,
    step_path,
    verify,
)
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.models.weights import WeightsError

CONTENT = {"state_dict": {"w": torch.arange(1000.0)}, "epoch": 3}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Checkpoints after 10 and 20 steps."""
    paths = step_path(tmp_path, 10), step_path(tmp_path, 20)
    for path in paths:
        SafeCheckpointIO().save_checkpoint(CONTENT, path)
    return paths


def test_what_is_written_is_read(two: tuple[Path, Path]) -> None:
    assert newest_whole(two[0].parent) == two[1]
    read = SafeCheckpointIO().load_checkpoint(two[1])
    assert read["epoch"] == 3
    assert torch.equal(read["state_dict"]["w"], CONTENT["state_dict"]["w"])  # type: ignore[index]
    assert sorted(path.name for path in two[0].parent.iterdir()) == [
        "step=000010.ckpt",
        "step=000010.ckpt.sha256",
        "step=000020.ckpt",
        "step=000020.ckpt.sha256",
    ]


def test_the_checksum_is_that_of_sha256sum(two: tuple[Path, Path]) -> None:
    check = ["sha256sum", "--check", "--strict", digest_path(two[0]).name]
    assert subprocess.run(check, cwd=two[0].parent, capture_output=True).returncode == 0


@pytest.mark.parametrize("damage", ["cut", "flipped byte", "empty", "no checksum", "empty checksum"])
def test_a_damaged_one_is_passed_over(
    damage: str, two: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = two
    whole = new.read_bytes()
    if damage == "cut":
        new.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped byte":
        new.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    elif damage == "empty":
        new.write_bytes(b"")
    elif damage == "no checksum":
        digest_path(new).unlink()
    else:
        digest_path(new).write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match="step=000020"):
        verify(new)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(new.parent) == old
    assert "falling back" in caplog.text


def test_nothing_whole_is_nothing(two: tuple[Path, Path], tmp_path: Path) -> None:
    for path in two:
        path.write_bytes(b"")
    assert newest_whole(tmp_path) is None
    assert newest_whole(tmp_path / "missing") is None


def test_unreadable_ones_are_not_taken_for_none(two: tuple[Path, Path]) -> None:
    """To start anew would set aside what may be whole."""
    old, new = two
    for path in two:
        path.unlink()
        path.symlink_to(path)  # a stand-in for a folder without permission, which root has
    with pytest.raises(OSError, match=r"no checkpoint can be read .*permissions"):
        newest_whole(old.parent)
    SafeCheckpointIO().save_checkpoint(CONTENT, old)
    assert newest_whole(old.parent) == old
    assert new.is_symlink()


def test_a_full_disk_is_an_error_and_leaves_the_earlier_one(two: tuple[Path, Path]) -> None:
    """A limit on the size of files stands for the disk's end: the write fails part way."""
    program = (
        "import sys, torch; from pathlib import Path; from sharpreid.checkpoint_io import SafeCheckpointIO;"
        "SafeCheckpointIO().save_checkpoint({'w': torch.zeros(10**6)}, Path(sys.argv[1]))"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    before = {path: path.read_bytes() for path in two[0].parent.iterdir()}
    for target in (step_path(two[0].parent, 30), two[1]):
        ended = subprocess.run(
            [sys.executable, "-c", program, str(target)], preexec_fn=limit, capture_output=True, text=True
        )
        assert ended.returncode == 1
        assert f"the checkpoint {target} could not be written" in ended.stderr
        assert "resume=auto" in ended.stderr
        assert {path: path.read_bytes() for path in two[0].parent.iterdir()} == before


def test_a_folder_that_takes_no_files_is_an_error() -> None:
    with pytest.raises(OSError, match="could not be written"):  # /proc refuses the superuser too
        SafeCheckpointIO().save_checkpoint(CONTENT, Path("/proc/self/fdinfo/step=000001.ckpt"))


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> object:
        return (Path.touch, (Path("exploded"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step=000001.ckpt"
    torch.save({"state_dict": Bomb()}, path)
    with pytest.raises(WeightsError, match="not a plain file of tensors"):
        SafeCheckpointIO().load_checkpoint(path)
    assert not Path("exploded").exists()


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A compressed checkpoint, whose checksum is right."""
    path = step_path(tmp_path, 1)
    torch.save({"state_dict": {"w": torch.zeros(10**6)}}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(path, "w") as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED)
    digest_path(path).write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(WeightsError, match=r"step=000001\.ckpt: .*: a zip bomb"):
        SafeCheckpointIO().load_checkpoint(path)


def test_removing_takes_the_checksum_along(two: tuple[Path, Path]) -> None:
    SafeCheckpointIO().remove_checkpoint(two[1])
    assert newest_whole(two[0].parent) == two[0]
    assert not digest_path(two[1]).exists()


def test_what_a_killed_process_left_half_written_is_deleted(two: tuple[Path, Path]) -> None:
    """Its temporary files, each the size of a checkpoint, and checksums whose checkpoint never came."""
    folder = two[0].parent
    whole = {*folder.iterdir()}
    left = [".step=000030-0123abcd.ckpt", ".step=000030.ckpt-89abcdef.sha256", "step=000030.ckpt.sha256"]
    for name in left:
        (folder / name).write_bytes(b"half")
    mine = folder / ".notes.txt"
    mine.touch()
    remove_unfinished(folder)
    assert {*folder.iterdir()} == {*whole, mine}
    remove_unfinished(folder / "missing")


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    SafeCheckpointIO().save_checkpoint({"step": 1}, step_path(tmp_path, 1))
    SafeCheckpointIO().save_checkpoint({"step": 2}, step_path(tmp_path, 2))
    step_path(tmp_path, 2).unlink()
    step_path(tmp_path, 2).mkdir()  # reading it is an error of the system
    assert newest_whole(tmp_path) == step_path(tmp_path, 1)
