"""Products of float32 numbers that are not shortened."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 proper: neither in TF32 or bfloat16, nor in what autocast chooses.

    TF32 and bfloat16 are settings of the whole process: meanwhile other threads go without them too.

    Args:
        device: for whose type autocast is off.
    """
    backends: Any = torch.backends  # whose types do not know these settings yet
    products = backends.cuda.matmul, backends.mkldnn.matmul
    before = [one.fp32_precision for one in products]
    for one in products:
        one.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for one, precision in zip(products, before, strict=True):
            one.fp32_precision = precision
