"""Write a report of recorded runs beside the paper's numbers: ``python -m sharpreid.report [DIR ...]``."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from sharpreid.config.resolvers import register_resolvers
from sharpreid.report.page import DRAWING_ERRORS, Report, Section, render_html, render_markdown
from sharpreid.report.paper_tables import (
    GAINS_TITLE,
    TABLES,
    gains_table,
    paper_table,
    read_paper,
    run_tables,
)
from sharpreid.report.runs import Job, Run, group_sweeps, load_runs
from sharpreid.run.fast_import import import_torchmetrics
from sharpreid.run.records import write_text
from sharpreid.standard_streams import tolerate_write_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Write index.html, report.md and figures/ of recorded runs."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.report", description=__doc__)
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("outputs")],
        metavar="DIR",
        help="output folders of runs, or the folder of one run; by default outputs/",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="folder of the report; by default report/",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=3,
        metavar="N",
        help="masked photos and ranked lists per data set; 3 by default, 0 for none (a ranked list embeds "
        "the whole gallery)",
    )
    given = parser.parse_args(arguments)
    if given.images < 0:
        parser.error(f"--images must be at least 0, got {given.images}")
    try:
        page = write_report(given.folders, given.output, images=given.images)
    except DRAWING_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"written to {page}")


def write_report(folders: Sequence[Path], output: Path, *, images: int) -> Path:
    """Write the report of all runs below ``folders`` to ``output`` and return the path of its HTML page.

    A section that cannot be drawn is listed in the report with its error.

    Args:
        folders: output folders of runs.
        output: folder of the report.
        images: photos with masks, and ranked lists, per data set; 0 for none.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: no run is recorded in any of the folders.
    """
    register_resolvers()
    runs, others = load_runs(folders)
    if not runs and not others:
        places = ", ".join(map(str, folders))
        raise ValueError(
            f"{places}: no run is recorded there (job.json, scores.json); train one first: make ablation"
        )
    paper = read_paper()
    sections, absent = [], []
    for title, make_section in _section_makers(runs, others, images, output / "figures"):
        try:
            sections.append(make_section())
        except DRAWING_ERRORS as error:
            absent.append(f"{title}: {error}")
    report = Report(
        folders=folders,
        runs=len(runs),
        run_tables=run_tables(runs),
        sections=sections,
        tables={
            **{f"{place}: {title}": paper_table(place, runs, paper) for place, title in TABLES.items()},
            GAINS_TITLE: gains_table(runs, paper),
        },
        unfinished=others,
        absent=absent,
    )
    write_text(output / "report.md", render_markdown(report, output))
    write_text(output / "index.html", render_html(report))
    return output / "index.html"


def _section_makers(
    runs: Sequence[Run], others: Sequence[Job], images: int, figures: Path
) -> Iterator[tuple[str, Callable[[], Section]]]:
    import_torchmetrics()
    from sharpreid.report import sections  # slow to import, and not needed for a refused call

    for name, jobs in group_sweeps(runs, others).items():
        yield f"Sweep {name}", partial(sections.sweep_section, name, jobs, figures)
    by_data: dict[str, list[Run]] = {}
    for run in runs if images else []:
        by_data.setdefault(run.data, []).append(run)
    for data, some in by_data.items():
        yield f"Attention on {data}", partial(sections.attention_section, data, some, images, figures)
        yield f"Fig. 2 and 6 on {data}", partial(sections.soft_and_sharp_section, data, some, images, figures)
        yield f"Ranked lists on {data}", partial(sections.ranked_section, data, some, images, figures)
    yield "Schedule of tau", partial(sections.schedule_section, figures)


if __name__ == "__main__":
    tolerate_write_errors()
    main()
