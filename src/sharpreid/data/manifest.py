"""Anyone's own images, listed in a CSV file."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from sharpreid.data.reid_data import Box, DataError, ReIDData, Sample
from sharpreid.data.transforms import image_size

COLUMNS = ("path", "identity", "camera", "split")
BOX = "box"
SPLITS = ("train", "query", "gallery")

DISTRACTOR, JUNK = "distractor", "junk"
"""Identities of gallery images that are nobody's match: the first count as wrong answers, the others are left
out."""


class _Row(NamedTuple):
    line: int
    path: Path
    identity: str
    camera: str
    split: str
    box: Box | None


def load_manifest(*, manifest: str | Path, name: str, within: str | Path | None = None) -> ReIDData:
    """Read a manifest; images are opened only where they have a box, and only their size is read.

    Args:
        manifest: CSV file, UTF-8, with a header and one line per image. Columns, in any order:

            * ``path``: of the image, absolute or from the manifest's folder.
            * ``identity``: any text; ``distractor`` and ``junk`` have their meaning (gallery only).
            * ``camera``: any text, or empty in all lines where the cameras are not known.
            * ``split``: train, query or gallery. No identity may be in training and test.
            * ``box`` (the whole column may be left out): ``left upper right lower`` in pixels, right and
              lower the first outside; empty is the whole image.
        name: as printed with scores.
        within: folder that every image must be in once links are followed: a manifest may come from somebody
            else, and its images may be shown. None is the manifest's folder.

    Returns:
        The data set, each list in the order of the lines. Identities and cameras are numbered from 1 in the
        order of their names. Without cameras ``cameras_known`` is False.

    Raises:
        FileNotFoundError: there is no manifest.
        DataError: names the line and what is wrong with it, or says that no query has a match.
    """
    manifest = Path(manifest).expanduser()
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: no such file; name the CSV file by data.source.manifest=/path")
    try:
        rows = list(_rows(manifest))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest}: not a CSV file in UTF-8 ({error}); save it as one") from error
    _check_places(manifest, rows, manifest.parent if within is None else Path(within).expanduser())
    _check_splits(manifest, rows)
    rows = _check_boxes(manifest, rows)
    cameras_known = _check_cameras(manifest, rows)
    _check_images_differ(manifest, rows, cameras_known)
    pid_of = {DISTRACTOR: 0} | _numbers(
        row.identity for row in rows if row.identity not in (DISTRACTOR, JUNK)
    )
    camid_of = _numbers(row.camera for row in rows if row.camera)
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for row in rows:
        if row.identity != JUNK:
            camid = camid_of[row.camera] if cameras_known else int(row.split == "gallery")
            samples[row.split].append(Sample(row.path, pid_of[row.identity], camid, row.box))
    data = ReIDData(
        name=name,
        train=tuple(samples["train"]),
        query=tuple(samples["query"]),
        gallery=tuple(samples["gallery"]),
        junk=sum(row.identity == JUNK for row in rows),
        cameras_known=cameras_known,
    )
    _check_a_query_matches(manifest, data)
    return data


def _numbers(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted(set(names)), 1)}


def _wrong(manifest: Path, line: int, message: str) -> NoReturn:
    raise DataError(f"{manifest}, line {line}: {message}")


def _rows(manifest: Path) -> Iterator[_Row]:
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = [title.strip() for title in next(lines, [])]
        _check_header(manifest, header)
        for fields in lines:
            if any(field.strip() for field in fields):
                yield _read_row(manifest, lines.line_num, header, fields)


def _check_header(manifest: Path, header: Sequence[str]) -> None:
    missing = [title for title in COLUMNS if title not in header]
    unknown = [title for title in header if title not in (*COLUMNS, BOX)]
    if missing or unknown or len(set(header)) < len(header):
        _wrong(
            manifest,
            1,
            f"the header must be {','.join(COLUMNS)} and, if wanted, {BOX}; got {','.join(header)!r} "
            f"(missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'})",
        )


def _read_row(manifest: Path, line: int, header: Sequence[str], fields: Sequence[str]) -> _Row:
    if len(fields) != len(header):
        _wrong(
            manifest,
            line,
            f"{len(fields)} fields instead of {len(header)}; write a field with a comma in double quotes",
        )
    given = {title: field.strip() for title, field in zip(header, fields, strict=True)}
    split, identity = given["split"], given["identity"]
    if broken := [title for title, field in given.items() if "\n" in field or "\r" in field]:
        _wrong(manifest, line, f"a line break within {broken[0]}; is a double quote before it one too many?")
    if split not in SPLITS:
        _wrong(manifest, line, f"split must be {', '.join(SPLITS)}; got {split!r}")
    if not identity:
        _wrong(manifest, line, f"no identity; write {DISTRACTOR} or {JUNK} for an image of nobody's")
    if identity.lower() in (DISTRACTOR, JUNK) and identity != identity.lower():
        _wrong(
            manifest, line, f"identity {identity!r}: write {identity.lower()}, or give a person another name"
        )
    if identity in (DISTRACTOR, JUNK) and split != "gallery":
        _wrong(manifest, line, f"{identity} images can only be gallery; got {split}")
    path = manifest.parent / given["path"]
    if not given["path"] or not _is_file(path):
        _wrong(manifest, line, f"no image at {path}; paths are absolute or from the manifest's folder")
    return _Row(line, path, identity, given["camera"], split, _box(manifest, line, given.get(BOX, "")))


def _check_places(manifest: Path, rows: Sequence[_Row], within: Path) -> None:
    allowed = within.resolve()
    for row in rows:
        place = row.path.resolve()
        if not place.is_relative_to(allowed):
            _wrong(
                manifest,
                row.line,
                f"the image is {place}, outside of {allowed}, where all must be. Move it there, or name a "
                "folder that they are all in by data.source.within=/path",
            )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _box(manifest: Path, line: int, text: str) -> Box | None:
    if not text:
        return None
    try:
        left, upper, right, lower = map(int, text.split())
    except ValueError:
        _wrong(manifest, line, f"box must be four whole numbers, left upper right lower; got {text!r}")
    if not left < right or not upper < lower:
        _wrong(manifest, line, f"box {text!r} is empty: left must be below right, and upper below lower")
    return left, upper, right, lower


def _check_boxes(manifest: Path, rows: Sequence[_Row]) -> list[_Row]:
    """The rows, a box that is the whole image as none; DataError for one that is not inside its image."""
    sizes: dict[Path, tuple[int, int]] = {}
    checked = []
    for row in rows:
        if row.box is None:
            checked.append(row)
            continue
        if row.path not in sizes:
            sizes[row.path] = _size(manifest, row)
        width, height = sizes[row.path]
        left, upper, right, lower = row.box
        if left < 0 or upper < 0 or right > width or lower > height:
            _wrong(manifest, row.line, f"box {row.box} is not inside {row.path}, {width} x {height} pixels")
        checked.append(row._replace(box=None) if row.box == (0, 0, width, height) else row)
    return checked


def _size(manifest: Path, row: _Row) -> tuple[int, int]:
    try:
        return image_size(row.path)
    except DataError as error:
        _wrong(manifest, row.line, str(error))


def _check_splits(manifest: Path, rows: Sequence[_Row]) -> None:
    for split in SPLITS:
        if not any(row.split == split for row in rows):
            raise DataError(f"{manifest}: no line with split {split}; training and its score need all three")
    trained = {row.identity: row.line for row in reversed(rows) if row.split == "train"}
    for row in rows:
        if row.split != "train" and row.identity in trained:
            _wrong(
                manifest,
                row.line,
                f"identity {row.identity!r} is {row.split} here and train in line {trained[row.identity]}; "
                "a test identity must not be trained on",
            )


def _check_cameras(manifest: Path, rows: Sequence[_Row]) -> bool:
    """Whether all rows have a camera; DataError if only some have."""
    with_camera, without = (
        [row.line for row in rows if bool(row.camera) == known] for known in (True, False)
    )
    if with_camera and without:
        _wrong(
            manifest,
            without[0],
            f"no camera, but line {with_camera[0]} has one; give every image its camera, or none",
        )
    return bool(with_camera)


def _check_images_differ(manifest: Path, rows: Sequence[_Row], cameras_known: bool) -> None:
    seen: dict[tuple[Path, Box | None], list[_Row]] = {}
    for row in rows:
        earlier = seen.setdefault((row.path.resolve(), row.box), [])
        for other in earlier:
            _check_pair(manifest, other, row, cameras_known)
        earlier.append(row)


def _check_pair(manifest: Path, first: _Row, row: _Row, cameras_known: bool) -> None:
    """Two rows of one image can only be a query and a gallery image of one person and one known camera."""
    again = f"the image of line {first.line} again"
    if first.split == row.split:
        _wrong(manifest, row.line, f"{again}, in the same split")
    if "train" in (first.split, row.split):
        _wrong(manifest, row.line, f"{again}, {first.split} there and {row.split} here; test other images")
    if (first.identity, first.camera) != (row.identity, row.camera):
        _wrong(manifest, row.line, f"{again}, with another identity or camera")
    if not cameras_known:
        _wrong(
            manifest,
            row.line,
            f"{again}, as query and gallery; without cameras nothing keeps it from finding itself, so take "
            "it out of one of them",
        )


def _check_a_query_matches(manifest: Path, data: ReIDData) -> None:
    cameras = _cameras_of(data.gallery)
    if not any(cameras.get(one.pid, set()) - {one.camid} for one in data.query):
        known = sum(one.pid in cameras for one in data.query)
        raise DataError(
            f"{manifest}: no query has a match: of {len(data.query)} queries, {len(data.query) - known} have "
            f"an identity that no gallery line has, and {known} one that the gallery has only from the "
            "query's own camera, which does not count"
        )


def _cameras_of(samples: Sequence[Sample]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for sample in samples:
        if sample.pid:
            found.setdefault(sample.pid, set()).add(sample.camid)
    return found
