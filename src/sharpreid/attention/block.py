"""The sharp attention block (paper Sec. III-A, Eq. 1-2)."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sharpreid.attention.context import ContextUnit
from sharpreid.attention.mask import MaskSampler
from sharpreid.attention.soft import ResidualAttentionMask

Combine = Literal["add", "concat", "attended_only"]


class Attended(NamedTuple):
    """Result of an attention block."""

    output: Tensor
    """F_i of Eq. 2, (B, C, H, W) or, with ``concat``, (B, 2C, H, W); same dtype as the trunk."""
    attended: Tensor
    """A_i of Eq. 1, (B, C, H, W), float32."""
    mask: Tensor
    """M_i, (B, C, H, W), float32, in [0, 1]."""


def apply_mask(trunk: Tensor, mask: Tensor, combine: Combine = "add") -> tuple[Tensor, Tensor]:
    """Return F = T + A (Eq. 2) and the attended features A = M * T (Eq. 1).

    Args:
        trunk: T, features of the trunk, float, (B, C, H, W), unitless.
        mask: M, float32 or float64, same shape, in [0, 1].
        combine: form of Eq. 2, see `SharpAttentionBlock`.

    Returns:
        F, (B, C, H, W) or, with ``concat``, (B, 2C, H, W), in the dtype of ``trunk``; and A, (B, C, H, W), in
        the wider dtype of ``trunk`` and ``mask``.
    """
    attended = mask * trunk
    if combine == "add":
        return (trunk + attended).to(trunk.dtype), attended
    output = attended.to(trunk.dtype)
    return torch.cat([trunk, output], 1) if combine == "concat" else output, attended


class SharpAttentionBlock(nn.Module):
    """Attention block on the output of a stage; ``forward`` is the reference of Eq. 1-5.

    The paper compares three forms of Eq. 2 (Sec. III-C). ``combine`` is

    - ``add``: F = T + A, "a better choice";
    - ``concat``: F = [T; A] with 2C channels, "hard to converge" in the paper;
    - ``attended_only``: F = A, without the skip connection.

    Args:
        sampler: maps the mask branch to a mask of the same shape in [0, 1]: `MaskSampler`; `SigmoidGate` or
            `SigmoidConvGate` for the soft attention that the paper compares with; or `nn.Identity` behind a
            `ResidualAttentionMask`.
        context: the context-aware unit in front of the sampler (Sec. III-D), or a `ResidualAttentionMask`;
            None computes the mask from the stage's output itself.
        combine: how the attended features join the stage's output.

    Raises:
        ValueError: ``combine`` is unknown, or ``sampler`` and ``context`` do not fit together.
    """

    def __init__(
        self,
        *,
        sampler: nn.Module,
        context: ContextUnit | ResidualAttentionMask | None,
        combine: Combine = "add",
    ) -> None:
        super().__init__()
        if combine not in get_args(Combine):
            raise ValueError(f"combine must be one of {', '.join(get_args(Combine))}; got {combine!r}")
        if isinstance(sampler, nn.Identity) != isinstance(context, ResidualAttentionMask):
            raise ValueError(
                "a ResidualAttentionMask needs nn.Identity as its sampler (model/sampler=none), and only "
                f"this mask takes nn.Identity; got {type(sampler).__name__} with {type(context).__name__}"
            )
        self.sampler = sampler
        self.context = context
        self.combine: Combine = combine
        self.mask_listener: Callable[[Tensor], None] | None = None
        """Function that `sharpreid.models.implementations.train_block` calls with the detached mask."""

    def forward(
        self, trunk: Tensor, *, noise_seed: int | None = None, first_image: int = 0, views: int = 1
    ) -> Attended:
        """Attend the features of a stage.

        Args:
            trunk: T of Eq. 1, float, (B, C, H, W), unitless.
            noise_seed: see `MaskSampler.mask_params`; soft attention has no noise.
            first_image: see `MaskSampler.mask_params`.
            views: see `MaskSampler.forward`.
        """
        source = self.mask_source(trunk)
        if isinstance(self.sampler, MaskSampler):
            mask = self.sampler(source, noise_seed=noise_seed, first_image=first_image, views=views)
        else:
            mask = self.sampler(source)
        output, attended = apply_mask(trunk, mask, self.combine)
        return Attended(output, attended, mask)

    def mask_source(self, trunk: Tensor) -> Tensor:
        """Return the input of the mask sampler, (B, C, H, W): the trunk's features or their context."""
        detach = isinstance(self.sampler, MaskSampler) and self.sampler.gradient == "none"
        source = trunk.detach() if detach else trunk
        return source if self.context is None else self.context(source)
