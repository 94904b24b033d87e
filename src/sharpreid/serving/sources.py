"""Find the images that are to be embedded: a folder, a glob, a CSV file, or boxes in a video."""

import csv
import glob
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from sharpreid.data.reid_data import IMAGE_SUFFIXES, Box, DataError
from sharpreid.data.transforms import read_image
from sharpreid.serving.gallery import Item, absolute_path
from sharpreid.serving.model import Embedder, crop_box

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg")

COLUMNS = ("path", "box", "camera", "time", "track", "identity", "split")
"""Columns of a CSV file of images; only ``path`` is required, and ``split`` is not read."""

_BOX_COLUMNS = ("frame", "x", "y", "w", "h", "track")

_SAME_TIME = 1e-4  # seconds


class Task(NamedTuple):
    """An item, and the function that reads it."""

    item: Item
    read: Callable[[], Tensor]


def find_items(images: str, *, boxes: str | None, camera_pattern: str | None) -> list[Item]:
    """List the images of a place without opening them.

    Args:
        images: image, folder (searched with its subfolders, hidden ones excepted), glob such as
            ``shots/*/*.jpg``, CSV file with the columns `COLUMNS`, or video.
        boxes: for a video, CSV file with the columns frame (from 0), x, y, w, h (pixels) and, optionally,
            track.
        camera_pattern: regular expression that is searched in each file name; its group ``camera`` is the
            camera, and its groups ``time`` (seconds) and ``identity``, if it has them, are what they say.

    Raises:
        FileNotFoundError: there is no such place.
        DataError: the place has no image, or a file or argument is wrong; the message says what is.
    """
    place = Path(images).expanduser()
    if place.suffix.lower() in VIDEO_SUFFIXES:
        if boxes is None:
            raise DataError(
                f"{place}: a video needs boxes=FILE.csv with the columns {','.join(_BOX_COLUMNS)}"
            )
        return _boxes_of_video(place, Path(boxes).expanduser(), camera_pattern)
    if boxes is not None:
        raise DataError(f"boxes={boxes}: only a video has boxes of its own; a CSV of images has a column box")
    if place.suffix.lower() == ".csv" and place.is_file():
        return _items_of_csv(place, camera_pattern)
    if place.is_dir():
        found = _images_below(place)
    elif place.exists():
        found = [place]
    else:
        found = [Path(one) for one in sorted(glob.glob(str(place), recursive=True))]
        if not found:
            raise FileNotFoundError(
                f"{place}: no such image, folder, CSV file or video, and no glob that matches"
            )
        found = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise DataError(f"{place}: no image; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return [_named(path, camera_pattern) for path in found]


def read_items(items: Sequence[Item], embedder: Embedder) -> Iterator[Task]:
    """Yield a task for each item; frames of a video are decoded in order, each once."""
    for path, some in groupby(items, key=lambda item: item.path):
        if Path(path).suffix.lower() in VIDEO_SUFFIXES:
            yield from _tasks_of_video(Path(path), list(some), embedder)
        else:
            for item in some:
                yield Task(item, partial(embedder.read_views, item.path, item.box))


def _images_below(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def _named(path: Path, camera_pattern: str | None, **given: Any) -> Item:
    item = Item(absolute_path(path), changed=_changed(path))._replace(**given)
    try:
        item.path.encode()
    except UnicodeEncodeError:
        raise DataError(f"{item.path!r}: a name that is not UTF-8; rename the file or folder") from None
    if camera_pattern is None:
        return item
    try:
        pattern = re.compile(camera_pattern)
    except re.error as error:
        raise DataError(f"camera_pattern={camera_pattern}: no regular expression ({error})") from error
    if not {"camera"} <= pattern.groupindex.keys() <= {"camera", "time", "identity"}:
        raise DataError(
            f"camera_pattern={camera_pattern}: needs a group (?P<camera>...), and may have (?P<time>...) and "
            "(?P<identity>...)"
        )
    if (match := pattern.search(path.name)) is None:
        raise DataError(f"{path}: its name does not fit camera_pattern={camera_pattern}")
    groups = match.groupdict()
    time = _number(groups["time"], f"{path}: time") if groups.get("time") else item.time
    identity = groups.get("identity") or item.identity
    return item._replace(camera=groups["camera"], time=time, identity=identity)


def _changed(path: Path) -> int:
    with suppress(OSError):  # reading it will report the error
        return path.stat().st_mtime_ns
    return 0


def _rows(file: Path, wanted: Sequence[str], known: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the number and the fields of each line of a CSV file, stripped of white space."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such CSV file")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        titles = [title.strip() for title in reader.fieldnames or ()]
        missing = [title for title in wanted if title not in titles]
        unknown = [title for title in titles if title not in known]
        if missing or unknown or len({*titles}) < len(titles):
            raise DataError(
                f"{file}, line 1: the columns are {','.join(wanted)}, and any of {','.join(known)}; missing: "
                f"{', '.join(missing) or 'none'}; unknown: {', '.join(map(repr, unknown)) or 'none'}"
            )
        reader.fieldnames = titles
        try:
            for fields in reader:
                if None in fields or None in fields.values():
                    raise DataError(f"{file}, line {reader.line_num}: not as many fields as columns")
                yield reader.line_num, {title: field.strip() for title, field in fields.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a CSV file in UTF-8 ({error})") from error


def _items_of_csv(file: Path, camera_pattern: str | None) -> list[Item]:
    items = []
    for line, fields in _rows(file, ["path"], COLUMNS):
        place = f"{file}, line {line}"
        if not fields["path"]:
            raise DataError(f"{place}: no path")
        if fields["path"].lower().endswith(VIDEO_SUFFIXES):
            raise DataError(f"{place}: a video; give it alone, as images=VIDEO boxes=FILE.csv")
        items.append(
            _named(
                file.parent / fields["path"],
                camera_pattern,
                box=_box(fields.get("box", ""), place),
                camera=fields.get("camera") or None,
                time=_number(fields["time"], f"{place}: time") if fields.get("time") else None,
                track=fields.get("track") or None,
                identity=fields.get("identity") or None,
            )
        )
    if not items:
        raise DataError(f"{file}: no line with an image")
    return items


def _box(text: str, place: str) -> Box | None:
    if not text:
        return None
    try:
        left, upper, right, lower = map(int, text.split())
    except ValueError:
        raise DataError(
            f"{place}: box must be four whole numbers, left upper right lower; got {text!r}"
        ) from None
    return left, upper, right, lower


def _number(text: str, place: str) -> float:
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise DataError(f"{place} must be a number, got {text!r}")


def _boxes_of_video(video: Path, boxes: Path, camera_pattern: str | None) -> list[Item]:
    if not video.is_file():
        raise FileNotFoundError(f"{video}: no such video")
    base = _named(video, camera_pattern)
    items = []
    for line, fields in _rows(boxes, _BOX_COLUMNS[:-1], _BOX_COLUMNS):
        place = f"{boxes}, line {line}"
        frame, x, y, w, h = (_number(fields[title], f"{place}: {title}") for title in _BOX_COLUMNS[:-1])
        if frame < 0 or not frame.is_integer() or w < 1 or h < 1:
            raise DataError(f"{place}: frame must be a whole number from 0, w and h at least 1")
        box = (max(0, round(x)), max(0, round(y)), round(x + w), round(y + h))
        items.append(base._replace(frame=int(frame), box=box, track=fields.get("track") or None))
    if not items:
        raise DataError(f"{boxes}: no line with a box")
    return sorted(items, key=lambda item: item.frame or 0)


def _tasks_of_video(video: Path, items: Sequence[Item], embedder: Embedder) -> Iterator[Task]:
    """Decode the frames that have boxes."""
    wanted = {frame: list(some) for frame, some in groupby(items, key=lambda item: item.frame)}
    last = max(frame for frame in wanted if frame is not None)
    found = set()
    for number, frame in enumerate(_decode(video)):
        if number > last:
            break
        if number not in wanted:
            continue
        found.add(number)
        picture = frame.picture()
        for item in wanted[number]:
            timed = item if item.time is not None else item._replace(time=frame.time)
            yield Task(timed, partial(_read_box, embedder, picture, timed))
    for number in sorted(frame for frame in wanted if frame is not None and frame not in found):
        for item in wanted[number]:
            yield Task(item, partial(_refuse, f"{video}: has no frame {number}"))


class _Frame(NamedTuple):
    picture: Callable[[], Image.Image]
    time: float | None
    """Seconds since the start of the video."""


def _decode(video: Path, start: float | None = None) -> Iterator[_Frame]:
    """Decode a video from its start, or from the last key frame at or before a time in seconds."""
    try:
        import av
    except ImportError as error:
        raise DataError(f"{video}: videos need the package av: pip install 'sharpreid[serve]'") from error
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if start is not None and stream.time_base:
                container.seek(int(start / stream.time_base), stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                rate = stream.average_rate
                counted = number / float(rate) if rate and start is None else None
                yield _Frame(frame.to_image, counted if frame.time is None else frame.time)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DataError(f"{video}: cannot be decoded ({error})") from error


def read_picture(item: Item) -> Image.Image:
    """Read the picture of one person, RGB.

    A frame of a video is looked for at the item's time. If the video has no frame at that time, it is decoded
    from its start.

    Raises:
        DataError: the file cannot be read, or has no such frame or box.
    """
    path = Path(item.path)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return crop_box(read_image(path), item.box)
    if item.time is not None:
        for frame in _decode(path, item.time):
            if frame.time is None or frame.time > item.time + _SAME_TIME:
                break
            if frame.time > item.time - _SAME_TIME:
                return _crop(frame.picture(), item)
    for number, frame in enumerate(_decode(path)):
        if number == item.frame:
            return _crop(frame.picture(), item)
    raise DataError(f"{path}: has no frame {item.frame}")


def _read_box(embedder: Embedder, picture: Image.Image, item: Item) -> Tensor:
    try:
        return embedder.read_views(_crop(picture, item))
    except DataError as error:
        raise DataError(f"{item.path}, frame {item.frame}: {error}") from error


def _crop(picture: Image.Image, item: Item) -> Image.Image:
    """Crop the box of an item from its frame; a box beyond the edge of the frame ends at the edge."""
    if item.box is None:
        return picture
    left, upper, right, lower = item.box
    return crop_box(picture, (left, upper, min(right, picture.width), min(lower, picture.height)))


def _refuse(message: str) -> Tensor:
    raise DataError(message)
