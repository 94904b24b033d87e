"""PK batches: exact, seeded, and the same for any number of processes."""

import warnings
from collections import Counter
from itertools import chain

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sharpreid.data.sampler import EpochOver, PKBatchSampler, SampleIndex

SIZES = {3: 9, 5: 1, 8: 4, 9: 2, 11: 6, 20: 4, 21: 5, 22: 3, 30: 7}
"""Images of each identity; K is 4."""

LABELS = [pid for round_ in range(max(SIZES.values())) for pid, size in SIZES.items() if round_ < size]
K = 4


def sampler(
    *,
    labels: list[int] = LABELS,
    p: int = 4,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    over: EpochOver = "identities",
) -> PKBatchSampler:
    batches = PKBatchSampler(
        labels,
        identities_per_batch=p,
        images_per_identity=K,
        seed=seed,
        rank=rank,
        world_size=world_size,
        epoch_over=over,
    )
    batches.set_epoch(epoch)
    return batches


@pytest.mark.parametrize(("p", "batches"), [(2, 4), (3, 3), (4, 2), (5, 1), (9, 1)])
def test_length_is_exact_and_the_incomplete_batch_is_dropped(p: int, batches: int) -> None:
    assert len(sampler(p=p)) == len(list(sampler(p=p))) == batches


def test_an_epoch_of_market1501_is_eleven_batches() -> None:
    assert len(sampler(labels=list(range(751)) * 2, p=64)) == 11


def test_an_epoch_over_the_images_of_market1501_is_fifty_batches() -> None:
    labels = [image % 751 for image in range(12_936)]
    assert len(sampler(labels=labels, p=64, over="images")) == 50


@pytest.mark.parametrize(("p", "batches"), [(2, 5), (3, 3), (4, 2), (9, 1)])
def test_an_epoch_over_41_images_is_as_many_batches_as_they_fill(p: int, batches: int) -> None:
    made = sampler(p=p, over="images")
    assert len(LABELS) == 41
    assert len(made) == len(list(made)) == batches


def test_an_epoch_over_too_few_images_is_one_batch() -> None:
    assert len(list(sampler(labels=list(range(9)), p=4, over="images"))) == 1


MANY = LABELS * 3


@pytest.mark.parametrize("epoch", range(3))
def test_over_the_images_every_batch_still_holds_p_identities(epoch: int) -> None:
    """7 batches of 4 from passes of 2."""
    batches = list(sampler(labels=MANY, over="images", epoch=epoch))
    assert len(batches) == 7
    for batch in batches:
        assert sorted(Counter(MANY[draw.image] for draw in batch).values()) == [K] * 4
    positions = [draw.position for draw in chain(*batches)]
    assert positions == list(range(len(positions)))


def test_over_the_images_the_first_pass_is_that_over_the_identities_and_each_has_an_order_of_its_own() -> (
    None
):
    batches = list(sampler(labels=MANY, over="images"))
    assert batches[:2] == list(sampler(labels=MANY))
    orders = [[MANY[draw.image] for draw in chain(*batches[i : i + 2])] for i in (0, 2, 4)]
    assert len({tuple(order) for order in orders}) == 3


def test_over_the_images_a_batch_is_a_function_of_seed_epoch_and_step_alone() -> None:
    whole = list(sampler(labels=MANY, over="images", seed=7, epoch=1))
    late = sampler(labels=MANY, over="images", seed=7, epoch=1)
    late.start_at(3)
    assert list(late) == whole[3:]
    assert list(sampler(labels=MANY, over="images", seed=8, epoch=1)) != whole
    assert list(sampler(labels=MANY, over="images", seed=7, epoch=2)) != whole


def test_over_the_images_ranks_in_order_are_the_batch_of_one_process() -> None:
    ranks = [list(sampler(labels=MANY, over="images", rank=r, world_size=2)) for r in range(2)]
    whole = list(sampler(labels=MANY, over="images"))
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole


def test_an_epoch_over_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch must be one of identities, images; got 'steps'"):
        sampler(over="steps")  # type: ignore[arg-type]


@pytest.mark.parametrize("epoch", range(5))
def test_every_batch_holds_p_identities_with_k_images_each(epoch: int) -> None:
    for batch in sampler(epoch=epoch):
        assert sorted(Counter(LABELS[draw.image] for draw in batch).values()) == [K] * 4


@pytest.mark.parametrize("epoch", range(5))
def test_an_identity_comes_at_most_once_in_an_epoch(epoch: int) -> None:
    labels = [LABELS[draw.image] for draw in chain(*sampler(p=2, epoch=epoch))]
    assert sorted(Counter(labels).values()) == [K] * 8


def test_every_identity_comes_where_p_divides_their_number() -> None:
    assert {LABELS[draw.image] for draw in chain(*sampler(p=3))} == set(SIZES)


def test_an_identity_with_fewer_than_k_images_gives_all_of_them_and_repeats() -> None:
    drawn = images_by_identity(sampler(p=3))
    for pid in (5, 9, 22):
        assert set(drawn[pid]) == {index for index, label in enumerate(LABELS) if label == pid}
        assert len(drawn[pid]) == K


@pytest.mark.parametrize("epoch", range(5))
def test_an_identity_with_k_images_or_more_repeats_none(epoch: int) -> None:
    for pid, images in images_by_identity(sampler(p=3, epoch=epoch)).items():
        if SIZES[pid] >= K:
            assert len(set(images)) == K


