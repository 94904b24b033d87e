"""Re-ranking of a test set: k-reciprocal encoding and average query expansion.

Both use the whole gallery before they rank it, so their scores are reported separately, name the method, and
never select a model. Neither method is given identities.

The published programs hold a matrix of all distances and break ties at random. Here memory grows with the
number of images, and the result has the same bits for any chunk size, number of threads or device.

Equation numbers are those of Zhong et al. (2017), see `sharpreid.evaluation.k_reciprocal`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sharpreid.evaluation.exact import (
    Array,
    DistanceFunction,
    check_chunk_size,
    chunk_slices,
    exact_pair,
    nearest_columns,
    round_for_exact_products,
    shifted_squared_distances,
)
from sharpreid.evaluation.k_reciprocal import combine_distances, encode, transpose


@dataclass(frozen=True, kw_only=True)
class KReciprocal:
    """k-reciprocal re-ranking, for ``evaluate_ranking(..., re_ranking=...)``.

    All queries and the whole gallery take part, whatever their cameras, as in the published program. The
    ranking of a query therefore depends on which other queries it is scored with.

    Args:
        k1: number of neighbours that may be reciprocal, at least 1.
        k2: number of neighbours, the image itself included, whose encodings are averaged (Eq. 11), at least
            1; 1 averages nothing.
        lambda_value: weight of the original distance, in [0, 1] (Eq. 12); 1 ranks by it alone.

    Raises:
        ValueError: an argument is out of range.

    >>> KReciprocal(k1=20, k2=6, lambda_value=0.3).describe()
    'k_reciprocal k1=20 k2=6 lambda=0.3'
    """

    k1: int
    k2: int
    lambda_value: float

    def __post_init__(self) -> None:
        for field in ("k1", "k2"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 0 <= self.lambda_value <= 1:
            raise ValueError(f"lambda_value must be in [0, 1], got {self.lambda_value}")

    def describe(self) -> str:
        """Return the name of the method and its parameters."""
        return f"k_reciprocal k1={self.k1} k2={self.k2} lambda={self.lambda_value:g}"

    def distances(
        self,
        query: Tensor,
        gallery: Tensor,
        query_camids: Tensor,
        gallery_camids: Tensor,
        chunk_size: int | None,
    ) -> DistanceFunction:
        """Return a function that computes the final distances (Eq. 12) of some queries.

        Args:
            query, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D).
            query_camids, gallery_camids: not used.
            chunk_size: rows of a distance matrix held at a time.
        """
        encoding = encode(torch.cat([query, gallery]), self.k1, self.k2, chunk_size)
        in_gallery = transpose(encoding.weights, first_row=len(query))
        shifted, squared_norm = shifted_squared_distances(query, gallery), query.square().sum(1)
        farthest = encoding.farthest[: len(query)]

        def of_chunk(rows: slice) -> Tensor:
            original = shifted(rows).add_(squared_norm[rows, None]).clamp_(min=0)
            original.div_(farthest[rows, None])
            queries = range(len(query))[rows]
            return combine_distances(original, encoding.weights, in_gallery, queries, self.lambda_value)

        return of_chunk


@dataclass(frozen=True, kw_only=True)
class QueryExpansion:
    """Average query expansion, for ``evaluate_ranking(..., re_ranking=...)``.

    Each query is replaced as in `average_query_expansion`, with images of other cameras only. The exclusion
    of a protocol such as Market-1501's cannot be used, because it depends on the query's identity.

    Args:
        k: number of gallery images per query, at least 1.

    Raises:
        ValueError: k is out of range.

    >>> QueryExpansion(k=5).describe()
    'query_expansion k=5'
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def describe(self) -> str:
        """Return the name of the method and its parameter."""
        return f"query_expansion k={self.k}"

    def distances(
        self,
        query: Tensor,
        gallery: Tensor,
        query_camids: Tensor,
        gallery_camids: Tensor,
        chunk_size: int | None,
    ) -> DistanceFunction:
        """Return a function that computes the distances of some of the expanded queries.

        Args:
            query, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D).
            query_camids, gallery_camids: cameras, int64, (Q,) and (G,).
            chunk_size: rows of a distance matrix held at a time.
        """
        expanded = _expand(query, gallery, query_camids, gallery_camids, self.k, chunk_size)
        return shifted_squared_distances(round_for_exact_products(expanded.float()), gallery)


