"""PK identity sampling: every batch holds P identities with K images each (paper Sec. IV-B)."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch.utils.data import Sampler

from sharpreid.data.reid_data import random_stream

EpochOver = Literal["identities", "images"]


class Draw(NamedTuple):
    """One image of one batch. ``(seed, epoch, position)`` seeds its augmentation."""

    image: int
    """Index into the training images."""
    epoch: int
    position: int
    """In the epoch's stream of images, over all ranks."""


class PKBatchSampler(Sampler[list[Draw]]):
    """Batches of P identities x K images, for one of several ranks.

    A pass takes the identities in a random order and cuts them into batches of P; the last, incomplete batch
    is dropped. Of each identity K images are drawn without replacement; an identity with fewer than K gives
    all of its images and then repeats. A batch is a function of (labels, seed, epoch, step) alone.

    One epoch is

    - ``identities``: one pass, floor(identities / P) batches, 11 on Market-1501;
    - ``images``: as many batches as the images would fill, floor(images / (P K)) but at least 1, 50 on
      Market-1501; passes follow one another, and the last one may break off.

    Rank r of W takes identities r * P / W to (r + 1) * P / W of each batch, so the ranks are disjoint and
    their union, in rank order, is the batch of a single process.

    Args:
        labels: identity of each training image.
        identities_per_batch: P, over all ranks.
        images_per_identity: K, at least 2: an anchor needs a positive.
        seed: of order and choice.
        rank: of this process.
        world_size: number of processes; divides P.
        epoch_over: what one epoch is.

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
            raise ValueError(f"epoch must be one of {', '.join(get_args(EpochOver))}; got {epoch_over!r}")
        if identities_per_batch < 2 or images_per_identity < 2:
            raise ValueError(
                "a batch needs at least 2 identities with 2 images each, got "
                f"P = {identities_per_batch} and K = {images_per_identity}"
            )
        if world_size < 1 or identities_per_batch % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"identities_per_batch = {identities_per_batch} is the number over all processes and must be "
                f"a multiple of their number, {world_size} (this is rank {rank})"
            )
        self.images_of = {pid: np.flatnonzero(np.asarray(labels) == pid) for pid in sorted(set(labels))}
        if len(self.images_of) < identities_per_batch:
            raise ValueError(
                f"identities_per_batch = {identities_per_batch}, but there are only {len(self.images_of)} "
                "training identities; lower data.identities_per_batch or hold out fewer for validation"
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
        """Itself: Lightning announces the epoch to ``batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0-based) that the next iteration yields."""
        self.epoch = epoch

    def start_at(self, step: int) -> None:
        """Let the next iteration, and only that, leave out the batches before ``step`` (0-based)."""
        self.first_step = step

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        if self.epoch_over == "images":
            return max(1, self.images // (self.identities_per_batch * self.images_per_identity))
        return self._batches_per_pass

    @property
    def _batches_per_pass(self) -> int:
        return len(self.images_of) // self.identities_per_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        """This rank's part of each batch of the current epoch."""
        epoch, first_step, self.first_step = self.epoch, self.first_step, 0
        rng = random_stream("sampling", self.seed, epoch)
        passes = -(-len(self) // self._batches_per_pass)
        indices = np.concatenate([self._draw_pass(rng) for _ in range(passes)])
        share = self.identities_per_batch // self.world_size * self.images_per_identity
        for step in range(first_step, len(self)):
            start = (step * self.world_size + self.rank) * share
            yield [Draw(int(indices[i]), epoch, i) for i in range(start, start + share)]

    def _draw_pass(self, rng: np.random.Generator) -> np.ndarray:
        """The images of one pass, batch by batch."""
        order = rng.permutation(list(self.images_of))
        images = np.concatenate([self._draw_images(pid, rng) for pid in order])
        return images[: self._batches_per_pass * self.identities_per_batch * self.images_per_identity]

    def _draw_images(self, pid: int, rng: np.random.Generator) -> np.ndarray:
        images = rng.permutation(self.images_of[pid])
        missing = self.images_per_identity - len(images)
        if missing > 0:
            images = np.concatenate([images, rng.choice(images, missing)])
        return images[: self.images_per_identity]
