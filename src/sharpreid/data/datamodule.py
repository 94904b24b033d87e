"""The LightningDataModule of every data set."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sharpreid.data.device_augmentation import Picture, PixelBatch, ResidentImages, augment, padded
from sharpreid.data.pixel_cache import PixelCache, cache_folder, open_cache
from sharpreid.data.reid_data import (
    DataError,
    ReIDData,
    Sample,
    draw_identities,
    hold_out,
    random_stream,
)
from sharpreid.data.sampler import Draw, EpochOver, PKBatchSampler
from sharpreid.data.timed_loader import TimedLoader
from sharpreid.data.transforms import EvalTransform, Normalise, TrainTransform, mean_image, read_image
from sharpreid.signals import outlive_stop_signals

AugmentOn = Literal["worker", "device", "resident"]

ReadImage = Callable[[Path], Image.Image]
"""From an image file to its pixels, RGB."""

log = logging.getLogger(__name__)


class TrainBatch(NamedTuple):
    """A batch of training images; of one image before collation."""

    images: Tensor
    """(B, 3, H, W), normalised."""
    labels: Tensor
    """(B,), identities numbered from 0."""
    indices: Tensor
    """(B,), into the training images."""


class EvalBatch(NamedTuple):
    """A batch of query and gallery images; of one image before collation."""

    views: Tensor
    """(B, V, 3, H, W), normalised."""
    pids: Tensor
    """(B,)."""
    camids: Tensor
    """(B,)."""
    is_query: Tensor
    """(B,), bool."""
    indices: Tensor
    """(B,), into the samples of `EvalImages`."""


def picture_of(sample: Sample, read: ReadImage = read_image) -> Image.Image:
    """A sample's image, RGB, cut to its box."""
    whole = read(sample.path)
    return whole.crop(sample.box) if sample.box else whole


def pixels_of(sample: Sample, read: ReadImage) -> Picture:
    """A sample's image as an array, cut to its box; with a cache nothing is copied."""
    whole = read.pixels(sample.path) if isinstance(read, PixelCache) else np.asarray(read(sample.path))
    if sample.box is None:
        return whole
    left, upper, right, lower = sample.box
    return whole[upper:lower, left:right]


class TrainImages(Dataset[TrainBatch]):
    """Training images, augmented as a function of (seed, epoch, position) alone."""

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: TrainTransform,
        seed: int,
        read: ReadImage = read_image,
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed
        self.read = read
        number = {pid: label for label, pid in enumerate(sorted({sample.pid for sample in samples}))}
        self.labels = [number[sample.pid] for sample in samples]

    def random_stream(self, draw: Draw) -> np.random.Generator:
        """What the augmentation of ``draw`` takes its randomness from."""
        return random_stream("augmentation", self.seed, draw.epoch, draw.position)

    def __getitem__(self, draw: Draw) -> TrainBatch:
        picture = picture_of(self.samples[draw.image], self.read)
        image = self.transform(picture, self.random_stream(draw))
        return TrainBatch(image, torch.tensor(self.labels[draw.image]), torch.tensor(draw.image))

    def __len__(self) -> int:
        return len(self.samples)


class TrainPixels(Dataset[PixelBatch]):
    """Training images for the augmentation on the device: whole batches, with what is drawn for each image.

    Args:
        images: the training images; what is drawn is what they would be augmented by.
        sizes: width and height of each image where the pixels are on the device already, else None.
    """

    def __init__(self, images: TrainImages, sizes: Sequence[tuple[int, int]] | None) -> None:
        self.images = images
        self.sizes = sizes

    def __getitems__(self, draws: Sequence[Draw]) -> PixelBatch:
        images, pixels = self.images, None
        if self.sizes is None:
            pictures = [pixels_of(images.samples[draw.image], images.read) for draw in draws]
            sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
            pixels = torch.from_numpy(padded(pictures))
        else:
            sizes = [self.sizes[draw.image] for draw in draws]
        boxes, flips = zip(
            *(
                images.transform.draw(*size, images.random_stream(draw))
                for size, draw in zip(sizes, draws, strict=True)
            ),
            strict=True,
        )
        return PixelBatch(
            pixels=pixels,
            extent=(max(height for _, height in sizes), max(width for width, _ in sizes)),
            sizes=torch.tensor(sizes),
            boxes=torch.tensor(boxes),
            flips=torch.tensor(flips),
            labels=torch.tensor([images.labels[draw.image] for draw in draws]),
            indices=torch.tensor([draw.image for draw in draws]),
        )

    def __len__(self) -> int:
        return len(self.images)


