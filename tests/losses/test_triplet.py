import math

import pytest
import torch
from torch import Tensor

from sharpreid.losses.triplet import batch_hard_triplet_loss, euclidean_distances

MARGIN = 0.5


def embeddings(rows: int, columns: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(*counts: int) -> Tensor:
    """So many images of identity 0, of identity 1, and so on, shuffled."""
    ordered = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return ordered[torch.randperm(len(ordered), generator=torch.Generator().manual_seed(1))]


def brute_force(
    points: list[list[float]], identities: list[int]
) -> tuple[float, list[float], list[float], int]:
    positives, negatives, hinges = [], [], []
    for i, anchor in enumerate(points):
        same = [
            math.dist(anchor, p) for j, p in enumerate(points) if identities[j] == identities[i] and j != i
        ]
        other = [math.dist(anchor, p) for j, p in enumerate(points) if identities[j] != identities[i]]
        positives.append(max(same))
        negatives.append(min(other))
        hinges.append(max(0.0, MARGIN + max(same) - min(other)))
    return sum(hinges) / len(hinges), positives, negatives, sum(h > 0 for h in hinges)


@pytest.mark.parametrize("counts", [(2, 2), (4, 4, 4), (2, 5, 3)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_equals_a_loop_over_all_triplets(counts: tuple[int, ...], spread: float) -> None:
    identities = labels(*counts)
    x = spread * embeddings(len(identities)) + identities[:, None]
    mined = batch_hard_triplet_loss(x, identities, MARGIN)
    loss, positives, negatives, active = brute_force(x.tolist(), identities.tolist())
    assert mined.loss.item() == pytest.approx(loss)
    assert mined.hardest_positive.tolist() == pytest.approx(positives)
    assert mined.hardest_negative.tolist() == pytest.approx(negatives)
    assert mined.active.item() == pytest.approx(active / len(identities))


def test_positive_is_never_the_anchor_itself() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0], [100.0, 2.0]])
    mined = batch_hard_triplet_loss(x, torch.tensor([0, 0, 1, 1]), MARGIN)
    assert mined.hardest_positive.tolist() == [5.0, 5.0, 2.0, 2.0]


def test_mean_counts_the_anchors_that_cost_nothing() -> None:
    x = torch.tensor([[0.0], [1.0], [1.75], [100.0]])
    mined = batch_hard_triplet_loss(x, torch.tensor([0, 0, 1, 1]), MARGIN)
    hinges = [0.5 + 1 - 1.75, 0.5 + 1 - 0.75, 0.5 + 98.25 - 0.75, 0.5 + 98.25 - 99]
    assert mined.loss.item() == pytest.approx(sum(max(0.0, h) for h in hinges) / 4)
    assert mined.active.item() == 0.5


def test_far_apart_identities_cost_nothing_and_pass_no_gradient() -> None:
    identities = labels(3, 3)
    x = (0.01 * embeddings(6) + 100 * identities[:, None]).requires_grad_()
    mined = batch_hard_triplet_loss(x, identities, MARGIN)
    mined.loss.backward()
    assert mined.loss.item() == 0.0
    assert mined.active.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_embeddings_cost_the_margin_with_a_finite_gradient(
    value: float, dtype: torch.dtype
) -> None:
    x = torch.full((8, 16), value, dtype=dtype, requires_grad=True)
    mined = batch_hard_triplet_loss(x, labels(4, 4), MARGIN)
    mined.loss.backward()
    assert mined.loss.item() == pytest.approx(MARGIN, abs=1e-5)
    assert mined.active.item() == 1.0
    assert torch.isfinite(x.grad).all()


def test_duplicate_images_give_finite_gradients() -> None:
    x = embeddings(4).repeat(2, 1).requires_grad_()
    batch_hard_triplet_loss(x, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]), MARGIN).loss.backward()
    assert torch.isfinite(x.grad).all()


