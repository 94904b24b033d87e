"""Embedding a place: what is found, what an interruption leaves, and what is refused."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharpreid import load
from sharpreid.data.reid_data import DataError
from sharpreid.embed import main
from sharpreid.serving.embedding import embed_images
from sharpreid.serving.gallery import Gallery, GalleryError, Item, embeddings_of, items_of
from sharpreid.serving.sources import find_items, read_picture
from tests.serving.test_model import saved

__all__ = ["saved"]  # a fixture

pytest.importorskip("pyarrow")


@pytest.fixture
def model(saved: Callable[..., tuple[Path, Any]]) -> Path:
    return saved()[0]


@pytest.fixture
def photos(tiny_market: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_market / "query", tmp_path / "photos")
    return tmp_path / "photos"


def test_rows_have_the_embeddings_of_their_images(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "deeper").mkdir()
    shutil.move(next(iter(photos.glob("*.jpg"))), photos / "deeper")
    (photos / ".hidden.jpg").touch()
    pattern = r"(?P<identity>\d+)_c(?P<camera>\d)s(?P<time>\d)"
    assert embed_images(str(photos), model=str(model), output=tmp_path / "g", camera_pattern=pattern) == (
        8,
        0,
    )
    table = Gallery(tmp_path / "g").read()
    paths = table["path"].to_pylist()
    assert sorted(paths) == sorted(map(str, photos.rglob("0*.jpg")))
    assert table["camera"].to_pylist() == [Path(path).name[6] for path in paths]
    assert set(table["time"].to_pylist()) == {1.0}
    assert table["identity"].to_pylist() == [Path(path).name[:4] for path in paths]
    np.testing.assert_allclose(embeddings_of(table), load(model).embed(paths), atol=1e-4)


def test_only_what_is_new_or_changed_is_embedded(model: Path, photos: Path, tmp_path: Path) -> None:
    place, output = str(photos), tmp_path / "g"
    one, *others = sorted(photos.glob("*.jpg"))
    shutil.move(one, tmp_path / "later.jpg")
    assert embed_images(place, model=str(model), output=output) == (7, 0)
    assert embed_images(place, model=str(model), output=output) == (0, 0)
    shutil.move(tmp_path / "later.jpg", one)
    Image.new("RGB", (16, 32), "red").save(others[0])
    assert embed_images(place, model=str(model), output=output) == (2, 0)
    table = Gallery(output).read()
    assert len(table) == 8, "the row of the changed image replaces the earlier one"
    row = table["path"].to_pylist().index(str(others[0]))
    np.testing.assert_allclose(embeddings_of(table)[row], load(model).embed(others[0])[0], atol=1e-4)


def test_images_whose_cameras_are_given_later_are_embedded_again(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    count = len(find_items(str(photos), boxes=None, camera_pattern=None))
    for camera_pattern, expected in ((None, count), (r"_c(?P<camera>\d)", count), (r"_c(?P<camera>\d)", 0)):
        done, _ = embed_images(
            str(photos), model=str(model), output=tmp_path / "g", camera_pattern=camera_pattern
        )
        assert done == expected
    rows = items_of(Gallery(tmp_path / "g").read())
    assert {item.camera for item in rows} == {"1", "2"}
    assert len(rows) == count


def test_an_image_that_cannot_be_read_is_listed_and_the_others_are_embedded(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    arguments = [f"images={photos}", f"model={model}", f"output={tmp_path / 'g'}"]
    main(arguments)
    assert "1 images could not be read" in capsys.readouterr().err
    assert "broken.jpg" in (tmp_path / "g" / "skipped.csv").read_text(encoding="utf-8")
    assert len(Gallery(tmp_path / "g").read()) == 8
    (photos / "broken.jpg").unlink()
    main(arguments)
    assert not (tmp_path / "g" / "skipped.csv").exists()


def test_embeddings_of_two_models_are_never_mixed(
    saved: Callable[..., tuple[Path, Any]], photos: Path, tmp_path: Path
) -> None:
    embed_images(str(photos), model=str(saved()[0]), output=tmp_path / "g")
    another = saved("data.eval_transform.crops=flip")[0]
    with pytest.raises(GalleryError, match="another model"):
        embed_images(str(photos), model=str(another), output=tmp_path / "g")


def test_a_csv_file_has_boxes_cameras_and_people(model: Path, photos: Path, tmp_path: Path) -> None:
    one, two = sorted(path.name for path in photos.glob("*.jpg"))[:2]
    (photos / "list.csv").write_text(
        f"path,box,camera,time,identity,split\n{one},,front door,2.5,Ann,query\n{two},1 2 9 20,,,,\n", "utf-8"
    )
    embed_images(str(photos / "list.csv"), model=str(model), output=tmp_path / "g")
    table = Gallery(tmp_path / "g").read()
    assert table["box"].to_pylist() == [None, [1, 2, 9, 20]]
    assert table["camera"].to_pylist() == ["front door", None]
    assert (table["time"].to_pylist(), table["identity"].to_pylist()) == ([2.5, None], ["Ann", None])
    embedder = load(model)
    expected = embedder.embed([photos / one, Image.open(photos / two).crop((1, 2, 9, 20))])
    np.testing.assert_allclose(embeddings_of(table), expected, atol=1e-4)


def test_boxes_in_a_video_are_embedded_with_their_frames(model: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    video, boxes = tmp_path / "clip.mp4", tmp_path / "boxes.csv"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 64, "yuv420p", 4_000_000
        for number in range(6):
            picture = np.full((64, 64, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    boxes.write_text("frame,x,y,w,h,track\n4,8,8,16,32,b\n1,40,-2,60,50,a\n99,0,0,9,9,a\n", "utf-8")
    done = embed_images(str(video), boxes=str(boxes), model=str(model), output=tmp_path / "g")
    assert done == (2, 1), "the frame that is not there is skipped"
    again = embed_images(str(video), boxes=str(boxes), model=str(model), output=tmp_path / "g")
    assert again == (0, 1), "the times that were decoded are no change"
    table = Gallery(tmp_path / "g").read()
    assert table["frame"].to_pylist() == [1, 4]
    assert table["track"].to_pylist() == ["a", "b"]
    assert table["time"].to_pylist() == pytest.approx([0.1, 0.4])
    expected = load(model).embed([np.full((8, 8, 3), 40 * number, np.uint8) for number in (1, 4)])
    distances = np.linalg.norm(embeddings_of(table)[:, None] - expected, axis=2)
    assert distances.argmin(1).tolist() == [0, 1], "frame 4 is bright, frame 1 is dark"
    for item, size in zip(items_of(table), ((24, 48), (16, 32)), strict=True):
        for when in (item.time, None, 7.0):
            picture = read_picture(item._replace(time=when))
            assert picture.size == size, "a box beyond the edge ends there"
            assert abs(picture.getpixel((0, 0))[0] - 40 * item.frame) < 12, "also without its time"
    with pytest.raises(DataError, match="has no frame 99"):
        read_picture(Item(str(video), frame=99, box=(0, 0, 9, 9)))


@pytest.mark.slow
def test_a_killed_command_goes_on(model: Path, photos: Path, tmp_path: Path) -> None:
    for number in range(600):
        shutil.copy(photos / "0009_c1s1_000000_00.jpg", photos / f"more{number}.jpg")
    command = [sys.executable, "-m", "sharpreid.embed", f"images={photos}", f"model={model}", "batch_size=8"]
    command += [f"output={tmp_path / 'g'}"]
    code = "import sharpreid.serving.embedding as one, runpy; one._ROWS = 8\n"
    code += (
        f"import sys; sys.argv = {command[2:]!r}; runpy.run_module('sharpreid.embed', run_name='__main__')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("g/part-*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = len(Gallery(tmp_path / "g").read())
    assert 0 < before < 608
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"{before} of 608 images are in" in done.stdout, done.stderr
    assert len(Gallery(tmp_path / "g").read()) == 608


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ({}, {"images": "nowhere"}, "no such image, folder"),
        ({"empty/a.txt": ""}, {"images": "empty"}, "no image; expected files that end in"),
        ({"a.csv": "file\nb.jpg\n"}, {"images": "a.csv"}, "missing: path; unknown: 'file'"),
        ({"a.csv": "path,box\nb.jpg,1 2\n"}, {"images": "a.csv"}, "line 2: box must be four whole numbers"),
        ({"a.csv": "path,time\nb.jpg,noon\n"}, {"images": "a.csv"}, "time must be a number, got 'noon'"),
        ({"a.csv": "path,time\nb.jpg\n"}, {"images": "a.csv"}, "not as many fields"),
        ({"a.csv": "path,time\nb.jpg,nan\n"}, {"images": "a.csv"}, "time must be a number, got 'nan'"),
        ({"a.csv": "path\nb.mp4\n"}, {"images": "a.csv"}, "line 2: a video; give it alone"),
        ({"\udce9.jpg": ""}, {"images": "."}, "not UTF-8; rename"),
        (
            {"a.mp4": "", "b.csv": "frame,x,y,w,h\n0,inf,0,5,5\n"},
            {"images": "a.mp4", "boxes": "b.csv"},
            "line 2: x must be a number, got 'inf'",
        ),
        ({"a.mp4": ""}, {"images": "a.mp4"}, "a video needs boxes="),
        (
            {"a.mp4": "", "b.csv": "frame,x,y,w,h\n-1,0,0,5,5\n"},
            {"images": "a.mp4", "boxes": "b.csv"},
            "from 0",
        ),
        ({"a.jpg": "", "b.csv": ""}, {"images": "a.jpg", "boxes": "b.csv"}, "only a video has boxes"),
        ({"a.jpg": ""}, {"images": "a.jpg", "camera_pattern": "("}, "no regular expression"),
        ({"a.jpg": ""}, {"images": "a.jpg", "camera_pattern": "(a)"}, "needs a group"),
        ({"a.jpg": ""}, {"images": "a.jpg", "camera_pattern": "(?P<camera>x)"}, "does not fit"),
    ],
)
def test_a_wrong_place_is_refused_with_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    given: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises((DataError, FileNotFoundError), match=message):
        find_items(**{"boxes": None, "camera_pattern": None, **given})


def test_a_glob_and_an_odd_name_are_taken_as_written(tmp_path: Path) -> None:
    (tmp_path / "a [1]=b, c").mkdir()
    (tmp_path / "a [1]=b, c" / "x.jpg").touch()
    for place in (tmp_path / "a [1]=b, c", tmp_path / "a*" / "*.jpg"):
        (found,) = find_items(str(place), boxes=None, camera_pattern=None)
        assert found.path == str(tmp_path / "a [1]=b, c" / "x.jpg")


def test_a_file_has_one_path_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "photos" / "x.jpg").touch()
    (tmp_path / "lists" / "a.csv").write_text("path\n../photos/x.jpg\n")
    monkeypatch.chdir(tmp_path / "lists")
    for place in ("../photos", "../photos/*.jpg", "../photos/x.jpg", "a.csv"):
        (found,) = find_items(place, boxes=None, camera_pattern=None)
        assert found.path == str(tmp_path.resolve() / "photos" / "x.jpg")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["images=a"], 2, "model=..., output=... is missing"),
        (["image=a"], 2, "did you mean images?"),
        (["images=a", "model=b", "output=c", "batch_size=0"], 2, "batch_size must be"),
        (["images=a", "images=b"], 2, "given twice"),
        (["images=nowhere", "model=b", "output=c"], 1, "nowhere"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == status
    assert message in capsys.readouterr().err


def test_two_writers_of_a_gallery_lose_nothing(tmp_path: Path) -> None:
    first, second = Gallery(tmp_path, "a" * 64), Gallery(tmp_path, "a" * 64)
    for number, gallery in enumerate((first, second, first)):
        gallery.append([Item(f"/{number}.jpg")], np.zeros((1, 2), np.float32))
    assert [item.path for item in items_of(Gallery(tmp_path).read())] == ["/0.jpg", "/1.jpg", "/2.jpg"]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, "digest")
    gallery.append([Item("a.jpg")], np.ones((1, 4), np.float32))
    (tmp_path / "part-000001.parquet").write_bytes(b"no parquet")
    with pytest.raises(GalleryError, match=r"part-000001\.parquet"):
        Gallery(tmp_path)
    (tmp_path / "part-000001.parquet").unlink()
    content = (tmp_path / "part-000000.parquet").read_bytes()
    (tmp_path / "part-000000.parquet").write_bytes(content[:4] + bytes(200) + content[204:])
    for read in (Gallery(tmp_path).read, Gallery(tmp_path).known):
        with pytest.raises(GalleryError, match=r"part-000000\.parquet: damaged (?s:.*)embed again"):
            read()
