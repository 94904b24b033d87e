"""One of several processes: those that torchrun or SLURM start for one run."""

from lightning_fabric.utilities.rank_zero import rank_zero_only

__all__ = ["is_first", "rank_zero_only"]


def is_first() -> bool:
    """Whether this is the process of rank 0, or the only one."""
    return not getattr(rank_zero_only, "rank", 0)
