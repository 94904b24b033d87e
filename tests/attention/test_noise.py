"""The noise of the masks is uniform, independent between places and seeds, and the same wherever drawn."""

import math

import pytest
import torch
from torch import Tensor

from sharpreid.attention.noise import BITS, derive_keys, fill_uniform, uniform_noise

CPU = torch.device("cpu")
SHAPE = torch.Size([4, 16, 64, 32])


def noise(seed: int) -> Tensor:
    return uniform_noise(SHAPE, seed, torch.float32, CPU)


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 5, 2**62])
def test_draws_are_uniform(seed: int) -> None:
    """Chi-square over 256 bins, within five deviations."""
    counts = torch.histc(noise(seed), bins=256, min=0, max=1)
    expected = SHAPE.numel() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("lowest", range(0, BITS, 3))
def test_every_bit_is_even(lowest: int) -> None:
    """Also of the counts, which a weak hash keeps in its low bits."""
    words = (noise(3).double() * 2**BITS).long()
    share = ((words >> lowest) & 1).double().mean()
    assert abs(float(share) - 0.5) < 5 * 0.5 / math.sqrt(SHAPE.numel())


def correlation(one: Tensor, other: Tensor) -> float:
    return float(((one - 0.5) * (other - 0.5)).mean() * 12)


def test_neighbours_channels_images_and_seeds_are_independent() -> None:
    """Within five deviations of an estimate from so many draws."""
    x = noise(5).double()
    pairs = {
        "column": (x[..., 1:], x[..., :-1]),
        "row": (x[:, :, 1:], x[:, :, :-1]),
        "channel": (x[:, 1:], x[:, :-1]),
        "image": (x[1:], x[:-1]),
        "next seed": (x, noise(6).double()),
        "seed of the same low word": (x, noise(5 + 2**32).double()),
    }
    for name, (one, other) in pairs.items():
        assert abs(correlation(one, other)) < 5 / math.sqrt(one.numel()), name
    assert correlation(x, x) > 0.99  # the measure is one that can tell


def test_no_draw_is_0_or_1_and_float64_has_the_same() -> None:
    x = noise(0)
    assert x.min() > 0
    assert x.max() < 1
    assert torch.equal(uniform_noise(SHAPE, 0, torch.float64, CPU), x.double())


def test_parts_are_parts_of_the_whole_beyond_32_bits() -> None:
    whole, words = torch.empty(1000), torch.empty(2, 1000, dtype=torch.int32)
    first = 2**32 - 500
    fill_uniform(whole, first, derive_keys(9), words[0], words[1])
    part, words = torch.empty(100), torch.empty(2, 100, dtype=torch.int32)
    for start in (0, 450, 900):
        fill_uniform(part, first + start, derive_keys(9), words[0], words[1])
        assert torch.equal(part, whole[start : start + 100])


def test_the_memory_format_is_that_of_channels_last() -> None:
    assert noise(0).is_contiguous(memory_format=torch.channels_last)