def test_all_images_of_a_large_identity_come_in_some_epoch() -> None:
    seen = {image for epoch in range(30) for image in images_by_identity(sampler(p=3, epoch=epoch))[3]}
    assert len(seen) == SIZES[3]


def test_batches_are_a_function_of_seed_and_epoch_alone() -> None:
    batches = sampler(seed=7)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    batches.set_epoch(0)
    assert list(batches) == first
    torch.manual_seed(123)
    assert list(sampler(seed=7, epoch=1)) == second


def test_another_seed_or_epoch_gives_other_batches() -> None:
    images = {
        (seed, epoch): tuple(draw.image for draw in chain(*sampler(seed=seed, epoch=epoch)))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(images.values())) == 4


def test_draws_carry_epoch_and_position_in_the_stream_of_all_ranks() -> None:
    draws = list(chain(*sampler(epoch=6)))
    assert [draw.position for draw in draws] == list(range(len(draws)))
    assert {draw.epoch for draw in draws} == {6}


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("epoch", [0, 3])
def test_ranks_in_order_are_the_batch_of_one_process(world_size: int, epoch: int) -> None:
    ranks = [list(sampler(rank=r, world_size=world_size, epoch=epoch)) for r in range(world_size)]
    whole = list(sampler(epoch=epoch))
    assert {len(batches) for batches in ranks} == {len(whole)}
    for step, batch in enumerate(whole):
        assert list(chain(*(batches[step] for batches in ranks))) == batch


def faults(ranks: list[PKBatchSampler], whole: PKBatchSampler) -> set[str]:
    """What is wrong with the batches of several ranks, seen beside those of one process."""
    found = set()
    for *parts, batch in zip(*ranks, whole, strict=True):
        shares = [{LABELS[draw.image] for draw in part} for part in parts]
        if sum(map(len, shares)) > len(set().union(*shares)):
            found.add("two ranks share an identity")
        if sorted(chain(*parts)) != sorted(batch):
            found.add("the ranks' union is not the batch of one process")
    drawn = Counter(LABELS[draw.image] for draw in chain(*chain(*ranks)))
    if drawn != dict.fromkeys(SIZES, K):
        found.add("an identity is not drawn once")
    return found


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_ranks_divide_the_identities_of_an_epoch_among_them(epoch: int) -> None:
    """At every step; 9 identities in 3 batches."""
    ranks = [sampler(p=3, rank=r, world_size=3, epoch=epoch) for r in range(3)]
    assert faults(ranks, sampler(p=3, epoch=epoch)) == set()


def test_ranks_that_draw_alike_are_found_out() -> None:
    """The check above can fail: a rank that is not told, and ranks of different seeds or epochs."""
    share, union, once = (
        "two ranks share an identity",
        "the ranks' union is not the batch of one process",
        "an identity is not drawn once",
    )
    whole = sampler(p=3)
    assert faults([sampler(p=3, rank=0, world_size=3)] * 3, whole) == {share, union, once}
    assert union in faults([sampler(p=3, rank=r, world_size=3, seed=r) for r in range(3)], whole)
    assert union in faults([sampler(p=3, rank=r, world_size=3, epoch=r) for r in range(3)], whole)
    assert union in faults([sampler(p=3, rank=r, world_size=3, epoch=1) for r in range(3)], whole)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_no_identity(world_size: int) -> None:
    ranks = [sampler(rank=r, world_size=world_size) for r in range(world_size)]
    for step in zip(*ranks, strict=True):
        labels = [{LABELS[draw.image] for draw in batch} for batch in step]
        assert sum(map(len, labels)) == len(set().union(*labels)) == 4


@pytest.mark.parametrize(("p", "k"), [(1, 4), (4, 1), (0, 0)])
def test_a_batch_without_positives_or_negatives_is_refused(p: int, k: int) -> None:
    with pytest.raises(ValueError, match=rf"must be at least 2; got {p} and {k}"):
        PKBatchSampler(LABELS, identities_per_batch=p, images_per_identity=k, seed=0)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 3), (2, 2), (-1, 2), (0, 0)])
def test_a_share_that_does_not_come_out_even_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=rf"a multiple of .*, {world_size} \(this is rank {rank}\)"):
        sampler(rank=rank, world_size=world_size)


def test_too_few_identities_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"= 10, but there are only 9 training identities; lower"):
        sampler(p=10)


def test_lightning_announces_each_epoch_to_the_sampler() -> None:
    batches = sampler()
    seen = _Seen()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers|GPU available but not used")
        trainer.fit(seen, DataLoader(_Draws(), batch_sampler=batches))
    assert seen.epochs == [0, 0, 1, 1, 2, 2]


class _Draws(Dataset[Tensor]):
    def __getitem__(self, draw: SampleIndex) -> Tensor:
        return torch.tensor(draw.epoch)

    def __len__(self) -> int:
        return len(LABELS)


class _Seen(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.epochs += [int(epoch) for epoch in batch.unique()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images_by_identity(batches: PKBatchSampler) -> dict[int, list[int]]:
    drawn: dict[int, list[int]] = {}
    for draw in chain(*batches):
        drawn.setdefault(LABELS[draw.image], []).append(draw.image)
    return drawn
