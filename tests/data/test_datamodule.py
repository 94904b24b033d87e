"""Batches of a tiny data set, from the files to the tensors that the network sees."""

import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sharpreid.data.datamodule import ReIDDataModule, TimedLoader
from sharpreid.data.datasets import EvalBatch, TrainBatch, load_image
from sharpreid.data.market1501 import load_market1501
from sharpreid.data.pixel_cache import build_cache
from sharpreid.data.reid_data import DataError, ReIDData, Sample, identities
from sharpreid.data.transforms import IMAGENET_STD, EvalTransform, TrainTransform, mean_image


def datamodule(root: Path, *, stage: str | None = "fit", **changes: Any) -> ReIDDataModule:
    """P = 2 and K = 3; set up for ``stage``, or not at all."""
    options = {
        "source": lambda: load_market1501(root=root, expected={}),
        "train_transform": TrainTransform(
            height=24, width=12, area=(0.64, 1.0), ratio=(2.0, 3.0), max_attempts=10, flip_probability=0.5
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
    if stage is not None:
        module.setup(stage)
    return module


def attach(module: ReIDDataModule, *, rank: int = 0, world_size: int = 1, epoch: int = 0) -> ReIDDataModule:
    """As if a trainer with so many processes held it."""
    loop = SimpleNamespace(
        epoch_progress=SimpleNamespace(current=SimpleNamespace(ready=epoch, processed=epoch)),
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0))),
    )
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=world_size, fit_loop=loop)
    module.trainer = trainer
    return module


def test_training_batches_are_p_times_k_images(image_tree: Path) -> None:
    batches = list(datamodule(image_tree).train_dataloader())
    assert len(batches) == 2
    for batch in batches:
        assert isinstance(batch, TrainBatch)
        assert (batch.images.shape, batch.images.dtype) == ((6, 3, 24, 12), torch.float32)
        assert batch.labels.unique(return_counts=True)[1].tolist() == [3, 3]


def test_labels_number_the_identities_from_zero(image_tree: Path) -> None:
    module = datamodule(image_tree)
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
def test_augmentation_is_the_same_for_any_number_of_workers(image_tree: Path) -> None:
    alone = list(datamodule(image_tree).train_dataloader())
    shared = list(datamodule(image_tree, num_workers=2).train_dataloader())
    for mine, theirs in zip(alone, shared, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_augmentation_is_the_same_for_any_number_of_processes(image_tree: Path) -> None:
    whole = list(datamodule(image_tree).train_dataloader())
    ranks = [attach(datamodule(image_tree), rank=r, world_size=2).train_dataloader() for r in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.indices, torch.cat([part.indices for part in parts]))


def test_an_image_is_augmented_anew_in_each_epoch(image_tree: Path) -> None:
    views = []
    for epoch in (0, 1):
        module = attach(datamodule(image_tree), epoch=epoch)
        for batch in module.train_dataloader():
            views += [view for view, index in zip(batch.images, batch.indices, strict=True) if index == 0]
    assert len({view.numpy().tobytes() for view in views}) == len(views) > 1


def test_training_goes_on_at_the_trainers_epoch(image_tree: Path) -> None:
    loader = datamodule(image_tree).train_dataloader()
    loader.batch_sampler.set_epoch(4)
    resumed = attach(datamodule(image_tree), epoch=4).train_dataloader()
    for batch, again in zip(loader, resumed, strict=True):
        assert all(map(torch.equal, batch, again))


def test_test_batches_are_queries_then_gallery(image_tree: Path) -> None:
    module = datamodule(image_tree)
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
def test_evaluation_shards_cover_each_image_once(image_tree: Path, world_size: int) -> None:
    indices = []
    for rank in range(world_size):
        loader = attach(datamodule(image_tree), rank=rank, world_size=world_size).test_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader)
        indices += [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(9))


def test_test_views_are_the_same_each_time(image_tree: Path) -> None:
    module = datamodule(image_tree)
    for batch, again in zip(module.test_dataloader(), module.test_dataloader(), strict=True):
        assert all(map(torch.equal, batch, again))


def test_without_validation_identities_there_is_no_validation(image_tree: Path) -> None:
    module = datamodule(image_tree)
    assert module.val_dataloader() == []
    assert len(module.train) == len(module.data.train) == 9


