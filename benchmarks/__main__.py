"""All measurements in one table: ``make bench``. CPU only, a quarter of an hour at most.

Every row is a ratio of two figures of this run. The ratios are compared with those on record, times never
are; with ``--check`` the command ends with 1 if one is worse by more than the tolerance. A limit that is
missed is printed, but does not end it with 1: some ratios lie so near theirs that they are on either side.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import attention, command, loader, re_ranking, scoring, startup, training
from benchmarks.rows import Row, compared_with, machine

RECORD = Path(__file__).with_name("recorded.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything, print one table, compare or write."""
    parser = command.parser("", __doc__)
    for peer in scoring.RANKERS:
        parser.add_argument(
            f"--{peer}",
            type=scoring.checkout_of(peer),
            metavar="DIR",
            help=f"checkout of {peer}, with its ranker built",
        )
    parser.add_argument(
        "--record", type=Path, default=RECORD, metavar="FILE", help="rows to compare with; ours by default"
    )
    parser.add_argument("--check", action="store_true", help="end with 1 if a ratio is worse than on record")
    parser.add_argument(
        "--tolerance", type=command.share, default=0.25, metavar="SHARE", help="of a ratio; 0.25 by default"
    )
    given = vars(parser.parse_args(arguments))
    if not given["record"].is_file():
        parser.error(f"--record {given['record']}: no such file; make one with --output")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: these are measurements of the CPU
    checkouts = {peer: named for peer in scoring.RANKERS if (named := given[peer.replace("-", "_")])}
    with command.one_line_at_the_end():
        found = compared_with(given["record"], _measure(checkouts, given["output"]), given["tolerance"])
    for line in found.worse:
        print(f"worse than on record: {line}")
    for name in found.not_compared:
        print(f"not compared, for want of a ratio here or on record: {name}")
    if found.worse and given["check"]:
        sys.exit(1)


def _measure(checkouts: dict[str, str], output: Path | None) -> list[Row]:
    """All rows, printed and written."""
    about, start = machine(), time.monotonic()
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
    command.report(rows, about, title, output)
    for row in rows:
        if row.holds is False:
            print(f"limit missed: {row.name}: {row.ratio:.3g}, limit {row.limit:.3g}")
    return rows


if __name__ == "__main__":
    main()
