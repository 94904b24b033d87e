"""What attention costs: the training step of the four-block network beside plain ResNet-50's, and its memory.

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
from benchmarks.networks import network
from benchmarks.rows import Row, machine
from sharpreid.losses.total_variation import reduced
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
"""Name -> override of the network, and whether the total variation is part of the loss."""

ON_A_GPU = ("compile", "triton", "triton with TV")
"""What is left out on a CPU: there compiling takes minutes, and Triton does not run."""


def _stepper(
    built: SharpAttentionNetwork, images: torch.Tensor, *, bf16: bool, variation: bool
) -> Callable[[], None]:
    def step() -> None:
        built.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext():
            output = built.training_forward(images, variation=variation)
            loss = output.embedding.float().square().mean()
            for one in output.variation:
                loss = loss + 0.01 * reduced(one, "mean")
        loss.backward()
        if images.is_cuda:
            torch.cuda.synchronize()

    return step


def saved_bytes(built: SharpAttentionNetwork, images: torch.Tensor, *, bf16: bool, variation: bool) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters aside."""
    ours = {parameter.untyped_storage().data_ptr() for parameter in built.parameters()}
    kept: dict[int, int] = {}
    alive = []  # so that no address comes twice

    def note(x: torch.Tensor) -> torch.Tensor:
        x = x.detach()  # with its history, what is kept would keep itself for ever
        storage = x.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda x: x),
        torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext(),
    ):
        output = built.training_forward(images, variation=variation)
    del output
    return sum(kept.values())


def _peak_bytes(step: Callable[[], None], device: str) -> int:
    """Bytes that a step has allocated at most, beyond what lay there before; 0 on a CPU."""
    if device != "cuda":
        return 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def measure(
    *, batch: int = 8, repeats: int = 5, channels_last: bool = True, bf16: bool = False, device: str = "cpu"
) -> list[Row]:
    """Rows of one setting: step time and memory over plain ResNet-50's, each variant in turn.

    Args:
        batch: images.
        repeats: steps of each variant, of which the median counts, after one that does not.
        channels_last: memory format.
        bf16: under autocast.
        device: of torch.
    """
    form = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(batch, 3, *SIZE, device=device).to(memory_format=form)
    steps: dict[str, Callable[[], None]] = {}
    kept, peaks, failed = {}, {}, {}
    for name, (override, variation) in VARIANTS.items():
        if name in ON_A_GPU and device != "cuda":
            continue
        torch.manual_seed(0)
        movable: Any = network(override).to(device)
        built: SharpAttentionNetwork = movable.to(memory_format=form)
        step = _stepper(built, images, bf16=bf16, variation=variation)
        try:
            kept[name] = saved_bytes(built, images, bf16=bf16, variation=variation) / batch / 2**20
            gc.collect()
            step()  # compiles
            peaks[name] = _peak_bytes(step, device) / batch / 2**20
        except Exception as error:  # the others are to be measured all the same
            if name == "plain":  # which they are compared with
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
                other="what was allowed beyond plain ResNet-50",
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
                    note="parameters and the images of all variants aside",
                )
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = command.parser("attention", __doc__)
    parser.add_argument(
        "--batch", type=command.at_least(1), default=8, metavar="N", help="images; 8 by default"
    )
    parser.add_argument(
        "--repeats", type=command.at_least(1), default=5, metavar="N", help="steps of each; 5 by default"
    )
    parser.add_argument("--contiguous", action="store_true", help="in memory, instead of channels_last")
    parser.add_argument("--bf16", action="store_true", help="under autocast to bfloat16; float32 by default")
    given = parser.parse_args(arguments)
    about = machine()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with command.one_line_at_the_end():
        rows = measure(
            batch=given.batch,
            repeats=given.repeats,
            channels_last=not given.contiguous,
            bf16=given.bf16,
            device=device,
        )
        command.report(rows, about, f"attention, batch {given.batch}, on {device}", given.output)


if __name__ == "__main__":
    main()
