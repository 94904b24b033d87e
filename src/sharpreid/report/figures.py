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
    group_by_configuration,
    group_by_data,
    job_names,
    keys_within,
    short_data,
    shorten_brackets,
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

_NARROW = 4.4
"""Width in inches of a figure that fits on the screen of a phone with letters that can be read."""

_LABEL = 40
"""Letters in a line of a bar's label."""

_LEGEND_HANDLE = 8
"""Width, in letters, of the line and the gaps beside a label of a legend."""

_FEW_POINTS = 12
"""A curve of at most so many points shows them."""

_UNIT_RANGE = ("train/decided_block", "train/entropy_block")
"""Start of the names of quantities whose panel shows all of [0, 1], so that blocks can be compared."""


def draw_sweep(
    rows: Sequence[Row], path: Path, *, title: str = "", labels: Mapping[str, str] | None = None
) -> None:
    """Draw mAP and rank-1 of a sweep as differences to the baseline, the scores of Fig. 5 (a, b).

    The bars are plain scores if no baseline has a score. A bar is the mean over seeds and test splits, with
    whiskers from the lowest to the highest; the bar of one seed is hollow. A job without a score keeps its
    place, which shows its status. Each data set and protocol has its own row of panels. Rank-1 on hard pairs
    is a further panel if the data set names such pairs.

    Args:
        rows: see `compare_jobs`.
        path: where to write; the suffix, such as ``.png`` or ``.svg``, gives the format.
        title: title of the figure; by default the name of the jobs.
        labels: see `group_by_configuration`.
    """
    parts = group_by_data(rows)
    names = [_wrapped(one.label, _LABEL) for part in parts for one in group_by_configuration(part, labels)]
    letters = max(len(line) for name in names for line in name.split("\n"))
    panels = max(len(compared_metrics(part)) for part in parts)
    width = max(6.4, letters / _LETTERS_PER_INCH + 2.6 * panels)
    warnings = [
        _wrapped(shorten_brackets(caveat), int(0.9 * _LETTERS_PER_INCH * width))
        for caveat in collect_caveats(rows)
    ]
    lines = sum(1 + warning.count("\n") for warning in warnings)
    head = 0.45 + (0.25 + 0.18 * lines if lines else 0)
    heights = [_part_height(part, labels, width) for part in parts]
    figure = _new_figure(width, head + sum(heights))
    grid = figure.add_gridspec(1 + len(parts), 1, height_ratios=[head, *heights])
    bands = [figure.add_subfigure(cell) for cell in (grid[line, 0] for line in range(1 + len(parts)))]
    bands[0].text(
        0.01, 1 - 0.12 / head, title or job_names(rows), ha="left", va="top", fontsize=13, weight="bold"
    )
    if warnings:
        frame = {"boxstyle": "round,pad=0.4", "facecolor": AMBER, "alpha": 0.35, "edgecolor": AMBER}
        bands[0].text(0.02, 0.12 / head, "\n".join(warnings), va="bottom", fontsize=9, bbox=frame)
    for band, part in zip(bands[1:], parts, strict=True):
        _draw_part(band, part, labels, width)
    _save(figure, [path])


def _wrapped(text: str, letters: int) -> str:
    return textwrap.fill(text, letters, break_on_hyphens=False)


def _part_height(part: Sequence[Row], labels: Mapping[str, str] | None, inches: float) -> float:
    compared = group_by_configuration(part, labels)
    relative = any(row.delta for row in part)
    bars = [one for one in compared if not (relative and one.is_baseline)]
    lines = sum(1 + 0.5 * _wrapped(one.label, _LABEL).count("\n") for one in bars)
    above = _subtitle(part, inches).count("\n")
    return 1.5 + 0.34 * max(lines, 1) + 0.17 * (above + len(_notes(compared, relative, inches)))


def _draw_part(
    figure: "SubFigure", part: Sequence[Row], labels: Mapping[str, str] | None, inches: float
) -> None:
    compared = group_by_configuration(part, labels)
    relative = any(row.delta for row in part)
    metrics = compared_metrics(part)
    panels = figure.subplots(1, len(metrics), sharey=True)
    keys = keys_within(part)
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_panel(axes, compared, metric, relative=relative)
        axes.set_xlabel("percentage points" if relative else "score (%)", fontsize=9)
    panels[0].set_ylabel(keys[0] if len(keys) == 1 and not labels else "")
    figure.suptitle(_subtitle(part, inches), x=0.01, ha="left", fontsize=9)
    figure.supxlabel("\n".join(_notes(compared, relative, inches)), x=0.01, ha="left", fontsize=9, color=GREY)


def _subtitle(part: Sequence[Row], inches: float) -> str:
    difference = "difference to the baseline; " if any(row.delta for row in part) else ""
    return _wrapped(difference + short_data(part), int(_LETTERS_PER_INCH * inches))


