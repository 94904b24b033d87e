"""The training objective (paper Sec. III-B, Eq. 8)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from sharpreid.losses.total_variation import (
    Reduction,
    TotalVariation,
    check_reduction,
    reduce_total_variation,
)
from sharpreid.losses.triplet import TripletLoss, batch_hard_triplet_loss


class ObjectiveValue(NamedTuple):
    """Value of Eq. 8 and its terms."""

    total: Tensor
    """Scalar to minimise."""
    triplet: TripletLoss
    total_variation: tuple[Tensor, ...]
    """Scalar of Eq. 6 per active attention block, not times mu; empty without attention or with mu = 0."""


class Objective:
    """Training objective L = L_triplet + mu * sum over blocks of TV(A_i) (Eq. 8).

    Args:
        margin: margin of the triplet loss, > 0.
        mu: weight of the total variation, >= 0; 0 omits the term.
        reduction: reduction of the total variation, see `reduce_total_variation`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, margin: float, mu: float, reduction: Reduction) -> None:
        if not margin > 0:
            raise ValueError(f"margin must be > 0, got {margin}")
        if not mu >= 0:
            raise ValueError(f"mu must be >= 0, got {mu}")
        check_reduction(reduction)
        self.margin = margin
        self.mu = mu
        self.reduction: Reduction = reduction

    def __call__(
        self,
        embeddings: Tensor,
        identities: Tensor,
        variations: Sequence[TotalVariation],
        gather: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> ObjectiveValue:
        """Compute the objective of a batch.

        Args:
            embeddings: embeddings of the global batch, of all devices, float, (B, D).
            identities: label of each row, integer, (B,).
            variations: Eq. 6 of each active block on this device's images; ignored if mu is 0.
            gather: concatenates the tensors (1,) of all devices, and passes gradients back to them.
        """
        triplet = batch_hard_triplet_loss(embeddings, identities, self.margin)
        if self.mu == 0:
            return ObjectiveValue(triplet.loss, triplet, ())
        terms = tuple(
            gather(reduce_total_variation(one, self.reduction).view(1)).mean() for one in variations
        )
        return ObjectiveValue(triplet.loss + self.mu * sum(terms), triplet, terms)
