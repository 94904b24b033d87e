"""Measure size and latency of exported networks, relative to PyTorch without an export.

``python -m benchmarks.export [--model FOLDER] [--repeats 5]``. Without a model, the paper's network with
random weights is exported (256 x 128 pixels, one view, four attention blocks with three context-aware units).
All exports and the network in PyTorch (eager, float32) embed the same images in turn, each with all cores.
PyTorch gets normalised views; the exports get pixels and normalise them.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image

from benchmarks import command
from benchmarks.networks import compose_config
from benchmarks.rows import Row, describe_machine
from sharpreid.data.synthetic import SyntheticParams, generate
from sharpreid.run.model_folder import describe_model
from sharpreid.serving.exporting import FILES, export_model, open_export, parse_target
from sharpreid.serving.model import Embedder, load_model, save_model

EXPORTS = (
    *(("onnx", precision) for precision in ("float32", "float16", "int8")),
    *((format, "float32") for format in ("torch_export", "torchscript")),
)
"""Format and precision of each export; PyTorch in float16 takes about seven times as long on a CPU."""

BATCHES = (1, 32)


def measure(*, model: Path | None = None, repeats: int = 3) -> list[Row]:
    """Export a network to each format and precision, and time all of them in turn.

    Args:
        model: model folder; None makes one with random weights.
        repeats: number of repeats, whose median is taken.

    Returns:
        For each export a row with its size and one with its latency for each batch size.
    """
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        folder = Path(name)
        source = model or _write_random_model(folder / "model")
        people = SyntheticParams(train_identities=8, test_identities=2, train_hard_pairs=0, test_hard_pairs=0)
        images = generate(folder / "people", seed=0, params=people) / "bounding_box_train"
        embedder = load_model(source)
        calls: dict[str, Callable[[int], object]] = {"PyTorch": _call_pytorch(embedder)}
        sizes: dict[str, int] = {}
        for format, precision in EXPORTS:
            target = parse_target(format, precision, images=str(images))
            output = folder / f"{format}-{precision}"
            export_model(source, target, output=output)
            sizes[f"{format} {precision}"] = (output / FILES[target.format]).stat().st_size
            calls[f"{format} {precision}"] = _call_export(output, embedder)
        whole = (source / FILES["safetensors"]).stat().st_size
        times = {batch: _time_in_turn(calls, batch, repeats) for batch in BATCHES}
    rows = [
        Row(
            name=f"size, {name}",
            ours=size / 2**20,
            unit="MiB",
            other="weights of the model",
            theirs=whole / 2**20,
            better="lower",
        )
        for name, size in sizes.items()
    ]
    return rows + [
        Row(
            name=f"latency of {batch}, {name}",
            ours=1000 * seconds / batch,
            unit="ms/image",
            other="PyTorch eager, float32",
            theirs=1000 * found["PyTorch"] / batch,
            better="lower",
            note=f"median of {repeats}",
        )
        for batch, found in times.items()
        for name, seconds in found.items()
        if name != "PyTorch"
    ]


def _write_random_model(folder: Path) -> Path:
    cfg = compose_config("method=sab_cu", "data.eval_transform.crops=plain", "model.head.init_std=0.1")
    torch.manual_seed(0)
    network = instantiate(cfg.model)
    network.set_temperature(0.5)
    save_model(Embedder(network, describe_model(cfg), card="# Random weights\n"), folder)
    return folder


def _pixels(embedder: Embedder, batch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    width, height = embedder.transform.resized
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def _call_pytorch(embedder: Embedder) -> Callable[[int], object]:
    views = {
        batch: torch.stack([embedder.read_views(Image.fromarray(one)) for one in _pixels(embedder, batch)])
        for batch in BATCHES
    }
    return lambda batch: embedder.embed_views(views[batch])


def _call_export(folder: Path, embedder: Embedder) -> Callable[[int], object]:
    embed = open_export(folder)
    pixels = {batch: _pixels(embedder, batch) for batch in BATCHES}
    return lambda batch: embed(pixels[batch])


def _time_in_turn(calls: Mapping[str, Callable[[int], object]], batch: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of each call; before a timed one, the same call warms up untimed.

    Threads of the runtime before wait for work for a while, and would slow the next one down.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            call(batch)
            start = time.perf_counter()
            call(batch)
            times[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("export", __doc__)
    parser.add_argument(
        "--model", type=command.existing_folder, metavar="DIR", help="model folder; random weights by default"
    )
    parser.add_argument(
        "--repeats", type=command.integer_at_least(1), default=5, metavar="N", help="5 by default"
    )
    given = parser.parse_args(arguments)
    about = describe_machine()
    with command.errors_in_one_line():
        rows = measure(model=given.model, repeats=given.repeats)
        command.report_rows(rows, about, "exported networks against PyTorch", given.output)


if __name__ == "__main__":
    main()
