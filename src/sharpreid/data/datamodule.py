"""The LightningDataModule of every data set."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sharpreid.data.pixel_cache import cache_folder, open_cache
from sharpreid.data.reid_data import ReIDData, Sample, hold_out, random_stream
from sharpreid.data.sampler import Draw, PKBatchSampler
from sharpreid.data.transforms import EvalTransform, TrainTransform, read_image
from sharpreid.signals import outlive_stop_signals

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

    def __getitem__(self, draw: Draw) -> TrainBatch:
        rng = random_stream("augmentation", self.seed, draw.epoch, draw.position)
        image = self.transform(picture_of(self.samples[draw.image], self.read), rng)
        return TrainBatch(image, torch.tensor(self.labels[draw.image]), torch.tensor(draw.image))

    def __len__(self) -> int:
        return len(self.samples)


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
        seed: of sampling, augmentation and the hold-out.
        cache: folder of `sharpreid.prepare`; this data set's decoded images are used if they are there. None
            always decodes the files.
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
        cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.validation_identities = validation_identities
        self.seed = seed
        self.cache = cache
        self._data: ReIDData | None = None

    def prepare_data(self) -> None:
        """Make or check the data once per node, before other processes read it."""
        if self._data is None:
            self.source()

    def setup(self, stage: str) -> None:
        """Read the lists and split off the validation identities."""
        if self._data is not None:
            return
        self._data = self.source()
        train: Sequence[Sample] = self._data.train
        read = self._reader(self._data.name)
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

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """PK batches of this rank, from where the training stands in its epoch."""
        trainer = self.trainer
        batches = PKBatchSampler(
            self.train.labels,
            identities_per_batch=self.identities_per_batch,
            images_per_identity=self.images_per_identity,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if trainer:
            loop = trainer.fit_loop  # whose epoch, unlike the trainer's, is already right when a run goes on
            current: Any = loop.epoch_progress.current
            batches.set_epoch(current.processed)
            batches.start_at(loop.epoch_loop.batch_progress.current.ready % len(batches))
        return DataLoader(self.train, batch_sampler=batches, **self._worker_options())

    def val_dataloader(self) -> DataLoader[EvalBatch] | list[DataLoader[EvalBatch]]:
        """This rank's share of the held-out identities; no loader without any."""
        return self._eval_loader(self.validation) if len(self.validation) else []

    def test_dataloader(self) -> DataLoader[EvalBatch]:
        """This rank's share of query and gallery."""
        return self._eval_loader(self.test)

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
