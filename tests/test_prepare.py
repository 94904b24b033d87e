"""`sharpreid.prepare` checks a data set, names what is wrong, and leaves what training reads."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from sharpreid import prepare as command
from sharpreid.data.pixel_cache import PixelCache
from sharpreid.run import preparation
from sharpreid.run.build import build_data

Capture = pytest.CaptureFixture[str]

SUBSET = "data.source.allow_subset=true"


@pytest.fixture
def place(tmp_path: Path, tiny_market: Path) -> list[str]:
    """Overrides that name a copy of the tiny data set, and a cache."""
    root = tmp_path / "Market"
    for path in tiny_market.rglob("*.jpg"):
        copy = root / path.relative_to(tiny_market)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return ["data=market1501", f"data.source.root={root}", f"data.cache={tmp_path / 'cache'}"]


def run(arguments: list[str], capsys: Capture) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


def test_a_good_data_set_is_ready(place: list[str], capsys: Capture, tmp_path: Path) -> None:
    code, out, _ = run([*place, SUBSET], capsys)
    assert code == 0
    assert out.startswith("ready: market1501 (subset: 32 train images instead of 12,936")
    assert "      32 train images" in out
    assert "most common size: 16 x 32 (48 of 48)" in out
    assert len(PixelCache(tmp_path / "cache" / "market1501")) == 48


def test_the_list_of_files_names_every_image_with_its_hash(
    place: list[str], capsys: Capture, tmp_path: Path
) -> None:
    run([*place, SUBSET], capsys)
    with (tmp_path / "cache" / "market1501" / "files.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 48
    for row in rows:
        assert hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest() == row["sha256"]
    assert {row["split"] for row in rows} == {"train", "query", "gallery"}
    assert Path(rows[0]["path"]).name.startswith(f"{int(rows[0]['identity']):04d}_c{rows[0]['camera']}")


def test_the_json_report_is_for_machines(place: list[str], capsys: Capture, tmp_path: Path) -> None:
    code, out, _ = run([*place, SUBSET, "--json"], capsys)
    report = json.loads(out)
    assert (code, report["ready"], report["files"], report["problems"]) == (0, True, 48, [])
    assert report["counts"]["query_identities"] == 4
    assert json.loads((tmp_path / "cache" / "market1501" / "report.json").read_text()) == report


def test_every_unreadable_image_is_named(place: list[str], capsys: Capture, tmp_path: Path) -> None:
    images = sorted((tmp_path / "Market" / "query").glob("*.jpg"))
    images[0].write_bytes(images[0].read_bytes()[:-30])
    images[3].write_bytes(b"")
    code, out, _ = run([*place, SUBSET], capsys)
    assert code == 1
    assert out.startswith("not ready: 2 problems")
    assert images[0].name in out
    assert images[3].name in out
    assert not (tmp_path / "cache" / "market1501" / "files.csv").exists()


def test_wrong_counts_are_a_problem(place: list[str], capsys: Capture) -> None:
    code, out, _ = run([*place, "--json"], capsys)
    report = json.loads(out)
    assert (code, report["ready"]) == (1, False)
    assert "32 train images instead of 12,936" in report["problems"][0]


def test_a_missing_data_set_is_a_problem(capsys: Capture, tmp_path: Path) -> None:
    code, out, _ = run(["data=market1501", f"data_root={tmp_path}"], capsys)
    assert code == 1
    assert "bounding_box_train: no such folder" in out
    assert list(tmp_path.iterdir()) == []


def test_equal_images_are_remarked_and_more_so_with_two_identities(
    place: list[str], capsys: Capture, tmp_path: Path
) -> None:
    train = sorted((tmp_path / "Market" / "bounding_box_train").glob("*.jpg"))
    train[1].write_bytes(train[0].read_bytes())
    train[-1].write_bytes(train[4].read_bytes())
    code, out, _ = run([*place, SUBSET], capsys)
    assert code == 0
    assert f"remark: 2 images occur more than once: {train[0].name} = {train[1].name}" in out
    assert f"remark: 1 of these have different identities: {train[4].name} = {train[-1].name}" in out
    assert "are in training and in test" not in out


def test_an_image_in_training_and_in_test_is_remarked(
    place: list[str], capsys: Capture, tmp_path: Path
) -> None:
    train = sorted((tmp_path / "Market" / "bounding_box_train").glob("*.jpg"))
    query = sorted((tmp_path / "Market" / "query").glob("*.jpg"))
    train[0].write_bytes(query[0].read_bytes())
    code, out, _ = run([*place, SUBSET], capsys)
    assert code == 0
    assert "remark: 1 of these are in training and in test: " in out


def test_images_that_are_not_used_are_remarked_and_damaged_ones_named(
    place: list[str], capsys: Capture, tmp_path: Path
) -> None:
    market = tmp_path / "Market"
    image = next((market / "query").glob("*.jpg")).read_bytes()
    (market / "bounding_box_test" / "-1_c1s1_000401_03.jpg").write_bytes(image[:100])
    (market / "bounding_box_train" / "0001_c1s1_000401_03.webp").write_bytes(image)
    (market / "loose.JPEG").write_bytes(image)
    (market / "Thumbs.db").touch()
    code, out, _ = run([*place, SUBSET], capsys)
    assert code == 0
    assert "remark: 3 images in the data set's folders are not used, 1 of them junk: Market/loose.JPEG" in out
    assert "1 of them cannot be read: bounding_box_test/-1_c1s1_000401_03.jpg" in out
    (market / "bounding_box_train" / "0001_c1s1_000401_03.webp").unlink()
    (market / "loose.JPEG").unlink()
    (market / "bounding_box_test" / "-1_c1s1_000401_03.jpg").write_bytes(image)
    code, out, _ = run([*place, SUBSET], capsys)
    assert "1 junk images" in out
    assert "not used" not in out, "the junk images are counted already"
    assert "SHA-256 of all files" in out


def test_a_data_set_with_problems_has_no_digest(place: list[str], capsys: Capture, tmp_path: Path) -> None:
    next((tmp_path / "Market" / "query").glob("*.jpg")).write_bytes(b"no image")
    code, out, _ = run([*place, SUBSET], capsys)
    assert code == 1
    assert "not ready: 1 problem" in out
    assert "SHA-256" not in out


def test_a_folder_that_cannot_be_looked_into_costs_its_remark_alone(
    place: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder == tmp_path / "Market":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    (tmp_path / "Market" / "loose.jpg").touch()
    monkeypatch.setattr(Path, "iterdir", iterdir)
    code, out, _ = run([*place, SUBSET], capsys)
    assert code == 0
    assert "not used" not in out


def test_tiny_images_are_remarked(place: list[str], capsys: Capture, tmp_path: Path) -> None:
    small = sorted((tmp_path / "Market" / "query").glob("*.jpg"))[0]
    Image.new("RGB", (15, 40)).save(small)
    _, out, _ = run([*place, SUBSET], capsys)
    assert f"remark: 1 images have a side below 16 pixels: {small.name}" in out


def test_an_image_of_16_bits_is_a_problem(capsys: Capture, tmp_path: Path) -> None:
    for split, person in (("train", "a"), ("train", "b"), ("test", "c")):
        for number in range(2):
            path = tmp_path / split / person / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            depth = "uint16" if (person, number) == ("c", 1) else "uint8"
            Image.fromarray(np.full((40, 20), 200, dtype=depth)).save(path)
    own = ["data=folders", f"data.source.root={tmp_path}", f"data.cache={tmp_path / 'cache'}"]
    code, out, _ = run(own, capsys)
    assert code == 1
    assert "test/c/1.png: more than 8 bits per channel" in out


def test_a_report_of_an_earlier_call_does_not_outlive_a_failure(
    place: list[str], capsys: Capture, tmp_path: Path
) -> None:
    run([*place, SUBSET], capsys)
    report = tmp_path / "cache" / "market1501" / "report.json"
    assert report.exists()
    shutil.rmtree(tmp_path / "Market" / "query")
    assert run([*place, SUBSET], capsys)[0] == 1
    assert not report.exists()


def test_a_report_of_an_earlier_call_outlives_a_wrong_one(
    place: list[str], capsys: Capture, tmp_path: Path
) -> None:
    run([*place, SUBSET], capsys)
    assert run([*place, SUBSET, "+data.foo=1"], capsys)[0] == 2
    assert (tmp_path / "cache" / "market1501" / "report.json").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["data=nowhere"], "nowhere"),
        (["data=market1501", "data.source.rot=x"], "rot"),
        (["data=market1501", "what"], "what"),
        (["seed=1"], "data=NAME is missing"),
        (["data=market1501", "data.source=null"], "must not be null"),
        (["data=market1501", "data=null"], "NoneType"),
        (["data=market1501", "+data.source.foo=1"], "data.source.foo: no such key"),
        (["data=market1501", "data.source._target_=nowhere.load"], "nowhere.load"),
    ],
)
def test_a_wrong_call_says_how_to_call(wrong: list[str], said: str, capsys: Capture) -> None:
    code, out, err = run(wrong, capsys)
    assert (code, out) == (2, "")
    assert said in err
    assert "usage: python -m sharpreid.prepare" in err
    code, out, _ = run([*wrong, "--json"], capsys)
    report = json.loads(out)
    assert (code, report["ready"]) == (2, False)
    assert said in report["problems"][0]


def test_without_arguments_the_usage_is_shown(capsys: Capture) -> None:
    assert run([], capsys)[0] == 2
    assert run(["--help"], capsys)[0] == 0


def test_an_interrupted_call_has_a_status_of_its_own(
    place: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "build_cache", interrupt)
    code, out, err = run([*place, SUBSET, "--json"], capsys)
    assert code == 130
    assert "the same command continues" in err
    assert json.loads(out) == {
        "ready": False,
        "problems": ["interrupted; the same command continues from here"],
    }


def test_a_terminated_call_has_a_status_of_its_own_and_leaves_nothing_half_written(
    place: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def terminate(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return ""

    monkeypatch.setattr("sharpreid.atomic_io.os.fsync", terminate)
    code, _, err = run([*place, SUBSET], capsys)
    assert code == 143
    assert "the same command continues" in err
    assert [path.name for path in (tmp_path / "cache" / "market1501").iterdir()] == [".lock"]


def test_training_reads_the_same_batches_from_the_cache(
    place: list[str],
    composed: Callable[..., DictConfig],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def batches(*overrides: str) -> list[torch.Tensor]:
        data = build_data(composed(*place[1:], *overrides))
        data.setup("fit")
        return [batch.images for batch in data.train_dataloader()] + [
            batch.views for batch in data.test_dataloader()
        ]

    decoded = batches("data.cache=null")
    run([*place, SUBSET], capsys)
    monkeypatch.setattr("sharpreid.data.pixel_cache.read_image", lambda *_: pytest.fail("decoded a file"))
    monkeypatch.setattr("sharpreid.data.datasets.read_image", lambda *_: pytest.fail("decoded a file"))
    cached = batches()
    assert len(decoded) == len(cached) > 2
    assert all(torch.equal(one, other) for one, other in zip(decoded, cached, strict=True))


def check_nothing_is_half_written(done: subprocess.CompletedProcess[str], folder: Path, why: str) -> None:
    assert done.returncode == 1
    assert f"decoded images cannot be written ({why}); free space, or choose another folder" in done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in folder.iterdir() if path.name != "report.json"] == [".lock"]


def call(place: list[str], cache: Path) -> list[str]:
    return [sys.executable, "-m", "sharpreid.prepare", *place[:2], f"data.cache={cache}", SUBSET]


@pytest.mark.slow
@pytest.mark.own_interpreter
def test_a_disk_that_takes_no_more_ends_in_one_message_and_nothing_half_written(
    place: list[str], tmp_path: Path
) -> None:
    """The shard of 72 KiB is cut off at 16: what a full disk does, but for the words."""
    limit = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384)); "
    limit += "runpy.run_module('sharpreid.prepare', run_name='__main__')"
    command = [sys.executable, "-c", limit, *call(place, tmp_path / "cache")[3:]]
    done = subprocess.run(command, capture_output=True, text=True)
    check_nothing_is_half_written(done, tmp_path / "cache" / "market1501", "File too large")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root; the limit above does not")
def test_a_full_disk_ends_in_one_message_and_nothing_half_written(place: list[str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        done = subprocess.run(call(place, disk), capture_output=True, text=True)
        check_nothing_is_half_written(done, disk / "market1501", "No space left on device")
    finally:
        subprocess.run(["umount", disk], check=True)
