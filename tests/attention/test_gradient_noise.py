"""How alike the gradients of one batch are under two noises: experiments/mask_gradient/measure.py."""

import runpy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from omegaconf import DictConfig

from sharpreid.attention.block import SharpAttentionBlock
from sharpreid.attention.mask import Gradient, MaskSampler

MEASURE = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "mask_gradient" / "measure.py"))


def test_one_slope_of_the_mask_has_no_bound_as_pi_goes_to_0_and_the_others_have() -> None:
    """The problem itself (docs/attention_gradient.md): the spread of dM/dpi over the noise.

    With tau = 0.5 a hundredth of pi raises the spread of the whole gradient tenfold, and its mean stays.
    """
    spread = {}
    for gradient, pi in product(("whole", "expected", "clipped", "straight_through_pi"), (0.1, 0.001)):
        slopes = MEASURE["draw_slopes"](gradient, pi, tau=0.5, draws=200_000)
        assert slopes.mean() < 3
        spread[gradient, pi] = float(slopes.std())
    assert 1 < spread["whole", 0.1] < 3
    assert spread["whole", 0.001] > 12
    for gradient in ("expected", "straight_through_pi"):
        assert spread[gradient, 0.001] < 1e-6
    assert spread["clipped", 0.001] == 0


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_without_the_masks_gradient_two_noises_agree_more(tau: float) -> None:
    """Gradients by features as a ReLU leaves them, of a loss that is linear in a block's output."""
    generator = torch.Generator().manual_seed(0)
    trunk = torch.randn(4, 32, 16, 8, generator=generator).relu()
    upstream = torch.randn(trunk.shape, generator=generator)
    cosine = {}
    for gradient in get_args(Gradient):
        block = SharpAttentionBlock(sampler=MaskSampler(eps=1e-6, gradient=gradient), context=None)
        block.sampler.set_temperature(tau)
        gradients = []
        for seed in (0, 1):
            features = trunk.clone().requires_grad_()
            output = block(features, noise_seed=seed).output
            gradients.append(torch.autograd.grad(output, features, upstream)[0].flatten())
        cosine[gradient] = float(torch.cosine_similarity(*gradients, dim=0))
    assert cosine["whole"] == min(cosine.values())
    for gradient in ("none", "expected", "straight_through_pi"):
        assert 1 - cosine["whole"] > 1.8 * (1 - cosine[gradient])


def test_without_noise_all_gradients_agree(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("data.num_workers=0", "model.sampler.train_mask=noise_free")
    rows = MEASURE["measure_cosines"](cfg, noises=2)
    assert len(rows) == 6 * 5
    assert min(row["cosine"] for row in rows) > 0.999


def test_the_figure_has_both_measurements() -> None:
    spread = MEASURE["measure_slopes"](draws=100)
    cosine = [
        {"gradient": gradient, "part": part, "cosine": 0.5}
        for gradient in ("whole", "range_detached", "straight_through_pi", "clipped", "expected", "none")
        for part in ("stage 1", "head")
    ]
    left, right = MEASURE["draw_figure"](spread, cosine, "title").axes
    assert len(left.get_lines()) == 5  # two gradients at two temperatures, and a line at 1
    assert len(right.patches) == 12
