"""Put recorded runs beside the numbers of the paper's tables.

Only runs that are comparable with the paper enter these tables. `run_tables` lists all runs.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from sharpreid.report.comparison import merge_caveats, shorten_brackets, split_deviations
from sharpreid.report.markdown import format_points
from sharpreid.report.runs import Run, distinct_runs
from sharpreid.run.comparability import averaging_rules, caveats, dataset_line, open_choices
from sharpreid.run.console import mean_and_range, protocol_line
from sharpreid.run.paper_recipe import PAPER_DATA

_PACKAGED = Path(__file__).with_name("paper.csv")
PAPER = _PACKAGED if _PACKAGED.is_file() else Path(__file__).parents[3] / "experiments" / "paper.csv"
"""CSV file with every number of the paper's tables, in the installed package or in the checkout."""

METHODS = {
    "ResNet-50 baseline": "baseline",
    "Baseline + SAB": "sab",
    "Baseline + SAB + CU": "sab_cu",
    "Baseline + SAB + CU + TV": "sab_cu_tv",
    "Our SAN": "sab_cu_tv",
    "Our sharp attention network": "sab_cu_tv",
    "Residual attention network [19]": "residual_attention",
}
"""Rows of the paper that can be run here -> their method, as in ``method=``."""

TABLES = {
    "Table I": "components",
    "Table II": "CUHK03 labeled, with the literature",
    "Table III": "CUHK03 detected, with the literature",
    "Table IV": "parameters and accuracy against residual attention",
    "Table V": "Market-1501, with the literature",
    "Table VI": "DukeMTMC-reID, with the literature",
}
"""Tables of the paper, with titles."""

GAINS_TITLE = "Gains: over the baseline, in percentage points (Fig. 5, Sec. IV-D)"

_EXPERIMENTS = {"Table I": "table1", "Table IV": "table4"}
"""Table -> experiment that fills it. "Our SAN" of the other tables is row 4 of Table I."""

NOTE = (
    "Rows with TV: the paper's total variation, a sum with mu = 0.1, exceeds the triplet loss by four orders "
    "of magnitude, and no recorded run with it has learnt anything. Therefore method=sab_cu_tv uses a mean "
    "with mu = 0.01 unless objective=tv_as_printed is given. Runs with the mean are listed as not comparable."
)
"""Explanation of the last row of the paper's tables."""


@dataclass(frozen=True)
class Cell:
    """A number of the paper, the mean and range of the runs, and the difference, as text."""

    paper: str
    ours: str
    difference: str


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper with the runs of one protocol.

    Args:
        name: name of the row in the paper.
        category: ``paper`` or ``literature``, see paper.csv.
        dataset: data set.
        method: method of the row, as in ``method=``; None if it cannot be run here.
        cells: metric -> cell.
        runs: number of runs.
        protocol: protocol of the runs; empty without runs.
        missing: why there is no run; empty if there is one.
        command: command that fills the row; empty if the row is filled or cannot be run here.
    """

    name: str
    category: str
    dataset: str
    method: str | None
    cells: Mapping[str, Cell]
    runs: int
    protocol: str
    missing: str
    command: str


@dataclass(frozen=True)
class RunTable:
    """A table of the runs on a data set.

    Args:
        title: data set, and whether the runs are comparable with the paper.
        caveats: why they are not; empty if they are.
        protocol: rules of the protocol that all runs share.
        rows: column title -> text.
    """

    title: str
    caveats: Sequence[str]
    protocol: str
    rows: Sequence[Mapping[str, str]]


def read_paper(path: Path = PAPER) -> list[dict[str, str]]:
    """Read the rows of paper.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def paper_table(place: str, runs: Sequence[Run], paper: Sequence[Mapping[str, str]]) -> list[PaperRow]:
    """Return the rows of a table of the paper, one for each protocol of the runs.

    Args:
        place: table, such as ``Table I``.
        runs: runs, see `load_runs`; those that are not comparable with the paper are left out.
        paper: rows of paper.csv, see `read_paper`.
    """
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for line in paper:
        if line["place"] == place:
            key = line["row"], line["category"], line["dataset"]
            found.setdefault(key, {})[line["metric"]] = line["value"]
    rows = []
    for (name, category, dataset), values in found.items():
        method = METHODS.get(name)
        for ours in group_by_protocol(comparable_runs(runs, method, dataset)) or [[]]:
            cells = {
                metric: _parameters(method, metric, value)
                if metric.startswith("parameters")
                else _cell(value, _percents(ours, metric))
                for metric, value in values.items()
            }
            if method is None:
                gap = "from the literature", ""
            elif ours:
                gap = "", ""
            else:
                experiment = _EXPERIMENTS.get(place, "table1")
                gap = _gap(runs, method, dataset, f"+experiment={experiment} data={dataset} method={method}")
            row = PaperRow(name, category, dataset, method, cells, len(ours), describe_protocols(ours), *gap)
            rows.append(row)
    return rows


