"""Run all benchmarks on the CPU and print one table: ``make bench``.

This takes a quarter of an hour at most. Every row is a ratio of two figures of the same run. The ratios,
never the times, are compared with the recorded ones. With ``--check``, the exit status is 1 if a ratio is
worse than recorded by more than the tolerance. A missed limit is printed, but does not change the exit
status, because some ratios are close to their limits.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import attention, command, loader, re_ranking, scoring, startup, training
from benchmarks.rows import Row, compare_with_record, describe_machine

RECORD = Path(__file__).with_name("recorded.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all benchmarks, print the table, and compare it with the record."""
    parser = command.make_parser("", __doc__)
    for peer in scoring.RANKERS:
        parser.add_argument(
            f"--{peer}",
            type=scoring.ranker_checkout(peer),
            metavar="DIR",
            help=f"checkout of {peer}, with its ranker built",
        )
    parser.add_argument(
        "--record",
        type=Path,
        default=RECORD,
        metavar="FILE",
        help="rows to compare with; by default benchmarks/recorded.json",
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with status 1 if a ratio is worse than recorded"
    )
    parser.add_argument(
        "--tolerance",
        type=command.fraction,
        default=0.25,
        metavar="SHARE",
        help="tolerated share of a ratio; 0.25 by default",
    )
    given = vars(parser.parse_args(arguments))
    if not given["record"].is_file():
        parser.error(f"--record {given['record']}: no such file; write one with --output")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # set before torch initialises CUDA
    checkouts = {peer: named for peer in scoring.RANKERS if (named := given[peer.replace("-", "_")])}
    with command.errors_in_one_line():
        found = compare_with_record(given["record"], _measure(checkouts, given["output"]), given["tolerance"])
    for line in found.worse:
        print(f"worse than recorded: {line}")
    for name in found.not_compared:
        print(f"not compared, because this run or the record has no ratio: {name}")
    if found.worse and given["check"]:
        sys.exit(1)


def _measure(checkouts: dict[str, str], output: Path | None) -> list[Row]:
    """Measure, print and write all rows."""
    about, start = describe_machine(), time.monotonic()
    parts: dict[str, Callable[[], list[Row]]] = {
        "start-up": startup.measure,
        "attention, channels last": lambda: attention.measure(channels_last=True),
        "attention, contiguous": lambda: attention.measure(channels_last=False),
        "training": lambda: training.measure(checkouts),
        "loader": lambda: loader.measure(images=1024, repeats=2),
        "re-ranking": lambda: re_ranking.measure(checkouts),
        "scoring": lambda: scoring.measure(checkouts),
    }
    rows = []
    for number, (name, part) in enumerate(parts.items(), 1):
        print(f"{number}/{len(parts)} {name}", file=sys.stderr)
        rows += part()
    minutes = (time.monotonic() - start) / 60
    title = f"{about['processor']}, {about['cores']} cores, commit {about['commit']}, {minutes:.1f} min"
    command.report_rows(rows, about, title, output)
    for row in rows:
        if row.within_limit is False:
            print(f"limit missed: {row.name}: {row.ratio:.3g}, limit {row.limit:.3g}")
    return rows


if __name__ == "__main__":
    main()
