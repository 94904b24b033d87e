"""A sweep's figure: scores relative to the baseline as bars (as Fig. 5 a and b)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from sharpreid.atomic_io import replacing
from sharpreid.report.comparison import (
    COMPARED,
    HARD_PAIRS,
    Configuration,
    Row,
    all_caveats,
    compared_metrics,
    configurations,
    describe_data,
    keys_within,
    names,
    split_by_data,
)
from sharpreid.report.summary_files import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# Okabe and Ito's palette: told apart by people with any of the common colour blindnesses, and in grey.
BLUE, VERMILION, AMBER, GREY = "#0072B2", "#D55E00", "#E69F00", "#666666"

LETTERS_PER_INCH = 12  # at matplotlib's usual ten points


def _name_bars(axes: "Axes", names: Sequence[str], letters: int) -> None:
    """Name the bars below them: level where ``letters`` letters per bar are enough, else tilted."""
    level = [textwrap.fill(name, letters, break_long_words=False, break_on_hyphens=False) for name in names]
    if max((len(line) for name in level for line in name.split("\n")), default=0) <= letters:
        axes.set_xticks(range(len(names)), level, fontsize=9)
        return
    axes.set_xticks(range(len(names)), [textwrap.shorten(name, 60) for name in names])
    for label in axes.get_xticklabels():
        label.set(rotation=35, ha="right", rotation_mode="anchor", fontsize=9)


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
            (points(mean) if relative else f"{mean:.1f}").replace("-", "\N{MINUS SIGN}"),
            (position, max(high, 0.0) if up else min(low, 0.0)),
            xytext=(0, 3 if up else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            fontsize=9,
        )


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
    _name_bars(axes, [one.label for one in bars], int(13 * inches / max(len(bars), 1)) - 1)
    axes.set_xlim(-0.6, max(len(bars), 1) - 0.4)
    axes.margins(y=0.18)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _draw_part(
    figure: "SubFigure", part: Sequence[Row], labels: Mapping[str, str] | None, inches: float
) -> None:
    compared = configurations(part, labels)
    relative = any(row.delta for row in part)
    metrics = compared_metrics(part)
    panels = figure.subplots(1, len(metrics), sharey=True)
    keys = keys_within(part)
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_panel(axes, compared, metric, relative=relative, inches=inches / len(metrics) - 0.6)
        axes.set_xlabel(keys[0] if len(keys) == 1 and not labels else "")
    panels[0].set_ylabel("difference to the baseline\n(percentage points)" if relative else "score (%)")
    repeats = max(len(one.done) for one in compared)
    notes = []
    if repeats > 1:
        band = "; grey band: the baseline's" if relative else ""
        runs = f"mean of up to {repeats} seeds or test splits (dots)"
        notes.append(f"Filled bars: {runs}; whiskers: lowest to highest{band}.")
    if any(len(one.done) == 1 for one in compared if not (relative and one.is_baseline)):
        notes.append("Hollow bars: one run each, so they may lie off by as much as two seeds differ.")
    if not relative and any(one.is_baseline for one in compared):
        notes.append("The baseline has no score, so these are not differences.")
    figure.suptitle(textwrap.fill(describe_data(part), int(LETTERS_PER_INCH * inches)), fontsize=10)
    figure.supxlabel("\n".join(notes), fontsize=9, color=GREY)


def draw(
    rows: Sequence[Row], path: Path, *, title: str = "", labels: Mapping[str, str] | None = None
) -> None:
    """Draw mAP and rank-1 of a sweep as differences to the baseline, as in Fig. 5 (a, b).

    A configuration of one run has a hollow bar. Where the data set names hard pairs, their rank-1 has a
    panel of its own.

    Without a scored baseline the bars are the scores themselves. One line of panels per data set and
    protocol. Several seeds or test splits: the mean, with whiskers from the lowest to the highest. A job
    without a score keeps its place, with its status in it.
    """
    from matplotlib.figure import Figure  # slow to import, and only the end of a sweep needs it
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    parts = split_by_data(rows)
    most = max(len(configurations(part, labels)) for part in parts)
    panels = max(len(compared_metrics(part)) for part in parts)
    width = min(max(4.5 * panels, panels * (1.2 + 0.62 * most)), 24.0)
    warnings = [textwrap.fill(caveat, int(0.85 * LETTERS_PER_INCH * width)) for caveat in all_caveats(rows)]
    lines = sum(1 + warning.count("\n") for warning in warnings)
    head = 0.5 + (0.25 + 0.18 * lines if lines else 0)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(width, head + 4.4 * len(parts)), dpi=130, layout=layout, facecolor="white")
    grid = figure.add_gridspec(1 + len(parts), 1, height_ratios=[head] + [4.4] * len(parts))
    bands = [figure.add_subfigure(cell) for cell in (grid[line, 0] for line in range(1 + len(parts)))]
    bands[0].text(
        0.5, 1 - 0.12 / head, title or names(rows), ha="center", va="top", fontsize=14, weight="bold"
    )
    if warnings:
        frame = {"boxstyle": "round,pad=0.4", "facecolor": AMBER, "alpha": 0.35, "edgecolor": AMBER}
        bands[0].text(
            0.5, 0.12 / head, "\n".join(warnings), ha="center", va="bottom", fontsize=10, bbox=frame
        )
    for band, part in zip(bands[1:], parts, strict=True):
        _draw_part(band, part, labels, width)
    with replacing(path) as temporary:
        metadata = {"Date": None} if path.suffix == ".svg" else None  # equal runs, equal files
        figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
