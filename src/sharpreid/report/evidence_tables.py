"""Tables of experiments/does_it_help, and of the main README, from its records."""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from sharpreid.report.comparison import COMPARED
from sharpreid.report.differences import figures
from sharpreid.report.evidence import (
    QUESTIONS,
    Setting,
    Trained,
    comparisons,
    read_settings,
    shown_difference,
)
from sharpreid.report.paper_tables import METHODS, read_paper
from sharpreid.report.record import Line
from sharpreid.report.summary_files import markdown_table, points
from sharpreid.run.console import mean_and_range, percent

FOLDER = "does_it_help"
NOTHING = ["no finished run yet"]

_PAPER = {"baseline": "baseline", "blocks_1234": "sab", "cu": "sab_cu", "cu_tv": "sab_cu_tv"}
"""Attention of a row -> the paper's row, as ``method=``."""


def settings_of(experiments: Path) -> list[Setting]:
    """The recorded runs, by data set and recipe."""
    return read_settings(experiments / FOLDER)


def runs_table(experiments: Path) -> list[str]:
    """For each data set and recipe a table, one line per row; then the runs that are no evidence."""
    page: list[str] = []
    for setting in settings_of(experiments):
        reduced = setting.conditions or "as in the paper"
        page += [f"**{setting.title}**: {reduced}. Scored on {setting.scored_on}.", ""]
        lines = [_line(setting, trained) for trained in setting.rows.values()]
        page += [*(markdown_table(lines) if lines else NOTHING), ""]
        page += _no_evidence(setting.on_plateau)
        changed = [
            line
            for line in (*(one for row in setting.rows.values() for one in row.lines), *setting.on_plateau)
            if line["dirty"] != "False"
        ]
        if changed:
            page += [f"Of changed or uncommitted code: {', '.join(map(_run, changed))}.", ""]
    return page or NOTHING


def _line(setting: Setting, trained: Trained) -> dict[str, str]:
    cells = {"row": f"`{trained.name}`", "seeds": str(len(trained.lines))}
    for metric, title in COMPARED.items():
        difference = setting.difference(trained.name, "baseline", metric)
        cells[title] = mean_and_range(trained.scores(metric))
        cells[f"{title} to the baseline (95 %)"] = shown_difference(difference, points)
    stuck = sum(line["row"] == trained.name for line in setting.on_plateau)
    return {
        **cells,
        "loss at the end": f"{_mean(trained.lines, 'loss_at_end'):.2f}",
        "active triplets": f"{100 * _mean(trained.lines, 'active_at_end'):.0f} %",
        "left the plateau": f"{len(trained.lines)} of {len(trained.lines) + stuck}",
    }


def _mean(lines: Sequence[Line], column: str) -> float:
    return fmean(float(line[column]) for line in lines)


def _run(line: Line) -> str:
    return f"`{line['row']}` seed {line['seed']}"


def _no_evidence(lines: Sequence[Line]) -> list[str]:
    """Runs whose training had not left the plateau, with where it ended."""
    if not lines:
        return []
    said = [
        f"- {_run(line)}: triplet loss {float(line['triplet_at_end']):.2f}, "
        f"{100 * float(line['active_at_end']):.0f} % active, mAP {percent(float(line['mAP']))}"
        for line in lines
    ]
    return [
        "Excluded from all means, because they ended on the plateau of the batch-hard loss:",
        "",
        *said,
        "",
    ]


def key_table(experiments: Path) -> list[str]:
    """For each question the pairs of rows that differ in nothing else, with the difference of each pair."""
    lines = []
    for question, setting, row, other in comparisons(settings_of(experiments)):
        both = {metric: setting.difference(row, other, metric) for metric in COMPARED}
        first = both["mAP"]
        if first is None:
            continue
        told = "not told apart" if first.low <= 0 <= first.high else "higher" if first.low > 0 else "lower"
        lines.append(
            {
                "question": QUESTIONS[question].title,
                "on": setting.title,
                "row": f"`{row}`",
                "compared with": f"`{other}`",
                "seeds": str(len(first.by_seed)),
                **{
                    f"{title} (95 %)": shown_difference(both[metric], points)
                    for metric, title in COMPARED.items()
                },
                "by its mAP": f"{told} (one seed)" if first.test_set_only else told,
            }
        )
    return markdown_table(lines) if lines else NOTHING


def figure_links(experiments: Path) -> list[str]:
    """The figure of each question that a run answers."""
    return [
        text
        for path, figure in figures(experiments / FOLDER).items()
        for text in (f"![{figure.title}]({path.name})", "")
    ] or NOTHING


def commands_table(experiments: Path) -> list[str]:
    """The command that trains each line of rows.csv."""
    with (experiments / FOLDER / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return markdown_table(
        [
            {
                "recipe": row["recipe"],
                "row": f"`{row['row']}`",
                "overrides": f"`recipe={row['recipe']} {row['overrides']} seed={row['seeds']}`",
            }
            for row in rows
        ]
    )


def beside_the_paper(experiments: Path) -> list[str]:
    """Runs on Market-1501 of what Table I has, beside its numbers; each says how it was reduced."""
    paper = {
        (METHODS[line["row"]], line["metric"]): line["value"]
        for line in read_paper()
        if line["place"] == "Table I" and line["dataset"] == "market1501" and line["row"] in METHODS
    }
    lines = []
    for setting in settings_of(experiments):
        for name, trained in setting.rows.items():
            attention, _, rest = name.partition("-")
            if not setting.scored_on.startswith("market1501:") or attention not in _PAPER or "-" in rest:
                continue
            method = _PAPER[attention]
            ours = " / ".join(mean_and_range(trained.scores(metric)) for metric in COMPARED)
            reduced = trained.lines[0]["reduced"]
            seeds = "one seed" if len(trained.lines) == 1 else f"{len(trained.lines)} seeds"
            note = f"**reduced, not comparable**: {reduced}" if reduced else "the paper's recipe"
            lines.append(
                {
                    "row": f"`{name}`",
                    "paper, mAP / rank-1": " / ".join(paper[method, metric] for metric in COMPARED),
                    "here, mAP / rank-1, and how it was trained": f"{ours}, {seeds}; {note}",
                }
            )
    return markdown_table(lines) if lines else NOTHING
