"""Read the recorded runs of an ablation study and compare its rows.

A study is a folder that `sharpreid.report.record` writes: ``runs.csv`` with a line per run, and ``queries/``
with the scores of every query. Runs of one recipe on one data set are comparable. A run that ended on the
plateau of the batch-hard loss is reported, but enters no mean and no difference.
"""

import csv
import gzip
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sharpreid.report.bootstrap import Difference, QueryValues, paired_difference
from sharpreid.report.markdown import format_points

KEY = ("dataset", "recipe", "row", "seed")
"""Columns that identify a run."""

COLUMNS = (
    *KEY,
    *("gradient", "mAP", "rank1", "mAP_trapezoid", "epochs", "iterations"),
    *("loss_at_end", "triplet_at_end", "active_at_end", "left_plateau"),
    *("precision", "torch", "torchvision", "pytorch_lightning", "device", "world_size", "minutes"),
    *("commit", "dirty", "scored_on", "conditions", "deviations"),
)
"""Columns of runs.csv.

Scores are in [0, 1]. ``..._at_end`` are means over the last tenth of the steps, see
`sharpreid.report.record.FinalMeans`. For ``conditions`` see `sharpreid.report.row_names.describe_conditions`.
"""

Line = dict[str, str]
"""Line of runs.csv: column -> text."""

QUERY_METRICS = ("mAP", "rank1")
"""Scores whose contributions a file of queries contains, in the order of its columns."""


class Question(NamedTuple):
    """A question that the study answers.

    Args:
        title: the question.
        rows: pattern of the rows in its figure, which shows them beside the baseline.
        pairs: (pattern of a row, replacement that gives the name of the row to compare it with).
    """

    title: str
    rows: str
    pairs: tuple[tuple[str, str], ...]


QUESTIONS = {
    "gradient": Question(
        "Which gradient through the mask?",
        r"blocks_1234-[a-z_]+",
        ((r"(blocks_1234)-(?!whole$)[a-z_]+", r"\1-whole"),),
    ),
    "blocks": Question("Which blocks?", r"blocks_\d+-[a-z_]+", ((r"blocks_\d+-[a-z_]+", "baseline"),)),
    "context": Question(
        "Context-aware units and total variation?",
        r"(blocks_1234|cu)(_tv)?-[a-z_]+",
        ((r"cu-([a-z_]+)", r"blocks_1234-\1"), (r"(cu|blocks_1234)_tv-([a-z_]+)", r"\1-\2")),
    ),
    "soft": Question(
        "Soft or sharp?",
        r"sigmoid(_conv)?|residual|blocks_1234-[a-z_]+",
        ((r"blocks_1234-[a-z_]+", "sigmoid"), (r"blocks_1234-[a-z_]+", "sigmoid_conv")),
    ),
    "noise": Question(
        "How much noise in training?",
        r"blocks_1234-[a-z_]+(-(noise_\w+|straight_through))?",
        ((r"(blocks_1234-[a-z_]+)-(noise_\w+|straight_through)", r"\1"),),
    ),
}
"""Name of a question and of its figure -> question."""


@dataclass(frozen=True, eq=False)
class StudyRow:
    """A row of the study: runs that differ only in their seed.

    Args:
        name: name of the row.
        lines: line of runs.csv of each run, sorted by seed.
        queries: score -> seed -> contributions of the queries.
    """

    name: str
    lines: tuple[Line, ...]
    queries: Mapping[str, Mapping[int, QueryValues]]

    def scores(self, metric: str) -> list[float]:
        """Return the score of each seed, in [0, 1]."""
        return [float(line[metric]) for line in self.lines]


@dataclass(frozen=True, eq=False)
class Study:
    """Comparable runs: one recipe on one data set.

    Args:
        dataset: data set.
        recipe: recipe.
        conditions: deviations from the paper that all runs share.
        scored_on: data set and protocol of the scores.
        rows: name -> row; the baseline first, then by name.
        on_plateau: runs that ended on the plateau of the batch-hard loss, which are in none of the rows.
    """

    dataset: str
    recipe: str
    conditions: str
    scored_on: str
    rows: Mapping[str, StudyRow]
    on_plateau: tuple[Line, ...]

    @property
    def title(self) -> str:
        """Data set and recipe."""
        return f"{self.dataset}, {self.recipe}"

    def difference(self, row: str, other: str, metric: str) -> Difference | None:
        """Return the score of a row minus that of another; None if they are equal or share no seed."""
        if row == other or row not in self.rows or other not in self.rows:
            return None
        return _difference(self.rows[row], self.rows[other], metric)


@lru_cache(maxsize=1024)  # several tables and figures show the same difference
def _difference(row: StudyRow, other: StudyRow, metric: str) -> Difference | None:
    return paired_difference(row.queries[metric], other.queries[metric])


