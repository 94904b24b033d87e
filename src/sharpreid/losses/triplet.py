"""Batch-hard triplet loss on Euclidean distances (reference [15] of the paper: Hermans et al., 2017)."""

from typing import NamedTuple

import torch
from torch import Tensor

_SMALLEST_SQUARE = 1e-12


class TripletLoss(NamedTuple):
    """Triplet loss and the distances of the mined triplets."""

    loss: Tensor
    """Scalar >= 0: mean over all anchors of max(0, margin + positive - negative), zeros included."""
    hardest_positive: Tensor
    """Distance of each anchor to the farthest other image of its identity, (B,)."""
    hardest_negative: Tensor
    """Distance of each anchor to the nearest image of another identity, (B,)."""
    active: Tensor
    """Share of anchors whose triplet violates the margin: scalar in [0, 1], without a gradient."""


def euclidean_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the Euclidean (not squared) distances between rows, float32 or float64 also under autocast.

    The square is clamped at 1e-12 before the root, so that the gradient of equal rows is 0, not NaN.

    Args:
        x: float, (N, D).
        y: float, (M, D).

    Returns:
        Distances, (N, M), >= 1e-6.

    Raises:
        ValueError: shapes are not (N, D) and (M, D).

    >>> euclidean_distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).item()
    5.0
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        if torch.float64 not in (x.dtype, y.dtype):
            x, y = x.float(), y.float()
        squares = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(2)
        return squares.clamp_min(_SMALLEST_SQUARE).sqrt()


def batch_hard_triplet_loss(embeddings: Tensor, identities: Tensor, margin: float) -> TripletLoss:
    """Return the triplet loss of every anchor with its hardest positive and negative in the batch.

    Source: Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, Eq. 5.

    Args:
        embeddings: float, (B, D), unitless, not normalised.
        identities: label of each row, integer, (B,).
        margin: hinge margin in units of the distance, > 0.

    Raises:
        ValueError: shapes disagree, ``margin`` <= 0, or an anchor has no positive or no negative.

    >>> points = torch.tensor([[0.0], [1.0], [3.0], [5.0]])
    >>> mined = batch_hard_triplet_loss(points, torch.tensor([0, 0, 1, 1]), margin=0.5)
    >>> mined.hardest_positive.tolist()
    [1.0, 1.0, 2.0, 2.0]
    >>> mined.loss.item(), mined.active.item()  # the third anchor alone costs 0.5 + 2 - 2
    (0.125, 0.25)
    """
    if embeddings.ndim != 2 or identities.shape != embeddings.shape[:1]:
        raise ValueError(
            f"expected embeddings (B, D) and identities (B,), got {tuple(embeddings.shape)} "
            f"and {tuple(identities.shape)}"
        )
    if not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin}")
    same = identities.unsqueeze(0) == identities.unsqueeze(1)
    positive = same & ~torch.eye(len(identities), dtype=torch.bool, device=same.device)
    _check_triplets(positive, ~same)
    distances = euclidean_distances(embeddings, embeddings)
    hardest_positive = distances.masked_fill(~positive, -torch.inf).amax(1)
    hardest_negative = distances.masked_fill(same, torch.inf).amin(1)
    hinge = (margin + hardest_positive - hardest_negative).clamp_min(0)
    return TripletLoss(hinge.mean(), hardest_positive, hardest_negative, (hinge.detach() > 0).float().mean())


def _check_triplets(positive: Tensor, negative: Tensor) -> None:
    for mask, what in (
        (positive, "another image of its identity"),
        (negative, "an image of another identity"),
    ):
        lacking = int((~mask.any(1)).sum())
        if lacking:
            raise ValueError(
                f"{lacking} of {len(mask)} anchors lack {what} in the batch; "
                "sample at least 2 identities with 2 images each"
            )