def _notes(compared: Sequence[Configuration], relative: bool, inches: float) -> list[str]:
    """Return the lines that explain the bars."""
    repeats = max(len(one.done) for one in compared)
    baselines = [one for one in compared if one.is_baseline]
    notes = []
    if repeats > 1:
        band = "; grey band: range of the baseline" if relative else ""
        notes.append(
            f"Filled bars: mean of up to {repeats} seeds or test splits (dots); "
            f"whiskers: lowest to highest{band}."
        )
    if any(len(one.done) == 1 for one in compared if not (relative and one.is_baseline)):
        notes.append("Hollow bars: one seed, whose error can be as large as the difference of two seeds.")
    if relative and any(len(one.done) == 1 for one in baselines):
        notes.append("The baseline is one seed, whose error is part of every bar.")
    if not relative and baselines:
        notes.append("The baseline has no score, so the bars are scores, not differences.")
    return list(
        chain.from_iterable(textwrap.wrap(note, int(1.1 * _LETTERS_PER_INCH * inches)) for note in notes)
    )


def _draw_panel(axes: "Axes", compared: Sequence[Configuration], metric: str, *, relative: bool) -> None:
    title = (COMPARED | HARD_PAIRS)[metric]
    baselines = [one for one in compared if one.is_baseline]
    bars = [one for one in compared if not (relative and one.is_baseline)]
    _draw_bars(axes, bars, metric, relative)
    means = [100 * fmean(scores) for one in baselines if (scores := one.scores(metric))]
    if relative and means:
        value = f"{min(means):.1f} %" if len(means) == 1 else f"{min(means):.1f} to {max(means):.1f} %"
        axes.set_title(
            f"{title} (baseline: {value})".replace("rank-1 on hard pairs (", "rank-1 on hard pairs\n("),
            fontsize=10,
        )
        spread = [delta for one in baselines for delta in one.deltas(metric)]
        axes.axvspan(min(spread), max(spread), color=GREY, alpha=0.2, linewidth=0, zorder=0)
    else:
        axes.set_title(title, fontsize=10)
    axes.axvline(0, color="black", linewidth=1, zorder=4)
    axes.set_yticks(range(len(bars)), [_wrapped(one.label, _LABEL) for one in bars], fontsize=9)
    axes.set_ylim(max(len(bars), 1) - 0.4, -0.6)
    axes.margins(x=0.32)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)


def _draw_bars(axes: "Axes", compared: Sequence[Configuration], metric: str, relative: bool) -> None:
    for position, one in enumerate(compared):
        values = one.deltas(metric) if relative else [100 * score for score in one.scores(metric)]
        if not values:
            word = "no baseline" if one.done else one.rows[0].job.status
            axes.text(0, position, f" {word} ", ha="left", va="center", color=GREY, style="italic")
            continue
        mean, low, high = fmean(values), min(values), max(values)
        up = mean >= 0
        colour, repeated = BLUE if up else VERMILION, len(values) > 1
        style = (
            {"color": colour} if repeated else {"facecolor": "none", "edgecolor": colour, "linewidth": 1.6}
        )
        axes.barh(position, mean, height=0.62, zorder=2, **style)
        if repeated:
            whiskers = ([mean - low], [high - mean])
            axes.errorbar(mean, position, xerr=whiskers, fmt="none", ecolor="black", capsize=4, zorder=3)
            axes.plot(values, [position] * len(values), "o", color="black", markersize=3, zorder=3)
        axes.annotate(
            (format_points(mean) if relative else f"{mean:.1f}").replace("-", "\N{MINUS SIGN}"),
            (max(high, 0.0) if up else min(low, 0.0), position),
            xytext=(4 if up else -4, 0),
            textcoords="offset points",
            ha="left" if up else "right",
            va="center",
            fontsize=9,
        )