def gains_table(runs: Sequence[Run], paper: Sequence[Mapping[str, str]]) -> list[PaperRow]:
    """Return the gains of attention over the baseline, in percentage points (Fig. 5, Sec. IV-D).

    Our gain is the score of a run minus the mean of the baseline on the same data set and protocol. The
    paper's gain is a printed number (last bar of Fig. 5, Sec. IV-D) or the difference between two rows of
    Table I, which its cell then states.

    Args:
        runs: runs, see `load_runs`; those that are not comparable with the paper are left out.
        paper: rows of paper.csv, see `read_paper`.
    """
    printed = {
        (line["place"], line["dataset"], line["metric"].removesuffix("_gain")): f"+{line['value']}"
        for line in paper
        if line["metric"].endswith("_gain") and line["place"] in ("Fig. 5", "Sec. IV-D")
    }
    table1 = {
        (METHODS[line["row"]], line["dataset"], line["metric"]): float(line["value"])
        for line in paper
        if line["place"] == "Table I"
    }
    metrics = ("mAP", "rank1")
    rows = []
    for blocks in ("1", "2", "3", "4", "1+2", "1+2+3", "1+2+3+4"):
        last = blocks == "1+2+3+4"
        values = {
            metric: printed["Fig. 5", "cuhk03_labeled", metric] if last else "a bar without a number"
            for metric in metrics
        }
        method = "sab" if last else f"blocks {blocks}"
        rows += _gains(f"Fig. 5(a, b): blocks {blocks}", method, "cuhk03_labeled", values, runs, "fig5")
    for method, name in (("sab", "SAB"), ("sab_cu", "SAB + CU")):
        for dataset in ("cuhk03_labeled", "cuhk03_detected", "market1501"):
            gain = table1[method, dataset, "mAP"] - table1["baseline", dataset, "mAP"]
            values = {"mAP": f"{format_points(gain)} (of Table I)"}
            rows += _gains(f"Fig. 5(c): {name}", method, dataset, values, runs, "fig5c")
    for dataset in PAPER_DATA:
        values = {metric: printed["Sec. IV-D", dataset, metric] for metric in metrics}
        rows += _gains("Sec. IV-D: SAB + CU + TV", "sab_cu_tv", dataset, values, runs, "table1")
    return rows


def run_tables(runs: Sequence[Run]) -> list[RunTable]:
    """Return all runs, averaged over seeds, in a table for each data set.

    Runs that are comparable with the paper have a table of their own, which comes first.
    """
    parts: dict[tuple[bool, str], list[Run]] = {}
    for run in runs:
        parts.setdefault((bool(caveats(run.record)), dataset_line(run.record["dataset"])), []).append(run)
    return [_run_table(data, parts[unlike, data]) for unlike, data in sorted(parts)]


def _run_table(data: str, runs: Sequence[Run]) -> RunTable:
    """Make the table of one data set; ``own settings`` are those that not all its runs share."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.method, " ".join(caveats(run.record))), []).append(run)
    lines = [
        (method, same)
        for (method, _), alike in sorted(groups.items())
        for same in group_by_protocol(distinct_runs(alike))
    ]
    settings = [split_deviations(same[0].record) for _, same in lines]
    rules = [describe_protocols(same).split(", ") for _, same in lines]
    masks = {rule for some in rules for rule in some if rule.startswith("mask ")} - {"mask none"}
    if len(masks) == 1:  # the baseline has no mask, which is no difference in the protocol
        rules = [[min(masks) if rule == "mask none" else rule for rule in some] for some in rules]
    reasons = merge_caveats([run.record for run in runs])
    in_paper = {(METHODS.get(line["row"]), line["dataset"]) for line in read_paper()}
    rows = []
    for (method, same), *own in zip(lines, _without_shared(settings), _without_shared(rules), strict=True):
        note = [] if reasons or (method, same[0].data) in in_paper else ["the paper has no number for it"]
        rows.append(
            {
                "method": method,
                "mAP": mean_and_range(_percents(same, "mAP"), "{:.1f}".format),
                "rank-1": mean_and_range(_percents(same, "rank1"), "{:.1f}".format),
                "runs": str(len(same)),
                "seeds": _distinct(run.job.seed for run in same),
                "epochs": _distinct(str(run.record.get("epochs", "")) for run in same),
                "own settings": ", ".join(chain(*own, note)),
            }
        )
    data = shorten_brackets(data, 80)
    title = f"{data}, not comparable with the paper" if reasons else f"{data}, by the paper's rules"
    return RunTable(
        title, reasons, ", ".join(one for one in rules[0] if all(one in some for some in rules)), rows
    )


def _without_shared(lists: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return each list without the entries that all lists have."""
    return [[one for one in some if not all(one in other for other in lists)] for some in lists]


def _distinct(texts: Iterable[str]) -> str:
    """Return the distinct texts in the order of numbers, in one cell."""
    return ", ".join(sorted(set(texts), key=lambda text: (len(text), text)))


def comparable_runs(runs: Sequence[Run], method: str | None, dataset: str) -> list[Run]:
    """Return the distinct runs of a method on a data set that are comparable with the paper."""
    matching = [run for run in runs if (run.method, run.data) == (method, dataset)]
    return distinct_runs(run for run in matching if not caveats(run.record))