def run_key(line: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of `KEY`, which identify a run."""
    return tuple(line[column] for column in KEY)


def read_lines(folder: Path) -> list[Line]:
    """Read the lines of runs.csv in a folder; none if there is no such file.

    Raises:
        ValueError: the columns are not `COLUMNS`.
    """
    path = folder / "runs.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path}: expected the columns {','.join(COLUMNS)}")
    return lines


def query_folder(folder: Path, line: Mapping[str, str]) -> Path:
    """Return the folder for the queries of all runs of a recipe on a data set."""
    return folder / "queries" / line["recipe"] / line["dataset"].replace("/", "_")


def query_file(folder: Path, line: Mapping[str, str]) -> Path:
    """Return the file with ``ap`` and ``rank1`` of a run's queries, in the order of ``images.csv.gz``."""
    return query_folder(folder, line) / f"{line['row']}-seed{line['seed']}.csv.gz"


def read_table(path: Path) -> list[list[str]]:
    """Read the rows of a compressed CSV file, without its header.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        return list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))[1:]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; record the run again") from error


def read_studies(folder: Path) -> list[Study]:
    """Read the recorded runs of a folder, a study for each data set and recipe.

    Raises:
        ValueError: runs.csv or a file of queries is damaged.
    """
    return _read_studies(folder, tuple(tuple(line.items()) for line in read_lines(folder)))


@lru_cache(maxsize=4)  # several tables and figures of one command read the same files
def _read_studies(folder: Path, content: tuple[tuple[tuple[str, str], ...], ...]) -> list[Study]:
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in map(dict, content):
        groups.setdefault((line["dataset"], line["recipe"]), []).append(line)
    return [_study(folder, lines) for _, lines in sorted(groups.items())]


def _study(folder: Path, lines: Sequence[Line]) -> Study:
    first = lines[0]
    images = query_folder(folder, first) / "images.csv.gz"
    names = read_table(images)
    left = [line for line in lines if line["left_plateau"] == "True"]
    rows: dict[str, list[Line]] = {}
    for line in sorted(left, key=lambda line: (line["row"] != "baseline", line["row"], int(line["seed"]))):
        rows.setdefault(line["row"], []).append(line)
    return Study(
        dataset=first["dataset"],
        recipe=first["recipe"],
        conditions=first["conditions"],
        scored_on=first["scored_on"],
        rows={name: _study_row(folder, name, same, names) for name, same in rows.items()},
        on_plateau=tuple(line for line in lines if line["left_plateau"] != "True"),
    )


def _study_row(folder: Path, name: str, lines: Sequence[Line], images: Sequence[Sequence[str]]) -> StudyRow:
    queries: dict[str, dict[int, QueryValues]] = {metric: {} for metric in QUERY_METRICS}
    names = tuple(" ".join(image) for image in images)
    identities = tuple(int(identity) for _, identity, _ in images)
    for line in lines:
        path = query_file(folder, line)
        values = read_table(path)
        if len(values) != len(images):
            raise ValueError(f"{path}: {len(values)} queries, images.csv.gz beside it has {len(images)}")
        for metric, column in zip(QUERY_METRICS, zip(*values, strict=True), strict=True):
            numbers = tuple(float(text or "nan") for text in column)
            queries[metric][int(line["seed"])] = QueryValues(names, identities, numbers)
    return StudyRow(name, tuple(lines), queries)


class Comparison(NamedTuple):
    """Two rows of a study whose difference answers a question."""

    question: str
    study: Study
    row: str
    other: str


def find_comparisons(studies: Sequence[Study]) -> list[Comparison]:
    """Return all pairs of rows that answer a question directly, in the order of `QUESTIONS`."""
    return [
        Comparison(name, study, row, other)
        for name, question in QUESTIONS.items()
        for study in studies
        for row in study.rows
        for pattern, replacement in question.pairs
        if (found := re.fullmatch(pattern, row)) and (other := found.expand(replacement)) in study.rows
    ]


def question_rows(question: Question, study: Study) -> list[str]:
    """Return the rows of a question's figure that share a seed with the baseline."""
    shared = [row for row in study.rows if study.difference(row, "baseline", "mAP") is not None]
    return [row for row in shared if re.fullmatch(question.rows, row)]


def format_difference(difference: Difference | None) -> str:
    """Format a difference in percentage points with its 95 % interval; None is a dash.

    >>> format_difference(Difference(0.01, -0.005, 0.025, {0: 0.0, 1: 0.02}))
    '+1.0 (-0.5 to +2.5)'
    """
    if difference is None:
        return "-"
    mean, low, high = (
        format_points(100 * value) for value in (difference.mean, difference.low, difference.high)
    )
    return f"{mean} ({low} to {high}{'; test set only' if difference.test_set_only else ''})"
