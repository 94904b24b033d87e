"""Record finished runs as rows of a table: ``python -m sharpreid.report.record DIR ... --into FOLDER``.

FOLDER gets ``runs.csv``, one line per run, and in ``queries/RECIPE/DATA/`` the contribution of each query to
the scores of the run, from which `sharpreid.report.bootstrap` computes intervals. A run that is recorded
again replaces its line. All runs are read and checked before anything is written.
"""

import argparse
import csv
import gzip
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from omegaconf.errors import OmegaConfBaseException

from sharpreid.atomic_io import replacing
from sharpreid.config.resolvers import register_resolvers
from sharpreid.report.ablation import (
    COLUMNS,
    Line,
    query_file,
    query_folder,
    read_lines,
    read_table,
    run_key,
)
from sharpreid.report.row_names import describe_conditions, recipe_name, row_name
from sharpreid.report.runs import Run, load_runs
from sharpreid.run.comparability import dataset_line
from sharpreid.run.console import protocol_line
from sharpreid.standard_streams import tolerate_write_errors

PLATEAU = 0.9
"""Threshold of `left_plateau`."""


class FinalMeans(NamedTuple):
    """Means over the last tenth of the steps of a training.

    Args:
        loss: total loss.
        triplet: triplet loss.
        active: share of triplets with a loss above 0, in [0, 1].
    """

    loss: float
    triplet: float
    active: float


class Query(NamedTuple):
    """A line of a run's queries.csv, as text."""

    image: str
    identity: str
    camera: str
    ap: str
    rank1: str


class Record(NamedTuple):
    """The line of runs.csv of a run, and its queries."""

    line: Line
    queries: tuple[Query, ...]


def left_plateau(final: FinalMeans, margin: float) -> bool:
    """Return whether a training has left the initial plateau of the batch-hard triplet loss.

    At first all embeddings lie close together, so that the hardest positive is about as far away as the
    hardest negative. The loss is then about the margin, and every triplet is active. Some trainings stay
    there for long, or for good. Scores of such runs show which method leaves the plateau first, not which is
    better. A training has left the plateau if, over the last tenth of its steps, the mean triplet loss is
    below 0.9 times the margin and fewer than 0.9 of the triplets are active.

    >>> left_plateau(FinalMeans(loss=0.2, triplet=0.2, active=0.6), margin=0.5)
    True
    >>> left_plateau(FinalMeans(loss=0.49, triplet=0.49, active=1.0), margin=0.5)
    False
    """
    return final.triplet < PLATEAU * margin and final.active < PLATEAU


