"""Render the report as one self-contained HTML file, and as Markdown with links to its figures."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from sharpreid.report.markdown import markdown_table
from sharpreid.report.paper_tables import NOTE, PaperRow
from sharpreid.report.runs import Job

DRAWING_ERRORS = (OSError, ValueError, RuntimeError, OmegaConfBaseException)
"""Errors of a section that cannot be drawn."""

_TITLES = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10"}
_TITLES |= {f"{metric}_gain": f"{title} gain" for metric, title in _TITLES.items()}
_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass
class Picture:
    """A figure of the report.

    Args:
        path: SVG or PNG file.
        caption: caption, which is also the alternative text.
        photos: True for a sheet of photos, which keeps its size and scrolls on a small screen.
    """

    path: Path
    caption: str
    photos: bool = False


@dataclass
class Section:
    """A section of the report with texts and figures."""

    title: str
    texts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass
class Report:
    """Content of the report.

    Args:
        folders: folders that were searched for runs.
        runs: number of finished runs.
        tables: title -> rows of a table of the paper.
        incomparable: rows of the table of runs that are not comparable with the paper, see
            `incomparable_runs_table`.
        sections: sections with figures.
        unfinished: jobs without a score.
        absent: error of each section that could not be drawn.
    """

    folders: Sequence[Path]
    runs: int
    tables: Mapping[str, Sequence[PaperRow]]
    incomparable: Sequence[Mapping[str, str]]
    sections: Sequence[Section]
    unfinished: Sequence[Job]
    absent: Sequence[str]


def render_html(report: Report) -> str:
    """Render the report as one HTML page that needs no other file and no network."""
    environment = Environment(
        loader=PackageLoader("sharpreid.report", "."), autoescape=True, undefined=StrictUndefined
    )
    tables = [_table(title, rows) for title, rows in report.tables.items()]
    sections = [
        {
            "id": identifier(section.title),
            "title": section.title,
            "texts": section.texts,
            "warnings": section.warnings,
            "images": [_image(picture) for picture in section.pictures],
        }
        for section in report.sections
    ]
    contents = [(part["id"], part["title"]) for part in [*tables, *sections]]
    contents.insert(len(tables), ("incomparable", "Not comparable with the paper"))
    return environment.get_template("page.html.jinja").render(
        runs=report.runs,
        note=NOTE,
        folders=", ".join(map(str, report.folders)),
        tables=tables,
        incomparable=report.incomparable,
        sections=sections,
        contents=[*contents, ("missing", "Missing")],
        unfinished=report.unfinished,
        absent=report.absent,
    )


def identifier(title: str) -> str:
    """Turn a title into an HTML id or a file name.

    >>> identifier("Fig. 5(a, b): block_ablation")
    'fig-5-a-b-block_ablation'
    """
    return re.sub(r"[^\w]+", "-", title.lower()).strip("-")


def _image(picture: Picture) -> dict[str, Any]:
    content = base64.b64encode(picture.path.read_bytes()).decode()
    size: tuple[int, int] | tuple[None, None] = (None, None)
    if picture.path.suffix == ".png":
        with Image.open(picture.path) as image:
            size = image.size
    return {
        "source": f"data:{_TYPES[picture.path.suffix]};base64,{content}",
        "caption": picture.caption,
        "photos": picture.photos,
        "width": size[0],
        "height": size[1],
    }


def _metrics(rows: Sequence[PaperRow]) -> list[str]:
    return list(dict.fromkeys(metric for row in rows for metric in row.cells))


def _metric_title(metric: str) -> str:
    return _TITLES.get(metric, metric.replace("parameters_", "parameters (M), "))


def _table(title: str, rows: Sequence[PaperRow]) -> dict[str, Any]:
    metrics = _metrics(rows)
    return {
        "id": identifier(title.partition(":")[0]),
        "title": title,
        "metrics": [_metric_title(metric) for metric in metrics],
        "rows": [
            {
                "name": row.name,
                "dataset": row.dataset,
                "can_run": row.method is not None,
                "cells": [row.cells.get(metric) for metric in metrics],
                "runs": row.runs,
                "protocol": row.protocol,
                "missing": row.missing,
                "command": row.command,
            }
            for row in rows
        ],
    }


def render_markdown(report: Report, folder: Path) -> str:
    """Render the report as Markdown.

    Args:
        report: content of the report.
        folder: folder of the page; links to figures are relative to it.
    """
    page = ["# The paper's numbers and these runs", ""]
    page += [f"{report.runs} finished runs from {', '.join(map(str, report.folders))}. Scores in percent."]
    page += ["", NOTE]
    for title, rows in report.tables.items():
        lines = []
        metrics = _metrics(rows)
        for row in rows:
            cells = {"row": row.name, "data set": row.dataset}
            for metric in metrics:
                cell = row.cells.get(metric)
                runnable = cell is not None and row.method is not None
                cells[f"{_metric_title(metric)}: paper"] = cell.paper if cell else ""
                cells[f"{_metric_title(metric)}: ours"] = cell.ours if cell and runnable else ""
                cells[f"{_metric_title(metric)}: difference"] = cell.difference if cell and runnable else ""
            cells["runs"] = str(row.runs) if row.method is not None else ""
            cells["protocol"] = row.protocol
            cells["ours is missing"] = row.missing + (f": `{row.command}`" if row.command else "")
            lines.append(cells)
        page += ["", f"## {title}", "", *markdown_table(lines)]
    page += ["", "## Runs that are not comparable with the paper", ""]
    page += markdown_table(report.incomparable) if report.incomparable else ["None."]
    for section in report.sections:
        page += ["", f"## {section.title}", ""]
        page += [*section.texts, *(f"**{text}**" for text in section.warnings)]
        page += [
            f"\n![{picture.caption}]({picture.path.relative_to(folder)})" for picture in section.pictures
        ]
    gaps = [
        f"- {job.status}: `{' '.join(job.overrides)}` {' '.join((job.error or '').split())} ({job.folder})"
        for job in report.unfinished
    ]
    gaps += [f"- {text}" for text in report.absent]
    return "\n".join([*page, "", "## Missing", "", *(gaps or ["Nothing."])]) + "\n"
