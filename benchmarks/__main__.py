"""All measurements in one table: ``make bench``. CPU only, a quarter of an hour at most.

Every row is a ratio of two figures of this run. The ratios are compared with those on record, times never
are; with ``--check`` the command ends with 1 if one is worse by more than the tolerance. A limit that is
missed is printed, but does not end it with 1: some ratios lie so near theirs that they are on either side.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import attention, loader, re_ranking, scoring, startup, training
from benchmarks.rows import Row, compared_with, machine, show, write

RECORD = Path(__file__).with_name("recorded.json")


def main() -> None:
    """Measure everything, print one table, compare or write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    for peer in scoring.RANKERS:
        parser.add_argument(f"--{peer}", metavar="DIR", help=f"checkout of {peer}, with its ranker built")
    parser.add_argument(
        "--record", type=Path, default=RECORD, metavar="FILE", help="rows to compare with; ours by default"
    )
    parser.add_argument("--check", action="store_true", help="end with 1 if a ratio is worse than on record")
    parser.add_argument("--tolerance", type=float, default=0.25, help="share of a ratio; 0.25 by default")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the rows go: a record of this machine"
    )
    given = vars(parser.parse_args())
    if not given["record"].is_file():
        parser.error(f"--record {given['record']}: no such file; make one with --output")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: these are measurements of the CPU
    checkouts = {peer: named for peer in scoring.RANKERS if (named := given[peer.replace("-", "_")])}
    about, start = machine(), time.monotonic()
    parts: list[Callable[[], list[Row]]] = [
        startup.measure,
        lambda: attention.measure(channels_last=True),
        lambda: attention.measure(channels_last=False),
        lambda: training.measure(checkouts),
        lambda: loader.measure(images=1024, repeats=2),
        lambda: re_ranking.measure(checkouts),
        lambda: scoring.measure(checkouts),
    ]
    rows = [row for part in parts for row in part()]
    minutes = (time.monotonic() - start) / 60
    show(rows, f"{about['processor']}, {about['cores']} cores, commit {about['commit']}, {minutes:.1f} min")
    if given["output"]:
        write(rows, about, given["output"])
    for row in rows:
        if row.holds is False:
            print(f"limit missed: {row.name}: {row.ratio:.3g}, limit {row.limit:.3g}")
    found = compared_with(given["record"], rows, given["tolerance"])
    for line in found.worse:
        print(f"worse than on record: {line}")
    if found.not_compared:
        print(f"not compared, for want of a figure here or on record: {', '.join(found.not_compared)}")
    if found.worse and given["check"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
