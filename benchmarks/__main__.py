"""All measurements in one table: ``make bench``. CPU only, a quarter of an hour at most.

Every row is a ratio of two figures of this run. With ``--check`` the ratios are compared with those on
record, and the command ends with 1 if one is worse by more than the tolerance. Times never are compared.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import attention, loader, re_ranking, scoring, startup
from benchmarks.rows import Row, machine, show, worse_than, write

RECORD = Path(__file__).with_name("recorded.json")


def of_start_up() -> list[Row]:
    """How long a user waits, beside what was promised."""
    promised = {startup.HELP: 1.5, startup.FIRST_BATCH: 10.0}
    found = {row["what"]: row for row in startup.measure(repeats=3)}
    return [
        Row(
            name=what,
            ours=found[what]["seconds"],
            unit="s",
            other="what was promised",
            theirs=seconds,
            better="lower",
            limit=1,
            note=f"importing torch: {found[startup.TORCH]['seconds']} s",
        )
        for what, seconds in promised.items()
    ]


def of_the_loader() -> list[Row]:
    """Training images per second of one core, beside decoding and augmenting one by one."""
    found = {row["what"]: row["images_per_cpu_second"] for row in loader.measure(images=1024, repeats=2)}
    return [
        Row(
            name=what,
            ours=1e6 / rate,
            unit="CPU us/image",
            other=loader.DECODE,
            theirs=1e6 / found[loader.DECODE],
            better="higher",
        )
        for what, rate in found.items()
        if what != loader.DECODE
    ]


def main() -> None:
    """Measure everything, print one table, compare or write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    for peer in scoring.RANKERS:
        parser.add_argument(f"--{peer}", metavar="DIR", help=f"checkout of {peer}, with its ranker built")
    parser.add_argument("--check", action="store_true", help="end with 1 if a ratio is worse than on record")
    parser.add_argument("--tolerance", type=float, default=0.25, help="share of a ratio; 0.25 by default")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"where the rows go; {RECORD.name} is on record"
    )
    given = vars(parser.parse_args())
    checkouts = {peer: named for peer in scoring.RANKERS if (named := given[peer.replace("-", "_")])}
    about, start = machine(), time.monotonic()
    parts: list[Callable[[], list[Row]]] = [
        of_start_up,
        lambda: attention.measure(channels_last=True),
        lambda: attention.measure(channels_last=False, repeats=3),
        of_the_loader,
        lambda: re_ranking.measure(checkouts),
        lambda: scoring.measure(checkouts),
    ]
    rows = [row for part in parts for row in part()]
    minutes = (time.monotonic() - start) / 60
    show(rows, f"{about['processor']}, {about['cores']} cores, commit {about['commit']}, {minutes:.1f} min")
    if given["output"]:
        write(rows, about, given["output"])
    worse = worse_than(RECORD, rows, given["tolerance"]) if RECORD.exists() else []
    for line in worse:
        print(f"worse than on record: {line}")
    if worse and given["check"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
