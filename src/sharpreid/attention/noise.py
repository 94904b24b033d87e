"""The noise of the masks: a hash of the seed and the place of an activation.

Unlike a generator's, it can be drawn in any order, by any number of threads and on any device with the same
bits, and again where a gradient needs it. The hash is a multiply and xor-shift mixer of 32 bits (two rounds,
constants of C. Wellons' search for low bias), keyed before and between the rounds.
"""

import numpy as np
import torch
from torch import Tensor

FIRST = 0x7FEB352D
SECOND = 0x846CA68B
BITS = 23  # of a draw: with half a step added, float32 holds it exactly


def keys(seed: int) -> tuple[int, int]:
    """Two words of 32 bits, as signed numbers, from a seed >= 0."""
    one, other = np.random.SeedSequence(seed).generate_state(2).tolist()
    return _signed(one), _signed(other)


def uniform_noise(
    shape: torch.Size, seed: int, dtype: torch.dtype, device: torch.device, *, first: int = 0
) -> Tensor:
    """Uniform draws in (0, 1), a function of the seed and the place in the global batch alone.

    Args:
        shape: of the batch, (B, C, H, W).
        seed: >= 0.
        dtype: float32 or float64.
        device: of the result; the bits are the same on all.
        first: place of the first image in the global batch.

    >>> one = uniform_noise(torch.Size([1, 2, 2, 2]), 0, torch.float32, torch.device("cpu"))
    >>> other = uniform_noise(torch.Size([3, 2, 2, 2]), 0, torch.float32, torch.device("cpu"))
    >>> torch.equal(one[0], other[0]), bool((other > 0).all() and (other < 1).all())
    (True, True)
    """
    batch, channels, height, width = shape
    noise = torch.empty(batch, height, width, channels, dtype=dtype, device=device)
    spare = torch.empty(2, noise.numel(), dtype=torch.int32, device=device)
    draw(noise.view(-1), first * channels * height * width, keys(seed), spare[0], spare[1])
    return noise.permute(0, 3, 1, 2)


def draw(noise: Tensor, first: int, key: tuple[int, int], a: Tensor, b: Tensor) -> None:
    """Fill ``noise`` with the draws from number ``first`` on.

    Draws are numbered in the order of (image, row, column, channel).

    Args:
        noise: float32 or float64, (N,), contiguous; filled.
        first: number, >= 0, counted modulo 2^32.
        key: of `keys`.
        a, b: int32, (N,), contiguous; overwritten. ``a`` may be the memory of a float32 ``noise``.
    """
    torch.arange(len(a), out=a)
    a.add_(_signed(first + key[0]))
    _fold(a, b, 16).mul_(_signed(FIRST)).bitwise_xor_(key[1])
    _fold(a, b, 15).mul_(_signed(SECOND))
    _fold(a, b, 16)
    torch.bitwise_right_shift(a, 32 - BITS, out=b).bitwise_and_(2**BITS - 1)
    noise.copy_(b).add_(0.5).mul_(2.0**-BITS)


def _fold(a: Tensor, b: Tensor, bits: int) -> Tensor:
    """a ^= a >> bits, without the sign."""
    return a.bitwise_xor_(torch.bitwise_right_shift(a, bits, out=b).bitwise_and_(2 ** (32 - bits) - 1))


def _signed(word: int) -> int:
    """The signed number of the lowest 32 bits."""
    return (word + 2**31) % 2**32 - 2**31
