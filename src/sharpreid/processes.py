"""One of several processes: those that torchrun or SLURM start for one run."""

import os

from lightning_fabric.utilities.rank_zero import rank_zero_only

__all__ = ["is_first", "join_local_job", "rank_zero_only"]


def join_local_job() -> None:
    """Tell Lightning of the processes that submitit started on this machine, as it knows SLURM's."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and int(os.environ["SUBMITIT_LOCAL_NTASKS"]) > 1:
        from submitit.helpers import TorchDistributedEnvironment  # not a dependency

        started = TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        rank_zero_only.rank = started.rank  # type: ignore[attr-defined]


def is_first() -> bool:
    """Whether this is the process of rank 0, or the only one."""
    return not getattr(rank_zero_only, "rank", 0)
