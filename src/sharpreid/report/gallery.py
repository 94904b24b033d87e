"""The report's pictures of one trained network: what it attends to and what it finds."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from sharpreid.data.datamodule import ReIDDataModule, picture_of
from sharpreid.data.reid_data import Sample
from sharpreid.evaluation.exact import exact_embeddings
from sharpreid.report.gather import Run
from sharpreid.run.build import build_data
from sharpreid.run.comparability import caveats
from sharpreid.run.loading import load_network, read_views
from sharpreid.visualization.attention import (
    BlockAttention,
    MatchKind,
    RankedImage,
    draw_ranked_lists,
    record_attention,
)

_METHODS = ("sab", "sab_cu", "sab_cu_tv", "baseline")

SHOWN = 10
"""Places of a ranked list."""


def attention_of(run: Run, images: int) -> tuple[Tensor, list[BlockAttention]]:
    """The first queries of a run's test set, normalised, and what its trained network attends to.

    Raises:
        OSError: checkpoint or data are gone.
    """
    views = read_views(run.config, None, images)
    return views, record_attention(load_network(run.checkpoint, run.config).network, views)


@torch.no_grad()
def ranked_lists(run: Run, queries: int) -> Image.Image:
    """Queries spread over a run's test set and what its trained network ranks first, by one plain view.

    The whole gallery is embedded, on a GPU where there is one. Junk of the query's identity, which the
    protocol leaves out, is shown where it would be but has no rank.

    Raises:
        OSError: checkpoint or data are gone.
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
    return draw_ranked_lists([_one_list(data, embeddings, query, exclusion) for query in chosen])


def _one_list(
    data: ReIDDataModule, embeddings: Tensor, query: int, exclusion: str
) -> tuple[Image.Image, list[RankedImage]]:
    samples, count = data.test.samples, data.test.num_query
    asked, gallery = samples[query], samples[count : len(embeddings)]
    distances = (embeddings[count:] - embeddings[query]).norm(dim=1)
    order = torch.sort(distances, stable=True).indices.tolist()
    chosen = first_places(asked, gallery, order, exclusion)
    found = [
        RankedImage(picture_of(gallery[place]), verdict, distances[place].item()) for place, verdict in chosen
    ]
    return picture_of(asked), found


def first_places(
    query: Sample, gallery: Sequence[Sample], order: Sequence[int], exclusion: str
) -> list[tuple[int, MatchKind]]:
    """The first `SHOWN` ranked places of a list, and the junk of the query's identity between them.

    Left out are the query's own image, other people whom the protocol excludes, and junk beyond `SHOWN`.

    Args:
        query: what is looked for.
        gallery: the images that ``order`` counts.
        order: all of them, the nearest first.
        exclusion: of the protocol, see `Protocol`.
    """
    found: list[tuple[int, MatchKind]] = []
    ranked = junk = 0
    for place in order:
        sample = gallery[place]
        same_person, same_camera = sample.pid == query.pid, sample.camid == query.camid
        if not same_camera or (not same_person and exclusion != "same_camera"):
            found.append((place, "match" if same_person else "other"))
            ranked += 1
        elif same_person and sample.path != query.path and junk < SHOWN:
            found.append((place, "junk"))
            junk += 1
        if ranked == SHOWN:
            break
    return found


def _place(run: Run) -> int:
    return _METHODS.index(run.method) if run.method in _METHODS else len(_METHODS)


def first_choice(runs: Sequence[Run]) -> Run | None:
    """The run to be shown of several: one that compares with the paper, before all with plain sharp blocks.

    Of several such, the newest of the lowest seed.

    Never the best: that would be chosen on the test set. None if no run has its checkpoint at hand.
    """
    at_hand = [run for run in runs if run.checkpoint.is_file()]
    return min(
        at_hand,
        key=lambda run: (bool(caveats(run.record)), _place(run), int(run.job.seed or 0), -run.job.started),
        default=None,
    )
