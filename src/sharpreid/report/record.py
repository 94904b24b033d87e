"""Record finished runs as rows of a table: ``python -m sharpreid.report.record DIR ... --into FOLDER``.

FOLDER gets ``runs.csv``, one line per run, and in ``queries/RECIPE/DATA/`` what each query contributed to the
run's scores, from which `sharpreid.report.intervals` takes how sure a difference is. A run that is recorded
again replaces its line. Every run is read and checked before anything is written.
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
from sharpreid.report.gather import Run, gather
from sharpreid.report.rows import conditions_of, recipe_of, row_of
from sharpreid.run.comparability import dataset_line
from sharpreid.run.console import protocol_line

KEY = ("dataset", "recipe", "row", "seed")
"""Columns that name a run."""

COLUMNS = (
    *KEY,
    *("gradient", "mAP", "rank1", "mAP_trapezoid", "epochs", "iterations"),
    *("loss_at_end", "triplet_at_end", "active_at_end", "left_plateau"),
    *("precision", "torch", "torchvision", "pytorch_lightning", "device", "world_size", "minutes"),
    *("commit", "dirty", "scored_on", "conditions", "reduced"),
)
"""Of runs.csv. Scores are in [0, 1]; ``..._at_end``: see `End`; ``conditions``: see `conditions_of`."""

PLATEAU = 0.9
"""See `left_plateau`."""

Line = dict[str, str]


class End(NamedTuple):
    """Means over the last tenth of a training's steps."""

    loss: float
    triplet: float
    active: float
    """Share of triplets whose loss is not 0, in [0, 1]."""


class Query(NamedTuple):
    """A line of a run's queries.csv, as text."""

    image: str
    identity: str
    camera: str
    ap: str
    rank1: str


class Record(NamedTuple):
    """What is recorded of a run."""

    line: Line
    queries: tuple[Query, ...]


def left_plateau(end: End, margin: float) -> bool:
    """Whether a training has left the plateau on which batch-hard triplet losses begin.

    At first all embeddings lie close together. The hardest positive is then about as far away as the hardest
    negative, so that the loss is about the margin and every triplet is active. Some trainings stay there for
    long, or for good. Scores of such runs tell which method leaves first, not which is better, and are no
    evidence. A training has left if over the last tenth of its steps the mean triplet loss is below 0.9 times
    the margin and fewer than 0.9 of the triplets are active.

    >>> left_plateau(End(loss=0.2, triplet=0.2, active=0.6), margin=0.5)
    True
    >>> left_plateau(End(loss=0.49, triplet=0.49, active=1.0), margin=0.5)
    False
    """
    return end.triplet < PLATEAU * margin and end.active < PLATEAU


def read_end(path: Path) -> End:
    """Read the means over the last tenth of the steps in a run's csv/metrics.csv.

    Raises:
        ValueError: a quantity was not logged there, or a value is no finite number.
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
    return End(*means)


def read_run(run: Run, recipe: str | None = None) -> Record:
    """Read what is recorded of a finished run, from its config, scores, log and queries.

    Args:
        run: of `gather`.
        recipe: what to call the recipe; by default the one of conf/recipe that the config agrees with.

    Raises:
        OSError: a file of the run cannot be read.
        ValueError: a file does not have what is expected; the scores are re-ranked, or are not the means over
            the queries; or no recipe agrees with the config.
    """
    folder, record = run.job.folder, run.record
    conditions = conditions_of(run.config)
    recipe = recipe or recipe_of(run.config)
    if recipe is None:
        raise ValueError(
            f"{folder}: no file of conf/recipe trains like this ({conditions}); give it a name: --recipe NAME"
        )
    protocol = record["protocol"]
    if protocol.get("re_ranking", "none") != "none":
        raise ValueError(f"{folder}: its scores are re-ranked; expected those of the network alone")
    end = read_end(folder / "csv" / "metrics.csv")
    queries = _read_queries(folder / "queries.csv")
    scores, versions = record["scores"], record.get("versions", {})
    if protocol.get("denominator", "valid_queries") == "valid_queries":
        _check_mean(folder, "mAP", scores["mAP"], [one.ap for one in queries])
        _check_mean(folder, "rank1", scores["rank1"], [one.rank1 for one in queries])
    row = row_of(run.config)
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
        "loss_at_end": round(end.loss, 4),
        "triplet_at_end": round(end.triplet, 4),
        "active_at_end": round(end.active, 4),
        "left_plateau": left_plateau(end, run.config.objective.margin),
        "precision": record.get("precision"),
        **{key: versions.get(key) for key in ("torch", "torchvision", "pytorch_lightning")},
        **{key: record.get(key) for key in ("device", "world_size", "minutes", "commit", "dirty")},
        "scored_on": f"{dataset_line(record['dataset'])}: {rules}",
        "conditions": conditions,
        "reduced": record.get("reduced", ""),
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
        raise ValueError(f"{path}: a query, by image, identity and camera, comes twice")
    return tuple(queries)


def _check_mean(folder: Path, metric: str, score: float, texts: Iterable[str]) -> None:
    found = fmean(float(text) for text in texts if text)
    if abs(found - score) > 1e-5:  # queries.csv has six digits
        raise ValueError(
            f"{folder}: the mean of {metric} over queries.csv is {found:.6f}, scores.json has {score:.6f}; "
            "expected files of the same run"
        )


def key_of(line: Mapping[str, str]) -> tuple[str, ...]:
    """What names a run in runs.csv."""
    return tuple(line[column] for column in KEY)


def read_lines(folder: Path) -> list[Line]:
    """Read the lines of runs.csv in a folder; none if there is no file.

    Raises:
        ValueError: its columns are others.
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


