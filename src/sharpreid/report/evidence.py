"""Does attention help, and when: recorded runs compared with their baseline, and one row with another.

Read from a folder of `sharpreid.report.record`. A run that had not left the plateau of the batch-hard loss is
named, and takes part in no mean and no difference.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sharpreid.report.intervals import Difference, QueryValues, paired_difference
from sharpreid.report.record import Line, query_file, query_folder, read_lines, read_table

SCORES = {"mAP": "ap", "rank1": "rank1"}
"""What is compared: score -> what a query contributes to it."""


class Question(NamedTuple):
    """A question to the runs."""

    title: str
    rows: str
    """Rows of its figure, beside the baseline: a pattern."""
    against: tuple[tuple[str, str], ...]
    """Pattern of a row -> the row that it differs from in what is asked."""


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
"""Name, also of the figure -> question."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The runs of one row that are evidence, by seed."""

    name: str
    lines: tuple[Line, ...]
    queries: Mapping[str, Mapping[int, QueryValues]]
    """Score -> seed -> what each query contributed."""

    def scores(self, metric: str) -> list[float]:
        """One score a seed, in [0, 1]."""
        return [float(line[metric]) for line in self.lines]


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs that may be compared: of one recipe on one data set."""

    dataset: str
    recipe: str
    conditions: str
    scored_on: str
    rows: Mapping[str, Trained]
    """The baseline first, then by name."""
    on_plateau: tuple[Line, ...]
    """Runs that are no evidence."""

    @property
    def title(self) -> str:
        """Data set and recipe."""
        return f"{self.dataset}, {self.recipe}"

    def difference(self, row: str, other: str, metric: str) -> Difference | None:
        """How much higher one row scores than another; None if they share no seed, or are the same."""
        if row == other or row not in self.rows or other not in self.rows:
            return None
        return _difference(self.rows[row], self.rows[other], metric)


@lru_cache(maxsize=1024)  # several tables and figures show it
def _difference(one: Trained, other: Trained, metric: str) -> Difference | None:
    return paired_difference(one.queries[metric], other.queries[metric])


def read_settings(folder: Path) -> list[Setting]:
    """Read the recorded runs of a folder, by data set and recipe.

    Raises:
        ValueError: runs.csv or a file of queries does not have what is expected.
    """
    return _read_settings(folder, tuple(tuple(line.items()) for line in read_lines(folder)))


@lru_cache(maxsize=4)  # several tables and figures of one command
def _read_settings(folder: Path, content: tuple[tuple[tuple[str, str], ...], ...]) -> list[Setting]:
    together: dict[tuple[str, str], list[Line]] = {}
    for line in map(dict, content):
        together.setdefault((line["dataset"], line["recipe"]), []).append(line)
    return [_setting(folder, lines) for _, lines in sorted(together.items())]


def _setting(folder: Path, lines: Sequence[Line]) -> Setting:
    first = lines[0]
    images = query_folder(folder, first) / "images.csv.gz"
    names = read_table(images)
    left = [line for line in lines if line["left_plateau"] == "True"]
    rows: dict[str, list[Line]] = {}
    for line in sorted(left, key=lambda line: (line["row"] != "baseline", line["row"], int(line["seed"]))):
        rows.setdefault(line["row"], []).append(line)
    return Setting(
        dataset=first["dataset"],
        recipe=first["recipe"],
        conditions=first["conditions"],
        scored_on=first["scored_on"],
        rows={name: _trained(folder, name, same, names) for name, same in rows.items()},
        on_plateau=tuple(line for line in lines if line["left_plateau"] != "True"),
    )


def _trained(folder: Path, name: str, lines: Sequence[Line], images: Sequence[Sequence[str]]) -> Trained:
    queries: dict[str, dict[int, QueryValues]] = {metric: {} for metric in SCORES}
    names = tuple(" ".join(image) for image in images)
    identities = tuple(int(identity) for _, identity, _ in images)
    for line in lines:
        path = query_file(folder, line)
        values = read_table(path)
        if len(values) != len(images):
            raise ValueError(f"{path}: {len(values)} queries, images.csv.gz beside it has {len(images)}")
        for metric, column in zip(SCORES, zip(*values, strict=True), strict=True):
            numbers = tuple(float(text or "nan") for text in column)
            queries[metric][int(line["seed"])] = QueryValues(names, identities, numbers)
    return Trained(name, tuple(lines), queries)


class Comparison(NamedTuple):
    """Two rows that differ in what a question asks."""

    question: str
    setting: Setting
    row: str
    other: str


def comparisons(settings: Sequence[Setting]) -> list[Comparison]:
    """All pairs of rows that answer a question directly, in the order of `QUESTIONS`."""
    return [
        Comparison(name, setting, row, other)
        for name, question in QUESTIONS.items()
        for setting in settings
        for row in setting.rows
        for pattern, replacement in question.against
        if (found := re.fullmatch(pattern, row)) and (other := found.expand(replacement)) in setting.rows
    ]


def rows_of(question: Question, setting: Setting) -> list[str]:
    """Rows of a question's figure that share a seed with the baseline."""
    shared = [row for row in setting.rows if setting.difference(row, "baseline", "mAP") is not None]
    return [row for row in shared if re.fullmatch(question.rows, row)]


def shown_difference(difference: Difference | None, points: Callable[[float], str]) -> str:
    """A difference with its interval, as tables show it; a dash without one.

    >>> shown_difference(Difference(0.01, -0.005, 0.025, {0: 0.0, 1: 0.02}), "{:+.1f}".format)
    '+1.0 (-0.5 to +2.5)'
    """
    if difference is None:
        return "-"
    mean, low, high = (points(100 * value) for value in (difference.mean, difference.low, difference.high))
    return f"{mean} ({low} to {high}{'; test set only' if difference.test_set_only else ''})"