def _as_it_is(batch: Any) -> Any:
    """Collates what is a batch already."""
    return batch


class EvalImages(Dataset[EvalBatch]):
    """Query images, then gallery images, then the further images of multi-query.

    ``pooled_into`` is None for single-query. Else it has the index of each image's query, and that of every
    other image itself: embeddings of the same index are to be averaged.
    """

    def __init__(
        self,
        query: Sequence[Sample],
        gallery: Sequence[Sample],
        transform: EvalTransform,
        read: ReadImage = read_image,
        multi_query: Sequence[Sequence[Sample]] | None = None,
    ) -> None:
        further = [(index, sample) for index, group in enumerate(multi_query or ()) for sample in group]
        self.samples = [*query, *gallery, *(sample for _, sample in further)]
        self.num_query = len(query)
        self.pooled_into: Tensor | None = None
        if multi_query is not None:
            alone = range(len(query) + len(gallery))
            self.pooled_into = torch.tensor([*alone, *(index for index, _ in further)])
        self.transform = transform
        self.read = read

    def __getitem__(self, index: int) -> EvalBatch:
        sample = self.samples[index]
        views = self.transform(picture_of(sample, self.read))
        numbers = torch.tensor((sample.pid, sample.camid, index))
        return EvalBatch(views, numbers[0], numbers[1], torch.tensor(index < self.num_query), numbers[2])

    def __len__(self) -> int:
        return len(self.samples)


