"""Console output of the commands: score tables with their warnings, and error messages."""

import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharpreid.evaluation.protocol import Protocol
from sharpreid.run.comparability import caveats, dataset_line

_OUT_OF_SHARED_MEMORY = re.compile(r"shared memory|Bus error|/torch_\d+_", re.IGNORECASE)
"""Words of torch's errors when its data-loader workers have filled /dev/shm."""


def error_message(error: BaseException) -> str:
    """Return an error's message without the traceback that a data loader's worker puts in front of it.

    If /dev/shm is full, as in a container with Docker's default of 64 MB, the message says what to do.
    """
    message = str(error) or f"{type(error).__name__} without a message"
    if "Original Traceback" in message:
        message = message.rstrip().rpartition("\n")[2].partition(": ")[2]
    if _OUT_OF_SHARED_MEMORY.search(message):
        message += (
            ". The data loader's workers need more shared memory (/dev/shm): start the container with "
            "--shm-size=8g, or train with data.num_workers=0"
        )
    return message


def suppress_lightning_warnings() -> None:
    """Suppress messages that Lightning prints in every run and that need no action."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.WARNING)
    for message, category in (
        (".isinstance.treespec, LeafSpec", FutureWarning),
        ("You're resuming from a checkpoint that ended before", UserWarning),  # the sampler continues there
        (
            "It is recommended to use .self.log.*sync_dist=True",
            UserWarning,
        ),  # our metrics gather
        ("This DataLoader will create .* worker processes in total", UserWarning),  # more than cores: slower
        ("The `srun` command is available", UserWarning),  # on a login node, or within salloc
    ):
        warnings.filterwarnings("ignore", message=message, category=category)


SCORE_TITLES = {
    "mAP": "mAP",
    "mAP_trapezoid": "mAP (trapezoid)",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
}


READINGS = ("mAP", "rank1", "rank5")
"""Metrics in the table of several evaluations."""


def score_of(scores: Mapping[str, Any] | None, metric: str) -> float | None:
    """Return one score in [0, 1]; None if it is missing or not finite.

    >>> score_of({"mAP": 0.41}, "mAP"), score_of({"mAP": float("nan")}, "mAP"), score_of(None, "mAP")
    (0.41, None, None)
    """
    value = (scores or {}).get(metric)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def percent(score: float | None) -> str:
    """Format a score in [0, 1] as a percentage; a missing one as a dash.

    >>> percent(0.4137), percent(None)
    ('41.4', '-')
    """
    return "-" if score is None else f"{100 * score:.1f}"


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """Describe a protocol in one line: name, crops, mask, re-ranking, then every unusual rule.

    >>> protocol_line({"name": "market1501", "ap": "step", "crops": "plain", "test_mask": "noise_free",
    ...                "re_ranking": "none", "denominator": "all_queries"})
    'market1501, crops plain, mask noise_free, re-ranking none, denominator all_queries'
    """
    titles = {"crops": "crops", "test_mask": "mask", "re_ranking": "re-ranking"}
    shown = [str(protocol.get("name", "unknown"))]
    shown += [f"{title} {protocol.get(key, 'unknown')}" for key, title in titles.items()]
    usual = {**Protocol(name="").as_dict(), "ap": "step"}
    if str(protocol.get("gallery_per_identity")) != "None":
        usual |= {"seed": None, "split": None}  # of the random draws: always named
        on = {"full_gallery": "the full gallery (multi-shot)", "drawn_gallery": "the drawn galleries"}
        map_on = str(protocol.get("map_on"))
        shown.append(f"mAP on {on.get(map_on, map_on)}, CMC on drawn galleries")
    others = {
        key: value
        for key, value in protocol.items()
        if key not in ("name", "map_on", *titles) and str(value) != str(usual.get(key))
    }
    return ", ".join(shown + [f"{key.replace('_', ' ')} {value}" for key, value in others.items()])


def _score_table(record: Mapping[str, Any]) -> Table:
    plain = record.get("not_re_ranked")
    stages = {
        "untrained": record.get("untrained"),
        "trained": plain or record.get("scores"),
        "re-ranked": plain and record.get("scores"),
    }
    table = Table(title=Text(str(record.get("name", "run"))), title_justify="left")
    table.add_column("%")
    for title in SCORE_TITLES.values():
        table.add_column(title, justify="right")
    table.add_column("queries", justify="right")
    for stage, scores in stages.items():
        if scores is None:
            continue
        table.add_row(
            stage,
            *(percent(score_of(scores, metric)) for metric in SCORE_TITLES),
            str(scores.get("num_valid_queries", "-")),
            style=None if stage == "untrained" else "bold",
        )
    return table


def _queries_left_out(record: Mapping[str, Any]) -> str:
    left_out = (record.get("scores") or {}).get("num_invalid_queries", 0)
    return f", {left_out} queries without a match left out" if left_out else ""


def hard_pair_line(scores: Mapping[str, Any]) -> str:
    """Describe rank-1 on pairs of people who differ in one detail: overall, at chance level, and by detail.

    >>> hard_pair_line({"rank1": 0.62, "chance": 0.49, "num_queries": 50,
    ...                 "details": {"hat": {"rank1": 0.7, "num_queries": 20}}})
    'rank-1 62.0 % of 50 queries (chance 49.0 %); hat 70.0 %'
    """
    details = "".join(f"; {name} {percent(one['rank1'])} %" for name, one in scores["details"].items())
    return (
        f"rank-1 {percent(scores['rank1'])} % of {scores['num_queries']} queries "
        f"(chance {percent(scores['chance'])} %){details}"
    )


def print_run_table(
    record: Mapping[str, Any], console: Console | None = None, *, in_sweep: bool = False
) -> None:
    """Print the scores of a run with data set, protocol, seed and warnings.

    Args:
        record: Content of the run's ``scores.json``; scores in [0, 1] are shown as percentages.
        console: Console to print on; standard output by default.
        in_sweep: Whether a table of the sweep follows, which names the reasons of the warnings once.
    """
    console = console or Console()
    console.print(_score_table(record))
    minutes = record.get("minutes")
    pairs = record.get("hard_pairs")
    lines = {
        **({"hard pairs": hard_pair_line(pairs)} if pairs else {}),
        "data set": dataset_line(record.get("dataset", {})),
        "protocol": protocol_line(record.get("protocol", {})) + _queries_left_out(record),
        "seed": str(record.get("seed", "-")),
        "minutes": "-" if minutes is None else f"{minutes:.1f}",
        "checkpoint": str(record.get("checkpoint") or "-"),
    }
    for title, line in lines.items():
        console.print(Text(f"{title:<10}  ", style="dim").append(line, style="default"), soft_wrap=True)
    reasons = caveats(record)
    if reasons and in_sweep:
        reasons = ["not comparable with the paper; the table of the sweep says why."]
    for caveat in reasons:
        console.print(Text(f"Warning: {caveat}", style="bold yellow"), soft_wrap=True)


def mean_and_range(values: Sequence[float], shown: Callable[[float], str] = percent) -> str:
    """Format values as their mean, with the lowest and the highest unless they are equal as printed.

    >>> mean_and_range([0.2, 0.25]), mean_and_range([0.2]), mean_and_range([])
    ('22.5 (20.0 to 25.0)', '20.0', '-')
    """
    if not values:
        return "-"
    if shown(min(values)) == shown(max(values)):
        return shown(fmean(values))
    return f"{shown(fmean(values))} ({shown(min(values))} to {shown(max(values))})"


def gather_readings(
    records: Sequence[Mapping[str, Any]], together: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Group evaluations by their ``settings`` (a list of key=value), ignoring one key.

    >>> records = [{"settings": ["draws=1", f"seed={seed}"]} for seed in range(3)]
    >>> {setting: len(alike) for setting, alike in gather_readings(records, together="seed").items()}
    {'draws=1': 3}
    """
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        kept = [setting for setting in record["settings"] if not setting.startswith(f"{together}=")]
        gathered.setdefault(" ".join(kept), []).append(record)
    return gathered


