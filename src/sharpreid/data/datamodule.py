"""The LightningDataModule of every data set, and its data loaders."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from sharpreid.data.datasets import (
    EvalBatch,
    EvalImages,
    ReadImage,
    TrainBatch,
    TrainImages,
    TrainPixels,
    load_image,
    load_pixels,
)
from sharpreid.data.device_augmentation import PixelBatch, ResidentImages, augment
from sharpreid.data.pixel_cache import PixelCache, cache_folder, open_cache
from sharpreid.data.reid_data import (
    DataError,
    ReIDData,
    Sample,
    random_stream,
    split_validation,
    subsample_identities,
)
from sharpreid.data.sampler import EpochOver, PKBatchSampler
from sharpreid.data.transforms import EvalTransform, Normalise, TrainTransform, mean_image, read_image
from sharpreid.signals import outlive_stop_signals

AugmentOn = Literal["worker", "device", "resident"]

T_co = TypeVar("T_co", covariant=True)

log = logging.getLogger(__name__)


class TimedLoader(DataLoader[T_co]):
    """A DataLoader that adds up the time spent waiting for batches, the start of its workers included.

    Lightning's profilers time whole hooks and have to be switched on; the callback that logs
    ``train/data_wait`` needs this one number in every run.
    """

    waited: float = 0.0
    """Seconds since the loader was made."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its private iterator
        batches: Iterator[Any] | None = None
        while True:
            start = time.perf_counter()
            try:
                batches = super().__iter__() if batches is None else batches
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch


