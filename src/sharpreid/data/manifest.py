"""Loader of a user's own images, listed in a CSV file."""

import csv
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from sharpreid.data.names import find_invisible, normalise_name, reject_look_alikes
from sharpreid.data.reid_data import Box, DataError, ReIDData, Sample
from sharpreid.data.transforms import image_size

COLUMNS = ("path", "identity", "camera", "split")
BOX = "box"
SPLITS = ("train", "query", "gallery")

DISTRACTOR, JUNK = "distractor", "junk"
"""Identities of gallery images that match no query. A distractor is a wrong answer, junk is left out."""


class _Row(NamedTuple):
    line: int
    path: Path
    identity: str
    camera: str
    split: str
    box: Box | None


def load_manifest(*, manifest: str | Path, name: str, within: str | Path | None = None) -> ReIDData:
    """Read a manifest. An image is opened only if it has a box, to read its size.

    Args:
        manifest: CSV file, UTF-8, with a header and one line per image. Columns, in any order:

            * ``path``: path of the image, absolute or relative to the manifest's folder.
            * ``identity``: any text. ``distractor`` and ``junk`` are reserved for the gallery.
            * ``camera``: any text, or empty in all lines if the cameras are unknown. Names of identities and
              cameras are compared in Unicode's composed form; see also `reject_look_alikes`.
            * ``split``: train, query or gallery. No identity may be in both training and test. A split may
              have no lines; `ReIDDataModule` then refuses what needs it.
            * ``box`` (optional column): ``left upper right lower`` in pixels, right and lower exclusive.
              Empty is the whole image.
        name: name that is printed with scores.
        within: folder that must contain every image after links are resolved, because a manifest may come
            from someone else and reports show its images. None is the manifest's folder.

    Returns:
        The data set, each list in the order of the lines. Identities and cameras are numbered from 1 in the
        order of their names. Without cameras ``cameras_known`` is False.

    Raises:
        FileNotFoundError: the manifest does not exist.
        DataError: a line is wrong (the message gives its number), or no query has a match.
    """
    manifest = Path(manifest).expanduser()
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: no such file. Name the CSV file by data.source.manifest=/path")
    try:
        rows = list(_rows(manifest))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest}: not a CSV file in UTF-8 ({error}); save it in this format") from error
    for kind in ("identity", "camera"):
        places: dict[str, str] = {}
        for row in rows:
            places.setdefault(getattr(row, kind), f"line {row.line}")
        reject_look_alikes(kind, places, manifest)
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
    if data.query and data.gallery:
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
        spelling: dict[str, str] = {}  # of names that are equal in the composed form, the first one is taken
        for fields in lines:
            if any(field.strip() for field in fields):
                row = _read_row(manifest, lines.line_num, header, fields)
                identity, camera = (
                    spelling.setdefault(normalise_name(name), name) for name in (row.identity, row.camera)
                )
                yield row._replace(identity=identity, camera=camera)


def _check_header(manifest: Path, header: Sequence[str]) -> None:
    missing = [title for title in COLUMNS if title not in header]
    unknown = [title for title in header if title not in (*COLUMNS, BOX)]
    shown = ", ".join(map(_shown, unknown))
    if missing or unknown or len(set(header)) < len(header):
        _wrong(
            manifest,
            1,
            f"the header must be {','.join(COLUMNS)} and optionally {BOX}; got {','.join(header)!r} "
            f"(missing: {', '.join(missing) or 'none'}; unknown: {shown or 'none'})",
        )


def _shown(title: str) -> str:
    """Return a wrong title with the reason why it cannot be seen."""
    if not title:
        return "a column without a title; pandas writes its index so unless index=False is given"
    invisible = find_invisible(title)
    return f"{title!a} with {invisible}" if invisible else title


