"""Measure the cost of attention: step time and memory of the four-block network and of plain ResNet-50.

``python -m benchmarks.attention [--batch 8] [--repeats 5] [--output FILE]``; on a GPU ``--batch 256 --bf16``.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks import command
from benchmarks.networks import build_network
from benchmarks.rows import Row, describe_machine
from sharpreid.losses.total_variation import reduce_total_variation
from sharpreid.models.network import SharpAttentionNetwork

SIZE = (256, 128)

VARIANTS: dict[str, tuple[str, bool]] = {
    "plain": ("model.blocks=[]", False),
    "eager": ("model.sampler.implementation=eager", False),
    "recompute": ("model.sampler.implementation=recompute", False),
    "recompute, mask detached": ("model.sampler.gradient=none", False),
    "recompute with TV": ("model.sampler.implementation=recompute", True),
    "compile": ("model.sampler.implementation=compile", False),
    "triton": ("model.sampler.implementation=triton", False),
    "triton with TV": ("model.sampler.implementation=triton", True),
}
"""Config override of each variant, and whether the total variation is part of the loss."""

GPU_ONLY = ("compile", "triton", "triton with TV")
"""Variants that are skipped on a CPU, where compiling takes minutes and Triton does not run."""


def _make_step(
    built: SharpAttentionNetwork, images: torch.Tensor, *, bf16: bool, variation: bool
) -> Callable[[], None]:
    """Return a function that runs forward and backward pass."""

    def step() -> None:
        built.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext():
            output = built.training_forward(images, total_variation=variation)
            loss = output.embedding.float().square().mean()
            for one in output.total_variation:
                loss = loss + 0.01 * reduce_total_variation(one, "mean")
        loss.backward()
        if images.is_cuda:
            torch.cuda.synchronize()

    return step


def saved_bytes(built: SharpAttentionNetwork, images: torch.Tensor, *, bf16: bool, variation: bool) -> int:
    """Return the bytes that the forward pass saves for the backward pass, without the parameters.

    Args:
        built: network in training mode.
        images: normalised images, (B, 3, H, W).
        bf16: use autocast to bfloat16.
        variation: compute the total variation too.
    """
    ours = {parameter.untyped_storage().data_ptr() for parameter in built.parameters()}
    kept: dict[int, int] = {}
    alive = []  # keeps the storages alive, so that no address is reused

    def note(x: torch.Tensor) -> torch.Tensor:
        x = x.detach()  # a saved tensor with a graph would keep itself alive
        storage = x.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda x: x),
        torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext(),
    ):
        output = built.training_forward(images, total_variation=variation)
    del output
    return sum(kept.values())


def _peak_bytes(step: Callable[[], None], device: str) -> int:
    """Return the peak of the bytes that a step allocates; 0 on a CPU."""
    if device != "cuda":
        return 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def measure(
    *, batch: int = 8, repeats: int = 5, channels_last: bool = True, bf16: bool = False, device: str = "cpu"
) -> list[Row]:
    """Measure step time and memory of every variant and of plain ResNet-50, interleaved.

    Args:
        batch: number of images.
        repeats: timed steps of each variant, whose median is reported; one more step warms up.
        channels_last: use the channels_last memory format.
        bf16: use autocast to bfloat16.
        device: ``cpu`` or ``cuda``.
    """
    form = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(batch, 3, *SIZE, device=device).to(memory_format=form)
    steps: dict[str, Callable[[], None]] = {}
    kept, peaks, failed = {}, {}, {}
    for name, (override, variation) in VARIANTS.items():
        if name in GPU_ONLY and device != "cuda":
            continue
        torch.manual_seed(0)
        movable: Any = build_network(override).to(device)
        built: SharpAttentionNetwork = movable.to(memory_format=form)
        step = _make_step(built, images, bf16=bf16, variation=variation)
        try:
            kept[name] = saved_bytes(built, images, bf16=bf16, variation=variation) / batch / 2**20
            gc.collect()
            step()  # compiles
            peaks[name] = _peak_bytes(step, device) / batch / 2**20
        except Exception as error:  # the other variants are still measured
            if name == "plain":  # the baseline of all others
                raise
            failed[name] = f"failed: {type(error).__name__}: {error}"
        else:
            steps[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    setting = f"{'bf16' if bf16 else 'float32'} {'channels_last' if channels_last else 'contiguous'}"
    limit = 1.08 if device == "cuda" else 1.20
    rows = [
        Row(
            name=f"step, {setting}, {name}",
            ours=None,
            unit="ms/image",
            other="plain ResNet-50",
            theirs=None,
            better="lower",
            note=why,
        )
        for name, why in failed.items()
    ]
    for name in [name for name in steps if name != "plain"]:
        rows.append(
            Row(
                name=f"step, {setting}, {name}",
                ours=middle[name] / batch * 1e3,
                unit="ms/image",
                other="plain ResNet-50",
                theirs=middle["plain"] / batch * 1e3,
                better="lower",
                limit=limit if name == ("triton" if device == "cuda" else "recompute") else None,
                note=f"median of {repeats}",
            )
        )
        rows.append(
            Row(
                name=f"kept for the gradient, {setting}, {name}",
                ours=kept[name] - kept["plain"],
                unit="MiB/image",
                other="allowance beyond plain ResNet-50",
                theirs=4.0,
                better="lower",
                limit=1 if name in ("recompute", "triton") else None,
                note=f"plain {kept['plain']:.1f}",
            )
        )
        if device == "cuda":
            rows.append(
                Row(
                    name=f"most memory in a step, {setting}, {name}",
                    ours=peaks[name],
                    unit="MiB/image",
                    other="plain ResNet-50",
                    theirs=peaks["plain"],
                    better="lower",
                    note="without parameters and images",
                )
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("attention", __doc__)
    parser.add_argument(
        "--batch", type=command.integer_at_least(2), default=8, metavar="N", help="images; 8 by default"
    )
    parser.add_argument(
        "--repeats",
        type=command.integer_at_least(1),
        default=5,
        metavar="N",
        help="timed steps of each; 5 by default",
    )
    parser.add_argument(
        "--contiguous", action="store_true", help="contiguous memory format instead of channels_last"
    )
    parser.add_argument("--bf16", action="store_true", help="use autocast to bfloat16; float32 by default")
    given = parser.parse_args(arguments)
    about = describe_machine()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with command.errors_in_one_line():
        rows = measure(
            batch=given.batch,
            repeats=given.repeats,
            channels_last=not given.contiguous,
            bf16=given.bf16,
            device=device,
        )
        command.report_rows(rows, about, f"attention, batch {given.batch}, on {device}", given.output)


if __name__ == "__main__":
    main()
