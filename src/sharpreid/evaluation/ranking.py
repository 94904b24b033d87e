"""CMC and mean average precision of a person re-identification ranking (Sec. IV-A).

The scores need only the ranks of each query's matches. For a chunk of queries, one matrix product gives the
distances, and counting the items at least as near as each match gives its rank.

The following holds for every protocol:

* Ties count against the query: among items at exactly the same distance, negatives are ranked first. The
  score therefore does not depend on the order of the files, and a collapsed model, for which all items are
  tied, gets the worst possible score.
* Items excluded from a query's ranking (junk) cost no rank.
* Identity 0, the distractor, is a negative of every query. Identity -1 is junk.
* Distances are exact (see `sharpreid.evaluation.exact`), so a score has the same bits for any chunk size,
  number of threads, device or order of the files, also under autocast. Only the random draws of a single-shot
  gallery depend on the order of the gallery.
"""

import math
import typing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sharpreid.evaluation.exact import (
    CHUNK_BYTES,
    Array,
    DistanceFunction,
    as_tensor,
    check_chunk_size,
    chunk_slices,
    exact_pair,
    shifted_squared_distances,
)
from sharpreid.evaluation.functional import (
    average_precision,
    average_precision_trapezoid,
    count_first_matches,
    hit_ranks,
)
from sharpreid.evaluation.numba_kernels import use_numba
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.scores import QueryScores, RankingScores


class ReRanking(typing.Protocol):
    """Interface of a re-ranking method, such as those in `sharpreid.evaluation.re_ranking`.

    A method is given no identities, so it cannot use any.
    """

    def describe(self) -> str:
        """Return the name of the method and its parameters, which are printed with a score."""
        ...

    def distances(
        self,
        query: Tensor,
        gallery: Tensor,
        query_camids: Tensor,
        gallery_camids: Tensor,
        chunk_size: int | None,
    ) -> DistanceFunction:
        """Return a function that computes the re-ranked distances of some queries.

        Args:
            query, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D).
            query_camids, gallery_camids: cameras, int64, (Q,) and (G,).
            chunk_size: rows of a distance matrix held at a time; None for as many as `CHUNK_BYTES` hold.
        """
        ...


def evaluate_ranking(
    query_embeddings: Array,
    query_pids: Array,
    query_camids: Array,
    gallery_embeddings: Array,
    gallery_pids: Array,
    gallery_camids: Array,
    *,
    protocol: Protocol,
    chunk_size: int | None = None,
    re_ranking: ReRanking | None = None,
) -> RankingScores:
    """Rank the gallery by Euclidean distance for every query, and score the rankings.

    The computation runs on the device of ``query_embeddings``. It holds the distances of ``chunk_size``
    queries at a time (32 MiB by default) and the ranks of all matches, never a Q x G matrix.

    With ``re_ranking``, the scores are those of the re-ranked gallery, and their field ``plain`` has the
    scores without it. Junk identities take no part in the re-ranking. Each drawn gallery is re-ranked
    separately, with the queries of one camera.

    Args:
        query_embeddings: finite, any float type, (Q, D), tensor or array; converted to float32.
        query_pids: identities, integer, (Q,).
        query_camids: cameras, integer, (Q,). For data without cameras, give all queries one camera and the
            gallery another.
        gallery_embeddings, gallery_pids, gallery_camids: the same for the gallery, (G, D), (G,), (G,).
        protocol: the rules, for example `Protocol.market1501()`.
        chunk_size: number of queries at a time; does not change the result.
        re_ranking: for example `KReciprocal(...)`; None ranks by distance alone.

    Raises:
        ValueError: shapes or types do not fit, an embedding is NaN or infinite, a query is junk or a
            distractor, or no query has a valid match.

    >>> scores = evaluate_ranking(
    ...     torch.tensor([[0.0]]), torch.tensor([1]), torch.tensor([1]),
    ...     torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([1, 2, 1]), torch.tensor([1, 1, 2]),
    ...     protocol=Protocol.market1501(),
    ... )
    >>> scores.mAP, scores.mAP_trapezoid, scores.rank(1), scores.rank(2)
    (0.5, 0.25, 0.0, 1.0)
    """
    check_chunk_size(chunk_size)
    names = "query_embeddings", "gallery_embeddings"
    exact_query, exact_gallery = exact_pair(query_embeddings, gallery_embeddings, names)
    query = _Samples.from_arrays("query", exact_query, query_pids, query_camids)
    gallery = _Samples.from_arrays("gallery", exact_gallery, gallery_pids, gallery_camids)
    _check_query_identities(query, protocol)
    if protocol.junk_identity is not None and (junk := gallery.pids == protocol.junk_identity).any():
        gallery = gallery.select(~junk)

    plain = _Ranker(protocol, chunk_size).scores(query, gallery)
    if re_ranking is None:
        return plain
    re_ranked = _Ranker(protocol, chunk_size, re_ranking).scores(query, gallery)
    return replace(re_ranked, re_ranking=re_ranking.describe(), plain=plain)