def read_final_means(path: Path) -> FinalMeans:
    """Read the means over the last tenth of the steps from csv/metrics.csv of a run.

    Raises:
        ValueError: a quantity was not logged there, or a value is not a finite number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        steps = [line for line in csv.DictReader(file) if line.get("train/triplet")]
    if not steps:
        raise ValueError(f"{path}: no step with train/triplet; expected the log of a training")
    last = steps[-math.ceil(len(steps) / 10) :]
    means = []
    for quantity in ("train/loss", "train/triplet", "train/active_triplets"):
        try:
            mean = fmean(float(line[quantity]) for line in last)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: {quantity} of the last steps cannot be read: {error}") from error
        if not math.isfinite(mean):
            raise ValueError(f"{path}: {quantity} of the last steps is {mean}")
        means.append(mean)
    return FinalMeans(*means)


def read_run(run: Run, recipe: str | None = None) -> Record:
    """Read everything that is recorded of a finished run from its config, scores, log and queries.

    Args:
        run: run, see `load_runs`.
        recipe: name of the recipe; by default the file of conf/recipe that agrees with the config.

    Raises:
        OSError: a file of the run cannot be read.
        ValueError: a file is damaged; the scores are re-ranked, or are not the means over the queries; or no
            recipe agrees with the config.
    """
    folder, record = run.job.folder, run.record
    conditions = describe_conditions(run.config)
    recipe = recipe or recipe_name(run.config)
    if recipe is None:
        raise ValueError(
            f"{folder}: no recipe in conf/recipe agrees with this run ({conditions}); name it: --recipe NAME"
        )
    protocol = record["protocol"]
    if protocol.get("re_ranking", "none") != "none":
        raise ValueError(f"{folder}: its scores are re-ranked; expected scores without re-ranking")
    final = read_final_means(folder / "csv" / "metrics.csv")
    queries = _read_queries(folder / "queries.csv")
    scores, versions = record["scores"], record.get("versions", {})
    if protocol.get("denominator", "valid_queries") == "valid_queries":
        _check_mean(folder, "mAP", scores["mAP"], [one.ap for one in queries])
        _check_mean(folder, "rank1", scores["rank1"], [one.rank1 for one in queries])
    row = row_name(run.config)
    rules = protocol_line({**protocol, "test_mask": "of the row"})
    sampler = run.config.model.sampler
    values = {
        "dataset": record["dataset"]["name"],
        "recipe": recipe,
        "row": row,
        "seed": record["seed"],
        "gradient": "" if row == "baseline" else sampler.get("gradient", ""),
        **{key: scores[key] for key in ("mAP", "rank1", "mAP_trapezoid")},
        "epochs": record["epochs"],
        "iterations": record["iterations"],
        "loss_at_end": round(final.loss, 4),
        "triplet_at_end": round(final.triplet, 4),
        "active_at_end": round(final.active, 4),
        "left_plateau": left_plateau(final, run.config.objective.margin),
        "precision": record.get("precision"),
        **{key: versions.get(key) for key in ("torch", "torchvision", "pytorch_lightning")},
        **{key: record.get(key) for key in ("device", "world_size", "minutes", "commit", "dirty")},
        "scored_on": f"{dataset_line(record['dataset'])}: {rules}",
        "conditions": conditions,
        "deviations": record.get("deviations", ""),
    }
    return Record({key: "" if values[key] is None else str(values[key]) for key in COLUMNS}, queries)


def _read_queries(path: Path) -> tuple[Query, ...]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines or tuple(lines[0]) != Query._fields or len(lines) == 1:
        raise ValueError(f"{path}: expected the columns {','.join(Query._fields)} and a line per query")
    if any(len(line) != len(Query._fields) for line in lines):
        raise ValueError(f"{path}: every line must have {len(Query._fields)} values")
    queries = sorted(Query(*line) for line in lines[1:])
    if len({query[:3] for query in queries}) < len(queries):
        raise ValueError(f"{path}: a query (image, identity, camera) occurs twice")
    return tuple(queries)


def _check_mean(folder: Path, metric: str, score: float, texts: Iterable[str]) -> None:
    found = fmean(float(text) for text in texts if text)
    if abs(found - score) > 1e-5:  # queries.csv has six digits
        raise ValueError(
            f"{folder}: the mean of {metric} over queries.csv is {found:.6f}, scores.json has {score:.6f}; "
            "expected files of the same run"
        )


def merge_lines(lines: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """Merge two lists of lines, sorted by `KEY`; a new line replaces that of the same run.

    Raises:
        ValueError: two new lines are of the same run; or runs of one recipe on one data set were trained or
            scored differently.
    """
    seen: set[tuple[str, ...]] = set()
    for line in new:
        if run_key(line) in seen:
            raise ValueError(f"two of the runs are {_run_label(line)}; give only one of them")
        seen.add(run_key(line))
    all_lines = [line for line in lines if run_key(line) not in seen] + list(new)
    alike: dict[tuple[str, str], Line] = {}
    for line in all_lines:
        other = alike.setdefault((line["dataset"], line["recipe"]), line)
        for column in ("conditions", "scored_on"):
            if line[column] != other[column]:
                raise ValueError(
                    f"{_run_label(line)} and {_run_label(other)} cannot be compared: {column} "
                    f"{line[column] or 'as in the paper'!r} and {other[column] or 'as in the paper'!r}; "
                    "record one of them as --recipe NAME"
                )
    return sorted(all_lines, key=lambda line: (*run_key(line)[:-1], int(line["seed"])))


def _run_label(line: Mapping[str, str]) -> str:
    return " ".join((*run_key(line)[:-1], f"seed {line['seed']}"))


def _compress_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Return a compressed CSV file. It contains no time stamp, so the same rows give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode(), mtime=0)


def write_records(records: Sequence[Record], folder: Path) -> list[Line]:
    """Write the records of runs into a folder, replacing those of the same runs; return all lines.

    Raises:
        ValueError: see `merge_lines`; or runs of one recipe on one data set have different queries.
    """
    lines = merge_lines(read_lines(folder), [record.line for record in records])
    files: dict[Path, bytes] = {}
    for line, queries in records:
        images = query_folder(folder, line) / "images.csv.gz"
        rows = [list(query[:3]) for query in queries]
        if images not in files and images.is_file() and read_table(images) != rows:
            raise ValueError(f"{images}: {_run_label(line)} has other queries than the runs recorded there")
        content = _compress_table(Query._fields[:3], rows)
        if files.setdefault(images, content) != content:
            raise ValueError(f"{_run_label(line)} has other queries than the other runs of its recipe")
        files[query_file(folder, line)] = _compress_table(Query._fields[3:], [query[3:] for query in queries])
    for path, content in files.items():
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with replacing(folder / "runs.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return lines


def _read(run: Run, recipe: str | None) -> Record:
    try:
        return read_run(run, recipe)
    except (KeyError, OmegaConfBaseException) as error:
        raise ValueError(f"{run.job.folder}: its record or config is incomplete: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Record the finished runs below one or more folders."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.report.record", description=main.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="DIR", help="output folders of runs, searched at any depth"
    )
    parser.add_argument(
        "--into",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="folder of runs.csv and queries/; created if missing",
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="recipe of runs that agree with no file of conf/recipe"
    )
    given = parser.parse_args(arguments)
    register_resolvers()
    try:
        runs, others = load_runs(given.runs)
        for job in (one for one in others if one.status == "unreadable"):
            raise ValueError(job.error)
        if not runs:
            places = ", ".join(map(str, given.runs))
            raise ValueError(f"{places}: no finished run there (job.json, scores.json)")
        records = [_read(run, given.recipe) for run in runs]
        lines = write_records(records, given.into)
    except (OSError, ValueError) as error:
        print(f"error: {error}; nothing was recorded", file=sys.stderr)
        sys.exit(1)
    for record in records:
        note = "" if record.line["dirty"] == "False" else " (of changed or uncommitted code)"
        print(f"recorded {_run_label(record.line)}{note}")
    for job in others:
        print(f"left out {job.folder}: {job.status}")
    print(f"{given.into / 'runs.csv'}: {len(lines)} runs")


if __name__ == "__main__":
    tolerate_write_errors()
    main()
