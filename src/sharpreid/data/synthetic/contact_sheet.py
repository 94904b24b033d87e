"""Contact sheet of a synthetic data set, for its documentation."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sharpreid.data.market1501 import load_market1501
from sharpreid.data.reid_data import Sample

_CELL = (64, 128)
_GAP = 4
_LABEL = 104
_HEAD = 18
_BACKGROUND, _TEXT, _EMPTY = (250, 250, 248), (40, 40, 40), (232, 232, 230)


def contact_sheet(root: Path, path: Path, *, identities: int = 4, hard_pairs: int = 3) -> Path:
    """Write a contact sheet with one row per person, junk and distractors, and two images per camera.

    Args:
        root: folder of a synthetic data set.
        path: image file to write; its suffix selects the format.
        identities: number of test identities outside hard pairs to show.
        hard_pairs: number of hard pairs to show, each with a different detail.

    Returns:
        ``path``.
    """
    record = json.loads((root / "synthetic.json").read_text(encoding="utf-8"))
    data = load_market1501(root=root, expected={}, synthetic=True)
    test = [*data.query, *data.gallery]
    cameras = record["cameras"]
    pairs = [pair for pair in record["hard_pairs"] if pair["split"] == "test"]
    paired = {pid for pair in pairs for pid in pair["pids"]}
    single = sorted({sample.pid for sample in test} - paired - {0})[:identities]
    rows = [(f"{pid:04d}", _by_camera(test, pid, cameras)) for pid in single]
    for number, pair in enumerate(_first_of_each(pairs, "detail")[:hard_pairs], start=1):
        for pid in pair["pids"]:
            label = f"{pid:04d}\nhard pair {number}:\n{pair['detail']}"
            rows.append((label, _by_camera(test, pid, cameras)))
    rows.append(("-1\njunk", _by_camera(_junk(root, cameras), -1, cameras)))
    rows.append(("0000\ndistractors", _by_camera(test, 0, cameras)))
    sheet = _lay_out(rows, cameras)
    sheet.save(path, quality=85)
    return path


def _junk(root: Path, cameras: int) -> list[Sample]:
    """Return the junk images, which a loaded data set counts but does not list."""
    folder = root / "bounding_box_test"
    return [
        Sample(path, -1, camera)
        for camera in range(1, cameras + 1)
        for path in sorted(folder.glob(f"-1_c{camera}s*.jpg"))
    ]


def _first_of_each(pairs: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        first.setdefault(pair[key], pair)
    return list(first.values())


def _by_camera(samples: list[Sample], pid: int, cameras: int) -> list[Path | None]:
    cells: list[Path | None] = []
    for camera in range(1, cameras + 1):
        found = [sample.path for sample in samples if sample.pid == pid and sample.camid == camera][:2]
        cells += [*found, *[None] * (2 - len(found))]
    return cells


def _lay_out(rows: list[tuple[str, list[Path | None]]], cameras: int) -> Image.Image:
    step = (_CELL[0] + _GAP, _CELL[1] + _GAP)
    size = (_LABEL + 2 * cameras * step[0] + cameras * _GAP, _HEAD + len(rows) * step[1])
    sheet = Image.new("RGB", size, _BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for camera in range(cameras):
        x = _LABEL + camera * (2 * step[0] + _GAP)
        pen.text((x, 1), f"camera {camera + 1}", _TEXT, font)
    for row, (label, cells) in enumerate(rows):
        y = _HEAD + row * step[1]
        pen.multiline_text((_GAP, y + 40), label, _TEXT, font)
        for column, cell in enumerate(cells):
            x = _LABEL + column * step[0] + column // 2 * _GAP
            if cell is None:
                pen.rectangle((x, y, x + _CELL[0] - 1, y + _CELL[1] - 1), _EMPTY)
            else:
                with Image.open(cell) as image:
                    sheet.paste(image, (x, y))
    return sheet
