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

from sharpreid.report.comparison import shorten_brackets
from sharpreid.report.markdown import markdown_table
from sharpreid.report.paper_tables import NOTE, PaperRow, RunTable
from sharpreid.report.runs import Job
from sharpreid.run.records import resume_command

DRAWING_ERRORS = (OSError, ValueError, RuntimeError, OmegaConfBaseException)
"""Errors of a section that cannot be drawn."""

_TITLES = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10"}
_TITLES |= {f"{metric}_gain": f"{title} gain" for metric, title in _TITLES.items()}
_LARGEST_SVG = 300_000
"""Bytes above which the page shows a figure as PNG instead, so that many curves do not make it large."""

_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass
class Picture:
    """A figure of the report: an SVG or PNG file and its caption, which is also the alternative text."""

    path: Path
    caption: str


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
        run_tables: all runs, see `sharpreid.report.paper_tables.run_tables`.
        sections: sections with figures.
        tables: title -> rows of a table of the paper. Tables without a run are listed as missing.
        unfinished: jobs without a score.
        absent: error of each section that could not be drawn.
    """

    folders: Sequence[Path]
    runs: int
    run_tables: Sequence[RunTable]
    sections: Sequence[Section]
    tables: Mapping[str, Sequence[PaperRow]]
    unfinished: Sequence[Job]
    absent: Sequence[str]

    @property
    def filled_tables(self) -> dict[str, Sequence[PaperRow]]:
        """Tables of the paper with at least one run."""
        return {title: rows for title, rows in self.tables.items() if any(row.runs for row in rows)}

    @property
    def missing_commands(self) -> dict[str, list[str]]:
        """Title of a table of the paper -> commands of its missing runs; each command is given once."""
        seen: set[str] = set()
        found: dict[str, list[str]] = {}
        for title, rows in self.tables.items():
            commands = dict.fromkeys(one for row in rows for one in row.command.split("; ") if one)
            found[title] = [one for one in commands if one not in seen]
            seen.update(commands)
        return {title: commands for title, commands in found.items() if commands}


def render_html(report: Report) -> str:
    """Render the report as one HTML page that needs no other file and no network."""
    environment = Environment(
        loader=PackageLoader("sharpreid.report", "."), autoescape=True, undefined=StrictUndefined
    )
    sections = [
        {
            "id": identifier(section.title),
            "title": section.title,
            "texts": section.texts,
            "caveat": _caveat(section.warnings),
            "images": [_image(picture) for picture in section.pictures],
        }
        for section in report.sections
    ]
    contents = [("runs", "What was run"), *((part["id"], part["title"]) for part in sections)]
    return environment.get_template("page.html.jinja").render(
        runs=report.runs,
        note=NOTE,
        folders=", ".join(map(str, report.folders)),
        run_tables=[(table, _caveat(table.caveats)) for table in report.run_tables],
        sections=sections,
        tables=[_table(title, rows) for title, rows in report.filled_tables.items()],
        contents=[*contents, ("paper", "The paper's tables"), ("missing", "What is missing")],
        unfinished=[(job, _command(job)) for job in report.unfinished],
        absent=report.absent,
        commands=report.missing_commands,
    )


def _command(job: Job) -> str:
    """Return the command that goes on with an unfinished job, or starts it anew; empty if it is not known."""
    return resume_command(job.overrides, job.folder) if job.overrides else ""


def _caveat(reasons: Sequence[str]) -> dict[str, Any]:
    """Return all reasons in one short line, and in full those that the line shortens."""
    return {
        "line": " ".join(map(shorten_brackets, reasons)),
        "details": [reason for reason in reasons if reason != shorten_brackets(reason)],
    }


def identifier(title: str) -> str:
    """Turn a title into an HTML id or a file name.

    >>> identifier("Fig. 5(a, b): block_ablation")
    'fig-5-a-b-block_ablation'
    """
    return re.sub(r"[^\w]+", "-", title.lower()).strip("-")


def _image(picture: Picture) -> dict[str, Any]:
    path, bitmap = picture.path, picture.path.with_suffix(".png")
    width, height = _size(path)
    if path.stat().st_size > _LARGEST_SVG and bitmap.is_file():
        path = bitmap
    content = base64.b64encode(path.read_bytes()).decode()
    return {
        "source": f"data:{_TYPES[path.suffix]};base64,{content}",
        "caption": picture.caption,
        "width": width,
        "height": height,
        "least": round((0.8 if picture.path.suffix == ".svg" else 0.7) * width),  # letters stay readable
    }


def _size(path: Path) -> tuple[int, int]:
    """Return width and height in CSS pixels; matplotlib states those of an SVG file in points."""
    if path.suffix == ".svg":
        head = path.read_text(encoding="utf-8")[:2000]
        sizes = re.findall(r'\b(?:width|height)="([\d.]+)pt"', head)
        return round(float(sizes[0]) * 96 / 72), round(float(sizes[1]) * 96 / 72)
    with Image.open(path) as image:
        return image.size


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
        "several": len({row.dataset for row in rows}) > 1,
        "rows": [
            {
                "name": row.name,
                "dataset": row.dataset,
                "cells": [_texts(row, metric) for metric in metrics],
                "runs": row.runs,
                "protocol": row.protocol,
            }
            for row in rows
        ],
    }


def _texts(row: PaperRow, metric: str) -> tuple[str, str, str]:
    """Return the paper's number, ours and the difference; empty texts stand for what does not exist."""
    cell = row.cells.get(metric)
    if cell is None or row.method is None or cell.ours == "-":
        return cell.paper if cell else "", "", ""
    return cell.paper, cell.ours, cell.difference


