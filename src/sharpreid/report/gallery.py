"""The report's pictures of one trained network: what it attends to and what it finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sharpreid.config import build_data
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.reid_data import Sample
from sharpreid.data.transforms import read_image
from sharpreid.evaluation.ranking import exact_embeddings
from sharpreid.report.gather import Run
from sharpreid.report.pictures import Attention, Found, attend, draw_ranked_lists
from sharpreid.visualize import load_network, read_views

SHOWN = 10
"""Places of a ranked list."""


def attention_of(run: Run, images: int) -> tuple[Tensor, list[Attention]]:
    """The first queries of a run's test set, normalised, and what its trained network attends to.

    Raises:
        OSError: checkpoint or data are gone.
    """
    views = read_views(run.config, None, images)
    return views, attend(load_network(run.checkpoint, run.config).network, views)


@torch.no_grad()
def ranked_lists(run: Run, queries: int) -> Image.Image:
    """Queries spread over a run's test set and what its trained network ranks first, by one plain view.

    Junk, which the protocol leaves out, is shown where it would be but has no rank.

    Raises:
        OSError: checkpoint or data are gone.
    """
    config = run.config.copy()
    config.data.eval_transform.crops = "plain"
    config.data.num_workers = 0
    data, module = build_data(config), load_network(run.checkpoint, config)
    data.setup("test")
    embeddings = torch.cat([module.embed_views(batch.views) for batch in data.test_dataloader()])
    embeddings = exact_embeddings("test", embeddings[: data.test.num_query + len(data.data.gallery)])
    count, exclusion = data.test.num_query, module.test_metric.protocol.exclusion
    chosen = range(0, count, max(1, count // queries))[:queries]
    return draw_ranked_lists([_one_list(data, embeddings, query, exclusion) for query in chosen])


def _one_list(
    data: ReIDDataModule, embeddings: Tensor, query: int, exclusion: str
) -> tuple[Image.Image, list[Found]]:
    samples, count = data.test.samples, data.test.num_query
    distances = (embeddings[count:] - embeddings[query]).norm(dim=1)
    order = torch.sort(distances, stable=True).indices.tolist()
    found: list[Found] = []
    for place in order:
        sample = samples[count + place]
        verdict = _verdict(samples[query], sample, exclusion)
        found.append(Found(picture(sample), verdict, distances[place].item()))
        if sum(one.verdict != "junk" for one in found) == SHOWN or len(found) == 2 * SHOWN:
            break
    return picture(samples[query]), found


def _verdict(query: Sample, sample: Sample, exclusion: str) -> str:
    same = sample.pid == query.pid
    if sample.camid == query.camid and (same or exclusion == "same_camera"):
        return "junk"
    return "match" if same else "other"


def picture(sample: Sample) -> Image.Image:
    """A sample's image, cut to its box."""
    whole = read_image(Path(sample.path))
    return whole.crop(sample.box) if sample.box else whole


def best(runs: Sequence[Run], **wanted: Any) -> Run | None:
    """The run with the highest mAP among those with a checkpoint at hand that match; None if there is none.

    Args:
        runs: of `gather`.
        wanted: ``method`` or ``data`` -> value.
    """
    found = [
        run
        for run in runs
        if run.checkpoint.is_file() and all(getattr(run, key) == value for key, value in wanted.items())
    ]
    return max(found, key=lambda run: run.job.score("mAP") or 0.0, default=None)