def without_mask(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return a protocol that refers to the lines of a table for the test-time mask."""
    return {**protocol, "test_mask": "as in the table"}


def print_readings(
    records: Sequence[Mapping[str, Any]], together: str, console: Console | None = None
) -> None:
    """Print several evaluations in one table, with mean and range of each group of `gather_readings`.

    Args:
        records: Evaluations with ``settings`` and ``scores`` in [0, 1], which are shown as percentages.
        together: Key that the evaluations of one group may differ in.
        console: Console to print on; standard output by default.
    """
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("scores in %: mean (lowest to highest)", overflow="fold")
    for title in ("times", *(SCORE_TITLES[metric] for metric in READINGS)):
        table.add_column(title, justify="right")
    for setting, alike in gather_readings(records, together).items():
        scores = [[score_of(record["scores"], metric) for record in alike] for metric in READINGS]
        cells = [mean_and_range([one for one in column if one is not None]) for column in scores]
        table.add_row(Text(setting or "as trained"), str(len(alike)), *cells)
    console.print(table)
    lines: dict[str, None] = {}  # an ordered set
    for record in records:
        rules = protocol_line(without_mask(record.get("protocol", {})))
        lines[f"{dataset_line(record.get('dataset', {}))}: {rules}"] = None
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    for caveat in dict.fromkeys(caveat for record in records for caveat in caveats(record)):
        console.print(Text(f"Warning: {caveat}", style="bold yellow"), soft_wrap=True)
