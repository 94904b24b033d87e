"""Write the tables of recorded results into the pages: ``python -m sharpreid.report.results [--check]``.

Each table stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` in a page; edits by hand there are
overwritten. To add a table, write a function that returns its lines, and add it to `TABLES`. The command also
draws the figures of experiments/does_it_help.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sharpreid.report.ablation import (
    QUESTIONS,
    Line,
    Study,
    StudyRow,
    find_comparisons,
    format_difference,
    read_studies,
)
from sharpreid.report.comparison import COMPARED
from sharpreid.report.forest_plot import forest_plots
from sharpreid.report.markdown import markdown_table
from sharpreid.report.paper_tables import METHODS, read_paper
from sharpreid.run.comparability import caveats, dataset_line
from sharpreid.run.console import (
    READINGS,
    SCORE_TITLES,
    gather_readings,
    mean_and_range,
    percent,
    protocol_line,
    without_mask,
)
from sharpreid.run.records import write_text
from sharpreid.standard_streams import tolerate_write_errors

CHECKOUT = Path(__file__).parents[3]

_STUDY = "does_it_help"
_PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n)((?!<!-- ).*\n)*?(<!-- end -->)")
_NO_RUN = ["no finished run yet"]


def market1501_cpu(experiments: Path) -> list[str]:
    """Return the runs of ``market1501_cpu``, one row per set of blocks.

    Raises:
        ValueError: a run is comparable with the paper, which contradicts the heading of the table.
    """
    rows = []
    for path in sorted((experiments / "block_ablation").glob("market1501_cpu_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not caveats(record):
            raise ValueError(f"{path}: not reduced; this table is for reduced runs")
        (blocks,) = (text for text in record["overrides"] if text.startswith("model.blocks="))
        scores, untrained = record["scores"], record["untrained"]
        rows.append(
            {
                "reduced, one seed: not comparable with the paper": f"`{blocks}`",
                "untrained mAP / rank-1": f"{percent(untrained['mAP'])} / {percent(untrained['rank1'])}",
                "mAP": percent(scores["mAP"]),
                "rank-1": percent(scores["rank1"]),
            }
        )
    return markdown_table(rows)


def open_questions(experiments: Path) -> list[str]:
    """Return the rows of ``open_questions/runs.csv``, averaged over seeds.

    Raises:
        ValueError: a run is comparable with the paper, which contradicts the heading of the table; or the
            runs of one row were scored by different rules.
    """
    with (experiments / "open_questions" / "runs.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    groups: dict[str, list[Mapping[str, str]]] = {}
    for line in lines:
        if not line["deviations"]:
            raise ValueError(f"runs.csv: {line['overrides']} is not reduced; this table is for reduced runs")
        groups.setdefault(line["overrides"], []).append(line)
    rules = ("dataset", "protocol", "crops", "test_mask", "deviations")
    for overrides, same in groups.items():
        if len({tuple(line[key] for key in rules) for line in same}) > 1:
            raise ValueError(f"runs.csv: the runs of {overrides} differ in one of {', '.join(rules)}")
    metrics = {"mAP": "mAP (multi-shot)", "rank1": "rank-1", "rank5": "rank-5"}
    return markdown_table(
        [
            {
                "reduced, not a split of the paper": f"`{overrides}`",
                "seeds": str(len(same)),
                **{
                    title: mean_and_range([float(line[metric]) for line in same])
                    for metric, title in metrics.items()
                },
            }
            for overrides, same in groups.items()
        ]
    )


def test_mask(experiments: Path) -> list[str]:
    """Return the scores of each network with each mask at test time, averaged over the seeds of the draws.

    Networks scored on the same data set by the same protocol share a table.

    Raises:
        ValueError: a run is comparable with the paper, which contradicts the heading of the table; or the
            records of one network differ in more than the mask.
    """
    tables: dict[str, list[dict[str, str]]] = {}
    for path in sorted((experiments / "test_mask").glob("*.json")):
        records = json.loads(path.read_text(encoding="utf-8"))
        if not all(map(caveats, records)):
            raise ValueError(f"{path}: not reduced; this table is for reduced runs")
        rules = {
            f"{dataset_line(one['dataset'])}: {protocol_line(without_mask(one['protocol']))}"
            for one in records
        }
        if len(rules | {one["deviations"] for one in records}) != 2:
            raise ValueError(f"{path}: its records differ in more than the mask: {'; '.join(sorted(rules))}")
        rows = tables.setdefault(rules.pop(), [])
        for setting, alike in gather_readings(records, together="model.sampler.seed").items():
            row = {
                "reduced: not comparable with the paper": path.stem,
                "mask at test time": f"`{setting.replace('model.sampler.', '')}`",
                "times": str(len(alike)),
            }
            for metric in READINGS:
                row[SCORE_TITLES[metric]] = mean_and_range([one["scores"][metric] for one in alike])
            rows.append(row)
    return [
        text
        for rules, rows in tables.items()
        for text in (f"Scored on {rules}.", "", *markdown_table(rows), "")
    ]


def paper_comparison(experiments: Path) -> list[str]:
    """Return the rows on Market-1501 that Table I has too, with its numbers and with their deviations."""
    attention_methods = {"baseline": "baseline", "blocks_1234": "sab", "cu": "sab_cu", "cu_tv": "sab_cu_tv"}
    paper = {
        (METHODS[line["row"]], line["metric"]): line["value"]
        for line in read_paper()
        if line["place"] == "Table I" and line["dataset"] == "market1501" and line["row"] in METHODS
    }
    rows = []
    for study in read_studies(experiments / _STUDY):
        for name, row in study.rows.items():
            attention, _, rest = name.partition("-")
            method = attention_methods.get(attention)
            if not study.scored_on.startswith("market1501:") or method is None or "-" in rest:
                continue
            ours = " / ".join(mean_and_range(row.scores(metric)) for metric in COMPARED)
            deviations = row.lines[0]["deviations"]
            seeds = "one seed" if len(row.lines) == 1 else f"{len(row.lines)} seeds"
            note = f"**reduced, not comparable**: {deviations}" if deviations else "the paper's recipe"
            rows.append(
                {
                    "row": f"`{name}`",
                    "paper, mAP / rank-1": " / ".join(paper[method, metric] for metric in COMPARED),
                    "here, mAP / rank-1, and how it was trained": f"{ours}, {seeds}; {note}",
                }
            )
    return markdown_table(rows) if rows else _NO_RUN


def study_runs(experiments: Path) -> list[str]:
    """Return a table for each study, one line per row, and the runs that it excludes."""
    page: list[str] = []
    for study in read_studies(experiments / _STUDY):
        conditions = study.conditions or "as in the paper"
        page += [f"**{study.title}**: {conditions}. Scored on {study.scored_on}.", ""]
        rows = [_study_cells(study, row) for row in study.rows.values()]
        page += [*(markdown_table(rows) if rows else _NO_RUN), ""]
        page += _excluded(study.on_plateau)
        lines = [*(line for row in study.rows.values() for line in row.lines), *study.on_plateau]
        if dirty := [line for line in lines if line["dirty"] != "False"]:
            page += [f"Of changed or uncommitted code: {', '.join(map(_run_label, dirty))}.", ""]
    return page or _NO_RUN


def _study_cells(study: Study, row: StudyRow) -> dict[str, str]:
    cells = {"row": f"`{row.name}`", "seeds": str(len(row.lines))}
    for metric, title in COMPARED.items():
        difference = study.difference(row.name, "baseline", metric)
        cells[title] = mean_and_range(row.scores(metric))
        cells[f"{title} to the baseline (95 %)"] = format_difference(difference)
    on_plateau = sum(line["row"] == row.name for line in study.on_plateau)
    return {
        **cells,
        "loss at the end": f"{_mean(row.lines, 'loss_at_end'):.2f}",
        "active triplets": f"{100 * _mean(row.lines, 'active_at_end'):.0f} %",
        "left the plateau": f"{len(row.lines)} of {len(row.lines) + on_plateau}",
    }


def _mean(lines: Sequence[Line], column: str) -> float:
    return fmean(float(line[column]) for line in lines)


def _excluded(lines: Sequence[Line]) -> list[str]:
    if not lines:
        return []
    runs = [
        f"- {_run_label(line)}: triplet loss {float(line['triplet_at_end']):.2f}, "
        f"{100 * float(line['active_at_end']):.0f} % active, mAP {percent(float(line['mAP']))}"
        for line in lines
    ]
    return [
        "Excluded from all means, because they ended on the plateau of the batch-hard loss:",
        "",
        *runs,
        "",
    ]


def _run_label(line: Line) -> str:
    return f"`{line['row']}` seed {line['seed']}"


def study_answers(experiments: Path) -> list[str]:
    """Return the difference of each pair of rows that answers a question."""
    rows = []
    for question, study, row, other in find_comparisons(read_studies(experiments / _STUDY)):
        differences = {metric: study.difference(row, other, metric) for metric in COMPARED}
        first = differences["mAP"]
        if first is None:
            continue
        told = "not told apart" if first.low <= 0 <= first.high else "higher" if first.low > 0 else "lower"
        rows.append(
            {
                "question": QUESTIONS[question].title,
                "on": study.title,
                "row": f"`{row}`",
                "compared with": f"`{other}`",
                "seeds": str(len(first.by_seed)),
                **{
                    f"{title} (95 %)": format_difference(differences[metric])
                    for metric, title in COMPARED.items()
                },
                "by its mAP": f"{told} (one seed)" if first.test_set_only else told,
            }
        )
    return markdown_table(rows) if rows else _NO_RUN


def study_figures(experiments: Path) -> list[str]:
    """Return links to the figure of each question that a run answers."""
    return [
        text
        for path, figure in forest_plots(experiments / _STUDY).items()
        for text in (f"![{figure.title}]({path.name})", "")
    ] or _NO_RUN


def study_commands(experiments: Path) -> list[str]:
    """Return the overrides that train each line of rows.csv."""
    with (experiments / _STUDY / "rows.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return markdown_table(
        [
            {
                "recipe": line["recipe"],
                "row": f"`{line['row']}`",
                "overrides": f"`recipe={line['recipe']} {line['overrides']} seed={line['seeds']}`",
            }
            for line in lines
        ]
    )


def threshold_rates(experiments: Path) -> list[str]:
    """Return what thresholds do in galleries of as many other people as they were chosen for."""
    record, lines = _read_thresholds(experiments)
    rows = [
        {
            "wanted rate, %": f"{100 * row['rate']:g}",
            "gallery": f"{row['enrolled']} people",
            "measured, mean": _percent_range(row["measured"]),
            "measured, 95 % of the splits": _percent_range(*row["measured_95"]),
            "stated interval, mean": _percent_range(*row["interval"]),
            f"inside, of {record['splits']}": str(row["inside"]),
            "found, measured": percent(row["detection"]),
            "found, stated": percent(row["stated_detection"]),
        }
        for row in record["rows"]
        if row["measured_enrolled"] == row["enrolled"]
    ]
    return [*lines, *markdown_table(rows)]


def threshold_galleries(experiments: Path) -> list[str]:
    """Return what thresholds do in larger galleries than they were chosen for."""
    record, lines = _read_thresholds(experiments)
    rows = []
    for row in record["rows"]:
        if (times := row["measured_enrolled"] / row["enrolled"]) > 1:
            rows.append(
                {
                    "rate for a small gallery, %": f"{100 * row['rate']:g}",
                    "small": f"{row['enrolled']} people",
                    "searched": f"{row['measured_enrolled']} people",
                    "measured, mean": _percent_range(row["measured"]),
                    "1 - (1 - rate)^m": _percent_range(1 - (1 - row["rate"]) ** times),
                    f"inside the interval, of {record['splits']}": str(row["inside"]),
                }
            )
    return [*lines, *markdown_table(rows)]


def _read_thresholds(experiments: Path) -> tuple[dict[str, Any], list[str]]:
    record = json.loads((experiments / "threshold" / "measured.json").read_text(encoding="utf-8"))
    run = record["run"]
    line = (
        f"In percent, over {record['splits']} splits of the {record['people']} test people of "
        f"{dataset_line(run['dataset'])} ({record['images']} images). One network, seed {run['seed']}, "
        f"mAP {percent(run['scores']['mAP'])}, rank-1 {percent(run['scores']['rank1'])}."
    )
    return record, [" ".join([line, *caveats(run)]), ""]


def _percent_range(*ends: float) -> str:
    return " to ".join(f"{100 * end:.2f}" for end in ends)


TABLES: Mapping[str, Callable[[Path], list[str]]] = {
    "market1501-cpu": market1501_cpu,
    "open-questions": open_questions,
    "test-mask": test_mask,
    "does-it-help": paper_comparison,
    "does-it-help-runs": study_runs,
    "does-it-help-key": study_answers,
    "does-it-help-figures": study_figures,
    "does-it-help-commands": study_commands,
    "threshold-rates": threshold_rates,
    "threshold-galleries": threshold_galleries,
}
"""NAME of a table -> function of the folder experiments/ that returns the lines of the table."""


def update_tables(text: str, experiments: Path) -> str:
    """Replace the tables in the text of a README by those of the records in ``experiments``.

    Raises:
        ValueError: a table is unknown, or its begin or end is missing.
    """

    def table(place: re.Match[str]) -> str:
        if place[2] not in TABLES:
            raise ValueError(f"results: {place[2]}: no such table; known are {', '.join(TABLES)}")
        return place[1] + "\n".join(TABLES[place[2]](experiments)) + "\n" + place[4]

    new, count = _PLACE.subn(table, text)
    if not count == text.count("<!-- results:") == text.count("<!-- end -->"):
        raise ValueError("results: a <!-- results: NAME --> without its <!-- end -->, or the other way round")
    return new


def find_pages(checkout: Path) -> list[Path]:
    """Return the pages that may contain tables of results."""
    readmes = sorted((checkout / "experiments").rglob("README.md"))
    return [checkout / "README.md", checkout / "docs" / "serving.md", *readmes]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables and figures; with ``--check`` only list stale ones and exit with status 1."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.report.results", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if a table or figure is stale"
    )
    check = parser.parse_args(arguments).check
    stale = []
    for path in find_pages(CHECKOUT):
        text = path.read_text(encoding="utf-8")
        if (new := update_tables(text, CHECKOUT / "experiments")) != text:
            stale.append(path)
            if not check:
                write_text(path, new)
    for path, figure in forest_plots(CHECKOUT / "experiments" / _STUDY).items():
        if not figure.is_drawn(path):
            stale.append(path)
            if not check:
                figure.draw(path)
    state = "stale; run python -m sharpreid.report.results" if check else "written"
    for path in stale:
        print(f"{path.relative_to(CHECKOUT)}: {state}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    tolerate_write_errors()
    main()