class Shard(Sampler[int]):
    """Every ``world_size``-th index from ``rank`` on: shards of unequal length, without padding."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.indices = range(rank, length, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class ReIDDataModule(pl.LightningDataModule):
    """Training by PK batches, validation on held-out training identities, testing on query and gallery.

    Args:
        source: reads (and for synthetic data first makes) the data set.
        train_transform: augmentation.
        eval_transform: test-time views.
        identities_per_batch: P, over all processes.
        images_per_identity: K.
        eval_batch_size: images per batch and process in validation and test.
        num_workers: processes that decode images, per process.
        validation_identities: training identities held out for validation; 0 trains on all of them.
        training_identities: training identities that are kept, drawn by the seed before any is held out;
            None keeps all.
        seed: of sampling, augmentation, the hold-out and the draw of the kept identities.
        cache: folder of `sharpreid.prepare`; this data set's decoded images are used if they are there. None
            always decodes the files.
        augment_on: where training images are augmented: ``worker``, image by image in the ``num_workers``
            processes; ``device``, batch by batch on the device that trains, the processes only gathering
            pixels; ``resident``, the same with the pixels of all training images kept on the device, which
            needs ``cache``. The views are the same, to one level of 255 at most.
        epoch: what one epoch is a pass over, ``identities`` or ``images``; see `PKBatchSampler`.
        normalise: what is subtracted from every view, in training and test: ``imagenet``, the mean colour of
            ImageNet; or ``per_pixel_mean``, the mean of the images that are trained on (`mean_image`),
            computed in `setup`, the same bits in every process and whenever a checkpoint is scored. Either
            way the result is divided by the deviation of ImageNet, the scale of pretrained weights.

    Raises:
        ValueError: ``augment_on``, ``epoch`` or ``normalise`` is none of these.
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
        """Make or check the data once per node, before other processes read it."""
        if self._data is None:
            self.source()

    def setup(self, stage: str) -> None:
        """Read the lists, split off the validation identities and average the training images if asked to.

        Raises:
            DataError: training images are to be resident, and there is no cache of them.
        """
        if self._data is not None:
            return
        data = self.source()
        if self.training_identities is not None:
            data = draw_identities(data, self.training_identities, self.seed)
        train: Sequence[Sample] = data.train
        read = self._reader(data.name)
        if stage == "fit" and self.augment_on == "resident" and not isinstance(read, PixelCache):
            raise DataError(
                "data.augment_on=resident needs the decoded images: first run `python -m sharpreid.prepare "
                f"data=...` with the same data.cache (now {self.cache}), or take data.augment_on=device"
            )
        self._data = data
        self.validation = EvalImages((), (), self.eval_transform)
        if self.validation_identities:
            held_out, train = hold_out(
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
        """Let both transforms subtract the mean of the images that are trained on, each at its own size."""
        means: dict[tuple[int, int], Tensor] = {}
        for transform in (self.train_transform, self.eval_transform):
            height, width = size = transform.height, transform.width
            if size not in means:
                log.info("averaging %d training images at %d x %d", len(self.train), height, width)
                pictures = (picture_of(one, self.train.read) for one in self.train.samples)
                means[size] = mean_image(pictures, height=height, width=width)
            transform.mean = means[size]

    def _reader(self, name: str) -> ReadImage:
        cache = None if self.cache is None else open_cache(cache_folder(self.cache, name))
        if cache is None:
            return read_image
        log.info("%d decoded images from %s", len(cache), cache.folder)
        return cache

    @property
    def data(self) -> ReIDData:
        """The data set, once `setup` has run."""
        if self._data is None:
            raise RuntimeError("the data set is read by setup(), which has not been called yet")
        return self._data

    def train_dataloader(self) -> DataLoader[TrainBatch] | DataLoader[PixelBatch]:
        """PK batches of this rank, from where the training stands in its epoch."""
        trainer = self.trainer
        batches = PKBatchSampler(
            self.train.labels,
            identities_per_batch=self.identities_per_batch,
            images_per_identity=self.images_per_identity,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            epoch_over=self.epoch,
        )
        if trainer:
            loop = trainer.fit_loop  # whose epoch, unlike the trainer's, is already right when a run goes on
            current: Any = loop.epoch_progress.current
            batches.set_epoch(current.processed)
            batches.start_at(loop.epoch_loop.batch_progress.current.ready % len(batches))
        if self.augment_on == "worker":
            return TimedLoader(self.train, batch_sampler=batches, **self._worker_options())
        if self.augment_on == "resident" and self._resident is None:
            self._resident = ResidentImages(pixels_of(one, self.train.read) for one in self.train.samples)
        pixels = TrainPixels(self.train, self._resident.sizes if self._resident else None)
        return TimedLoader(pixels, batch_sampler=batches, collate_fn=_as_it_is, **self._worker_options())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch of which only the pixels are there."""
        if not isinstance(batch, PixelBatch):
            return batch
        pixels = batch.pixels
        if pixels is None:
            if self._resident is None:
                raise RuntimeError("the batch has no pixels, and none are kept by train_dataloader()")
            self._resident.to(batch.indices.device)
            pixels = self._resident.gather(batch.indices, batch.sizes, batch.extent)
        size = {"height": self.train_transform.height, "width": self.train_transform.width}
        mean = self.train_transform.mean
        images = augment(pixels, batch.sizes, batch.boxes, batch.flips, mean=mean, **size)
        if self.trainer is not None:  # its precision may be float64
            images = self.trainer.precision_plugin.convert_input(images)
        return TrainBatch(images, batch.labels, batch.indices)

    def val_dataloader(self) -> DataLoader[EvalBatch] | list[DataLoader[EvalBatch]]:
        """This rank's share of the held-out identities; no loader without any."""
        return self._eval_loader(self.validation) if len(self.validation) else []

    def test_dataloader(self) -> DataLoader[EvalBatch]:
        """This rank's share of query and gallery."""
        return self._eval_loader(self.test)

    def recalibration_dataloader(self, images: int) -> DataLoader[EvalBatch]:
        """Some training images as the test sees them, drawn by the seed, in batches of at least 2.

        Args:
            images: how many, from 2 to all training images.

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
        if len(batches[-1]) == 1:  # too few for a variance
            batches[-2] += batches.pop()
        return DataLoader(chosen, batch_sampler=batches, num_workers=self.num_workers)

    def _eval_loader(self, images: EvalImages) -> DataLoader[EvalBatch]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        shard = Shard(len(images), rank, world_size)
        return DataLoader(images, self.eval_batch_size, sampler=shard, **self._worker_options())

    def _worker_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "worker_init_fn": outlive_stop_signals,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator().manual_seed(self.seed),  # not the global one
        }