@dataclass(frozen=True, eq=False)
class _Samples:
    """Embeddings, identities and cameras of the queries or the gallery."""

    embeddings: Tensor
    pids: Tensor
    camids: Tensor

    @classmethod
    def from_arrays(cls, name: str, embeddings: Tensor, pids: Array, camids: Array) -> "_Samples":
        """Check the labels and move them to the device of the embeddings."""
        labels = []
        for field, values in ((f"{name}_pids", as_tensor(pids)), (f"{name}_camids", as_tensor(camids))):
            if values.is_floating_point() or values.dtype in (torch.bool, torch.complex64, torch.complex128):
                raise ValueError(f"{field} must be integers, got {values.dtype}")
            if values.shape != embeddings.shape[:1]:
                raise ValueError(
                    f"{field} must have one value per row of {name}_embeddings, shape ({len(embeddings)},), "
                    f"got {tuple(values.shape)}"
                )
            labels.append(values.to(embeddings.device, torch.int64))
        return cls(embeddings, *labels)

    def select(self, rows: Tensor | slice) -> "_Samples":
        return _Samples(self.embeddings[rows], self.pids[rows], self.camids[rows])

    def __len__(self) -> int:
        return len(self.pids)


@dataclass(frozen=True)
class _Ranker:
    """Ranks and scores galleries under one protocol."""

    protocol: Protocol
    chunk_size: int | None
    re_ranking: ReRanking | None = None

    def scores(self, query: _Samples, gallery: _Samples) -> RankingScores:
        """Score the rankings of a gallery without junk identities."""
        protocol = self.protocol
        full = self.match_ranks(query, gallery)
        valid = int((full[:, 0] > 0).sum())
        if valid == 0:
            raise ValueError(_explain_no_match(query, gallery, protocol))
        drawn = [full]
        if protocol.gallery_per_identity is not None:
            drawn = [self._match_ranks_in_draw(query, gallery, n) for n in range(protocol.repeats)]
        for_map = torch.cat(drawn if protocol.map_on == "drawn_gallery" else [full])

        divisor = valid if protocol.denominator == "valid_queries" else len(full)
        cmc = torch.stack([count_first_matches(ranks, protocol.max_rank) for ranks in drawn]) / divisor
        rankings = divisor * len(for_map) // len(full)
        return RankingScores(
            protocol=protocol,
            mAP=math.fsum(average_precision(for_map).tolist()) / rankings,
            mAP_trapezoid=math.fsum(average_precision_trapezoid(for_map).tolist()) / rankings,
            cmc=tuple(cmc.mean(0).tolist()),
            cmc_std=tuple(cmc.std(0, correction=0).tolist()),
            num_valid_queries=valid,
            num_invalid_queries=len(full) - valid,
            queries=QueryScores(
                ap=_mean_over_draws(average_precision(for_map), full),
                rank1=_mean_over_draws(torch.cat(drawn)[:, 0] == 1, full),
            ),
        )

    def match_ranks(self, query: _Samples, gallery: _Samples) -> Tensor:
        """Return the ranks of each query's matches, int64, (Q, P), P >= 1, on the CPU; 0 pads."""
        if len(gallery) == 0:
            return torch.zeros(len(query), 1, dtype=torch.int64)
        order = gallery.pids.argsort(stable=True)
        in_given_order, gallery = gallery, gallery.select(order)
        first = torch.searchsorted(gallery.pids, query.pids)
        end = torch.searchsorted(gallery.pids, query.pids, right=True)
        if self.re_ranking is None and use_numba(len(query), len(gallery), query.pids.device):
            from sharpreid.evaluation.numba_kernels import ranking as compiled

            return compiled.match_ranks(
                compiled.Queries(query.embeddings, query.camids, first, end),
                compiled.Gallery(gallery.embeddings, gallery.camids),
                exclude_same_camera=self.protocol.exclusion == "same_camera",
                chunk_size=self.chunk_size,
            )
        distances = self._distances(query, in_given_order, order)
        places = torch.arange(max(1, int((end - first).max())), device=first.device)
        ranks = []
        for chunk in chunk_slices(len(query), 8 * len(gallery), self._rows_per_chunk(gallery)):
            camids = query.camids[chunk]
            match_qp = first[chunk, None] + places
            match_qp = match_qp.masked_fill(match_qp >= end[chunk, None], -1)
            distance_qg = distances(chunk)
            if self.protocol.exclusion == "same_camera":
                distance_qg.masked_fill_(camids[:, None] == gallery.camids, torch.inf)
            else:
                same_camera = gallery.camids[match_qp] == camids[:, None]
                junk, place = ((match_qp >= 0) & same_camera).nonzero(as_tuple=True)
                distance_qg[junk, match_qp[junk, place]] = torch.inf
            ranks.append(hit_ranks(distance_qg, match_qp).cpu())
        return torch.cat(ranks)

    def _distances(self, query: _Samples, gallery: _Samples, order: Tensor) -> DistanceFunction:
        """Return the distances to the gallery whose rows are reordered by ``order``."""
        if self.re_ranking is None:
            return shifted_squared_distances(query.embeddings, gallery.embeddings[order])
        in_given_order = self.re_ranking.distances(
            query.embeddings, gallery.embeddings, query.camids, gallery.camids, self.chunk_size
        )
        return lambda rows: in_given_order(rows)[:, order]

    def _rows_per_chunk(self, gallery: _Samples) -> int | None:
        """Return the chunk size; on a GPU the default takes an eighth of the free memory."""
        device = gallery.pids.device
        if self.chunk_size or device.type != "cuda":
            return self.chunk_size
        budget = max(CHUNK_BYTES, torch.cuda.mem_get_info(device)[0] // 8)  # the distances are copied
        return max(1, budget // (8 * len(gallery)))

    def _match_ranks_in_draw(self, query: _Samples, gallery: _Samples, draw: int) -> Tensor:
        """Return `match_ranks` in a gallery that is drawn at random for each camera of the queries."""
        protocol, per_identity = self.protocol, self.protocol.gallery_per_identity or 1
        generator = np.random.default_rng([protocol.seed, protocol.split, draw])
        shuffled = torch.from_numpy(generator.random(len(gallery)).argsort()).to(gallery.pids.device)
        ranks = torch.zeros(len(query), per_identity, dtype=torch.int64)
        for camera in torch.unique(query.camids):
            other = shuffled[gallery.camids[shuffled] != camera]
            other = other[gallery.pids[other].argsort(stable=True)]
            pids = gallery.pids[other]
            place = torch.arange(len(pids), device=pids.device) - torch.searchsorted(pids, pids)
            taken = place < per_identity
            if protocol.distractor_identity is not None:
                taken |= pids == protocol.distractor_identity
            rows = query.camids == camera
            drawn = gallery.select(other[taken].sort().values)  # rows sorted by identity would reveal it
            found = self.match_ranks(query.select(rows), drawn)
            ranks[rows.cpu(), : found.shape[1]] = found
        return ranks


def _mean_over_draws(values: Tensor, full: Tensor) -> npt.NDArray[np.float64]:
    """Return the mean of each query's values over consecutive draws; NaN for a query without a match."""
    mean = values.double().view(-1, len(full)).mean(0)
    return mean.masked_fill(full[:, 0] == 0, torch.nan).cpu().numpy()


def check_labels(
    query_pids: Array, query_camids: Array, gallery_pids: Array, gallery_camids: Array, *, protocol: Protocol
) -> None:
    """Raise the errors of `evaluate_ranking` that need no embedding.

    Args:
        query_pids, query_camids: identities and cameras of the queries, integer, (Q,).
        gallery_pids, gallery_camids: the same for the gallery, (G,).
        protocol: the rules.

    Raises:
        ValueError: there are no queries or no gallery, a query is junk or a distractor, or no query has a
            valid match.

    >>> check_labels([1], [1], [1, 2], [1, 2], protocol=Protocol.market1501())
    Traceback (most recent call last):
    ValueError: no query has a valid match under market1501: ...
    """
    if not len(query_pids) or not len(gallery_pids):
        raise ValueError(
            f"need queries and gallery, got {len(query_pids)} queries and {len(gallery_pids)} gallery images"
        )
    query, gallery = (
        _Samples.from_arrays(name, torch.empty(len(pids), 0), pids, camids)
        for name, pids, camids in (
            ("query", query_pids, query_camids),
            ("gallery", gallery_pids, gallery_camids),
        )
    )
    _check_query_identities(query, protocol)
    if protocol.junk_identity is not None:
        gallery = gallery.select(gallery.pids != protocol.junk_identity)
    cameras: dict[int, set[int]] = {}
    for pid, camid in zip(gallery.pids.tolist(), gallery.camids.tolist(), strict=True):
        cameras.setdefault(pid, set()).add(camid)
    seen = zip(query.pids.tolist(), query.camids.tolist(), strict=True)
    if not any(cameras.get(pid, set()) - {camid} for pid, camid in seen):
        raise ValueError(_explain_no_match(query, gallery, protocol))


def _check_query_identities(query: _Samples, protocol: Protocol) -> None:
    """Raise ValueError if a query is junk or a distractor."""
    for field in ("junk_identity", "distractor_identity"):
        identity = getattr(protocol, field)
        if identity is None:
            continue
        rows = (query.pids == identity).nonzero()
        if len(rows):
            raise ValueError(
                f"query_pids: {len(rows)} queries, the first in row {rows[0].item()}, have identity "
                f"{identity}, which is the protocol's {field} and matches nothing; remove these queries, or "
                f"pass Protocol(..., {field}=None) if {identity} is an ordinary identity"
            )


def _explain_no_match(query: _Samples, gallery: _Samples, protocol: Protocol) -> str:
    queries, known = len(query), int(torch.isin(query.pids, gallery.pids).sum())
    return (
        f"no query has a valid match under {protocol.name}: of {queries} queries, {queries - known} have an "
        f"identity that the gallery lacks ({len(gallery)} items that are not junk), and {known} have matches "
        "only in their own camera, which the protocol excludes. Check that query and gallery come from the "
        "same split and that the camera ids are right. For data without cameras, give all queries camera 0 "
        "and the gallery camera 1"
    )