def render_markdown(report: Report, folder: Path) -> str:
    """Render the report as Markdown.

    Args:
        report: content of the report.
        folder: folder of the page; links to figures are relative to it.
    """
    page = [f"# Report of {report.runs} runs", ""]
    page += [
        f"Runs from {', '.join(map(str, report.folders))}. Scores in percent, means over seeds (lowest to"
    ]
    page += ["highest).", "", "## What was run"]
    for runs in report.run_tables:
        page += ["", f"### {runs.title}", "", *(f"**{text}**" for text in runs.caveats)]
        page += [f"Protocol: {runs.protocol}.", "", *markdown_table(runs.rows)]
    for section in report.sections:
        page += ["", f"## {section.title}", ""]
        page += [*section.texts, *(f"**{text}**" for text in section.warnings)]
        page += [
            f"\n![{picture.caption}]({picture.path.relative_to(folder)})" for picture in section.pictures
        ]
    page += ["", "## The paper's tables", "", NOTE]
    for title, rows in report.filled_tables.items():
        page += ["", f"### {title}", "", *markdown_table(_markdown_rows(rows))]
    page += [] if report.filled_tables else ["", "No run is comparable with them."]
    return "\n".join([*page, "", "## What is missing", "", *_markdown_missing(report)]) + "\n"


def _markdown_rows(rows: Sequence[PaperRow]) -> list[dict[str, str]]:
    lines = []
    for row in rows:
        cells = {"row": row.name, "data set": row.dataset}
        for metric in _metrics(rows):
            titles = (f"{_metric_title(metric)}: {column}" for column in ("paper", "ours", "difference"))
            cells |= dict(zip(titles, _texts(row, metric), strict=True))
        lines.append({**cells, "runs": str(row.runs or ""), "protocol": row.protocol})
    return lines


def _markdown_missing(report: Report) -> list[str]:
    lines = [
        f"- {job.status}: {job.folder}: {' '.join((job.error or '').split())}"
        + (f" `{command}`" if (command := _command(job)) else "")
        for job in report.unfinished
    ]
    lines += [f"- {text}" for text in report.absent]
    for title, commands in report.missing_commands.items():
        lines += ["", f"Rows of {title} without a run:", "", "```", *commands, "```"]
    return lines or ["Nothing."]
