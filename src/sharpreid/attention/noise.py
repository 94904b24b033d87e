"""Noise of the masks: a hash of the seed and the position of an activation.

Unlike the draws of a generator, these have the same bits in any order, with any number of threads and on any
device, so the backward pass can compute them again. No library offers such noise with equal bits on the CPU,
on CUDA and in Triton. The hash is a 32-bit multiply and xor-shift mixer (two rounds,
constants of C. Wellons' search for low bias), with a key added before and between the rounds.
"""

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
BITS = 23
"""Random bits of a draw; with half a step added, float32 still represents it exactly."""


def derive_keys(seed: int) -> tuple[int, int]:
    """Derive the two keys of the hash, signed 32-bit integers, from a seed >= 0."""
    first, second = np.random.SeedSequence(seed).generate_state(2).tolist()
    return _to_signed(first), _to_signed(second)


def uniform_noise(
    shape: torch.Size, seed: int, dtype: torch.dtype, device: torch.device, *, first_image: int = 0
) -> Tensor:
    """Draw uniform noise in (0, 1) that depends on the seed and the position in the global batch alone.

    Args:
        shape: (B, C, H, W).
        seed: >= 0.
        dtype: float32 or float64.
        device: device of the result; the bits are the same on all.
        first_image: index of the first image in the global batch.

    Returns:
        Noise of ``shape``, channels last in memory.

    >>> one = uniform_noise(torch.Size([1, 2, 2, 2]), 0, torch.float32, torch.device("cpu"))
    >>> other = uniform_noise(torch.Size([3, 2, 2, 2]), 0, torch.float32, torch.device("cpu"))
    >>> torch.equal(one[0], other[0]), bool((other > 0).all() and (other < 1).all())
    (True, True)
    """
    batch, channels, height, width = shape
    noise = torch.empty(batch, height, width, channels, dtype=dtype, device=device)
    words = torch.empty(2, noise.numel(), dtype=torch.int32, device=device)
    first_draw = first_image * channels * height * width
    fill_uniform(noise.view(-1), first_draw, derive_keys(seed), words[0], words[1])
    return noise.permute(0, 3, 1, 2)


def fill_uniform(noise: Tensor, first_draw: int, keys: tuple[int, int], a: Tensor, b: Tensor) -> None:
    """Fill ``noise`` in place with consecutive draws, which are numbered by (image, row, column, channel).

    Args:
        noise: float32 or float64, (N,), contiguous.
        first_draw: number of the first draw, >= 0, counted modulo 2^32.
        keys: result of `derive_keys`.
        a: int32 work space, (N,), contiguous. It may share the memory of a float32 ``noise``.
        b: int32 work space, (N,), contiguous.
    """
    first_multiplier, second_multiplier = map(_to_signed, MULTIPLIERS)
    torch.arange(len(a), out=a)
    a.add_(_to_signed(first_draw + keys[0]))
    _xor_shift(a, b, 16).mul_(first_multiplier).bitwise_xor_(keys[1])
    _xor_shift(a, b, 15).mul_(second_multiplier)
    _xor_shift(a, b, 16)
    torch.bitwise_right_shift(a, 32 - BITS, out=b).bitwise_and_(2**BITS - 1)
    noise.copy_(b).add_(0.5).mul_(2.0**-BITS)


def _xor_shift(a: Tensor, b: Tensor, bits: int) -> Tensor:
    """Compute a ^= a >> bits of unsigned words in place, with ``b`` as work space."""
    return a.bitwise_xor_(torch.bitwise_right_shift(a, bits, out=b).bitwise_and_(2 ** (32 - bits) - 1))


def _to_signed(word: int) -> int:
    """Return the lowest 32 bits as a signed integer."""
    return (word + 2**31) % 2**32 - 2**31
