"""The paper's tables and figures with these runs beside them: ``python -m sharpreid.report [DIR ...]``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from sharpreid.config import ConfigError, register_resolvers
from sharpreid.files import replacing
from sharpreid.records import write_text
from sharpreid.report.bars import draw
from sharpreid.report.comparison import Job, all_caveats, describe_data, split_by_data, summarise
from sharpreid.report.figures import draw_curves, draw_histogram, draw_schedules
from sharpreid.report.gallery import attention_of, best, ranked_lists
from sharpreid.report.gather import TABLES, Run, gather, own_rows, paper_table, read_paper, summary_of, sweeps
from sharpreid.report.page import Picture, Report, Section, identifier, render_html, render_markdown
from sharpreid.report.pictures import attend, draw_before_and_after, draw_masks
from sharpreid.report.table import caveats, percent
from sharpreid.schedules import cosine_temperature, temperature
from sharpreid.visualize import load_network

TITLES = {
    "Table I": "Table I: components",
    "Table II": "Table II: CUHK03 labeled, with the literature",
    "Table III": "Table III: CUHK03 detected, with the literature",
    "Table IV": "Table IV: parameters and accuracy against residual attention",
    "Table V": "Table V: Market-1501, with the literature",
    "Table VI": "Table VI: DukeMTMC-reID, with the literature",
}
_CURVES = {
    "train/triplet": "triplet loss",
    "val/mAP": "mAP of held-out identities",
    "train/tau": "temperature",
}
_UNREADABLE = (OSError, ValueError, RuntimeError, OmegaConfBaseException, ConfigError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write index.html, report.md and figures/ of recorded runs."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.report", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("outputs")], metavar="DIR")
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="DIR", help="where to; report/"
    )
    parser.add_argument("--images", type=int, default=3, metavar="N", help="photos per gallery; 0 for none")
    given = parser.parse_args(arguments)
    if given.images < 0:
        parser.error(f"--images must be at least 0, got {given.images}")
    try:
        page = write_report(given.folders, given.output, images=given.images)
    except _UNREADABLE as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"written to {page}")


def write_report(folders: Sequence[Path], output: Path, *, images: int) -> Path:
    """Gather the runs below ``folders`` and write the report to ``output``; the page.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no run is recorded in any of them.
    """
    register_resolvers()
    runs, others = gather(folders)
    if not runs and not others:
        places = ", ".join(map(str, folders))
        raise ValueError(
            f"{places}: no run is recorded there (job.json, scores.json); train one first: make ablation"
        )
    paper = read_paper()
    figures, absent = output / "figures", list[str]()
    sections = [_schedules(figures)]
    for name, jobs in sweeps(runs, others).items():
        sections.append(_sweep(name, jobs, figures))
    if images:
        for section in (_masks, _before_and_after, _ranked):
            sections += section(runs, images, figures, absent)
    report = Report(
        folders=folders,
        runs=len(runs),
        tables={TITLES[place]: paper_table(place, runs, paper) for place in TABLES},
        own=own_rows(runs),
        sections=sections,
        unfinished=others,
        absent=absent,
    )
    write_text(output / "report.md", render_markdown(report, output))
    write_text(output / "index.html", render_html(report))
    return output / "index.html"


def _both(figures: Path, name: str) -> list[Path]:
    return [figures / f"{identifier(name)}{suffix}" for suffix in (".svg", ".png")]


def _schedules(figures: Path) -> Section:
    paths = _both(figures, "tau")
    schedules = {
        "Eq. 9, the paper's": partial(temperature, rate=0.008, floor=0.5),
        "cosine, as long": partial(cosine_temperature, rate=0.008, floor=0.5),
        "constant": partial(temperature, rate=0.008, floor=1.0),
    }
    draw_schedules(schedules, 150, paths)
    return Section("Schedule of tau", pictures=[Picture(paths[0], "tau by epoch of the paper's 150 (Eq. 9)")])


def _sweep(name: str, jobs: Sequence[Job], figures: Path) -> Section:
    baseline, claim = summary_of(name)
    rows = summarise(jobs, baseline)
    section = Section(f"Sweep {name}", texts=[claim] if claim else [], warnings=all_caveats(rows))
    section.texts += [f"Scored on {describe_data(part)}." for part in split_by_data(rows)]
    paths = _both(figures, name)
    for path in paths:
        draw(rows, path, title=name)
    section.pictures.append(Picture(paths[0], f"{name}: differences to the baseline"))
    labels = [" ".join(f"{key}={value}" for key, value in row.settings.items()) or name for row in rows]
    folders = {
        f"{label} seed {row.job.seed}": row.job.folder for label, row in zip(labels, rows, strict=True)
    }
    paths = _both(figures, f"{name} curves")
    if draw_curves(folders, _CURVES, paths, title=f"{name}: learning curves"):
        section.pictures.append(Picture(paths[0], f"{name}: learning curves"))
    sharpness = {f"train/decided_block{block}": f"decided, block {block}" for block in range(1, 5)}
    sharpness |= {f"train/entropy_block{block}": f"entropy (bit), block {block}" for block in (1, 4)}
    paths = _both(figures, f"{name} sharpness")
    if draw_curves(folders, sharpness, paths, title=f"{name}: share of decided mask values, and entropy"):
        section.pictures.append(Picture(paths[0], f"{name}: sharpness of the masks by epoch (Fig. 2b)"))
    return section


def _each(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each data set that still have a checkpoint."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.checkpoint.is_file():
            found.setdefault(run.data, []).append(run)
    return found


def _described(run: Run) -> list[str]:
    score = percent(run.job.score("mAP"))
    return [f"{run.job.name}, method {run.method}, seed {run.job.seed}: mAP {score} %."]


def _tried(section: Section, absent: list[str], make: Callable[[], None]) -> list[Section]:
    try:
        make()
    except _UNREADABLE as error:
        absent.append(f"{section.title}: {error}")
        return []
    return [section]


def _save(sheet: Image.Image, path: Path, section: Section, caption: str) -> None:
    with replacing(path) as temporary:
        sheet.save(temporary)
    section.pictures.append(Picture(path, caption, sheet=True))


def _masks(runs: Sequence[Run], images: int, figures: Path, absent: list[str]) -> list[Section]:
    sections = []
    for data, some in _each(runs).items():
        run = best([run for run in some if run.config.model.blocks])
        if run is None:
            absent.append(f"Attention on {data}: no run with attention blocks has its checkpoint.")
            continue
        section = Section(f"Attention on {data}", _described(run), caveats(run.record))

        def make(run: Run = run, section: Section = section, data: str = data) -> None:
            views, attention = attention_of(run, images)
            name = identifier(f"masks {data}")
            caption = "mask over the photo: mean over channels, then the channels attended most"
            _save(draw_masks(views, attention, channels=3), figures / f"{name}.png", section, caption)
            paths = _both(figures, f"histogram {data}")
            blocks = {f"block {one.block}": one.mask for one in attention}
            draw_histogram(blocks, paths, title=f"Mask values, {run.method}, {data}")
            section.pictures.append(Picture(paths[0], "histogram of the mask's values (as Fig. 2b)"))

        sections += _tried(section, absent, make)
    return sections


def _before_and_after(runs: Sequence[Run], images: int, figures: Path, absent: list[str]) -> list[Section]:
    """Fig. 2 and 6: soft and sharp attention of block 1, from two trained networks."""
    sections = []
    for data, some in _each(runs).items():
        soft = best(some, method="sigmoid_gate")
        sharp = next(
            (run for name in ("sab", "sab_cu", "sab_cu_tv") if (run := best(some, method=name))), None
        )
        title = f"Fig. 2 and 6: soft and sharp on {data}"
        if soft is None or sharp is None:
            absent.append(f"{title}: needs checkpoints of method=sigmoid_gate and of a sharp method.")
            continue
        section = Section(title, _described(soft) + _described(sharp), caveats(sharp.record))

        def make(soft: Run = soft, sharp: Run = sharp, section: Section = section, data: str = data) -> None:
            views, of_sharp = attention_of(sharp, images)
            of_soft = attend(load_network(soft.checkpoint, soft.config).network, views)
            for block in (1, 4):
                name = f"{identifier(f'soft and sharp {data}')}-block{block}"
                caption = f"block {block}: features before the mask, mask, features after it; channel means"
                both = {"soft": of_soft, "sharp": of_sharp}
                _save(
                    draw_before_and_after(views, both, block=block), figures / f"{name}.png", section, caption
                )
            paths = _both(figures, f"histogram soft and sharp {data}")
            values = {
                f"{name}, block {one.block}": one.mask
                for name, found in (("soft", of_soft), ("sharp", of_sharp))
                for one in found[:1]
            }
            draw_histogram(values, paths, title=f"Mask values of block 1, soft and sharp, {data}")
            section.pictures.append(Picture(paths[0], "values of a soft and a sharp mask (as Fig. 2b)"))

        sections += _tried(section, absent, make)
    return sections


def _ranked(runs: Sequence[Run], images: int, figures: Path, absent: list[str]) -> list[Section]:
    sections = []
    for data, some in _each(runs).items():
        run = best(some)
        if run is None:
            continue
        section = Section(f"Ranked lists on {data}", _described(run), caveats(run.record))

        def make(run: Run = run, section: Section = section, data: str = data) -> None:
            sheet = ranked_lists(run, images + 2)
            caption = (
                "query (blue), then the nearest: green the same person, red another, grey junk; distance"
            )
            _save(sheet, figures / f"{identifier(f'ranked {data}')}.png", section, caption)

        sections += _tried(section, absent, make)
    return sections


if __name__ == "__main__":
    main()
