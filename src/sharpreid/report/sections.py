"""Make the sections of the report that show figures: sweeps, attention masks, ranked lists.

A function that makes a section raises OSError, ValueError, RuntimeError or OmegaConfBaseException if its
figures cannot be drawn, for instance because a checkpoint or an image is gone.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from sharpreid.atomic_io import replacing
from sharpreid.config.paths import CONF_DIR
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.datasets import load_image
from sharpreid.data.reid_data import Sample
from sharpreid.evaluation.exact import exact_embeddings
from sharpreid.report.comparison import (
    Row,
    collect_caveats,
    compare_jobs,
    describe_data,
    group_by_configuration,
    group_by_data,
    merge_caveats,
    short_data,
    split_deviations,
)
from sharpreid.report.figures import draw_curves, draw_histogram, draw_schedules, draw_sweep
from sharpreid.report.page import DRAWING_ERRORS, Picture, Section, identifier
from sharpreid.report.runs import Job, Run, read_experiment
from sharpreid.run.build import build_data
from sharpreid.run.comparability import caveats
from sharpreid.run.console import percent, score_of
from sharpreid.run.loading import load_network, read_views
from sharpreid.visualization.attention import (
    BlockAttention,
    MatchKind,
    RankedImage,
    draw_before_and_after,
    draw_masks,
    draw_ranked_lists,
    record_attention,
)

RANKED_LIST_LENGTH = 10

_SCHEDULES = {
    "Eq. 9, as in the paper": "paper",
    "cosine over the same epochs": "cosine_tau",
    "constant": "constant_tau",
}
"""Label -> file in conf/schedule."""

_CURVES = {
    "train/triplet": "triplet loss",
    "val/mAP": "mAP of held-out identities",
    "train/tau": "temperature",
}
_SHARPNESS = {
    f"train/{quantity}_block{block}": f"{title}, block {block}"
    for block in range(1, 5)
    for quantity, title in (("decided", "decided share"), ("entropy", "entropy (bit)"))
}
"""Logged quantity -> heading of its panel."""

_PREFERRED_METHODS = ("sab", "sab_cu", "sab_cu_tv", "baseline")


def schedule_section(figures: Path) -> Section:
    """Draw tau by epoch (Eq. 9), from the files of conf/schedule."""
    paths = _svg_and_png(figures, "tau")
    paper = OmegaConf.load(CONF_DIR / "schedule" / "paper.yaml").temperature
    curves = {
        label: instantiate(
            OmegaConf.merge(paper, OmegaConf.load(CONF_DIR / "schedule" / f"{file}.yaml").temperature)
        )
        for label, file in _SCHEDULES.items()
    }
    epochs = OmegaConf.load(CONF_DIR / "trainer" / "default.yaml").max_epochs
    draw_schedules(curves, epochs, paths)
    caption = f"tau by epoch, over the {epochs} epochs of the paper (Eq. 9)"
    return Section("Schedule of tau", pictures=[Picture(paths[0], caption)])


def sweep_section(name: str, jobs: Sequence[Job], figures: Path) -> Section:
    """Draw the scores of a sweep, its learning curves, and the sharpness of its masks."""
    baseline, claim = read_experiment(name)
    rows = compare_jobs(jobs, baseline)
    section = Section(f"Sweep {name}", texts=[claim] if claim else [], warnings=collect_caveats(rows))
    section.texts += [f"Scored on {short_data(part)}." for part in group_by_data(rows)]
    paths = _svg_and_png(figures, f"sweep {name}")
    for path in paths:
        draw_sweep(rows, path, title=name)
    shown = "differences to the baseline" if any(row.delta for row in rows) else "scores"
    section.pictures.append(Picture(paths[0], f"{name}: {shown}"))
    folders = _configuration_folders(rows)
    repeated = any(len(some) > 1 for some in folders.values())
    bands = "; bands: lowest to highest seed" if repeated else "; one seed each"
    for kind, panels, caption in (
        ("curves", _CURVES, "learning curves"),
        (
            "sharpness",
            _SHARPNESS,
            "sharpness of the masks (as in Fig. 2b): decided share of values, below 0.1 or above 0.9, and "
            "mean entropy",
        ),
    ):
        paths, title = _svg_and_png(figures, f"sweep {name} {kind}"), f"{name}: {caption}{bands}"
        try:
            drawn = draw_curves(folders, panels, paths, title=title.partition(" (")[0].partition(";")[0])
        except DRAWING_ERRORS as error:
            section.texts.append(f"Without {caption}: {error}")
        else:
            section.pictures += [Picture(paths[0], title)] if drawn else []
    return section


def _configuration_folders(rows: Sequence[Row]) -> dict[str, list[Path]]:
    """Return label of a configuration -> output folders of its seeds and splits, finished ones if any."""
    parts = group_by_data(rows)
    found: dict[str, list[Path]] = {}
    for part in parts:
        data = f" ({describe_data(part).partition(';')[0]})" if len(parts) > 1 else ""
        for one in group_by_configuration(part):
            found.setdefault(one.label + data, []).extend(row.job.folder for row in one.done or one.rows)
    return found


def attention_section(data: str, runs: Sequence[Run], images: int, figures: Path) -> Section:
    """Draw the masks of a run over photos of its test set, and a histogram of the mask values (Fig. 2b)."""
    run = choose_run([run for run in runs if run.config.model.blocks])
    if run is None:
        raise ValueError("no run with attention blocks has its checkpoint")
    views, attention = record_run_attention(run, images)
    sheet = draw_masks(views, attention, channels=0)
    caption = (
        "masks over the photo, means over the channels of each block; decided: the share of all values that "
        "are below 0.1 or above 0.9"
    )
    paths = _svg_and_png(figures, f"histogram {data}")
    blocks = {f"block {one.block}": one.mask for one in attention}
    draw_histogram(blocks, paths, title=f"Mask values, {run.method}, {data}")
    return Section(
        f"Attention on {data}",
        [_describe(run)],
        caveats(run.record),
        [
            _save_photos(sheet, figures / f"{identifier(f'masks {data}')}.png", caption),
            Picture(paths[0], "histogram of the mask values (as in Fig. 2b)"),
        ],
    )


def soft_and_sharp_section(data: str, runs: Sequence[Run], images: int, figures: Path) -> Section:
    """Draw soft and sharp attention of two comparable runs on the same images (Fig. 2 and 6)."""
    soft, sharp = _choose_soft_and_sharp(runs)
    views, sharp_attention = record_run_attention(sharp, images)
    soft_network = load_network(soft.checkpoint, soft.config).network
    both = {"soft": record_attention(soft_network, views), "sharp": sharp_attention}
    title = f"soft and sharp {data}"
    pictures = [
        _save_photos(
            draw_before_and_after(views, both, block=block),
            figures / f"{identifier(title)}-block{block}.png",
            f"block {block}: features before the mask, mask, features after the mask; means over channels; "
            "the colours of features span their own range",
        )
        for block in _drawable_blocks(sharp_attention)
    ]
    paths = _svg_and_png(figures, f"histogram {title}")
    values = {name: attention[0].mask for name, attention in both.items()}
    draw_histogram(values, paths, title=f"Mask values of block 1, soft and sharp, {data}")
    pictures.append(Picture(paths[0], "values of a soft and a sharp mask (as in Fig. 2b)"))
    warnings = merge_caveats([soft.record, sharp.record])
    return Section(f"Fig. 2 and 6 on {data}", [_describe(soft), _describe(sharp)], warnings, pictures)


def _drawable_blocks(attention: Sequence[BlockAttention]) -> list[int]:
    """Return the first and the last block whose maps have at least 4 x 2 positions."""
    blocks = [one.block for one in attention if one.mask[0, 0].numel() >= 8]
    return list(dict.fromkeys([*blocks[:1], *blocks[-1:]]))


def _choose_soft_and_sharp(runs: Sequence[Run]) -> tuple[Run, Run]:
    """Choose a soft and a sharp run of the same recipe, with the same seed if there are such runs."""
    for soft in _in_order_of_choice(run for run in runs if run.method == "sigmoid_gate"):
        alike = [
            run
            for run in runs
            if run.method in ("sab", "sab_cu", "sab_cu_tv")
            and run.record["dataset"] == soft.record["dataset"]
            and run.record.get("deviations") == soft.record.get("deviations")
            and run.config.image == soft.config.image
        ]
        sharp = choose_run([run for run in alike if run.job.seed == soft.job.seed]) or choose_run(alike)
        if sharp is not None:
            return soft, sharp
    raise ValueError("needs checkpoints of method=sigmoid_gate and of a sharp method, of the same recipe")


def ranked_section(data: str, runs: Sequence[Run], images: int, figures: Path) -> Section:
    """Draw the images that a run ranks first for some queries; this embeds the whole gallery."""
    run = choose_run(runs)
    if run is None:
        raise ValueError("no run has its checkpoint")
    print(f"ranked lists on {data}: embedding its queries and gallery with {run.checkpoint}", flush=True)
    sheet = ranked_lists(run, images)
    caption = (
        "query (blue), then the nearest images with their distances: the same person (green), another "
        "person (red), junk (grey)"
    )
    return Section(
        f"Ranked lists on {data}",
        [_describe(run), "The lists are of one plain view, without re-ranking."],
        caveats(run.record),
        [_save_photos(sheet, figures / f"{identifier(f'ranked {data}')}.png", caption)],
    )


def choose_run(runs: Sequence[Run]) -> Run | None:
    """Choose the run to show, without looking at its scores; None if no run has its checkpoint.

    Runs that are comparable with the paper come first, then those with the most iterations, so that a short
    trial never replaces a whole training. Among equals the order is plain sharp blocks, the fewest deviations
    from the paper's recipe, the lowest seed, the newest run. Taking the best run would be a choice on the
    test set.
    """
    return next(iter(_in_order_of_choice(runs)), None)


def _in_order_of_choice(runs: Iterable[Run]) -> list[Run]:
    """Sort the runs that have their checkpoint, see `choose_run`."""
    methods = {method: place for place, method in enumerate(_PREFERRED_METHODS)}
    return sorted(
        (run for run in runs if run.checkpoint.is_file()),
        key=lambda run: (
            bool(caveats(run.record)),
            -(run.record.get("iterations") or 0),
            -(run.record.get("epochs") or 0),  # early records have no iterations
            methods.get(run.method, len(methods)),
            len(split_deviations(run.record)),
            int(run.job.seed or 0),
            -run.job.started,
        ),
    )


def record_run_attention(run: Run, images: int) -> tuple[Tensor, list[BlockAttention]]:
    """Return the first queries of a run's test set and the attention of its trained network on them.

    Args:
        run: a run with attention blocks.
        images: number of queries, N.

    Returns:
        The normalised images, (N, 3, H, W), and the attention of each block.

    Raises:
        OSError: the checkpoint or an image is gone.
    """
    views = read_views(run.config, None, images)
    return views, record_attention(load_network(run.checkpoint, run.config).network, views)


@torch.no_grad()
def ranked_lists(run: Run, queries: int) -> Image.Image:
    """Draw queries, evenly spread over a run's test set, and the images that its network ranks first.

    Each image is embedded from one plain view, on a GPU if there is one. Junk of the query's identity, which
    the protocol excludes, is shown in its place but takes no rank.

    Raises:
        OSError: the checkpoint or an image is gone.
    """
    config = run.config.copy()
    config.data.eval_transform.crops = "plain"
    config.data.num_workers = 0
    data, module = build_data(config), load_network(run.checkpoint, config)
    data.setup("test")
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    found = [module.embed_views(batch.views.to(module.device)).cpu() for batch in data.test_dataloader()]
    embeddings = exact_embeddings("test", torch.cat(found)[: data.test.num_query + len(data.data.gallery)])
    count, exclusion = data.test.num_query, module.test_metric.protocol.exclusion
    chosen = range(0, count, max(1, count // queries))[:queries]
    return draw_ranked_lists([_ranked_list(data, embeddings, query, exclusion) for query in chosen])


def _ranked_list(
    data: ReIDDataModule, embeddings: Tensor, query: int, exclusion: str
) -> tuple[Image.Image, list[RankedImage]]:
    samples, count = data.test.samples, data.test.num_query
    query_sample, gallery = samples[query], samples[count : len(embeddings)]
    distances = (embeddings[count:] - embeddings[query]).norm(dim=1)
    order = torch.sort(distances, stable=True).indices.tolist()
    chosen = top_ranked(query_sample, gallery, order, exclusion)
    found = [RankedImage(load_image(gallery[place]), kind, distances[place].item()) for place, kind in chosen]
    return load_image(query_sample), found


def top_ranked(
    query: Sample, gallery: Sequence[Sample], order: Sequence[int], exclusion: str
) -> list[tuple[int, MatchKind]]:
    """Return the first `RANKED_LIST_LENGTH` ranked images of a list, and the junk between them.

    The list leaves out the query image itself, other people whom the protocol excludes, and more than
    `RANKED_LIST_LENGTH` junk images.

    Args:
        query: the query.
        gallery: G samples.
        order: indices into the gallery, (G,), the nearest first.
        exclusion: rule of the protocol, see `Protocol`.

    Returns:
        (index into the gallery, kind) of each shown image.
    """
    found: list[tuple[int, MatchKind]] = []
    ranked = junk = 0
    for place in order:
        sample = gallery[place]
        same_person, same_camera = sample.pid == query.pid, sample.camid == query.camid
        if not same_camera or (not same_person and exclusion != "same_camera"):
            found.append((place, "match" if same_person else "other"))
            ranked += 1
        elif same_person and sample.path != query.path and junk < RANKED_LIST_LENGTH:
            found.append((place, "junk"))
            junk += 1
        if ranked == RANKED_LIST_LENGTH:
            break
    return found


def _describe(run: Run) -> str:
    score = score_of(run.record.get("not_re_ranked") or run.record["scores"], "mAP")
    lengths = {"epochs": run.record.get("epochs"), "iterations": run.record.get("iterations")}
    length = ", ".join(f"{count} {name}" for name, count in lengths.items() if count is not None)
    return (
        f"Run {run.job.folder}: method {run.method}, {length or 'length unknown'}, seed {run.job.seed}, "
        f"mAP {percent(score)} %."
    )


def _svg_and_png(figures: Path, name: str) -> list[Path]:
    return [figures / f"{identifier(name)}{suffix}" for suffix in (".svg", ".png")]


def _save_photos(sheet: Image.Image, path: Path, caption: str) -> Picture:
    with replacing(path) as temporary:
        sheet.save(temporary)
    return Picture(path, caption)
