import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpreid.losses.objective import Objective
from sharpreid.losses.total_variation import TotalVariation, reduce_total_variation, squared_total_variation
from sharpreid.losses.triplet import batch_hard_triplet_loss

IDENTITIES = torch.tensor([0, 0, 1, 1])


def batch() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    attended = [torch.randn(4, c, 4, 2, generator=generator, requires_grad=True) for c in (2, 3)]
    return torch.randn(4, 8, generator=generator, requires_grad=True), attended


def of(attended: list[Tensor]) -> list[TotalVariation]:
    return [squared_total_variation(a) for a in attended]


@pytest.mark.parametrize("reduction", ["sum", "mean", "relative"])
def test_total_is_the_triplet_loss_and_mu_times_the_sum_of_the_total_variations(reduction: Any) -> None:
    embeddings, attended = batch()
    value = Objective(margin=0.5, mu=0.1, reduction=reduction)(embeddings, IDENTITIES, of(attended))
    triplet = batch_hard_triplet_loss(embeddings, IDENTITIES, 0.5).loss
    terms = [reduce_total_variation(squared_total_variation(a), reduction) for a in attended]
    torch.testing.assert_close(value.total, triplet + 0.1 * terms[0] + 0.1 * terms[1])
    torch.testing.assert_close(value.triplet.loss, triplet)
    assert value.total_variation == tuple(terms)


def test_gradients_of_both_terms_reach_what_they_are_taken_of() -> None:
    embeddings, attended = batch()
    Objective(margin=5.0, mu=0.1, reduction="mean")(embeddings, IDENTITIES, of(attended)).total.backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in (embeddings, *attended))


def test_mu_0_leaves_the_total_variation_out() -> None:
    embeddings, attended = batch()
    broken = [torch.full_like(attended[0], math.nan)]
    value = Objective(margin=5.0, mu=0.0, reduction="mean")(embeddings, IDENTITIES, of(broken))
    assert value.total_variation == ()
    assert torch.equal(value.total, value.triplet.loss)
    assert torch.isfinite(value.total)


def test_without_attention_the_total_is_the_triplet_loss() -> None:
    embeddings, _ = batch()
    value = Objective(margin=0.5, mu=0.1, reduction="mean")(embeddings, IDENTITIES, ())
    assert value.total_variation == ()
    assert torch.equal(value.total, value.triplet.loss)


def test_attended_features_may_be_fewer_than_the_embeddings_of_all_devices() -> None:
    embeddings, attended = batch()
    local = [a[:2] for a in attended]
    value = Objective(margin=0.5, mu=0.1, reduction="mean")(embeddings, IDENTITIES, of(local))
    assert len(value.total_variation) == 2


def test_unknown_reduction_is_refused() -> None:
    embeddings, attended = batch()
    unknown: Any = "median"

    def build_and_call() -> None:
        Objective(margin=0.5, mu=0.1, reduction=unknown)(embeddings, IDENTITIES, of(attended))

    with pytest.raises(ValueError, match="reduction must be one of sum, mean, relative; got 'median'"):
        build_and_call()


@pytest.mark.parametrize(
    ("margin", "mu", "message"),
    [
        (0.0, 0.1, "margin must be > 0, got 0.0"),
        (math.nan, 0.1, "margin must be > 0, got nan"),
        (0.5, -0.1, "mu must be >= 0, got -0.1"),
        (0.5, math.nan, "mu must be >= 0, got nan"),
    ],
)
def test_refuses_an_argument_out_of_range(margin: float, mu: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(margin=margin, mu=mu, reduction="mean")