def k_reciprocal_distances(
    query: Array, gallery: Array, *, k1: int, k2: int, lambda_value: float, chunk_size: int | None = None
) -> Tensor:
    """Compute the re-ranked distance of every query to every gallery item.

    The result, lambda d + (1 - lambda) J, combines d, the squared Euclidean distance divided by the largest
    one from that query (0 if all are 0), with the Jaccard distance J. It is the only Q x G matrix that is
    allocated. Source: Zhong et al. 2017, Eq. 12.

    Args:
        query: embeddings, finite, any float type, (Q, D), tensor or array; converted to float32.
        gallery: the same, (G, D).
        k1, k2, lambda_value: see `KReciprocal`; the authors use 20, 6 and 0.3.
        chunk_size: rows of distances at a time; does not change the result.

    Returns:
        float64, (Q, G), in [0, 1], on the device of the queries.

    Raises:
        ValueError: an argument is out of range, or embeddings are not finite or do not fit.

    Two items are equally far from the query. The second has a nearer neighbour elsewhere and falls back:

    >>> gallery = torch.tensor([[-1.0], [1.0], [1.5], [9.0]])
    >>> k_reciprocal_distances(torch.tensor([[0.0]]), gallery, k1=1, k2=1, lambda_value=0.3)[0, :2]
    tensor([0.0115, 0.7037], dtype=torch.float64)
    """
    check_chunk_size(chunk_size)
    query, gallery = exact_pair(query, gallery, ("query", "gallery"))
    no_cameras = torch.empty(0, dtype=torch.int64, device=query.device)
    method = KReciprocal(k1=k1, k2=k2, lambda_value=lambda_value)
    distances = method.distances(query, gallery, no_cameras, no_cameras, chunk_size)
    result = query.new_empty(len(query), len(gallery))
    for rows in chunk_slices(len(query), 8 * len(gallery), chunk_size):
        result[rows] = distances(rows)
    return result


def average_query_expansion(
    query: Array,
    gallery: Array,
    k: int,
    *,
    query_camids: Tensor | None = None,
    gallery_camids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Replace each query by the mean of itself and its k nearest valid gallery items.

    Source: Chum et al., Total Recall, ICCV 2007, Sec. 4.2, applied to embeddings.

    Args:
        query: embeddings, finite, any float type, (Q, D), tensor or array; converted to float32.
        gallery: the same, (G, D).
        k: at least 1; a query with fewer valid items uses all of them. Ties are broken by row.
        query_camids, gallery_camids: cameras, integer, (Q,) and (G,). A gallery item is valid if its camera
            differs from the query's. Without cameras, all items are valid.
        chunk_size: number of queries at a time; does not change the result.

    Returns:
        float32, (Q, D), on the device of the queries.

    Raises:
        ValueError: an argument is out of range, embeddings are not finite or do not fit, or cameras are given
            for one side only.

    >>> average_query_expansion(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [-2.0]]), k=2)
    tensor([[-0.3333]])
    """
    method = QueryExpansion(k=k)
    check_chunk_size(chunk_size)
    query, gallery = exact_pair(query, gallery, ("query", "gallery"))
    if (query_camids is None) != (gallery_camids is None):
        raise ValueError("query_camids and gallery_camids must be given both or neither")
    if query_camids is None or gallery_camids is None:
        query_camids = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        gallery_camids = torch.ones(len(gallery), dtype=torch.int64, device=query.device)
    for name, camids, x in (("query", query_camids, query), ("gallery", gallery_camids, gallery)):
        if camids.shape != x.shape[:1]:
            raise ValueError(f"{name}_camids must have shape ({len(x)},), got {tuple(camids.shape)}")
    cameras = query_camids.to(query.device), gallery_camids.to(query.device)
    return _expand(query, gallery, *cameras, method.k, chunk_size).float()


def _expand(
    query: Tensor,
    gallery: Tensor,
    query_camids: Tensor,
    gallery_camids: Tensor,
    k: int,
    chunk_size: int | None,
) -> Tensor:
    """Return the means of `average_query_expansion` in float64, for embeddings from `exact_embeddings`."""
    distances, k = shifted_squared_distances(query, gallery), min(k, len(gallery))
    means = []
    for rows in chunk_slices(len(query), 8 * max(len(gallery), k * query.shape[1]), chunk_size):
        distance_qg = distances(rows).masked_fill_(query_camids[rows, None] == gallery_camids, torch.inf)
        column = nearest_columns(distance_qg, k)
        valid = distance_qg.gather(1, column) < torch.inf
        total = query[rows] + (gallery[column] * valid[:, :, None]).sum(1)
        means.append(total / (1 + valid.sum(1, keepdim=True)))
    return torch.cat(means)
