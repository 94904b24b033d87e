"""Draw forest plots: the difference of each row to the baseline, with its interval and all seeds."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sharpreid.atomic_io import replacing
from sharpreid.report.ablation import QUESTIONS, Study, question_rows, read_studies
from sharpreid.report.bootstrap import Difference
from sharpreid.report.comparison import COMPARED
from sharpreid.report.figures import BLUE, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NOTE = (
    "Percentage points over the baseline of the same seeds. Lines: 95 % intervals; dots: single seeds.\n"
    "Hollow and dotted: one seed; the interval covers the sampling of the test set only. "
    "Not comparable with the paper."
)


@dataclass(frozen=True)
class Panel:
    """A study in a plot.

    Args:
        title: data set and recipe.
        rows: names of the rows.
        differences: score -> difference to the baseline of each row.
    """

    title: str
    rows: tuple[str, ...]
    differences: dict[str, tuple[Difference, ...]]


@dataclass(frozen=True)
class ForestPlot:
    """The figure of one question of a study."""

    title: str
    panels: tuple[Panel, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that is drawn; the PNG file contains it."""
        content = [self.title, _NOTE, [_content(panel) for panel in self.panels]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def is_drawn(self, path: Path) -> bool:
        """Return whether a file is this figure with these numbers."""
        return path.is_file() and self.digest.encode() in path.read_bytes()

    def draw(self, path: Path) -> None:
        """Write the figure as PNG, with a line of panels for mAP and rank-1 per data set and recipe."""
        from matplotlib.figure import Figure  # slow to import

        heights = [1.0 + 0.34 * len(panel.rows) for panel in self.panels]
        size = (10.0, 1.1 + sum(heights))
        figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
        figure.suptitle(self.title, fontsize=13, weight="bold")
        axes = figure.subplots(len(self.panels), len(COMPARED), squeeze=False, height_ratios=heights)
        for panel, line in zip(self.panels, axes, strict=True):
            for place, (metric, name) in zip(line, COMPARED.items(), strict=True):
                draw_differences(place, panel.rows, panel.differences[metric])
                place.set_title(f"{panel.title}: {name}", fontsize=10)
            line[1].tick_params(labelleft=False)
        figure.supxlabel(_NOTE, fontsize=8, color=GREY)
        with replacing(path) as temporary:
            metadata = {"Description": self.digest, "Software": None}
            figure.savefig(temporary, format="png", metadata=metadata)


def _content(panel: Panel) -> list[object]:
    return [
        panel.title,
        panel.rows,
        {key: list(map(_numbers, ones)) for key, ones in panel.differences.items()},
    ]


def _numbers(one: Difference) -> list[float]:
    """Return rounded numbers, so that the last digits of another machine do not change the digest."""
    return [round(value, 5) for value in (one.mean, one.low, one.high, *one.by_seed.values())]


def draw_differences(axes: "Axes", rows: Sequence[str], differences: Sequence[Difference]) -> None:
    """Draw a panel: a line per row with the mean, its interval, and the seeds if there are several."""
    for place, one in enumerate(differences):
        mean, low, high = (100 * value for value in (one.mean, one.low, one.high))
        # without the spread of the seeds the line is shorter, though the difference is less certain
        style = ":" if one.test_set_only else "-"
        axes.hlines(place, low, high, color=BLUE, linewidth=1.8, linestyle=style, zorder=2)
        filled = "white" if one.test_set_only else BLUE
        axes.plot(mean, place, "o", color=BLUE, markerfacecolor=filled, markersize=8, zorder=3)
        if not one.test_set_only:
            seeds = [100 * value for value in one.by_seed.values()]
            axes.plot(seeds, [place + 0.22] * len(seeds), ".", color=GREY, markersize=6, zorder=3)
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def forest_plots(folder: Path) -> dict[Path, ForestPlot]:
    """Return path in ``folder`` -> forest plot, for each question that a recorded run answers."""
    studies = read_studies(folder)
    found = {}
    for name, question in QUESTIONS.items():
        panels = [_panel(study, rows) for study in studies if (rows := tuple(question_rows(question, study)))]
        if panels:
            found[folder / f"{name}.png"] = ForestPlot(question.title, tuple(panels))
    return found


def _panel(study: Study, rows: tuple[str, ...]) -> Panel:
    differences = {
        metric: tuple(one for row in rows if (one := study.difference(row, "baseline", metric)) is not None)
        for metric in COMPARED
    }
    return Panel(study.title, rows, differences)