def read_curve(folder: Path, quantity: str) -> list[tuple[int, float]]:
    """Read the mean of a logged quantity in each epoch, as (epoch, value); empty if it was not logged.

    The validation after the training is logged under the epoch that would follow; it belongs to the last one.

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
    last = math.inf
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if not line.get("epoch"):
                continue
            epoch = int(float(line["epoch"]))
            last = epoch if line.get("train/loss") else last
            if line.get(quantity):
                try:
                    value = float(line[quantity])
                except ValueError as error:
                    raise ValueError(f"{path}: {quantity}: {error}") from error
                if math.isfinite(value):
                    values.setdefault(int(min(epoch, last)), []).append(value)
    return [(epoch, fmean(found)) for epoch, found in sorted(values.items())]


def draw_curves(
    runs: Mapping[str, Sequence[Path]], panels: Mapping[str, str], paths: Sequence[Path], *, title: str
) -> bool:
    """Draw logged quantities by epoch, a panel each, in two columns.

    A curve is the mean over runs, with a band from the lowest to the highest. The legend gives the number of
    runs. Single epochs are marked if there are few.

    Args:
        runs: label -> output folders of the runs to average.
        panels: quantity -> heading of its panel. Shares and entropies have the same axis in all panels.
        paths: where to write; the suffix, ``.svg`` or ``.png``, gives the format.
        title: title of the figure.

    Returns:
        False, without writing a file, if none of the quantities was logged.
    """
    from matplotlib.ticker import MaxNLocator

    curves = {
        quantity: {
            _with_count(label, len(folders)): [read_curve(folder, quantity) for folder in folders]
            for label, folders in runs.items()
        }
        for quantity in panels
    }
    curves = {quantity: labelled for quantity, labelled in curves.items() if any(map(any, labelled.values()))}
    if not curves:
        return False
    labels = [_with_count(label, len(folders)) for label, folders in runs.items()]
    letters = int(1.4 * _LETTERS_PER_INCH * _NARROW)
    entry = min(max(map(len, labels)), letters - _LEGEND_HANDLE) + _LEGEND_HANDLE
    columns, lines = max(1, letters // entry), math.ceil(len(curves) / 2)
    entries = math.ceil(len(labels) / columns) * (1 + (max(map(len, labels)) + _LEGEND_HANDLE) // letters)
    heading = _wrapped(title, int(1.1 * _LETTERS_PER_INCH * _NARROW))
    height = 0.4 + 0.15 * heading.count("\n") + 1.7 * lines + 0.18 * entries
    figure = _new_figure(_NARROW, height)
    figure.suptitle(heading, fontsize=9)
    shown: dict[str, Any] = {}
    places = figure.subplots(lines, 2, squeeze=False).flatten()
    for axes in places[len(curves) :]:
        axes.remove()
    for axes in places[: len(curves)][-2:]:
        axes.set_xlabel("epoch", fontsize=8)
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
            marker = "o" if len(epochs) <= _FEW_POINTS else None
            (shown[label],) = axes.plot(
                epochs, means, style, color=colour, label=label, marker=marker, markersize=4, linewidth=1.2
            )
            if len(several) > 1:
                low, high = ([limit(values[epoch]) for epoch in epochs] for limit in (min, max))
                axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(panels[quantity], fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.ticklabel_format(axis="y", useOffset=False)
        if quantity.startswith(_UNIT_RANGE):
            axes.set_ylim(-0.03, 1.03)
        axes.grid(color="#DDDDDD", linewidth=0.8)
    wrapped = [_wrapped(label, letters - _LEGEND_HANDLE) for label in shown]
    figure.legend(
        shown.values(), wrapped, fontsize=8, loc="outside lower center", ncols=columns, frameon=False
    )
    _save(figure, paths)
    return True


def _with_count(label: str, count: int) -> str:
    return f"{label} ({count} seed{'s' if count > 1 else ''})"


def draw_schedules(
    schedules: Mapping[str, Callable[[int], float]], epochs: int, paths: Sequence[Path]
) -> None:
    """Draw the temperature tau by epoch (Eq. 9).

    Args:
        schedules: label -> function of the 0-based epoch.
        epochs: number of epochs.
        paths: see `draw_curves`.
    """
    figure = _new_figure(_NARROW, 3.6)
    axes = figure.subplots()
    for (name, tau), colour in zip(schedules.items(), _COLOURS, strict=False):
        axes.plot(range(epochs), [tau(epoch) for epoch in range(epochs)], color=colour, label=name)
    axes.set(xlabel="epoch", ylabel="temperature", title="Schedule of tau (Eq. 9)")
    axes.grid(color="#DDDDDD", linewidth=0.8)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    _save(figure, paths)


def draw_histogram(masks: Mapping[str, "Tensor"], paths: Sequence[Path], *, title: str) -> None:
    """Draw a histogram of mask values in 20 bins of [0, 1], in percent of all values, as in Fig. 2b.

    Args:
        masks: label -> mask values, any shape, in [0, 1].
        paths: see `draw_curves`.
        title: title of the figure.
    """
    figure = _new_figure(_NARROW, 3.2)
    axes = figure.subplots()
    edges = [bin / 20 for bin in range(21)]
    for (name, values), colour, style in zip(masks.items(), _COLOURS, _DASHES * 2, strict=False):
        counts = values.float().flatten().histc(bins=20, min=0, max=1)
        shares = (100 * counts / counts.sum()).tolist()
        axes.stairs(shares, edges, color=colour, linewidth=1.6, linestyle=style, label=name)
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.15)
    axes.set(xlabel="mask value", ylabel="% of values", title=title)
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, loc="upper center")
    _save(figure, paths)


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def _save(figure: "Figure", paths: Sequence[Path]) -> None:
    for path in paths:
        with replacing(path) as temporary:
            metadata = {"Date": None} if path.suffix == ".svg" else None  # the same figure, the same bytes
            figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