def test_validation_identities_leave_the_training_images(image_tree: Path) -> None:
    module = datamodule(image_tree, validation_identities=2)
    held = {int(pid) for batch in module.val_dataloader() for pid in batch.pids}
    assert len(held) == 2
    assert identities(module.train.samples) == identities(module.data.train) - held
    assert set(module.train.labels) == {0, 1}


def test_the_test_set_is_never_validated_on(image_tree: Path) -> None:
    module = datamodule(image_tree, validation_identities=2)
    test_images = {one.path for one in module.test.samples}
    assert test_images.isdisjoint(one.path for one in module.validation.samples)


def test_the_data_set_is_read_once_in_a_process(image_tree: Path) -> None:
    calls = []

    def source() -> ReIDData:
        calls.append(1)
        return load_market1501(root=image_tree, expected={})

    module = datamodule(image_tree, source=source)
    module.setup("test")
    assert len(calls) == 1


def test_the_data_set_is_made_before_other_processes_read_it(image_tree: Path) -> None:
    made = []
    read = datamodule(image_tree).data
    module = datamodule(image_tree, stage=None, source=lambda: made.append(1) or read)
    module.prepare_data()
    assert made == [1]
    module.setup("fit")
    module.prepare_data()
    assert made == [1, 1], "once made and read, it is not read again"


def test_data_is_not_there_before_setup(image_tree: Path) -> None:
    module = datamodule(image_tree, stage=None)
    with pytest.raises(RuntimeError, match=r"setup\(\) first"):
        _ = module.data


@pytest.mark.parametrize("missing", ["train", "query", "gallery"])
def test_what_a_data_set_lacks_is_refused_only_where_it_is_needed(image_tree: Path, missing: str) -> None:
    whole = datamodule(image_tree).data
    module = datamodule(image_tree, stage=None)
    module.source = lambda: replace(whole, **{missing: ()})
    with pytest.raises(DataError, match=f"has no {missing} images. A training needs"):
        module.setup("fit")
    module.setup("test")
    if missing == "train":
        assert len(list(module.test_dataloader())) > 0
    else:
        with pytest.raises(DataError, match=f"has no {missing} images"):
            module.test_dataloader()


def test_further_images_of_a_query_come_after_the_gallery_and_know_their_query(image_tree: Path) -> None:
    data = load_market1501(root=image_tree, expected={})
    train = data.train
    multi = replace(data, multi_query=((train[0], train[1]), (), (train[2],)))
    module = datamodule(image_tree, source=lambda: multi)
    assert module.test.samples == [*data.query, *data.gallery, *train[:3]]
    assert module.test.query_group is not None
    assert module.test.query_group.tolist() == [*range(9), 0, 0, 2]
    batches = list(module.test_dataloader())
    assert torch.cat([batch.is_query for batch in batches]).tolist() == [True] * 3 + [False] * 9
    assert datamodule(image_tree).test.query_group is None


def test_boxes_are_cut_out_before_the_views_are_made(image_tree: Path) -> None:
    data = load_market1501(root=image_tree, expected={})
    box = (2, 4, 10, 28)
    cut = [one._replace(box=box) for one in (data.train[0], data.query[0])]
    boxed = replace(data, train=(cut[0], *data.train[1:]), query=(cut[1], *data.query[1:]))
    whole, part = (
        datamodule(
            image_tree,
            source=lambda data=data: data,
            train_transform=TrainTransform(
                height=24, width=12, area=(1, 1), ratio=(2, 2), max_attempts=0, flip_probability=0
            ),
        )
        for data in (data, boxed)
    )
    assert not torch.equal(part.test[0].views, whole.test[0].views)
    assert torch.equal(part.test[1].views, whole.test[1].views)
    draw = next(d for batch in part.train_dataloader().batch_sampler for d in batch if d.image == 0)
    assert not torch.equal(part.train[draw].images, whole.train[draw].images)


def test_identities_of_unknown_cameras_can_be_validated_on(image_tree: Path) -> None:
    data = load_market1501(root=image_tree, expected={})
    blind: tuple[Sample, ...] = tuple(one._replace(camid=0) for one in data.train)
    source = replace(data, train=blind, cameras_known=False)
    module = datamodule(image_tree, source=lambda: source, validation_identities=2)
    assert {one.camid for one in module.validation.samples} == {0, 1}


