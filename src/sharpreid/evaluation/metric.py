"""The ranking scores as a torchmetrics metric, which collects batches from any number of processes."""

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
    """Metric that collects embeddings and scores them with `evaluate_ranking`.

    Samples are sorted by their index, so neither the order of the batches nor the sharding changes the score.
    An index that is repeated to pad a shard counts once. Each process must receive at least one sample. Use
    `update`: calling the metric on a single batch is pointless, because a batch cannot be ranked.

    Args:
        protocol: the rules, for example `Protocol.market1501()`.
        expected: number of samples, queries and gallery. Their indices must then be 0 to ``expected`` - 1,
            and a missing one is an error. None disables this check.
        query_group: for multi-query evaluation, the group of each sample, integer, (expected,): the
            embeddings of a group are averaged by `average_groups`, and the result takes the labels of the
            sample whose index is the number of the group. None disables averaging.
        re_ranking: for example `KReciprocal(...)`; None ranks by distance alone. Not for model selection.
        hard_pairs: pairs of people who differ in one detail, see `score_hard_pairs`; may be empty.
        kwargs: arguments of `torchmetrics.Metric`. ``compute_on_cpu=True`` keeps the embeddings in main
            memory and ranks there; several processes then need a backend that gathers on the CPU, so not
            NCCL alone.

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
        query_group: Tensor | None = None,
        re_ranking: ReRanking | None = None,
        hard_pairs: Sequence[Pair] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.protocol = protocol
        self.expected = expected
        self.query_group = query_group
        self.re_ranking = re_ranking
        self.hard_pairs = hard_pairs
        for state in ("embeddings", "pids", "camids", "is_query", "index"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self, embeddings: Tensor, pids: Tensor, camids: Tensor, is_query: Tensor, index: Tensor
    ) -> None:
        """Add a batch.

        Args:
            embeddings: float, (B, D); stored as float32 without their graph.
            pids, camids: identities and cameras, integer, (B,).
            is_query: bool, (B,); False for the gallery.
            index: position of the sample in the data set, where queries and gallery share one numbering,
                integer, (B,).

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
        """Score all samples of all processes.

        Raises:
            ValueError: samples are missing or unexpected, an index has two different labels, or
                `evaluate_ranking` rejects the samples.
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
        if self.query_group is not None:
            _check_complete(index, len(self.query_group))
            embeddings = average_groups(embeddings, self.query_group)
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
        """Wrap ``compute`` with its result in a namespace, as torchmetrics cannot map a frozen dataclass."""
        boxed = super()._wrap_compute(wraps(compute)(lambda: SimpleNamespace(scores=compute())))

        @wraps(compute)
        def unboxed() -> RankingScores:
            scores: RankingScores = boxed().scores
            return scores

        return unboxed


def average_groups(embeddings: Tensor, group: Tensor) -> Tensor:
    """Average the embeddings of each group.

    Args:
        embeddings: float32, (N, D).
        group: group of each row, integer, (N,); every group from 0 to P - 1 has a row.

    Returns:
        float32, (P, D). A row that is alone in its group keeps its bits.

    >>> average_groups(torch.tensor([[1.0], [5.0], [2.0], [6.0]]), torch.tensor([0, 1, 0, 0])).tolist()
    [[3.0], [5.0]]
    """
    group = group.cpu()  # on the CPU index_add_ adds the rows in order: reproducible sums
    sizes = torch.bincount(group)
    sums = torch.zeros(len(sizes), embeddings.shape[1], dtype=torch.float64)
    sums.index_add_(0, group, embeddings.cpu().double())
    return (sums / sizes[:, None]).float().to(embeddings.device)


def _check_repeats(index: Tensor, labels: Tensor, is_repeat: Tensor) -> None:
    """Raise ValueError if samples with the same index have different labels."""
    differs = is_repeat.clone()
    differs[1:] &= (labels[1:] != labels[:-1]).any(1)
    rows = differs.nonzero().flatten().tolist()
    if rows:
        row = rows[0]
        raise ValueError(
            f"{len(rows)} repeated samples differ in (pid, camid, is_query) from the copy before them, first "
            f"index {index[row].item()}: {labels[row - 1].tolist()} and {labels[row].tolist()}. An index is "
            "the sample's position in the data set, where queries and gallery share one numbering"
        )


def _check_complete(index: Tensor, expected: int) -> None:
    """Raise ValueError unless the indices are 0 to ``expected`` - 1."""
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