def test_passes_gradcheck() -> None:
    identities = labels(3, 3, 2)
    x = embeddings(8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet_loss(x, identities, 5.0).loss, x)


def test_does_not_depend_on_the_order_of_the_batch_or_the_names_of_the_identities() -> None:
    identities, x = labels(3, 3, 2), embeddings(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    one = batch_hard_triplet_loss(x, identities, MARGIN)
    other = batch_hard_triplet_loss(x[order], 1500 - 7 * identities[order], MARGIN)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.hardest_positive[order], other.hardest_positive)


def test_share_of_active_triplets_carries_no_gradient() -> None:
    mined = batch_hard_triplet_loss(embeddings(4).requires_grad_(), torch.tensor([0, 0, 1, 1]), MARGIN)
    assert mined.loss.requires_grad
    assert not mined.active.requires_grad


def test_anchor_without_a_positive_is_an_error_that_counts_them() -> None:
    message = "2 of 4 anchors lack another image of its identity in the batch; sample at least 2 identities"
    with pytest.raises(ValueError, match=message):
        batch_hard_triplet_loss(embeddings(4), torch.tensor([0, 0, 1, 2]), MARGIN)


def test_batch_of_one_identity_is_an_error() -> None:
    with pytest.raises(ValueError, match="4 of 4 anchors lack an image of another identity"):
        batch_hard_triplet_loss(embeddings(4), torch.zeros(4, dtype=torch.int64), MARGIN)


@pytest.mark.parametrize("margin", [0.0, -0.5, math.nan])
def test_refuses_a_margin_that_is_not_positive(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin must be > 0, got {margin}"):
        batch_hard_triplet_loss(embeddings(4), torch.tensor([0, 0, 1, 1]), margin)


@pytest.mark.parametrize(("x", "identities"), [((4, 2, 2), (4,)), ((4, 2), (3,)), ((4, 2), (4, 1))])
def test_refuses_shapes_that_disagree(x: tuple[int, ...], identities: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected embeddings \(B, D\) and identities \(B,\), got "):
        batch_hard_triplet_loss(torch.zeros(x), torch.zeros(identities, dtype=torch.int64), MARGIN)


class TestEuclideanDistances:
    @pytest.mark.parametrize("shift", [0.0, 1000.0])
    def test_equal_those_of_torch(self, shift: float) -> None:
        x, y = embeddings(5) + shift, embeddings(7, seed=1) + shift
        expected = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        torch.testing.assert_close(euclidean_distances(x, y), expected)

    def test_of_near_embeddings_keep_their_digits_in_float32(self) -> None:
        x = torch.tensor([[1000.0, 0.0]])
        assert euclidean_distances(x, x + torch.tensor([0.0, 1e-3])).item() == pytest.approx(1e-3)

    def test_of_equal_rows_are_tiny_and_their_gradient_is_zero(self) -> None:
        x = torch.randn(3, 4, requires_grad=True)
        distances = euclidean_distances(x, x.detach().clone()).diagonal()
        distances.sum().backward()
        assert distances.detach() == pytest.approx(1e-6)
        assert torch.equal(x.grad, torch.zeros_like(x))

    def test_pass_gradcheck(self) -> None:
        x, y = embeddings(3).requires_grad_(), embeddings(4, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(euclidean_distances, (x, y))

    def test_are_float32_under_autocast_and_float64_where_an_input_is(self) -> None:
        x = torch.randn(3, 4).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert euclidean_distances(x, x).dtype == torch.float32
        assert euclidean_distances(x.float(), x.double()).dtype == torch.float64

    @pytest.mark.parametrize(("x", "y"), [((3, 4), (3, 5)), ((4,), (3, 4)), ((3, 4), (1, 3, 4))])
    def test_refuse_shapes_that_disagree(self, x: tuple[int, ...], y: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"x and y must be \(N, D\) and \(M, D\), got "):
            euclidean_distances(torch.zeros(x), torch.zeros(y))