def group_by_protocol(runs: Iterable[Run]) -> list[list[Run]]:
    """Group runs whose scores may be averaged: same data set, protocol and strides, any drawn split."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(averaging_rules(run.record, run.config), []).append(run)
    return list(found.values())


def describe_protocols(runs: Sequence[Run]) -> str:
    """Describe the protocol of the runs, their drawn splits, and their choices that the paper leaves open."""
    return " / ".join(
        dict.fromkeys(
            ", ".join((protocol_line(run.record["protocol"]), *open_choices(run.config))) for run in runs
        )
    )


def _without_mask(run: Run) -> tuple[str, ...]:
    """Return the rules that a run must share with its baseline, which has no mask."""
    return averaging_rules(run.record, run.config, "test_mask")


def _percents(runs: Iterable[Run], metric: str) -> list[float]:
    return [100 * score for run in runs if (score := run.job.score(metric)) is not None]


def _cell(paper: str, ours: Sequence[float], shown: Callable[[float], str] = "{:.1f}".format) -> Cell:
    """Compare the paper's number with ours, in percent or percentage points.

    ``paper`` starts with its number, or says why there is none.
    """
    if not ours:
        return Cell(paper, "-", "-")
    number = re.match(r"[+-]?[\d.]+", paper)
    difference = format_points(fmean(ours) - float(number[0])) if number else ""
    return Cell(paper, mean_and_range(ours, shown), difference)


def _gap(runs: Sequence[Run], method: str, dataset: str, arguments: str) -> tuple[str, str]:
    """Return why a row has no run, and the command that fills it."""
    others = [run for run in runs if (run.method, run.data) == (method, dataset)]
    reason = "not run" if not others else "only runs that are not comparable"
    return reason, _command(arguments, method)


def _command(arguments: str, method: str) -> str:
    objective = " objective=tv_as_printed" if method == "sab_cu_tv" else ""
    return f"python -m sharpreid.train {arguments}{objective}"


def _gap_of_gain(
    runs: Sequence[Run], method: str, dataset: str, experiment: str, baseline: bool
) -> tuple[str, str]:
    """Return why a gain is missing, and the commands of the missing runs of method and baseline."""
    arguments = f"+experiment={experiment} data={dataset}"
    if experiment == "fig5":  # this experiment sweeps blocks, not methods
        blocks = "1,2,3,4" if method == "sab" else method.removeprefix("blocks ").replace("+", ",")
        ours, base = f"{arguments} model.blocks=[{blocks}]", f"{arguments} model.blocks=[]"
    else:
        ours, base = f"{arguments} method={method}", f"{arguments} method=baseline"
    if comparable_runs(runs, method, dataset):
        return "no baseline with the same protocol", _command(base, "baseline")
    reason, command = _gap(runs, method, dataset, ours)
    return reason, command if baseline else f"{_command(base, 'baseline')}; {command}"


def _gains(
    name: str, method: str, dataset: str, values: Mapping[str, str], runs: Sequence[Run], experiment: str
) -> list[PaperRow]:
    baselines: dict[tuple[str, ...], list[Run]] = {}
    for run in comparable_runs(runs, "baseline", dataset):
        baselines.setdefault(_without_mask(run), []).append(run)
    rows = []
    parts = group_by_protocol(comparable_runs(runs, method, dataset))
    for ours in [part for part in parts if _without_mask(part[0]) in baselines] or [[]]:
        base = baselines[_without_mask(ours[0])] if ours else []
        cells = {}
        for metric, value in values.items():
            reference = _percents(base, metric)
            gains = [score - fmean(reference) for score in _percents(ours, metric)] if reference else []
            cells[f"{metric}_gain"] = _cell(value, gains, format_points)
        gap = ("", "") if ours else _gap_of_gain(runs, method, dataset, experiment, bool(baselines))
        rows.append(
            PaperRow(name, "paper", dataset, method, cells, len(ours), describe_protocols(ours), *gap)
        )
    return rows


def _parameters(method: str | None, metric: str, paper: str) -> Cell:
    """Count the convolution weights of the mask branches, in millions."""
    place = metric.removeprefix("parameters_")
    blocks = (1, 2, 3) if place == "total" else (int(place.removeprefix("block")),)
    count = sum(_convolution_weights(method, 2 ** (7 + block)) for block in blocks) / 1e6
    return Cell(paper, f"{count:.2f}", f"{round(count - float(paper), 2) + 0.0:+.2f}")


def _convolution_weights(method: str | None, channels: int) -> int:
    from sharpreid.attention.context import ContextUnit  # slow to import, needed for one column only
    from sharpreid.attention.soft import ResidualAttentionMask

    unit = (
        ResidualAttentionMask(channels=channels, lowest_channels=2048, strides="v1")
        if method == "residual_attention"
        else ContextUnit(channels=channels, strides="v1", upsample="deconv")
    )
    return sum(parameter.numel() for parameter in unit.parameters() if parameter.ndim == 4)
