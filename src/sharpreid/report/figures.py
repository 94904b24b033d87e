"""Figures of the report: curves of a training, the schedule of tau, a histogram of mask values (Fig. 2b)."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sharpreid.atomic_io import replacing
from sharpreid.report.bars import BLUE, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_DASHES = ("-", "--", ":", "-.")


def read_curve(folder: Path, quantity: str) -> list[tuple[int, float]]:
    """Mean of a logged quantity in each epoch of a run, (epoch, value); empty if it was not logged.

    Args:
        folder: of the run, with ``csv/metrics.csv``.
        quantity: such as ``train/loss``.

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
    """Curves by epoch, one panel per quantity; False, and no file, if none was logged.

    Args:
        runs: what to call it -> folders of its runs; of several, their mean in a band from lowest to highest.
        panels: quantity -> heading.
        paths: where to, by suffix ``.svg`` or ``.png``.
        title: of the figure.
    """
    curves = {
        what: {name: [read_curve(folder, what) for folder in folders] for name, folders in runs.items()}
        for what in panels
    }
    curves = {what: named for what, named in curves.items() if any(map(any, named.values()))}
    if not curves:
        return False
    columns = min(3, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = _figure(4.6 * columns, 0.6 + 3 * lines)
    figure.suptitle(title, fontsize=11)
    shown: dict[str, Any] = {}
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in places[len(curves) :]:
        axes.remove()
    for axes, (what, named) in zip(places, curves.items(), strict=False):
        for number, (name, several) in enumerate(named.items()):
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
            (shown[name],) = axes.plot(epochs, means, style, color=colour, label=name, marker=marker)
            if len(several) > 1:
                low, high = ([limit(values[epoch]) for epoch in epochs] for limit in (min, max))
                axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(panels[what], fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(color="#DDDDDD", linewidth=0.8)
    figure.legend(shown.values(), shown, fontsize=7, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, paths)
    return True


def draw_schedules(
    schedules: Mapping[str, Callable[[int], float]], epochs: int, paths: Sequence[Path]
) -> None:
    """Tau by epoch (Eq. 9)."""
    figure = _figure(6, 3.4)
    axes = figure.subplots()
    for (name, tau), colour in zip(schedules.items(), _COLOURS, strict=False):
        axes.plot(range(epochs), [tau(epoch) for epoch in range(epochs)], color=colour, label=name)
    axes.set(xlabel="epoch", ylabel="temperature", title="Schedule of tau (Eq. 9)")
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.legend(frameon=False)
    _save(figure, paths)


def draw_histogram(masks: Mapping[str, Tensor], paths: Sequence[Path], *, title: str) -> None:
    """Histogram of mask values in 20 bins of [0, 1] (as Fig. 2b), in percent of all values.

    Args:
        masks: what to call it -> mask values, any shape, in [0, 1].
        paths: see `draw_curves`.
        title: of the figure.
    """
    figure = _figure(6, 3.4)
    axes = figure.subplots()
    edges = [bin / 20 for bin in range(21)]
    for (name, values), colour in zip(masks.items(), _COLOURS, strict=False):
        counts = torch.histc(values.float().flatten(), bins=20, min=0, max=1)
        axes.stairs(
            (100 * counts / counts.sum()).tolist(), edges, color=colour, label=name, fill=True, alpha=0.45
        )
        axes.stairs((100 * counts / counts.sum()).tolist(), edges, color=colour, linewidth=1.4)
    axes.set(xlabel="mask value", ylabel="% of values", title=title)
    axes.legend(frameon=False)
    _save(figure, paths)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def _save(figure: "Figure", paths: Sequence[Path]) -> None:
    for path in paths:
        with replacing(path) as temporary:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
