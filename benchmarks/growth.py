"""How time and memory grow: with the gallery, the batch, the image, the attention blocks and the processes.

``python -m benchmarks.growth [--output DIR]`` writes growth.json and one SVG per curve.
About ten minutes on two cores.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.embeddings import make
from sharpreid.evaluation import ranking
from sharpreid.evaluation.ranking import Protocol, evaluate_ranking
from sharpreid.recipe import paper_network


class Curve(NamedTuple):
    """Costs over one quantity."""

    name: str
    quantity: str
    values: list[int]
    seconds: list[float]
    megabytes: list[float | None]

    def exponents(self) -> tuple[float, float | None]:
        """Slopes of time and memory in the logarithm, by least squares: 1 is linear."""
        memory = None
        if all(self.megabytes):
            memory = _slope(self.values, [value or 0.0 for value in self.megabytes])
        return _slope(self.values, self.seconds), memory


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def score(gallery: int) -> Callable[[], float]:
    """Scoring of 500 queries against a gallery of which 50,000 at most are matches."""
    matching = min(gallery // 2, 50_000)
    data = make(500, matching, gallery - matching, 250, 6, dim=128)
    ranking.COMPILED_FROM = 0
    evaluate_ranking(*(x[:64] for x in data), protocol=Protocol(name="warm-up", junk_identity=None))
    return lambda: evaluate_ranking(*data, protocol=Protocol.market1501()).mAP


def step(batch: int, height: int, blocks: int) -> Callable[[], float]:
    """Forward and backward pass of ResNet-50 with the first so many attention blocks, float32."""
    network = paper_network(blocks=list(range(1, blocks + 1)))
    images = torch.randn(batch, 3, height, height // 2).to(memory_format=torch.channels_last)

    def run() -> float:
        output = network(images)
        output.embedding.square().mean().backward()
        return float(output.embedding.detach().norm())

    run()
    return run
