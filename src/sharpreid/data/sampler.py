"""PK sampling: every batch has P identities with K images each (paper Sec. IV-B).

Samplers of metric-learning libraries do not support several ranks, or use a global random state. This one
splits one seeded order among the ranks, so that any number of devices sees the same batch. It can start in
the middle of an epoch, so that a stopped run resumes with the next batch.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch.utils.data import Sampler

from sharpreid.data.reid_data import random_stream

EpochOver = Literal["identities", "images"]


class SampleIndex(NamedTuple):
    """Index of one image in one batch. Its augmentation is seeded by ``(seed, epoch, position)``."""

    image: int
    """Index of the training image."""
    epoch: int
    """Epoch, counted from 0."""
    position: int
    """Position in the sequence of all images of the epoch, over all ranks."""


class PKBatchSampler(Sampler[list[SampleIndex]]):
    """Sampler of batches of P identities x K images, which yields one rank's part of each batch.

    A pass takes the identities in a random order and cuts them into batches of P; the last, incomplete batch
    is dropped. K images of each identity are drawn without replacement. An identity with fewer than K images
    gives all of them, and the rest is drawn with replacement. A batch is a function of (labels, seed, epoch,
    step) alone.

    The length of an epoch depends on ``epoch_over``:

    - ``identities``: one pass, floor(identities / P) batches, 11 on Market-1501.
    - ``images``: as many batches as the images fill, max(1, floor(images / (P K))), 50 on Market-1501. Passes
      follow one another, and the last one may be incomplete.

    Rank r of W takes identities r P / W to (r + 1) P / W of each batch. The ranks are disjoint, and their
    union in rank order is the batch of a single process.

    Args:
        labels: identity of each training image.
        identities_per_batch: P, over all ranks.
        images_per_identity: K, at least 2, because an anchor needs a positive.
        seed: seed of the order of identities and of the choice of images.
        rank: rank of this process.
        world_size: number of processes; divides P.
        epoch_over: length of an epoch.

    Raises:
        ValueError: an argument is out of range, or there are fewer than P identities.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        identities_per_batch: int,
        images_per_identity: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epoch_over: EpochOver = "identities",
    ) -> None:
        if epoch_over not in get_args(EpochOver):
            raise ValueError(
                f"data.epoch must be one of {', '.join(get_args(EpochOver))}; got {epoch_over!r}"
            )
        if identities_per_batch < 2 or images_per_identity < 2:
            raise ValueError(
                "data.identities_per_batch and data.images_per_identity must be at least 2; got "
                f"{identities_per_batch} and {images_per_identity}"
            )
        if world_size < 1 or identities_per_batch % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"data.identities_per_batch = {identities_per_batch} counts the identities of all processes "
                f"and must be a multiple of the number of processes, {world_size} (this is rank {rank})"
            )
        pids = np.asarray(labels)
        self.indices_of = {pid: np.flatnonzero(pids == pid) for pid in sorted(set(labels))}
        if len(self.indices_of) < identities_per_batch:
            raise ValueError(
                f"data.identities_per_batch = {identities_per_batch}, but there are only "
                f"{len(self.indices_of)} training identities; lower it or data.validation_identities, or "
                "take recipe=small, which is for data with few identities"
            )
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self.images = len(labels)
        self.epoch_over: EpochOver = epoch_over
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_step = 0

    @property
    def sampler(self) -> "PKBatchSampler":
        """Return self: Lightning calls ``set_epoch`` of ``batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        self.epoch = epoch

    def start_at(self, step: int) -> None:
        """Start the next iteration, and only that one, at batch ``step``, counted from 0."""
        self.first_step = step

    def __len__(self) -> int:
        """Return the number of batches per epoch, the same on every rank."""
        if self.epoch_over == "images":
            return max(1, self.images // (self.identities_per_batch * self.images_per_identity))
        return self._batches_per_pass

    @property
    def _batches_per_pass(self) -> int:
        return len(self.indices_of) // self.identities_per_batch

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Yield this rank's part of each batch of the current epoch."""
        epoch, first_step, self.first_step = self.epoch, self.first_step, 0
        rng = random_stream("sampling", self.seed, epoch)
        passes = -(-len(self) // self._batches_per_pass)
        indices = np.concatenate([self._draw_pass(rng) for _ in range(passes)])
        share = self.identities_per_batch // self.world_size * self.images_per_identity
        for step in range(first_step, len(self)):
            start = (step * self.world_size + self.rank) * share
            yield [SampleIndex(int(indices[i]), epoch, i) for i in range(start, start + share)]

    def _draw_pass(self, rng: np.random.Generator) -> np.ndarray:
        """Return the image indices of one pass, batch after batch."""
        order = rng.permutation(list(self.indices_of))
        images = np.concatenate([self._draw_images(pid, rng) for pid in order])
        return images[: self._batches_per_pass * self.identities_per_batch * self.images_per_identity]

    def _draw_images(self, pid: int, rng: np.random.Generator) -> np.ndarray:
        images = rng.permutation(self.indices_of[pid])
        missing = self.images_per_identity - len(images)
        if missing > 0:
            images = np.concatenate([images, rng.choice(images, missing)])
        return images[: self.images_per_identity]
