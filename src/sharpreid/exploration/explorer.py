"""Answers to the questions of the page: matches, masks, a map of the embeddings, a run's worst queries."""

import csv
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor

from sharpreid.attention.mask import MaskSampler, TestMask
from sharpreid.data.reid_data import DataError
from sharpreid.data.transforms import EvalTransform
from sharpreid.serving.gallery import Item
from sharpreid.serving.model import Embedder
from sharpreid.serving.query import Query, answer_queries
from sharpreid.serving.sources import read_picture
from sharpreid.serving.store import Filter, Match, Store
from sharpreid.visualization.attention import (
    draw_mask_comparison,
    draw_masks,
    record_attention,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ColourBy = Literal["camera", "identity", "track"]
MAP_POINTS = 2000
"""Largest number of points of a map: t-SNE of 2,000 embeddings takes a few seconds."""

_COLOURED = 10  # values with a colour of their own; matplotlib's tab10 has so many
_THUMBNAIL = (192, 384)


class Answer(NamedTuple):
    """Matches of a query, and what they mean."""

    matches: list[Match]
    """The nearest rows of the store, nearest first."""
    within: int
    """Number of matches whose distance is at most the threshold; 0 says that the person is unknown."""
    sentence: str


class WorstQuery(NamedTuple):
    """A query of a run and its scores."""

    image: str
    """Name of the file."""
    path: Path | None
    """The file, if it was found below the run's data folder."""
    identity: str
    camera: str
    average_precision: float
    """In [0, 1]."""
    rank1: bool


class Explorer:
    """Answers the questions of the page from a store of embeddings and the model that they are of.

    Args:
        store: the store.
        model: the model of the store's embeddings.
        beside: a second model, whose masks are drawn beside those of the first.
        run: directory of a run, whose worst queries are shown.

    Raises:
        ValueError: the store is empty, or its embeddings are of another model.
    """

    def __init__(
        self, store: Store, model: Embedder, *, beside: Embedder | None = None, run: Path | None = None
    ) -> None:
        if store.digest != model.digest:
            raise ValueError(
                f"the store's embeddings are of another model ({store.digest[:12]}..., not "
                f"{model.digest[:12]}...); give the model that embedded them, or build a new store"
            )
        self.store, self.model, self.beside, self.run = store, model, beside, run
        self.items, self.embeddings = store.read()
        if not self.items:
            raise ValueError("the store is empty; add images with python -m sharpreid.search add")
        self._model_lock = threading.Lock()

    @property
    def cameras(self) -> list[str]:
        """All cameras of the store, sorted by length and name, so that 2 comes before 10."""
        return sorted({item.camera for item in self.items if item.camera}, key=lambda name: (len(name), name))

    @property
    def times(self) -> tuple[float, float] | None:
        """Earliest and latest time in seconds; None if no row has one."""
        found = [item.time for item in self.items if item.time is not None]
        return (min(found), max(found)) if found else None

    @property
    def largest_distance(self) -> float:
        """Upper end of the range in which a threshold is sensible: the median distance of two rows."""
        rng = np.random.default_rng(0)
        some = self.embeddings[rng.integers(len(self.embeddings), size=(2, 1000))]
        median = float(np.median(np.linalg.norm(some[0] - some[1], axis=1)))
        return max(median, self.threshold or 0.0, 1e-3) * 1.5

    @property
    def threshold(self) -> float | None:
        """Calibrated threshold of the model; None if it has none."""
        found = self.model.config.threshold
        return None if found is None else found.distance

    def search(
        self,
        picture: Image.Image,
        where: Filter,
        *,
        count: int,
        threshold: float,
        leave_out: Item | None = None,
    ) -> Answer:
        """Find the rows of the store that are nearest to a picture of a person.

        Args:
            picture: the person.
            where: rows to search.
            count: largest number of matches, > 0.
            threshold: distance up to which a row counts as the same person.
            leave_out: a row that is no match, because the picture is its own.
        """
        with self._model_lock:  # draw_masks changes the masks of the model for a while
            embedding = self.model.embed(picture)[0]
        query = Query((leave_out or Item("uploaded"),), embedding)
        matches = next(answer_queries(self.store, [query], k=count, where=where)).matches
        within = sum(one.distance <= threshold for one in matches)
        if not matches:
            return Answer([], 0, "**Nothing to search**: no row of the store passes the filter.")
        nearest = (
            f"the nearest row is at distance {matches[0].distance:.3f}, the threshold is {threshold:.3f}"
        )
        if not within:
            return Answer(matches, 0, f"**Unknown person**: no row is within the threshold ({nearest}).")
        rows = "1 row is" if within == 1 else f"{within} rows are"
        return Answer(matches, within, f"**Found**: {rows} within the threshold ({nearest}).")

    def thumbnail(self, item: Item) -> Image.Image:
        """Read the person of a row, at most 192 x 384 pixels; a grey picture if the file is gone."""
        try:
            picture = read_picture(item)
        except DataError:
            return Image.new("RGB", (64, 128), (200, 200, 200))
        picture.thumbnail(_THUMBNAIL)
        return picture

    def sample(self, count: int, *, seed: int) -> list[Item]:
        """Return up to ``count`` rows, drawn by the seed."""
        chosen = np.random.default_rng(seed).permutation(len(self.items))[:count]
        return [self.items[number] for number in chosen]

    def draw_masks(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> Image.Image:
        """Draw the masks of each attention block over pictures of people.

        With a second model its masks are drawn beside those of the first. With one model whose masks are
        sharp, their soft masks are drawn beside them: the keep-probability of Eq. 3.

        Args:
            pictures: the people.
            names: captions, as many.

        Raises:
            ValueError: the model has no attention blocks, or the two models have different ones.
        """
        images = self._images(self.model, pictures)
        with self._model_lock:
            own = record_attention(self.model.network, images)
            if self.beside is not None:
                other = record_attention(self.beside.network, self._images(self.beside, pictures))
                return draw_mask_comparison(images, names, {"beside": other, "model": own})
            with _soft_masks(self.model) as samplers:
                soft = record_attention(self.model.network, images) if samplers else []
        if not soft:
            return draw_masks(images, own, channels=0)
        return draw_mask_comparison(images, names, {"soft": soft, "sharp": own})

    @staticmethod
    def _images(model: Embedder, pictures: Sequence[Image.Image]) -> Tensor:
        size = model.config.preprocessing
        transform = EvalTransform(height=size.height, width=size.width, crops="plain")
        transform.mean = model.transform.mean
        views = [transform(picture.convert("RGB")) for picture in pictures]
        return torch.cat(views).to(model.device)

    def draw_map(self, colour_by: ColourBy) -> "Figure":
        """Draw the embeddings in the plane by t-SNE, each point a row of the store.

        Of a store with more than `MAP_POINTS` rows that many are drawn by a fixed seed.

        Args:
            colour_by: what points of one colour have in common.

        Raises:
            ValueError: the store has fewer than four rows.
        """
        from matplotlib.figure import Figure
        from sklearn.manifold import TSNE

        if len(self.items) < 4:
            raise ValueError(f"a map needs at least 4 rows, and the store has {len(self.items)}")
        chosen = np.sort(np.random.default_rng(0).permutation(len(self.items))[:MAP_POINTS])
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
            self.embeddings[chosen].astype(np.float64)
        )
        values = [str(getattr(self.items[number], colour_by) or "not given") for number in chosen]
        figure = Figure(figsize=(7, 7), layout="constrained")
        axes = figure.subplots()
        for name, colour in _colours(values).items():
            rows = [number for number, value in enumerate(values) if value == name]
            axes.scatter(points[rows, 0], points[rows, 1], s=10, color=colour, label=name, linewidths=0)
        several = len(set(values))
        if several <= _COLOURED:
            axes.legend(title=colour_by, markerscale=2, fontsize=9)
        shown = f"{len(chosen):,} of {len(self.items):,} rows"
        axes.set_title(f"t-SNE of {shown}, coloured by {colour_by} ({several} values)", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        return figure

    def worst_queries(self, count: int) -> list[WorstQuery]:
        """Return the queries of the run with the lowest average precision, lowest first.

        Raises:
            FileNotFoundError: the run has no queries.csv.
        """
        if self.run is None:
            return []
        file = self.run / "queries.csv"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; expected the directory of a finished run")
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["ap"]]
        rows = sorted(rows, key=lambda row: float(row["ap"]))[:count]
        places = _files_of(self.run, {row["image"] for row in rows})
        return [
            WorstQuery(
                row["image"],
                places.get(row["image"]),
                row["identity"],
                row["camera"],
                float(row["ap"]),
                bool(float(row["rank1"])),
            )
            for row in rows
        ]


@contextmanager
def _soft_masks(model: Embedder) -> Iterator[list[MaskSampler]]:
    """Let the mask samplers of a model return pi of Eq. 3; yield those that otherwise return a sharp mask."""
    samplers = [module for module in model.network.modules() if isinstance(module, MaskSampler)]
    samplers = [one for one in samplers if one.test_mask != "expected"]
    before: list[TestMask] = [one.test_mask for one in samplers]
    for one in samplers:
        one.test_mask = "expected"
    try:
        yield samplers
    finally:
        for one, mask in zip(samplers, before, strict=True):
            one.test_mask = mask


def _colours(values: Sequence[str]) -> Mapping[str, object]:
    """Return a colour for each value, most frequent first; beyond ten values they are spread over a map."""
    from matplotlib import colormaps

    names = [name for name, _ in Counter(values).most_common()]
    if len(names) <= _COLOURED:
        return {name: colormaps["tab10"](number) for number, name in enumerate(names)}
    return {name: colormaps["turbo"](number / (len(names) - 1)) for number, name in enumerate(sorted(names))}


def _files_of(run: Path, names: set[str]) -> dict[str, Path]:
    """Find image files by name below the data folder that a run's config.yaml names.

    A name that occurs several times is found only in a folder called query.
    """
    try:
        root = Path(str(OmegaConf.load(run / "config.yaml").data.source.root))
    except (OSError, yaml.YAMLError, OmegaConfBaseException):
        return {}
    found: dict[str, list[Path]] = {}
    for place, _, files in os.walk(root):
        for name in names.intersection(files):
            found.setdefault(name, []).append(Path(place, name))
    queries = {name: [one for one in some if one.parent.name == "query"] for name, some in found.items()}
    chosen = {name: queries[name] or some for name, some in found.items()}
    return {name: some[0] for name, some in chosen.items() if len(some) == 1}
