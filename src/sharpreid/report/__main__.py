"""The paper's tables and figures with these runs beside them: ``python -m sharpreid.report [DIR ...]``."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from sharpreid.atomic_io import replacing
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.report.bars import draw
from sharpreid.report.comparison import (
    Job,
    Row,
    all_caveats,
    configurations,
    describe_data,
    split_by_data,
    summarise,
)
from sharpreid.report.figures import draw_curves, draw_histogram, draw_schedules
from sharpreid.report.gallery import attention_of, first_choice, ranked_lists
from sharpreid.report.gather import Run, gather, summary_of, sweeps
from sharpreid.report.page import Picture, Report, Section, identifier, render_html, render_markdown
from sharpreid.report.paper_tables import TABLES, gains_table, own_rows, paper_table, read_paper
from sharpreid.run.comparability import caveats
from sharpreid.run.console import percent, score_of
from sharpreid.run.loading import load_network
from sharpreid.run.records import write_text
from sharpreid.visualization.attention import draw_before_and_after, draw_masks, record_attention

TITLES = {
    "Table I": "Table I: components",
    "Table II": "Table II: CUHK03 labeled, with the literature",
    "Table III": "Table III: CUHK03 detected, with the literature",
    "Table IV": "Table IV: parameters and accuracy against residual attention",
    "Table V": "Table V: Market-1501, with the literature",
    "Table VI": "Table VI: DukeMTMC-reID, with the literature",
}
GAINS = "Gains: over the baseline, in percentage points (Fig. 5, Sec. IV-D)"

_CURVES = {
    "train/triplet": "triplet loss",
    "val/mAP": "mAP of held-out identities",
    "train/tau": "temperature",
}
_SHARPNESS = {
    **{f"train/decided_block{block}": f"decided, block {block}" for block in range(1, 5)},
    **{f"train/entropy_block{block}": f"entropy (bit), block {block}" for block in (1, 4)},
}
_SCHEDULES = {"Eq. 9, the paper's": "paper", "cosine, as long": "cosine_tau", "constant": "constant_tau"}
_UNREADABLE = (OSError, ValueError, RuntimeError, OmegaConfBaseException)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write index.html, report.md and figures/ of recorded runs."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.report", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("outputs")], metavar="DIR")
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="DIR", help="where to; report/"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=3,
        metavar="N",
        help="photos per gallery, ranked lists per data set; 0 for none (a list embeds the whole gallery)",
    )
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

    What cannot be drawn is said in the report and does not stop it.

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
    figures = output / "figures"
    sections, absent = [], []
    for title, make in _parts(runs, others, images, figures):
        try:
            sections.append(make())
        except _UNREADABLE as error:
            absent.append(f"{title}: {error}")
    report = Report(
        folders=folders,
        runs=len(runs),
        tables={
            **{TITLES[place]: paper_table(place, runs, paper) for place in TABLES},
            GAINS: gains_table(runs, paper),
        },
        own=own_rows(runs),
        sections=sections,
        unfinished=others,
        absent=absent,
    )
    write_text(output / "report.md", render_markdown(report, output))
    write_text(output / "index.html", render_html(report))
    return output / "index.html"


def _parts(
    runs: Sequence[Run], others: Sequence[Job], images: int, figures: Path
) -> Iterator[tuple[str, Callable[[], Section]]]:
    """Title and maker of each section; a maker raises one of `_UNREADABLE` where it cannot be drawn."""
    yield "Schedule of tau", partial(_schedules, figures)
    for name, jobs in sweeps(runs, others).items():
        yield f"Sweep {name}", partial(_sweep, name, jobs, figures)
    if not images:
        return
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(run.data, []).append(run)
    for data, some in by_data.items():
        yield f"Attention on {data}", partial(_masks, data, some, images, figures)
        yield f"Fig. 2 and 6 on {data}", partial(_before_and_after, data, some, images, figures)
        yield f"Ranked lists on {data}", partial(_ranked, data, some, images, figures)


def _both(figures: Path, name: str) -> list[Path]:
    return [figures / f"{identifier(name)}{suffix}" for suffix in (".svg", ".png")]


def _schedules(figures: Path) -> Section:
    paths = _both(figures, "tau")
    paper = OmegaConf.load(CONF_DIR / "schedule" / "paper.yaml").temperature
    curves = {
        name: instantiate(
            OmegaConf.merge(paper, OmegaConf.load(CONF_DIR / "schedule" / f"{file}.yaml").temperature)
        )
        for name, file in _SCHEDULES.items()
    }
    epochs = OmegaConf.load(CONF_DIR / "trainer" / "default.yaml").max_epochs
    draw_schedules(curves, epochs, paths)
    return Section(
        "Schedule of tau", pictures=[Picture(paths[0], f"tau by epoch of the paper's {epochs} (Eq. 9)")]
    )


def _sweep(name: str, jobs: Sequence[Job], figures: Path) -> Section:
    baseline, claim = summary_of(name)
    rows = summarise(jobs, baseline)
    section = Section(f"Sweep {name}", texts=[claim] if claim else [], warnings=all_caveats(rows))
    section.texts += [f"Scored on {describe_data(part)}." for part in split_by_data(rows)]
    paths = _both(figures, f"sweep {name}")
    for path in paths:
        draw(rows, path, title=name)
    shown = "differences to the baseline" if any(row.delta for row in rows) else "scores"
    section.pictures.append(Picture(paths[0], f"{name}: {shown}"))
    folders = _folders(rows)
    several = "; bands: lowest to highest seed" if any(len(some) > 1 for some in folders.values()) else ""
    for what, panels, caption in (
        ("curves", _CURVES, "learning curves"),
        (
            "sharpness",
            _SHARPNESS,
            "sharpness of the masks (as Fig. 2b): share of values below 0.1 or above 0.9, and entropy",
        ),
    ):
        paths, title = _both(figures, f"sweep {name} {what}"), f"{name}: {caption}{several}"
        try:
            drawn = draw_curves(folders, panels, paths, title=title)
        except _UNREADABLE as error:
            section.warnings.append(f"Without {caption}: {error}")
        else:
            section.pictures += [Picture(paths[0], title)] if drawn else []
    return section


def _folders(rows: Sequence[Row]) -> dict[str, list[Path]]:
    """What to call each configuration of a sweep -> the folders of its seeds and splits."""
    parts = split_by_data(rows)
    found: dict[str, list[Path]] = {}
    for part in parts:
        data = f" ({describe_data(part).partition(';')[0]})" if len(parts) > 1 else ""
        for one in configurations(part):
            found.setdefault(one.label + data, []).extend(row.job.folder for row in one.rows)
    return found


def _described(run: Run) -> str:
    plain = score_of(run.record.get("not_re_ranked") or run.record["scores"], "mAP")
    return f"{run.job.name}, method {run.method}, seed {run.job.seed}: mAP {percent(plain)} %."


def _save(sheet: Image.Image, path: Path, caption: str) -> Picture:
    with replacing(path) as temporary:
        sheet.save(temporary)
    return Picture(path, caption, sheet=True)


def _masks(data: str, runs: Sequence[Run], images: int, figures: Path) -> Section:
    run = first_choice([run for run in runs if run.config.model.blocks])
    if run is None:
        raise ValueError("no run with attention blocks has its checkpoint")
    views, attention = attention_of(run, images)
    caption = "mask over the photo: mean over channels, then the channels attended most"
    sheet = draw_masks(views, attention, channels=3)
    paths = _both(figures, f"histogram {data}")
    blocks = {f"block {one.block}": one.mask for one in attention}
    draw_histogram(blocks, paths, title=f"Mask values, {run.method}, {data}")
    return Section(
        f"Attention on {data}",
        [_described(run)],
        caveats(run.record),
        [
            _save(sheet, figures / f"{identifier(f'masks {data}')}.png", caption),
            Picture(paths[0], "histogram of the mask's values (as Fig. 2b)"),
        ],
    )


def _before_and_after(data: str, runs: Sequence[Run], images: int, figures: Path) -> Section:
    """Fig. 2 and 6: soft and sharp attention of two networks trained alike, on the same images."""
    soft, sharp = _alike(runs)
    views, of_sharp = attention_of(sharp, images)
    both = {
        "soft": record_attention(load_network(soft.checkpoint, soft.config).network, views),
        "sharp": of_sharp,
    }
    title = f"soft and sharp {data}"
    pictures = [
        _save(
            draw_before_and_after(views, both, block=block),
            figures / f"{identifier(title)}-block{block}.png",
            f"block {block}: features before the mask, mask, features after it; channel means",
        )
        for block in (1, 4)
    ]
    paths = _both(figures, f"histogram {title}")
    values = {name: found[0].mask for name, found in both.items()}
    draw_histogram(values, paths, title=f"Mask values of block 1, soft and sharp, {data}")
    pictures.append(Picture(paths[0], "values of a soft and a sharp mask (as Fig. 2b)"))
    warnings = list(dict.fromkeys(caveats(soft.record) + caveats(sharp.record)))
    return Section(f"Fig. 2 and 6 on {data}", [_described(soft), _described(sharp)], warnings, pictures)


def _alike(runs: Sequence[Run]) -> tuple[Run, Run]:
    """A soft and a sharp run by the same recipe, with the same seed where there is a choice."""
    for method in ("sab", "sab_cu", "sab_cu_tv"):
        for soft in (run for run in runs if run.method == "sigmoid_gate"):
            alike = [
                run
                for run in runs
                if run.method == method
                and run.record["dataset"] == soft.record["dataset"]
                and run.record.get("reduced") == soft.record.get("reduced")
                and run.config.image == soft.config.image
            ]
            same_seed = [run for run in alike if run.job.seed == soft.job.seed]
            first, sharp = first_choice([soft]), first_choice(same_seed) or first_choice(alike)
            if first is not None and sharp is not None:
                return first, sharp
    raise ValueError("needs checkpoints of method=sigmoid_gate and of a sharp method, trained alike")


def _ranked(data: str, runs: Sequence[Run], images: int, figures: Path) -> Section:
    run = first_choice(runs)
    if run is None:
        raise ValueError("no run has its checkpoint")
    print(f"ranked lists on {data}: embedding its queries and gallery with {run.checkpoint}", flush=True)
    caption = "query (blue), then the nearest: green the same person, red another, grey junk; distance"
    sheet = ranked_lists(run, images)
    return Section(
        f"Ranked lists on {data}",
        [_described(run), "The lists are of one plain view, without re-ranking."],
        caveats(run.record),
        [_save(sheet, figures / f"{identifier(f'ranked {data}')}.png", caption)],
    )


if __name__ == "__main__":
    main()
