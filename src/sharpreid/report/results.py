"""Results in the READMEs, written from the records: ``python -m sharpreid.report.results [--check]``.

A README of the checkout has each table between ``<!-- results: NAME -->`` and ``<!-- end -->``; what is typed
there by hand does not stay. The figures of experiments/does_it_help are drawn from its records, too.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sharpreid.report.differences import figures
from sharpreid.report.evidence_tables import (
    FOLDER,
    beside_the_paper,
    commands_table,
    figure_links,
    key_table,
    runs_table,
)
from sharpreid.report.summary_files import markdown_table
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

_RULES = ("dataset", "protocol", "crops", "test_mask", "reduced")

CHECKOUT = Path(__file__).parents[3]
_PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n)((?!<!-- ).*\n)*?(<!-- end -->)")


def market1501_cpu(experiments: Path) -> list[str]:
    """The runs of ``market1501_cpu``, one line per set of blocks.

    Raises:
        ValueError: a record compares with the paper, so that this table's heading would be wrong.
    """
    lines = []
    for path in sorted((experiments / "block_ablation").glob("market1501_cpu_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not caveats(record):
            raise ValueError(f"{path}: not reduced; this table is for reduced runs")
        (blocks,) = (text for text in record["overrides"] if text.startswith("model.blocks="))
        scores, untrained = record["scores"], record["untrained"]
        lines.append(
            {
                "reduced, one seed: not comparable with the paper": f"`{blocks}`",
                "untrained mAP / rank-1": f"{percent(untrained['mAP'])} / {percent(untrained['rank1'])}",
                "mAP": percent(scores["mAP"]),
                "rank-1": percent(scores["rank1"]),
            }
        )
    return markdown_table(lines)


def open_questions(experiments: Path) -> list[str]:
    """The rows of ``open_questions/runs.csv``, gathered over seeds.

    Raises:
        ValueError: a run compares with the paper, so that this table's heading would be wrong; or runs of one
            line were scored by different rules.
    """
    with (experiments / "open_questions" / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if not row["reduced"]:
            raise ValueError(f"runs.csv: {row['overrides']} is not reduced; this table is for reduced runs")
        groups.setdefault(row["overrides"], []).append(row)
    for overrides, same in groups.items():
        if len({tuple(row[key] for key in _RULES) for row in same}) > 1:
            raise ValueError(f"runs.csv: the runs of {overrides} differ in one of {', '.join(_RULES)}")
    return markdown_table(
        [
            {
                "reduced, not a split of the paper": f"`{overrides}`",
                "seeds": str(len(same)),
                **{
                    title: mean_and_range([float(row[metric]) for row in same])
                    for metric, title in (
                        ("mAP", "mAP (multi-shot)"),
                        ("rank1", "rank-1"),
                        ("rank5", "rank-5"),
                    )
                },
            }
            for overrides, same in groups.items()
        ]
    )


def test_mask(experiments: Path) -> list[str]:
    """The readings of the mask at test time, one line per network and reading, over the draws' seeds.

    Networks scored on the same data set by the same protocol share a table.

    Raises:
        ValueError: a record compares with the paper, so that the table's heading would be wrong; or the
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
        if len(rules | {one["reduced"] for one in records}) != 2:
            raise ValueError(f"{path}: its records differ in more than the mask: {'; '.join(sorted(rules))}")
        lines = tables.setdefault(rules.pop(), [])
        for setting, alike in gather_readings(records, together="model.sampler.seed").items():
            line = {
                "reduced: not comparable with the paper": path.stem,
                "mask at test time": f"`{setting.replace('model.sampler.', '')}`",
                "times": str(len(alike)),
            }
            for metric in READINGS:
                line[SCORE_TITLES[metric]] = mean_and_range([one["scores"][metric] for one in alike])
            lines.append(line)
    return [
        text
        for rules, lines in tables.items()
        for text in (f"Scored on {rules}.", "", *markdown_table(lines), "")
    ]


TABLES: Mapping[str, Callable[[Path], list[str]]] = {
    "market1501-cpu": market1501_cpu,
    "open-questions": open_questions,
    "test-mask": test_mask,
    "does-it-help": beside_the_paper,
    "does-it-help-runs": runs_table,
    "does-it-help-key": key_table,
    "does-it-help-figures": figure_links,
    "does-it-help-commands": commands_table,
}


def renewed(text: str, experiments: Path) -> str:
    """A README's text with its tables made anew from the records in ``experiments``.

    Raises:
        ValueError: a table is not known, or has no end.
    """

    def table(place: re.Match[str]) -> str:
        if place[2] not in TABLES:
            raise ValueError(f"results: {place[2]}: no such table; known are {', '.join(TABLES)}")
        return place[1] + "\n".join(TABLES[place[2]](experiments)) + "\n" + place[4]

    new, count = _PLACE.subn(table, text)
    if not count == text.count("<!-- results:") == text.count("<!-- end -->"):
        raise ValueError("results: a <!-- results: NAME --> without its <!-- end -->, or the other way round")
    return new


def pages(checkout: Path) -> list[Path]:
    """The READMEs that may have results."""
    return [checkout / "README.md", *sorted((checkout / "experiments").rglob("README.md"))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables and figures; with ``--check`` only say, by exit status 1, which are stale."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.report.results", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if a table or figure is stale"
    )
    check = parser.parse_args(arguments).check
    stale = []
    for path in pages(CHECKOUT):
        text = path.read_text(encoding="utf-8")
        if (new := renewed(text, CHECKOUT / "experiments")) != text:
            stale.append(path)
            if not check:
                write_text(path, new)
    for path, figure in figures(CHECKOUT / "experiments" / FOLDER).items():
        if not figure.is_drawn(path):
            stale.append(path)
            if not check:
                figure.draw(path)
    state = "stale; run python -m sharpreid.report.results" if check else "written"
    for path in stale:
        print(f"{path.relative_to(CHECKOUT)}: {state}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
