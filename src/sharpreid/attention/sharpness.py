"""Measures of a mask's sharpness (paper Fig. 2b: values near 0 or 1 leave no ambiguity)."""

import math

import torch
from torch import Tensor


def share_decided(mask: Tensor, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Return the share of a mask's values that are below ``low`` or above ``high``: scalar in [0, 1].

    Args:
        mask: values in [0, 1], float, any shape, not empty.
        low: values below it count as unattended.
        high: values above it count as attended.

    >>> share_decided(torch.tensor([0.0, 0.05, 0.5, 0.95])).item()
    0.75
    """
    return ((mask < low) | (mask > high)).float().mean()


def mean_entropy(mask: Tensor) -> Tensor:
    """Return the mean binary entropy of a mask's values in bits: scalar from 0 (all 0 or 1) to 1 (all 0.5).

    Args:
        mask: values in [0, 1], float, any shape, not empty.

    >>> mean_entropy(torch.tensor([0.0, 1.0])).item(), mean_entropy(torch.tensor([0.5])).item()
    (0.0, 1.0)
    """
    nats = -(torch.xlogy(mask, mask) + torch.xlogy(1 - mask, 1 - mask))
    return nats.mean() / math.log(2)
