"""Draw the figures: sweeps (Fig. 5), curves of a training, schedules of tau, mask values (Fig. 2b)."""

import csv
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sharpreid.atomic_io import replacing
from sharpreid.report.comparison import (
    COMPARED,
    Configuration,
    Row,
    collect_caveats,
    compared_metrics,
    describe_data,
    group_by_configuration,
    group_by_data,
    job_names,
    keys_within,
)
from sharpreid.report.markdown import format_points
from sharpreid.report.runs import HARD_PAIRS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from torch import Tensor

# Okabe and Ito's palette, whose colours people with any of the common colour blindnesses can tell apart.
BLUE, VERMILION, AMBER, GREY = "#0072B2", "#D55E00", "#E69F00", "#666666"
_COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", AMBER, "#56B4E9", "#000000", "#999933")
_DASHES = ("-", "--", ":", "-.")

_LETTERS_PER_INCH = 12
"""Approximate width of matplotlib's default font at ten points."""


def draw_sweep(
    rows: Sequence[Row], path: Path, *, title: str = "", labels: Mapping[str, str] | None = None
) -> None:
    """Draw mAP and rank-1 of a sweep as differences to the baseline, as in Fig. 5 (a, b).

    The bars are plain scores if no baseline has a score. A bar is the mean over seeds and test splits, with
    whiskers from the lowest to the highest; the bar of a single run is hollow. A job without a score keeps
    its place, which shows its status. Each data set and protocol has its own row of panels. Rank-1 on hard
    pairs is a further panel if the data set names such pairs.

    Args:
        rows: see `compare_jobs`.
        path: where to write; the suffix, such as ``.png`` or ``.svg``, gives the format.
        title: title of the figure; by default the name of the jobs.
        labels: see `group_by_configuration`.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    parts = group_by_data(rows)
    most = max(len(group_by_configuration(part, labels)) for part in parts)
    panels = max(len(compared_metrics(part)) for part in parts)
    width = min(max(4.5 * panels, panels * (1.2 + 0.62 * most)), 24.0)
    warnings = [
        textwrap.fill(caveat, int(0.85 * _LETTERS_PER_INCH * width)) for caveat in collect_caveats(rows)
    ]
    lines = sum(1 + warning.count("\n") for warning in warnings)
    head = 0.5 + (0.25 + 0.18 * lines if lines else 0)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(width, head + 4.4 * len(parts)), dpi=130, layout=layout, facecolor="white")
    grid = figure.add_gridspec(1 + len(parts), 1, height_ratios=[head] + [4.4] * len(parts))
    bands = [figure.add_subfigure(cell) for cell in (grid[line, 0] for line in range(1 + len(parts)))]
    bands[0].text(
        0.5, 1 - 0.12 / head, title or job_names(rows), ha="center", va="top", fontsize=14, weight="bold"
    )
    if warnings:
        frame = {"boxstyle": "round,pad=0.4", "facecolor": AMBER, "alpha": 0.35, "edgecolor": AMBER}
        bands[0].text(
            0.5, 0.12 / head, "\n".join(warnings), ha="center", va="bottom", fontsize=10, bbox=frame
        )
    for band, part in zip(bands[1:], parts, strict=True):
        _draw_part(band, part, labels, width)
    _save(figure, [path])


def _draw_part(
    figure: "SubFigure", part: Sequence[Row], labels: Mapping[str, str] | None, inches: float
) -> None:
    compared = group_by_configuration(part, labels)
    relative = any(row.delta for row in part)
    metrics = compared_metrics(part)
    panels = figure.subplots(1, len(metrics), sharey=True)
    keys = keys_within(part)
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_panel(axes, compared, metric, relative=relative, inches=inches / len(metrics) - 0.6)
        axes.set_xlabel(keys[0] if len(keys) == 1 and not labels else "")
    panels[0].set_ylabel("difference to the baseline\n(percentage points)" if relative else "score (%)")
    figure.suptitle(textwrap.fill(describe_data(part), int(_LETTERS_PER_INCH * inches)), fontsize=10)
    figure.supxlabel("\n".join(_notes(compared, relative)), fontsize=9, color=GREY)


def _notes(compared: Sequence[Configuration], relative: bool) -> list[str]:
    repeats = max(len(one.done) for one in compared)
    notes = []
    if repeats > 1:
        band = "; grey band: range of the baseline" if relative else ""
        notes.append(
            f"Filled bars: mean of up to {repeats} seeds or test splits (dots); "
            f"whiskers: lowest to highest{band}."
        )
    if any(len(one.done) == 1 for one in compared if not (relative and one.is_baseline)):
        notes.append("Hollow bars: a single run, whose error can be as large as the difference of two seeds.")
    if not relative and any(one.is_baseline for one in compared):
        notes.append("The baseline has no score, so the bars are scores, not differences.")
    return notes


def _draw_panel(
    axes: "Axes", compared: Sequence[Configuration], metric: str, *, relative: bool, inches: float
) -> None:
    title = (COMPARED | HARD_PAIRS)[metric]
    baselines = [one for one in compared if one.is_baseline]
    bars = [one for one in compared if not (relative and one.is_baseline)]
    _draw_bars(axes, bars, metric, relative)
    means = [100 * fmean(scores) for one in baselines if (scores := one.scores(metric))]
    if relative and means:
        value = f"{min(means):.1f} %" if len(means) == 1 else f"{min(means):.1f} to {max(means):.1f} %"
        axes.set_title(f"{title} (baseline: {value})", fontsize=11)
        spread = [delta for one in baselines for delta in one.deltas(metric)]
        axes.axhspan(min(spread), max(spread), color=GREY, alpha=0.2, linewidth=0, zorder=0)
    else:
        axes.set_title(title, fontsize=11)
    axes.axhline(0, color="black", linewidth=1, zorder=4)
    _label_bars(axes, [one.label for one in bars], int(13 * inches / max(len(bars), 1)) - 1)
    axes.set_xlim(-0.6, max(len(bars), 1) - 0.4)
    axes.margins(y=0.18)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _draw_bars(axes: "Axes", compared: Sequence[Configuration], metric: str, relative: bool) -> None:
    for position, one in enumerate(compared):
        values = one.deltas(metric) if relative else [100 * score for score in one.scores(metric)]
        if not values:
            word = "no baseline" if one.done else one.rows[0].job.status
            axes.text(
                position, 0, f" {word} ", rotation=90, ha="center", va="bottom", color=GREY, style="italic"
            )
            continue
        mean, low, high = fmean(values), min(values), max(values)
        up = mean >= 0
        colour, repeated = BLUE if up else VERMILION, len(values) > 1
        style = (
            {"color": colour} if repeated else {"facecolor": "none", "edgecolor": colour, "linewidth": 1.6}
        )
        axes.bar(position, mean, width=0.62, zorder=2, **style)
        if repeated:
            whiskers = ([mean - low], [high - mean])
            axes.errorbar(position, mean, yerr=whiskers, fmt="none", ecolor="black", capsize=4, zorder=3)
            axes.plot([position] * len(values), values, "o", color="black", markersize=3, zorder=3)
        axes.annotate(
            (format_points(mean) if relative else f"{mean:.1f}").replace("-", "\N{MINUS SIGN}"),
            (position, max(high, 0.0) if up else min(low, 0.0)),
            xytext=(0, 3 if up else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            fontsize=9,
        )


def _label_bars(axes: "Axes", names: Sequence[str], letters: int) -> None:
    """Label the bars: horizontally if ``letters`` letters per bar are enough, else tilted."""
    level = [textwrap.fill(name, letters, break_long_words=False, break_on_hyphens=False) for name in names]
    if max((len(line) for name in level for line in name.split("\n")), default=0) <= letters:
        axes.set_xticks(range(len(names)), level, fontsize=9)
        return
    axes.set_xticks(range(len(names)), [textwrap.shorten(name, 60) for name in names])
    for label in axes.get_xticklabels():
        label.set(rotation=35, ha="right", rotation_mode="anchor", fontsize=9)


def read_curve(folder: Path, quantity: str) -> list[tuple[int, float]]:
    """Read the mean of a logged quantity in each epoch, as (epoch, value); empty if it was not logged.

    Args:
        folder: output folder of a run, with ``csv/metrics.csv``.
        quantity: name of the quantity, such as ``train/loss``.

    Raises:
        ValueError: a value is not a number.
    """
    path = folder / "csv" / "metrics.csv"
    if not path.is_file():
        return []
    values: dict[int, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line.get(quantity) and line.get("epoch"):
                try:
                    value = float(line[quantity])
                except ValueError as error:
                    raise ValueError(f"{path}: {quantity}: {error}") from error
                if math.isfinite(value):
                    values.setdefault(int(float(line["epoch"])), []).append(value)
    return [(epoch, fmean(found)) for epoch, found in sorted(values.items())]


def draw_curves(
    runs: Mapping[str, Sequence[Path]], panels: Mapping[str, str], paths: Sequence[Path], *, title: str
) -> bool:
    """Draw logged quantities by epoch, a panel each.

    A curve is the mean over runs, with a band from the lowest to the highest.

    Args:
        runs: label -> output folders of the runs to average.
        panels: quantity -> heading of its panel.
        paths: where to write; the suffix, ``.svg`` or ``.png``, gives the format.
        title: title of the figure.

    Returns:
        False, without writing a file, if none of the quantities was logged.
    """
    curves = {
        quantity: {
            label: [read_curve(folder, quantity) for folder in folders] for label, folders in runs.items()
        }
        for quantity in panels
    }
    curves = {quantity: labelled for quantity, labelled in curves.items() if any(map(any, labelled.values()))}
    if not curves:
        return False
    columns = min(3, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = _new_figure(4.6 * columns, 0.6 + 3 * lines)
    figure.suptitle(title, fontsize=11)
    shown: dict[str, Any] = {}
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in places[len(curves) :]:
        axes.remove()
    for axes, (quantity, labelled) in zip(places, curves.items(), strict=False):
        for number, (label, several) in enumerate(labelled.items()):
            values: dict[int, list[float]] = {}
            for epoch, value in chain.from_iterable(several):
                values.setdefault(epoch, []).append(value)
            if not values:
                continue
            colour = _COLOURS[number % len(_COLOURS)]
            style = _DASHES[number // len(_COLOURS) % len(_DASHES)]
            epochs = sorted(values)
            means = [fmean(values[epoch]) for epoch in epochs]
            marker = "o" if len(epochs) == 1 else None
            (shown[label],) = axes.plot(epochs, means, style, color=colour, label=label, marker=marker)
            if len(several) > 1:
                low, high = ([limit(values[epoch]) for epoch in epochs] for limit in (min, max))
                axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(panels[quantity], fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(color="#DDDDDD", linewidth=0.8)
    figure.legend(shown.values(), shown, fontsize=7, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, paths)
    return True


def draw_schedules(
    schedules: Mapping[str, Callable[[int], float]], epochs: int, paths: Sequence[Path]
) -> None:
    """Draw the temperature tau by epoch (Eq. 9).

    Args:
        schedules: label -> function of the 0-based epoch.
        epochs: number of epochs.
        paths: see `draw_curves`.
    """
    figure = _new_figure(6, 3.4)
    axes = figure.subplots()
    for (name, tau), colour in zip(schedules.items(), _COLOURS, strict=False):
        axes.plot(range(epochs), [tau(epoch) for epoch in range(epochs)], color=colour, label=name)
    axes.set(xlabel="epoch", ylabel="temperature", title="Schedule of tau (Eq. 9)")
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.legend(frameon=False)
    _save(figure, paths)


def draw_histogram(masks: Mapping[str, "Tensor"], paths: Sequence[Path], *, title: str) -> None:
    """Draw a histogram of mask values in 20 bins of [0, 1], in percent of all values, as in Fig. 2b.

    Args:
        masks: label -> mask values, any shape, in [0, 1].
        paths: see `draw_curves`.
        title: title of the figure.
    """
    figure = _new_figure(6, 3.4)
    axes = figure.subplots()
    edges = [bin / 20 for bin in range(21)]
    for (name, values), colour in zip(masks.items(), _COLOURS, strict=False):
        counts = values.float().flatten().histc(bins=20, min=0, max=1)
        axes.stairs(
            (100 * counts / counts.sum()).tolist(), edges, color=colour, label=name, fill=True, alpha=0.45
        )
        axes.stairs((100 * counts / counts.sum()).tolist(), edges, color=colour, linewidth=1.4)
    axes.set(xlabel="mask value", ylabel="% of values", title=title)
    axes.legend(frameon=False)
    _save(figure, paths)


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def _save(figure: "Figure", paths: Sequence[Path]) -> None:
    for path in paths:
        with replacing(path) as temporary:
            metadata = {"Date": None} if path.suffix == ".svg" else None  # the same figure, the same bytes
            figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
