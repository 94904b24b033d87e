"""Summarise a sweep again: ``python -m sharpreid.report.sweep DIR --baseline 'model.blocks=[]'``.

A Hydra multirun writes its summary when it ends, see `sharpreid.sweep.summary_callback`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sharpreid.report.comparison import compare_jobs
from sharpreid.report.runs import load_jobs
from sharpreid.report.sweep_summary import write_summary
from sharpreid.standard_streams import tolerate_write_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Summarise all jobs below a folder, however old they are."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.report.sweep", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="output folder of the sweep")
    parser.add_argument("--baseline", help="override that marks the baseline, e.g. 'model.blocks=[]'")
    parser.add_argument("--title", default="", help="heading of the page and the figure")
    parser.add_argument(
        "--label",
        type=_parse_label,
        action="append",
        default=[],
        metavar="VALUE=LABEL",
        help="label of an override value; may be repeated",
    )
    parser.add_argument("--by-held-out", action="store_true", help="rank by mAP on held-out identities")
    given = parser.parse_args(arguments)
    if given.baseline and not _has_baseline(given.folder, given.baseline):
        parser.error(
            f"--baseline {given.baseline}: no job below {given.folder} has this override; nothing is written"
        )
    write_summary(
        given.folder,
        baseline=given.baseline,
        title=given.title,
        labels=dict(given.label),
        by_held_out=given.by_held_out,
    )


def _has_baseline(folder: Path, baseline: str) -> bool:
    rows = compare_jobs(load_jobs(folder), baseline)
    return not rows or any(row.is_baseline for row in rows)


def _parse_label(text: str) -> tuple[str, str]:
    value, equals, label = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected VALUE=LABEL, got {text!r}")
    return value, label


if __name__ == "__main__":
    tolerate_write_errors()
    main()