def pixel_batches(module: ReIDDataModule) -> list[TrainBatch]:
    """What the network would see of the batches that are augmented after their transfer."""
    return [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]


def cached(root: Path, folder: Path) -> dict[str, Any]:
    """Options of `datamodule`, with the images decoded."""
    data = load_market1501(root=root, expected={})
    build_cache(sorted({one.path for one in (*data.train, *data.query, *data.gallery)}), folder / data.name)
    return {"cache": folder}


def assert_close(found: list[TrainBatch], expected: list[TrainBatch]) -> None:
    """Equal, to a level of 255 in the images."""
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert isinstance(mine, TrainBatch)
        assert torch.equal(mine.labels, theirs.labels)
        assert torch.equal(mine.indices, theirs.indices)
        assert mine.images.dtype == theirs.images.dtype
        one_level = 1.001 / 255 / torch.tensor(IMAGENET_STD)[:, None, None]
        assert ((mine.images - theirs.images).abs() <= one_level).all()
        assert (mine.images - theirs.images).mean().abs() < 0.01


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["device", "resident"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_training_images_are_the_same_wherever_they_are_augmented(
    image_tree: Path, tmp_path: Path, where: Any, workers: int
) -> None:
    options = cached(image_tree, tmp_path / "cache") | {"num_workers": workers}
    expected = list(datamodule(image_tree).train_dataloader())
    assert_close(pixel_batches(datamodule(image_tree, augment_on=where, **options)), expected)


@pytest.mark.parametrize("where", ["device", "resident"])
def test_the_mean_image_is_subtracted_wherever_images_are_augmented(
    image_tree: Path, tmp_path: Path, where: Any
) -> None:
    options = cached(image_tree, tmp_path / "cache") | {"normalise": "per_pixel_mean"}
    expected = list(datamodule(image_tree, normalise="per_pixel_mean").train_dataloader())
    found = pixel_batches(datamodule(image_tree, augment_on=where, **options))
    assert_close(found, expected)
    usual = list(datamodule(image_tree).train_dataloader())
    assert not any(torch.allclose(one.images, two.images) for one, two in zip(found, usual, strict=True))


def test_the_mean_image_is_that_of_what_is_trained_on_and_the_same_each_time(image_tree: Path) -> None:
    def mean(stage: str = "fit", **options: Any) -> Tensor:
        module = datamodule(image_tree, stage=stage, normalise="per_pixel_mean", **options)
        assert module.train_transform.mean is module.eval_transform.mean
        assert module.eval_transform.mean is not None
        return module.eval_transform.mean

    pictures = [load_image(one) for one in load_market1501(root=image_tree, expected={}).train]
    assert torch.equal(mean(), mean_image(pictures, height=24, width=12))
    assert torch.equal(mean("test"), mean())
    assert not torch.equal(mean(validation_identities=2), mean())
    assert datamodule(image_tree).eval_transform.mean is None


def test_views_of_another_size_at_test_have_a_mean_image_of_their_own(image_tree: Path) -> None:
    small = EvalTransform(height=12, width=6, crops="flip")
    module = datamodule(image_tree, normalise="per_pixel_mean", eval_transform=small)
    assert module.train_transform.mean.shape == (3, 24, 12)
    assert small.mean.shape == (3, 12, 6)
    assert module.test[0].views.shape == (2, 3, 12, 6)


@pytest.mark.parametrize(
    ("option", "known"), [("normalise", "imagenet, per_pixel_mean"), ("epoch", "identities, images")]
)
def test_an_unknown_reading_is_refused_with_the_choices(image_tree: Path, option: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of {known}; got 'other'"):
        datamodule(image_tree, **{option: "other"})


def test_an_epoch_over_the_images_has_as_many_batches_as_they_fill(image_tree: Path) -> None:
    """4 identities are 2 batches of P = 2; 9 images are one batch of P K = 6."""
    for epoch, batches in (("identities", 2), ("images", 1)):
        loader = datamodule(image_tree, epoch=epoch).train_dataloader()
        assert len(loader) == len(list(loader)) == batches


def test_without_a_cache_the_loader_decodes_for_the_device(image_tree: Path) -> None:
    expected = list(datamodule(image_tree).train_dataloader())
    assert_close(pixel_batches(datamodule(image_tree, augment_on="device")), expected)


@pytest.mark.parametrize("where", ["device", "resident"])
def test_box_and_flip_are_drawn_as_in_the_workers(
    image_tree: Path, tmp_path: Path, where: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, bool]] = []
    sample_params = TrainTransform.sample_params
    monkeypatch.setattr(
        TrainTransform,
        "sample_params",
        lambda *arguments: drawn.append(sample_params(*arguments)) or drawn[-1],
    )
    options = cached(image_tree, tmp_path / "cache")
    list(datamodule(image_tree).train_dataloader())
    expected, drawn = drawn, []
    batches = list(datamodule(image_tree, augment_on=where, **options).train_dataloader())
    assert drawn == expected
    found = [
        (tuple(box), flip)
        for batch in batches
        for box, flip in zip(batch.boxes.tolist(), batch.flips.tolist(), strict=True)
    ]
    assert found == expected
    assert len({box for box, _ in found}) > 1


@pytest.mark.parametrize("where", ["device", "resident"])
def test_images_of_several_sizes_and_boxes_are_augmented_together(
    image_tree: Path, tmp_path: Path, where: Any
) -> None:
    rng = np.random.default_rng(5)
    for number, path in enumerate(sorted((image_tree / "bounding_box_train").glob("*.jpg"))):
        pixels = rng.integers(0, 256, (40 + 7 * number, 90 - 5 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    options = cached(image_tree, tmp_path / "cache")
    data = load_market1501(root=image_tree, expected={})
    boxed = replace(data, train=(data.train[0]._replace(box=(2, 4, 33, 40)), *data.train[1:]))
    options |= {"source": lambda: boxed}
    expected = list(datamodule(image_tree, **options).train_dataloader())
    assert_close(pixel_batches(datamodule(image_tree, augment_on=where, **options)), expected)


@pytest.mark.parametrize("where", ["device", "resident"])
def test_ranks_share_a_batch_that_is_augmented_on_the_device(
    image_tree: Path, tmp_path: Path, where: Any
) -> None:
    options = cached(image_tree, tmp_path / "cache") | {"augment_on": where}
    whole = pixel_batches(datamodule(image_tree, **options))
    ranks = []
    for rank in range(2):
        module = attach(datamodule(image_tree, **options), rank=rank, world_size=2)
        loader, module.trainer = module.train_dataloader(), None
        ranks.append([module.on_after_batch_transfer(batch, 0) for batch in loader])
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))


def test_evaluation_batches_pass_the_device_untouched(image_tree: Path) -> None:
    module = datamodule(image_tree, augment_on="device")
    batch = next(iter(module.test_dataloader()))
    assert module.on_after_batch_transfer(batch, 0) is batch


def test_an_unknown_place_of_augmentation_is_refused_with_the_choices(image_tree: Path) -> None:
    with pytest.raises(ValueError, match="augment_on must be one of worker, device, resident; got 'gpu'"):
        datamodule(image_tree, augment_on="gpu")


def test_a_damaged_cache_costs_a_warning(
    image_tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = cached(image_tree, tmp_path)
    (tmp_path / "market1501" / "index.csv").write_text("damaged")
    plain, other = (datamodule(image_tree, **changes).test[0].views for changes in ({}, options))
    assert torch.equal(plain, other)
    assert "the cache cannot be read" in caplog.text


def test_resident_images_need_the_cache_in_training_alone(image_tree: Path, tmp_path: Path) -> None:
    for cache in (None, tmp_path):
        with pytest.raises(DataError, match=r"resident needs decoded images.*sharpreid\.prepare"):
            datamodule(image_tree, augment_on="resident", cache=cache)
    module = datamodule(image_tree, stage="test", augment_on="resident")
    assert len(module.test) == 9


def test_the_loader_adds_up_what_it_was_waited_for() -> None:
    class Slow(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            time.sleep(0.02)
            return index

        def __len__(self) -> int:
            return 4

    loader = TimedLoader(Slow(), batch_size=2)
    assert loader.waited == 0
    for _ in range(2):
        for _ in loader:
            time.sleep(0.05)
    assert 0.16 <= loader.waited < 0.16 + 0.1