def _read_row(manifest: Path, line: int, header: Sequence[str], fields: Sequence[str]) -> _Row:
    if len(fields) != len(header):
        _wrong(
            manifest,
            line,
            f"{len(fields)} fields instead of {len(header)}; put a field with a comma in double quotes",
        )
    given = {title: field.strip() for title, field in zip(header, fields, strict=True)}
    split, identity = given["split"], given["identity"]
    if broken := [title for title, field in given.items() if "\n" in field or "\r" in field]:
        _wrong(manifest, line, f"a line break within {broken[0]}; look for a stray double quote before it")
    for title in ("identity", "camera", "split"):
        if invisible := find_invisible(given[title]):
            _wrong(manifest, line, f"{title} {given[title]!a} has an invisible {invisible}; remove it")
    if split not in SPLITS:
        _wrong(manifest, line, f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if not identity:
        _wrong(
            manifest, line, f"no identity; write {DISTRACTOR} or {JUNK} for an image that matches no query"
        )
    if identity.lower() in (DISTRACTOR, JUNK) and identity != identity.lower():
        _wrong(manifest, line, f"identity {identity!r}: write {identity.lower()}, or choose another name")
    if identity in (DISTRACTOR, JUNK) and split != "gallery":
        _wrong(manifest, line, f"an image with identity {identity} must have split gallery; got {split}")
    path = _find(manifest.parent, given["path"])
    if not given["path"] or path is None:
        invisible = find_invisible(given["path"])
        _wrong(
            manifest,
            line,
            f"no file {manifest.parent / given['path']}"
            + (f", whose path has an invisible {invisible}" if invisible else "")
            + "; paths are absolute or relative to the manifest's folder",
        )
    return _Row(line, path, identity, given["camera"], split, _box(manifest, line, given.get(BOX, "")))


def _check_places(manifest: Path, rows: Sequence[_Row], within: Path) -> None:
    allowed = within.resolve()
    for row in rows:
        place = row.path.resolve()
        if not place.is_relative_to(allowed):
            _wrong(
                manifest,
                row.line,
                f"the image is {place}, outside of {allowed}. Move it there, or name a folder that contains "
                "all images by data.source.within=/path",
            )


def _find(folder: Path, name: str) -> Path | None:
    """Return the path of a file in the Unicode form that it has on the disk; None if it does not exist."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((path for path in (folder / form for form in forms) if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have such a name
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
    """Check that every box is inside its image, and replace a box of the whole image by None."""
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
    if not rows:
        raise DataError(f"{manifest}: has no images, only a header")
    trained = {row.identity: row.line for row in reversed(rows) if row.split == "train"}
    for row in rows:
        if row.split != "train" and row.identity in trained:
            _wrong(
                manifest,
                row.line,
                f"identity {row.identity!r} has split {row.split} here and train in line "
                f"{trained[row.identity]}; a test identity must not be trained on",
            )


def _check_cameras(manifest: Path, rows: Sequence[_Row]) -> bool:
    """Return whether the rows have a camera; raise DataError if only some have."""
    with_camera, without = (
        [row.line for row in rows if bool(row.camera) == known] for known in (True, False)
    )
    if with_camera and without:
        _wrong(
            manifest,
            without[0],
            f"no camera, but line {with_camera[0]} has one; give all images a camera or none",
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
    """Raise DataError unless two rows of one image are its query and its gallery line.

    Both need the same identity and camera, so that the protocol can exclude the image from its own ranking.
    """
    again = f"the same image as in line {first.line}"
    if first.split == row.split:
        _wrong(manifest, row.line, f"{again}, in the same split; remove one of the two")
    if "train" in (first.split, row.split):
        _wrong(
            manifest,
            row.line,
            f"{again}, {first.split} there and {row.split} here; a test image must not be trained on",
        )
    if (first.identity, first.camera) != (row.identity, row.camera):
        _wrong(manifest, row.line, f"{again}, with another identity or camera; correct one of the two")
    if not cameras_known:
        _wrong(
            manifest,
            row.line,
            f"{again}, as query and gallery. Without cameras the query would find itself; remove one of the "
            "two",
        )


def _check_a_query_matches(manifest: Path, data: ReIDData) -> None:
    cameras = _cameras_of(data.gallery)
    if not any(cameras.get(one.pid, set()) - {one.camid} for one in data.query):
        known = sum(one.pid in cameras for one in data.query)
        raise DataError(
            f"{manifest}: no query has a match. Of {len(data.query)} queries, {len(data.query) - known} have "
            f"an identity that is not in the gallery, and {known} have matches from their own camera only, "
            "which the protocol excludes. Add gallery lines of these identities from other cameras"
        )


def _cameras_of(samples: Sequence[Sample]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for sample in samples:
        if sample.pid:
            found.setdefault(sample.pid, set()).add(sample.camid)
    return found
