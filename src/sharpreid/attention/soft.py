"""The soft attention that the paper compares with (Fig. 1a)."""

import torch
from torch import Tensor, nn


class SigmoidGate(nn.Module):
    """Sigmoid gate in place of the sharp mask: sigmoid(x), element by element (Fig. 1a)."""

    def forward(self, x: Tensor) -> Tensor:
        """Mask of ``x`` (B, C, H, W), same shape, float32 or float64, in [0, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.sigmoid(x if x.dtype == torch.float64 else x.float())
