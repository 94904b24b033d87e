"""Batches of a tiny data set, from the files to the tensors that the network sees."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sharpreid.data.datamodule import EvalBatch, ReIDDataModule, TrainBatch
from sharpreid.data.market1501 import load_market1501
from sharpreid.data.reid_data import ReIDData, Sample, identities
from sharpreid.data.transforms import EvalTransform, TrainTransform


def datamodule(root: Path, **changes: Any) -> ReIDDataModule:
    """Set up for training and test, P = 2 and K = 3."""
    options = {
        "source": lambda: load_market1501(root=root, expected={}),
        "train_transform": TrainTransform(
            height=24, width=12, area=(0.64, 1.0), ratio=(2.0, 3.0), tries=10, flip_probability=0.5
        ),
        "eval_transform": EvalTransform(height=24, width=12, crops="flip"),
        "identities_per_batch": 2,
        "images_per_identity": 3,
        "eval_batch_size": 2,
        "num_workers": 0,
        "validation_identities": 0,
        "seed": 0,
    } | changes
    module = ReIDDataModule(**options)
    module.setup("fit")
    return module


def attach(module: ReIDDataModule, *, rank: int = 0, world_size: int = 1, epoch: int = 0) -> ReIDDataModule:
    """As if a trainer with so many processes held it."""
    loop = SimpleNamespace(
        epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0))),
    )
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=world_size, fit_loop=loop)
    module.trainer = trainer
    return module


def test_training_batches_are_p_times_k_images(picture_tree: Path) -> None:
    batches = list(datamodule(picture_tree).train_dataloader())
    assert len(batches) == 2
    for batch in batches:
        assert isinstance(batch, TrainBatch)
        assert (batch.images.shape, batch.images.dtype) == ((6, 3, 24, 12), torch.float32)
        assert batch.labels.unique(return_counts=True)[1].tolist() == [3, 3]


def test_labels_number_the_identities_from_zero(picture_tree: Path) -> None:
    module = datamodule(picture_tree)
    batches = list(module.train_dataloader())
    pids = sorted(identities(module.data.train))
    for index, label in zip(
        chain(*(b.indices.tolist() for b in batches)),
        chain(*(b.labels.tolist() for b in batches)),
        strict=True,
    ):
        assert module.data.train[index].pid == pids[label]
    assert {label for batch in batches for label in batch.labels.tolist()} == {0, 1, 2, 3}


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_augmentation_is_the_same_for_any_number_of_workers(picture_tree: Path) -> None:
    alone = list(datamodule(picture_tree).train_dataloader())
    shared = list(datamodule(picture_tree, num_workers=2).train_dataloader())
    for mine, theirs in zip(alone, shared, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_augmentation_is_the_same_for_any_number_of_processes(picture_tree: Path) -> None:
    whole = list(datamodule(picture_tree).train_dataloader())
    ranks = [attach(datamodule(picture_tree), rank=r, world_size=2).train_dataloader() for r in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.indices, torch.cat([part.indices for part in parts]))


def test_an_image_is_augmented_anew_in_each_epoch(picture_tree: Path) -> None:
    views = []
    for epoch in (0, 1):
        module = attach(datamodule(picture_tree), epoch=epoch)
        for batch in module.train_dataloader():
            views += [view for view, index in zip(batch.images, batch.indices, strict=True) if index == 0]
    assert len({view.numpy().tobytes() for view in views}) == len(views) > 1


def test_training_goes_on_at_the_trainers_epoch(picture_tree: Path) -> None:
    loader = datamodule(picture_tree).train_dataloader()
    loader.batch_sampler.set_epoch(4)
    resumed = attach(datamodule(picture_tree), epoch=4).train_dataloader()
    for batch, again in zip(loader, resumed, strict=True):
        assert all(map(torch.equal, batch, again))


def test_test_batches_are_queries_then_gallery(picture_tree: Path) -> None:
    module = datamodule(picture_tree)
    batches = list(module.test_dataloader())
    assert isinstance(batches[0], EvalBatch)
    assert batches[0].views.shape == (2, 2, 3, 24, 12)
    pids, camids, is_query, indices = (
        torch.cat(part).tolist() for part in list(zip(*batches, strict=True))[1:]
    )
    samples = [*module.data.query, *module.data.gallery]
    assert indices == list(range(len(samples)))
    assert list(zip(pids, camids, strict=True)) == [(one.pid, one.camid) for one in samples]
    assert is_query == [True] * 3 + [False] * 6


@pytest.mark.parametrize("world_size", [1, 2, 3, 12])
def test_evaluation_shards_cover_each_image_once(picture_tree: Path, world_size: int) -> None:
    indices = []
    for rank in range(world_size):
        loader = attach(datamodule(picture_tree), rank=rank, world_size=world_size).test_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader)
        indices += [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(9))


def test_test_views_are_the_same_each_time(picture_tree: Path) -> None:
    module = datamodule(picture_tree)
    for batch, again in zip(module.test_dataloader(), module.test_dataloader(), strict=True):
        assert all(map(torch.equal, batch, again))


def test_without_validation_identities_there_is_no_validation(picture_tree: Path) -> None:
    module = datamodule(picture_tree)
    assert module.val_dataloader() == []
    assert len(module.train) == len(module.data.train) == 9


def test_validation_identities_leave_the_training_images(picture_tree: Path) -> None:
    module = datamodule(picture_tree, validation_identities=2)
    held = {int(pid) for batch in module.val_dataloader() for pid in batch.pids}
    assert len(held) == 2
    assert identities(module.train.samples) == identities(module.data.train) - held
    assert set(module.train.labels) == {0, 1}


def test_the_test_set_is_never_validated_on(picture_tree: Path) -> None:
    module = datamodule(picture_tree, validation_identities=2)
    test_images = {one.path for one in module.test.samples}
    assert test_images.isdisjoint(one.path for one in module.validation.samples)


def test_the_data_set_is_read_once_in_a_process(picture_tree: Path) -> None:
    calls = []

    def source() -> ReIDData:
        calls.append(1)
        return load_market1501(root=picture_tree, expected={})

    module = datamodule(picture_tree, source=source)
    module.setup("test")
    assert len(calls) == 1


def test_the_data_set_is_made_before_other_processes_read_it(picture_tree: Path) -> None:
    made = []
    module = datamodule(picture_tree)
    read, module._data = module.data, None
    module.source = lambda: made.append(1) or read
    module.prepare_data()
    assert made == [1]
    module.setup("fit")
    module.prepare_data()
    assert made == [1, 1], "once made and read, it is not read again"


def test_data_is_not_there_before_setup(picture_tree: Path) -> None:
    module = ReIDDataModule(
        source=lambda: load_market1501(root=picture_tree, expected={}),
        train_transform=datamodule(picture_tree).train_transform,
        eval_transform=datamodule(picture_tree).eval_transform,
        identities_per_batch=2,
        images_per_identity=2,
        eval_batch_size=2,
        num_workers=0,
        validation_identities=0,
        seed=0,
    )
    with pytest.raises(RuntimeError, match=r"read by setup\(\), which has not been called yet"):
        _ = module.data


def test_further_images_of_a_query_come_after_the_gallery_and_know_their_query(picture_tree: Path) -> None:
    data = load_market1501(root=picture_tree, expected={})
    train = data.train
    multi = replace(data, multi_query=((train[0], train[1]), (), (train[2],)))
    module = datamodule(picture_tree, source=lambda: multi)
    assert module.test.samples == [*data.query, *data.gallery, *train[:3]]
    assert module.test.pooled_into is not None
    assert module.test.pooled_into.tolist() == [*range(9), 0, 0, 2]
    batches = list(module.test_dataloader())
    assert torch.cat([batch.is_query for batch in batches]).tolist() == [True] * 3 + [False] * 9
    assert datamodule(picture_tree).test.pooled_into is None


def test_boxes_are_cut_out_before_the_views_are_made(picture_tree: Path) -> None:
    data = load_market1501(root=picture_tree, expected={})
    box = (2, 4, 10, 28)
    cut = [one._replace(box=box) for one in (data.train[0], data.query[0])]
    boxed = replace(data, train=(cut[0], *data.train[1:]), query=(cut[1], *data.query[1:]))
    whole, part = (
        datamodule(
            picture_tree,
            source=lambda data=data: data,
            train_transform=TrainTransform(
                height=24, width=12, area=(1, 1), ratio=(2, 2), tries=0, flip_probability=0
            ),
        )
        for data in (data, boxed)
    )
    assert not torch.equal(part.test[0].views, whole.test[0].views)
    assert torch.equal(part.test[1].views, whole.test[1].views)
    draw = next(d for batch in part.train_dataloader().batch_sampler for d in batch if d.image == 0)
    assert not torch.equal(part.train[draw].images, whole.train[draw].images)


def test_identities_of_unknown_cameras_can_be_validated_on(picture_tree: Path) -> None:
    data = load_market1501(root=picture_tree, expected={})
    blind: tuple[Sample, ...] = tuple(one._replace(camid=0) for one in data.train)
    source = replace(data, train=blind, cameras_known=False)
    module = datamodule(picture_tree, source=lambda: source, validation_identities=2)
    assert {one.camid for one in module.validation.samples} == {0, 1}