class ShardSampler(Sampler[int]):
    """Every ``world_size``-th index, starting at ``rank``.

    `torch.utils.data.DistributedSampler` repeats or drops images to make the shards equally long; a score
    needs every image once.
    """

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.indices = range(rank, length, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class ReIDDataModule(pl.LightningDataModule):
    """PK batches for training, held-out training identities for validation, query and gallery for testing.

    Args:
        source: function that reads the data set, and first generates it if it is synthetic.
        train_transform: augmentation.
        eval_transform: test-time views.
        identities_per_batch: P, over all processes.
        images_per_identity: K.
        eval_batch_size: images per batch and process in validation and test.
        num_workers: loader workers per process.
        validation_identities: number of training identities held out for validation; 0 trains on all of them.
        training_identities: number of training identities to keep, drawn by the seed before any is held out;
            None keeps all.
        seed: seed of sampling, augmentation, the validation split and the choice of kept identities.
        cache: folder of the caches that `sharpreid.prepare` builds. The decoded images of this data set are
            read from there if they exist. None always decodes the files.
        augment_on: place of the augmentation. ``worker``: image by image in the loader workers. ``device``:
            batch by batch on the training device, while the workers only gather pixels. ``resident``: as
            ``device``, with the pixels of all training images kept on the device; needs ``cache``. The views
            differ by at most one level of 255.
        epoch: length of an epoch, a pass over the ``identities`` or over the ``images``; see
            `PKBatchSampler`.
        normalise: mean that is subtracted from every view, in training and test. ``imagenet``: the mean
            colour of ImageNet. ``per_pixel_mean``: the mean of the training images (`mean_image`), computed
            in `setup` and bit-identical in every process and whenever a checkpoint is scored. The result is
            always divided by the standard deviation of ImageNet, the scale of pretrained weights.

    Raises:
        ValueError: ``augment_on``, ``epoch`` or ``normalise`` is unknown.
    """

    def __init__(
        self,
        *,
        source: Callable[[], ReIDData],
        train_transform: TrainTransform,
        eval_transform: EvalTransform,
        identities_per_batch: int,
        images_per_identity: int,
        eval_batch_size: int,
        num_workers: int,
        validation_identities: int,
        seed: int,
        training_identities: int | None = None,
        cache: str | Path | None = None,
        augment_on: AugmentOn = "worker",
        epoch: EpochOver = "identities",
        normalise: Normalise = "imagenet",
    ) -> None:
        super().__init__()
        for key, value, known in (
            ("augment_on", augment_on, AugmentOn),
            ("epoch", epoch, EpochOver),
            ("normalise", normalise, Normalise),
        ):
            if value not in get_args(known):
                raise ValueError(f"{key} must be one of {', '.join(get_args(known))}; got {value!r}")
        self.source = source
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.validation_identities = validation_identities
        self.training_identities = training_identities
        self.seed = seed
        self.cache = cache
        self.augment_on = augment_on
        self.epoch: EpochOver = epoch
        self.normalise: Normalise = normalise
        self._data: ReIDData | None = None
        self._resident: ResidentImages | None = None

    def prepare_data(self) -> None:
        """Read the data set once per node; this generates synthetic data and unpacks archives."""
        if self._data is None:
            self.source()

    def setup(self, stage: str) -> None:
        """Read the data set, split off the validation identities, and compute the mean image if it is needed.

        Args:
            stage: ``fit`` needs training images, and query and gallery for the score after the training.

        Raises:
            DataError: images for the stage are missing, or ``augment_on`` is ``resident`` and there is no
                cache of decoded images.
        """
        if self._data is not None:
            return
        data = self.source()
        if stage == "fit" or self.normalise == "per_pixel_mean":
            check_has_images(data, "train")
        if stage == "fit":
            check_has_images(data, "query", "gallery")
        if self.training_identities is not None:
            data = subsample_identities(data, self.training_identities, self.seed)
        train: Sequence[Sample] = data.train
        read = self._reader(data.name)
        if stage == "fit" and self.augment_on == "resident" and not isinstance(read, PixelCache):
            raise DataError(
                f"data.augment_on=resident needs decoded images, and data.cache ({self.cache}) has none of "
                f"{data.name}. Run `python -m sharpreid.prepare data=...` with the same data.cache, or set "
                "data.augment_on=device"
            )
        self._data = data
        self.validation = EvalImages((), (), self.eval_transform)
        if self.validation_identities:
            held_out, train = split_validation(
                train, self.validation_identities, self.seed, cameras_known=self._data.cameras_known
            )
            self.validation = EvalImages(held_out.query, held_out.gallery, self.eval_transform, read)
        self.train = TrainImages(train, self.train_transform, self.seed, read)
        self.test = EvalImages(
            self._data.query, self._data.gallery, self.eval_transform, read, self._data.multi_query
        )
        if self.normalise == "per_pixel_mean":
            self._subtract_mean_image()

    def _subtract_mean_image(self) -> None:
        """Set the mean of both transforms to the mean training image at the size of the transform."""
        means: dict[tuple[int, int], Tensor] = {}
        for transform in (self.train_transform, self.eval_transform):
            height, width = size = transform.height, transform.width
            if size not in means:
                log.info("averaging %d training images at %d x %d", len(self.train), height, width)
                images = (load_image(sample, self.train.read) for sample in self.train.samples)
                means[size] = mean_image(images, height=height, width=width)
            transform.mean = means[size]

    def _reader(self, name: str) -> ReadImage:
        folder = None if self.cache is None else cache_folder(self.cache, name)
        try:
            cache = None if folder is None else open_cache(folder)
        except (OSError, DataError) as error:
            log.warning("decoding the images anew, which is slower: the cache cannot be read: %s", error)
            return read_image
        if cache is None:
            return read_image
        log.info("reading %d decoded images from %s", len(cache), cache.folder)
        return cache

    @property
    def data(self) -> ReIDData:
        """Return the data set; raise RuntimeError before `setup`."""
        if self._data is None:
            raise RuntimeError("no data set yet: call setup() first")
        return self._data

    def train_batches(self, rank: int = 0, world_size: int = 1) -> PKBatchSampler:
        """Return the sampler of a process's PK batches; ValueError if the data are too few for it."""
        return PKBatchSampler(
            self.train.labels,
            identities_per_batch=self.identities_per_batch,
            images_per_identity=self.images_per_identity,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            epoch_over=self.epoch,
        )

    def train_dataloader(self) -> DataLoader[TrainBatch] | DataLoader[PixelBatch]:
        """Return the PK batches of this rank, starting at the current step of the epoch."""
        trainer = self.trainer
        batches = self.train_batches(*(trainer.global_rank, trainer.world_size) if trainer else ())
        if trainer:
            loop = trainer.fit_loop  # after a resume, trainer.current_epoch is not yet up to date here
            current: Any = loop.epoch_progress.current
            batches.set_epoch(current.processed)
            if current.ready > current.processed:  # within an epoch
                batches.start_at(loop.epoch_loop.batch_progress.current.ready % len(batches))
        if self.augment_on == "worker":
            return TimedLoader(self.train, batch_sampler=batches, **self._worker_options())
        if self.augment_on == "resident" and self._resident is None:
            self._resident = ResidentImages(
                load_pixels(sample, self.train.read) for sample in self.train.samples
            )
        pixels = TrainPixels(self.train, self._resident.sizes if self._resident else None)
        return TimedLoader(pixels, batch_sampler=batches, collate_fn=_no_collate, **self._worker_options())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a batch of training pixels on its device; return any other batch unchanged."""
        if not isinstance(batch, PixelBatch):
            return batch
        pixels = batch.pixels
        if pixels is None:
            if self._resident is None:
                raise RuntimeError("the batch has no pixels: call train_dataloader() first, which loads them")
            self._resident.to(batch.indices.device)
            pixels = self._resident.gather(batch.indices, batch.sizes, batch.extent)
        size = {"height": self.train_transform.height, "width": self.train_transform.width}
        mean = self.train_transform.mean
        images = augment(pixels, batch.sizes, batch.boxes, batch.flips, mean=mean, **size)
        if self.trainer is not None:  # the trainer's precision may be float64
            images = self.trainer.precision_plugin.convert_input(images)
        return TrainBatch(images, batch.labels, batch.indices)

    def val_dataloader(self) -> DataLoader[EvalBatch] | list[DataLoader[EvalBatch]]:
        """Return this rank's shard of the held-out identities; an empty list if none are held out."""
        return self._eval_loader(self.validation) if len(self.validation) else []

    def test_dataloader(self) -> DataLoader[EvalBatch]:
        """Return this rank's shard of query and gallery; raise DataError if one of them has no images."""
        check_has_images(self.data, "query", "gallery")
        return self._eval_loader(self.test)

    def recalibration_dataloader(self, images: int) -> DataLoader[EvalBatch]:
        """Return a loader of randomly chosen training images with test-time views, at least 2 per batch.

        Args:
            images: number of images, from 2 to all training images; the seed chooses them.

        Raises:
            ValueError: ``images`` is out of range.
        """
        samples = self.train.samples
        if not 2 <= images <= len(samples):
            known = f"the {len(samples)} training images"
            raise ValueError(f"recalibrate must be from 2 to {known}, got {images}")
        order = random_stream("recalibration", self.seed).permutation(len(samples))[:images]
        chosen = EvalImages((), [samples[index] for index in order], self.eval_transform, self.train.read)
        size = max(2, min(self.eval_batch_size, images))
        batches = [list(range(start, min(start + size, images))) for start in range(0, images, size)]
        if len(batches[-1]) == 1:  # one image has no variance
            batches[-2] += batches.pop()
        return DataLoader(chosen, batch_sampler=batches, num_workers=self.num_workers)

    def _eval_loader(self, images: EvalImages) -> DataLoader[EvalBatch]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        shard = ShardSampler(len(images), rank, world_size)
        return DataLoader(images, self.eval_batch_size, sampler=shard, **self._worker_options())

    def _worker_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "worker_init_fn": outlive_stop_signals,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator().manual_seed(self.seed),  # leaves the global generator alone
        }


def check_has_images(data: ReIDData, *splits: Literal["train", "query", "gallery"]) -> None:
    """Raise DataError if a split of the data set has no images."""
    missing = [split for split in splits if not getattr(data, split)]
    if missing:
        raise DataError(
            f"{data.name} has no {' and no '.join(missing)} images. A training needs images for train, query "
            "and gallery, and a score for query and gallery"
        )


def _no_collate(batch: Any) -> Any:
    """Return a batch that the dataset has already collated."""
    return batch