def merged(lines: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """Lines with new ones in place of those of the same run, sorted by `KEY`.

    Raises:
        ValueError: two new ones are the same run; or runs of one recipe on one data set differ in how they
            were trained or scored.
    """
    seen: set[tuple[str, ...]] = set()
    for line in new:
        if key_of(line) in seen:
            raise ValueError(f"two of the runs are {_called(line)}; give only one of them")
        seen.add(key_of(line))
    together = [line for line in lines if key_of(line) not in seen] + list(new)
    alike: dict[tuple[str, str], Line] = {}
    for line in together:
        other = alike.setdefault((line["dataset"], line["recipe"]), line)
        for column in ("conditions", "scored_on"):
            if line[column] != other[column]:
                raise ValueError(
                    f"{_called(line)} and {_called(other)} cannot be compared: {column} "
                    f"{line[column] or 'as in the paper'!r} and {other[column] or 'as in the paper'!r}; "
                    "record one of them as --recipe NAME"
                )
    return sorted(together, key=lambda line: (*key_of(line)[:-1], int(line["seed"])))


def _called(line: Mapping[str, str]) -> str:
    return " ".join((*key_of(line)[:-1], f"seed {line['seed']}"))


def query_folder(folder: Path, line: Mapping[str, str]) -> Path:
    """Where the queries of a recipe on a data set are, in the folder of runs.csv."""
    return folder / "queries" / line["recipe"] / line["dataset"].replace("/", "_")


def query_file(folder: Path, line: Mapping[str, str]) -> Path:
    """Where ``ap`` and ``rank1`` of a run's queries are, in the order of ``images.csv.gz`` beside it."""
    return query_folder(folder, line) / f"{line['row']}-seed{line['seed']}.csv.gz"


def read_table(path: Path) -> list[list[str]]:
    """Read a compressed CSV file without its header.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))[1:]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; record the run again") from error


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A compressed CSV file without a time in it: the same rows are the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode(), mtime=0)


def write_records(records: Sequence[Record], folder: Path) -> list[Line]:
    """Add runs to the record in a folder, in place of those of the same key; return all lines.

    Raises:
        ValueError: see `merged`; or runs of one recipe on one data set have different queries.
    """
    lines = merged(read_lines(folder), [record.line for record in records])
    files: dict[Path, bytes] = {}
    for line, queries in records:
        images = query_folder(folder, line) / "images.csv.gz"
        rows = [list(query[:3]) for query in queries]
        if images not in files and images.is_file() and read_table(images) != rows:
            raise ValueError(f"{images}: {_called(line)} has other queries than the runs recorded there")
        content = _table(Query._fields[:3], rows)
        if files.setdefault(images, content) != content:
            raise ValueError(f"{_called(line)} has other queries than the other runs of its recipe")
        files[query_file(folder, line)] = _table(Query._fields[3:], [query[3:] for query in queries])
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
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="where runs wrote to, at any depth")
    parser.add_argument(
        "--into", required=True, type=Path, metavar="FOLDER", help="of runs.csv and queries/; made if missing"
    )
    parser.add_argument("--recipe", metavar="NAME", help="of runs that no file of conf/recipe trains like")
    given = parser.parse_args(arguments)
    register_resolvers()
    try:
        runs, others = gather(given.runs)
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
        print(f"recorded {_called(record.line)}{note}")
    for job in others:
        print(f"left out {job.folder}: {job.status}")
    print(f"{given.into / 'runs.csv'}: {len(lines)} runs")


if __name__ == "__main__":
    main()
