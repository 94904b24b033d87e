"""Decoded images are stored once, whole, and only used while the file is the one that was decoded."""

import logging
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from sharpreid.data import pixel_cache
from sharpreid.data.pixel_cache import PixelCache, build_cache, cache_folder, open_cache
from sharpreid.data.reid_data import DataError
from sharpreid.data.transforms import read_image


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Seven images of different sizes and modes, under names that are no plain ASCII."""
    folder = tmp_path / "Bilder für alle"
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number, (mode, suffix) in enumerate(
        [
            ("RGB", "jpg"),
            ("L", "jpg"),
            ("CMYK", "jpg"),
            ("RGBA", "png"),
            ("P", "png"),
            ("RGB", "png"),
            ("1", "png"),
        ]
    ):
        size = (1, 1) if number == 5 else (10 + number, 20 - number)
        image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
        paths.append(folder / f"行人 {number}.{suffix}")
        image.save(paths[-1])
    return paths


@pytest.fixture
def few_per_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "SHARD_FILES", 3)


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.rgb")}


def pixels(image: Image.Image) -> bytes:
    assert image.mode == "RGB"
    return image.tobytes() + bytes(image.size)


@pytest.mark.usefixtures("few_per_shard")
def test_cached_pixels_are_those_of_the_file(pictures: list[Path], tmp_path: Path) -> None:
    built = build_cache(pictures, tmp_path / "cache")
    cache = PixelCache(tmp_path / "cache")
    assert (len(built.files), len(cache), built.unreadable) == (7, 7, ())
    assert len(shards(tmp_path / "cache")) == 3
    for path in pictures:
        assert pixels(cache(path)) == pixels(read_image(path))


def test_the_files_are_not_opened_again(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_cache(pictures, tmp_path / "cache")
    monkeypatch.setattr(pixel_cache, "read_image", lambda *_: pytest.fail("decoded a file"))
    assert PixelCache(tmp_path / "cache")(pictures[0]).size == (10, 20)


def test_a_changed_file_is_decoded_anew_with_one_warning(
    pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_cache(pictures, tmp_path / "cache")
    cache = PixelCache(tmp_path / "cache")
    for path in pictures[:2]:
        Image.new("RGB", (5, 6), "red").save(path)
    with caplog.at_level(logging.WARNING):
        assert cache(pictures[0]).size == cache(pictures[1]).size == (5, 6)
    assert [record.getMessage().count("sharpreid.prepare") for record in caplog.records] == [1]


def test_a_file_of_equal_size_written_at_another_time_is_decoded_anew(
    pictures: list[Path], tmp_path: Path
) -> None:
    path = pictures[0].with_suffix(".bmp")
    Image.new("RGB", (5, 6), "red").save(path)
    build_cache([path], tmp_path / "cache")
    Image.new("RGB", (5, 6), "blue").save(path)
    os.utime(path, (1, 1))
    assert PixelCache(tmp_path / "cache")(path).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.usefixtures("few_per_shard")
def test_an_interrupted_build_goes_on_where_it_was(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(pictures, tmp_path / "cache", stop)
    assert open_cache(tmp_path / "cache") is None
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.rgb")}
    decoded: list[Path] = []

    def counting(path: Path, content: bytes) -> Image.Image:
        decoded.append(path)
        return read_image(path, content)

    monkeypatch.setattr(pixel_cache, "read_image", counting)
    build_cache(pictures, tmp_path / "cache")
    assert decoded == [pictures[6]]
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert pixels(PixelCache(tmp_path / "cache")(pictures[2])) == pixels(read_image(pictures[2]))


@pytest.mark.usefixtures("few_per_shard")
def test_a_changed_file_costs_its_own_shard_and_the_old_one_is_deleted(
    pictures: list[Path], tmp_path: Path
) -> None:
    build_cache(pictures, tmp_path / "cache")
    before = shards(tmp_path / "cache")
    Image.new("RGB", (5, 6), "red").save(pictures[0])
    build_cache(pictures, tmp_path / "cache")
    after = shards(tmp_path / "cache")
    assert (len(after), len(after & before)) == (3, 2)
    assert PixelCache(tmp_path / "cache")(pictures[0]).size == (5, 6)


@pytest.mark.usefixtures("few_per_shard")
def test_every_unreadable_file_is_named_and_the_earlier_cache_stays(
    pictures: list[Path], tmp_path: Path
) -> None:
    build_cache(pictures, tmp_path / "cache")
    index, stored = (tmp_path / "cache" / "index.csv").read_bytes(), shards(tmp_path / "cache")
    pictures[0].write_bytes(pictures[0].read_bytes()[:-40])
    pictures[4].write_bytes(b"<html>404</html>")
    pictures[6].unlink()
    built = build_cache(pictures, tmp_path / "cache")
    assert len(built.unreadable) == 3
    assert [name in problem for name, problem in zip("046", sorted(built.unreadable), strict=True)] == [
        True
    ] * 3
    assert "cannot be read as an image (image file is truncated" in sorted(built.unreadable)[0]
    assert "No such file" in sorted(built.unreadable)[2]
    assert (tmp_path / "cache" / "index.csv").read_bytes() == index
    assert stored <= shards(tmp_path / "cache")


def test_a_build_waits_for_another_one(pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    other = multiprocessing.get_context("fork" if os.name == "posix" else "spawn").Process(
        target=build_cache, args=(pictures, tmp_path / "cache")
    )
    with FileLock(tmp_path / "cache" / ".lock"):
        other.start()
        other.join(1)
        assert other.is_alive()
        assert not shards(tmp_path / "cache")
    other.join(60)
    assert (other.exitcode, len(shards(tmp_path / "cache"))) == (0, 1)


def test_of_two_builds_at_once_the_second_finds_everything_done(pictures: list[Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    processes = [context.Process(target=build_cache, args=(pictures, tmp_path / "cache")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(shards(tmp_path / "cache")) == 1
    assert len(PixelCache(tmp_path / "cache")) == 7


def test_two_files_of_one_size_and_time_that_change_places_are_decoded_anew(tmp_path: Path) -> None:
    red, blue = tmp_path / "red.bmp", tmp_path / "blue.bmp"
    for path in (red, blue):
        Image.new("RGB", (5, 6), path.stem).save(path)
        os.utime(path, (1, 1))
    build_cache([red, blue], tmp_path / "cache")
    red.rename(tmp_path / "third.bmp")
    blue.rename(red)
    (tmp_path / "third.bmp").rename(blue)
    assert PixelCache(tmp_path / "cache")(red).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("damage", ["cut short", "gone", "emptied"])
def test_a_damaged_shard_is_passed_over_and_then_mended(
    pictures: list[Path], tmp_path: Path, damage: str
) -> None:
    build_cache(pictures, tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob("*.rgb")
    whole = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(whole[:50] if damage == "cut short" else b"")
    cache = PixelCache(tmp_path / "cache")
    assert [pixels(cache(path)) for path in pictures] == [pixels(read_image(path)) for path in pictures]
    build_cache(pictures, tmp_path / "cache")
    assert shard.read_bytes() == whole


def test_files_of_somebody_else_are_left_alone(pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine.rgb").touch()
    with pytest.raises(DataError, match=r"not belong to a cache \(mine\.rgb\).*data\.cache="):
        build_cache(pictures, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mine.rgb"]


def test_a_shard_is_closed_by_its_size_in_memory(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_cache, "SHARD_BYTES", 700)
    build_cache(pictures, tmp_path / "cache")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "cache").glob("*.rgb"))
    assert len(sizes) == 3
    assert max(sizes) < 700 + 16 * 20 * 3


@pytest.mark.parametrize("name", ["", ".", "..", "../shop", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be a name without slashes"):
        cache_folder("cache", name)


def test_a_cache_travels_to_loader_processes_without_its_pixels(pictures: list[Path], tmp_path: Path) -> None:
    build_cache(pictures, tmp_path / "cache")
    cache = PixelCache(tmp_path / "cache")
    unread = pickle.dumps(cache)
    cache(pictures[0])
    copy = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) == len(unread)
    assert pixels(copy(pictures[0])) == pixels(cache(pictures[0]))


@pytest.mark.parametrize(
    "content", ["", "path,sha\n", "path,sha256,size,mtime_ns,width,height,shard,offset\na,b\n"]
)
def test_a_damaged_index_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text(content)
    with pytest.raises(DataError, match=r"index\.csv: not the index of a pixel cache .*delete this folder"):
        open_cache(tmp_path)


def test_what_a_killed_process_left_half_written_is_deleted(pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build_cache(pictures, folder)
    left = [
        folder / f".{'0a' * 16}-2e237491.rgb",
        folder / ".index-0123abcd.csv",
        folder / ".report-0123abcd.json",
    ]
    for path in left:
        path.write_bytes(b"half")
    (folder / ".mine").touch()
    build_cache(pictures, folder)
    assert not any(path.exists() for path in left)
    assert (folder / ".mine").exists()
