"""The sharp attention block (paper Sec. III-A, Eq. 1-2)."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sharpreid.attention.context import ContextUnit
from sharpreid.attention.fused import attend
from sharpreid.attention.mask import MaskSampler
from sharpreid.attention.soft import ResidualAttentionMask
from sharpreid.losses.total_variation import Variation, variation_of

Combine = Literal["add", "concat", "attended_only"]


class Attended(NamedTuple):
    """What an attention block returns."""

    output: Tensor
    """F_i of Eq. 2, (B, C, H, W), of ``concat`` (B, 2C, H, W); dtype of the trunk: the next stage's input."""
    attended: Tensor
    """A_i of Eq. 1, (B, C, H, W), float32: what the total variation of Eq. 6 is taken of."""
    mask: Tensor
    """M_i, (B, C, H, W), float32, in [0, 1]."""


class SharpAttentionBlock(nn.Module):
    """Attends a stage's output: A = M(T) * T (Eq. 1) and F = T + A (Eq. 2).

    Eq. 2 is the paper's choice among three (Sec. III-C); ``combine`` is

    - ``add``: F = T + A, "a better choice";
    - ``concat``: F = [T; A] with 2C channels, "hard to converge" in the paper;
    - ``attended_only``: F = A, without the skip connection.

    Args:
        sampler: maps the mask branch to a mask of the same shape in [0, 1]: `MaskSampler`, `SigmoidGate` or
            `SigmoidConvGate` for the soft attention that the paper compares with, or `nn.Identity` behind a
            `ResidualAttentionMask`.
        context: the context-aware unit in front of the sampler (Sec. III-D), or a `ResidualAttentionMask`;
            None makes the mask from the stage's output itself.
        combine: how the attended features join the stage's output.

    Raises:
        ValueError: ``combine`` is unknown, or nothing keeps the mask in [0, 1].
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
                "a ResidualAttentionMask needs nn.Identity as its sampler (model/sampler=none), and no other "
                f"block takes it; got {type(sampler).__name__} with {type(context).__name__}"
            )
        self.sampler = sampler
        self.context = context
        self.combine: Combine = combine
        self.mask_listener: Callable[[Tensor], None] | None = None
        """Is given the mask of each `attend`, without gradient; for a fused one it is made once more."""

    def attend(self, trunk: Tensor, *, variation: bool) -> tuple[Tensor, Variation | None]:
        """Return F of Eq. 2 alone, in training mode by the sampler's ``implementation``.

        Args:
            trunk: float, (B, C, H, W).
            variation: whether Eq. 6 of the attended features is wanted too.
        """
        sampler = self.sampler
        if isinstance(sampler, MaskSampler) and sampler.training and sampler.implementation != "eager":
            recipe = sampler.recipe()
            source = self._source(trunk)
            if self.mask_listener is not None:
                with torch.no_grad():
                    self.mask_listener(sampler.drawn(source, recipe))
            output, of_attended = attend(
                trunk,
                source,
                recipe,
                variation=variation,
                skip=self.combine == "add",
                implementation=sampler.implementation,
            )
            return self._beside(trunk, output), of_attended
        output, attended, mask = self(trunk)
        if self.mask_listener is not None:
            self.mask_listener(mask.detach())
        return output, variation_of(attended) if variation else None

    def _source(self, trunk: Tensor) -> Tensor:
        """What the mask is made of."""
        cut = isinstance(self.sampler, MaskSampler) and self.sampler.gradient == "none"
        source = trunk.detach() if cut else trunk
        return source if self.context is None else self.context(source)

    def forward(self, trunk: Tensor) -> Attended:
        """Attend ``trunk`` (T of Eq. 1), float, (B, C, H, W)."""
        mask: Tensor = self.sampler(self._source(trunk))
        attended = mask * trunk
        output = (trunk + attended if self.combine == "add" else attended).to(trunk.dtype)
        return Attended(self._beside(trunk, output), attended, mask)

    def _beside(self, trunk: Tensor, output: Tensor) -> Tensor:
        """Put the trunk's features in front of the attended ones where they are concatenated."""
        return torch.cat([trunk, output], 1) if self.combine == "concat" else output
