"""The ranking scores as a metric that is fed in batches, on any number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sharpreid.evaluation.hard_pairs import Pair, score_hard_pairs
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import ReRanking, evaluate_ranking
from sharpreid.evaluation.scores import RankingScores


class ReIDMetric(Metric):
    """Collects embeddings and scores them with `evaluate_ranking`; the score of one process on any number.

    Samples are put in the order of their index, so neither the order of the batches nor the sharding
    matters; a repeated index (a padded shard) counts once. Feed it with `update`, not by calling it: a
    single batch cannot be ranked. Each process must have been given at least one sample.

    Args:
        protocol: the rules, such as `Protocol.market1501()`.
        expected: number of samples, query and gallery; their indices are then 0 to expected - 1, and a
            missing one is an error. None leaves this unchecked.
        pooled_into: multi-query: for each index the lower one whose embedding its own is averaged with, or
            itself, integer, (expected,), see `pool`. None pools nothing.
        re_ranking: such as `KReciprocal(...)`; None ranks by distance alone. Not for choosing a model.
        hard_pairs: people who differ in one detail, see `score_hard_pairs`; empty does not score them.
        kwargs: those of `torchmetrics.Metric`; `compute_on_cpu=True` holds the embeddings in main memory
            and ranks there (with several processes this needs a backend that gathers on the CPU, so not
            NCCL alone).

    >>> metric = ReIDMetric(protocol=Protocol.market1501(), expected=3)
    >>> metric.update(
    ...     torch.tensor([[0.0], [0.1], [0.3]]), torch.tensor([1, 2, 1]), torch.tensor([1, 1, 2]),
    ...     is_query=torch.tensor([True, False, False]), index=torch.tensor([0, 1, 2]),
    ... )
    >>> metric.compute().mAP
    0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    embeddings: list[Tensor]
    pids: list[Tensor]
    camids: list[Tensor]
    is_query: list[Tensor]
    index: list[Tensor]

    def __init__(
        self,
        *,
        protocol: Protocol,
        expected: int | None = None,
        pooled_into: Tensor | None = None,
        re_ranking: ReRanking | None = None,
        hard_pairs: Sequence[Pair] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.protocol = protocol
        self.expected = expected
        self.pooled_into = pooled_into
        self.re_ranking = re_ranking
        self.hard_pairs = hard_pairs
        for state in ("embeddings", "pids", "camids", "is_query", "index"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self, embeddings: Tensor, pids: Tensor, camids: Tensor, is_query: Tensor, index: Tensor
    ) -> None:
        """Add a batch.

        Args:
            embeddings: float, (B, D); held as float32.
            pids, camids: identity and camera, integer, (B,).
            is_query: bool, (B,); the others are the gallery.
            index: place of the sample in the data set, query and gallery counted as one, integer, (B,).
        Raises:
            ValueError: a shape or type does not fit.
        """
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings must be (B, D), got {tuple(embeddings.shape)}")
        if is_query.dtype != torch.bool:
            raise ValueError(f"is_query must be bool, got {is_query.dtype}")
        for name, values in (("pids", pids), ("camids", camids), ("is_query", is_query), ("index", index)):
            if values.shape != embeddings.shape[:1]:
                wanted, came = tuple(embeddings.shape[:1]), tuple(values.shape)
                raise ValueError(f"{name} must have shape {wanted} like the embeddings, got {came}")
            if values.is_floating_point():
                raise ValueError(f"{name} must be integers, got {values.dtype}")
        self.embeddings.append(embeddings.detach().float())
        self.pids.append(pids.long())
        self.camids.append(camids.long())
        self.is_query.append(is_query)
        self.index.append(index.long())

    def compute(self) -> RankingScores:
        """Scores of all samples seen by all processes.

        Raises:
            ValueError: samples are missing or unexpected, one index came with two labels, or whatever
                `evaluate_ranking` refuses.
        """
        index, order = dim_zero_cat(self.index).sort(stable=True)
        labels = torch.stack([dim_zero_cat(s).long() for s in (self.pids, self.camids, self.is_query)], 1)[
            order
        ]
        is_repeat = torch.zeros_like(index, dtype=torch.bool)
        is_repeat[1:] = index[1:] == index[:-1]
        _check_repeats(index, labels, is_repeat)
        index, labels = index[~is_repeat], labels[~is_repeat]
        if self.expected is not None:
            _check_complete(index, self.expected)
        embeddings = dim_zero_cat(self.embeddings)[order[~is_repeat]]
        if self.pooled_into is not None:
            _check_complete(index, len(self.pooled_into))
            embeddings = pool(embeddings, self.pooled_into)
            labels = labels[: len(embeddings)]
        query = labels[:, 2].bool()
        if not 0 < int(query.sum()) < len(query):
            raise ValueError(
                f"need queries and gallery, got {int(query.sum())} queries of {len(query)} samples"
            )
        items = (
            embeddings[query],
            labels[query, 0],
            labels[query, 1],
            embeddings[~query],
            labels[~query, 0],
            labels[~query, 1],
        )
        scores = evaluate_ranking(*items, protocol=self.protocol, re_ranking=self.re_ranking)
        if not self.hard_pairs:
            return scores
        return replace(scores, hard_pairs=score_hard_pairs(*items, pairs=self.hard_pairs))

    def _wrap_compute(self, compute: Callable[[], RankingScores]) -> Callable[[], RankingScores]:
        """As in the base class, with the scores in a box: torchmetrics refuses to walk a frozen dataclass."""
        boxed = super()._wrap_compute(wraps(compute)(lambda: SimpleNamespace(scores=compute())))

        @wraps(compute)
        def unboxed() -> RankingScores:
            scores: RankingScores = boxed().scores
            return scores

        return unboxed


def pool(embeddings: Tensor, into: Tensor) -> Tensor:
    """Mean of the embeddings that share a place, float32, (P, D); a row alone in its place keeps its bits.

    Args:
        embeddings: float32, (N, D).
        into: place of each row, integer, (N,); every place from 0 to P - 1 has a row.

    >>> pool(torch.tensor([[1.0], [5.0], [2.0], [6.0]]), torch.tensor([0, 1, 0, 0])).tolist()
    [[3.0], [5.0]]
    """
    into = into.cpu()  # where sums are taken in the order of the rows, the same each time
    sizes = torch.bincount(into)
    sums = torch.zeros(len(sizes), embeddings.shape[1], dtype=torch.float64)
    sums.index_add_(0, into, embeddings.cpu().double())
    return (sums / sizes[:, None]).float().to(embeddings.device)


def _check_repeats(index: Tensor, labels: Tensor, is_repeat: Tensor) -> None:
    differs = is_repeat.clone()
    differs[1:] &= (labels[1:] != labels[:-1]).any(1)
    rows = differs.nonzero().flatten().tolist()
    if rows:
        row = rows[0]
        raise ValueError(
            f"{len(rows)} repeated samples differ in (pid, camid, is_query) from the copy before them, first "
            f"index {index[row].item()}: {labels[row - 1].tolist()} and {labels[row].tolist()}. An index is "
            "the sample's place in the data set, query and gallery counted as one"
        )


def _check_complete(index: Tensor, expected: int) -> None:
    unknown = index[(index < 0) | (index >= expected)]
    if len(unknown):
        raise ValueError(
            f"indices must be 0 to {expected - 1}, got {len(unknown)} others, first {unknown[:5].tolist()}"
        )
    missing = torch.ones(expected, dtype=torch.bool, device=index.device)
    missing[index] = False
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} of {expected} samples are missing, the first have index "
            f"{missing.nonzero().flatten()[:5].tolist()}; was the metric given every batch of every shard?"
        )
