"""Batch norm with statistics of a process, of all processes or of groups of images.

torch.nn.SyncBatchNorm runs on CUDA only and torch has no ghost batch norm; `BatchNormOver` fills both gaps.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = Literal["process", "global"] | int


class BatchNormOver(_BatchNorm):
    """Batch norm with training statistics of all processes (``global``) or of groups of images.

    Unlike `torch.nn.SyncBatchNorm` it also runs on the CPU and in float64. In evaluation mode it is torch's
    batch norm. Groups are "ghost batch norm" (Hoffer et al., 2017): one device with groups of 16 images
    trains as several devices with 16 images each. The mean over the groups updates the running statistics.

    Args:
        like: batch norm whose parameters and running statistics are copied.
        statistics: ``global``, or the number of images in a group, which divides the batch.
    """

    def __init__(self, like: _BatchNorm, statistics: Statistics) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        if like.weight is not None:
            self.to(like.weight)
        self.load_state_dict(like.state_dict())
        self.statistics = statistics

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got shape {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features (B, C, ...).

        Raises:
            ValueError: the shape is wrong, or the batch is not a multiple of the group.
        """
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            groups = wide.view(self._groups(len(x)), -1, *x.shape[1:])  # (G, B/G, C, ...)
            axes = (1, *range(3, groups.ndim))
            count = groups.numel() // groups.shape[0] // groups.shape[2]
            mean, count = self._mean(groups.mean(axes, keepdim=True), count)
            variance, _ = self._mean((groups - mean).square().mean(axes, keepdim=True), count)
            normal = ((groups - mean) * (variance + self.eps).rsqrt()).flatten(0, 1)
            self._track(mean, variance * (count / max(1, count - 1)))
            shape = (1, -1, *(1,) * (x.ndim - 2))
            if self.affine:
                normal = normal * self.weight.view(shape) + self.bias.view(shape)
            result: Tensor = normal.to(x.dtype)
        return result

    def _groups(self, images: int) -> int:
        if not isinstance(self.statistics, int):
            return 1
        if images % self.statistics:
            raise ValueError(
                f"batch_norm={self.statistics}: a process's batch of {images} images is no multiple of it"
            )
        return images // self.statistics

    def _mean(self, value: Tensor, count: int) -> tuple[Tensor, int]:
        """Return the mean over processes with batches of equal size, and the number of elements in it."""
        if self.statistics != "global" or not torch.distributed.is_initialized():
            return value, count
        processes = torch.distributed.get_world_size()
        total: Tensor = torch.distributed.nn.all_reduce(value)  # type: ignore[no-untyped-call]
        return total / processes, count * processes

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(now.mean(0).flatten().to(running.dtype), momentum)


@torch.no_grad()
def recalibrate(network: nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Recompute the running statistics of every batch norm as means over batches in evaluation mode.

    Training gathers the statistics under sampled masks, this function under the masks of evaluation mode.
    Everything but the batch norms stays in evaluation mode, and no weight changes.

    Args:
        network: network, changed in place and left in evaluation mode.
        passes: functions that each pass one batch through the network. All batches have the same weight.

    Raises:
        ValueError: ``passes`` is empty.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then averages over all batches
        norm.train()
    seen = 0
    try:
        for run in passes:
            run()
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
    if not seen:
        raise ValueError("batch norm cannot be recalibrated without images")


def set_statistics(network: nn.Module, statistics: Statistics) -> None:
    """Set the images over which every batch norm computes its training statistics.

    The keys of the state dict stay the same.

    Args:
        network: network, changed in place.
        statistics: ``process`` for torch's batch norm, ``global`` for all processes, or the number of images
            in a group, at least 2.

    Raises:
        ValueError: ``statistics`` is unknown.
    """
    if statistics == "process":
        return
    if isinstance(statistics, bool) or (
        statistics != "global" and not (isinstance(statistics, int) and statistics >= 2)
    ):
        raise ValueError(f"batch_norm must be process, global or a number of images >= 2, got {statistics!r}")
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, BatchNormOver(child, statistics))
