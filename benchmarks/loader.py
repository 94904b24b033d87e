"""Measure the CPU time of a training image on every path through the loader.

Times are CPU times (user and system, all threads of the process), which a busy machine hardly changes. The
paths are interleaved within each repeat, and the median over the repeats is reported.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader

from benchmarks import command
from benchmarks.market import write_small_market
from benchmarks.rows import Row, describe_machine
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.pixel_cache import build_cache
from sharpreid.data.sampler import SampleIndex
from sharpreid.run.build import build_data

BATCH = 256

DECODE = "decode (Pillow), augment image by image"
CACHE = "cache, augment image by image"
GATHER = "cache, gather pixels (augment_on=device)"
RESIDENT = "draw boxes and flips (augment_on=resident)"
AUGMENT = "augment batch by batch, on the CPU"
BUILD = "build the cache"


def measure(*, images: int = 2048, repeats: int = 3, root: Path | None = None) -> list[Row]:
    """Measure every path in this process, on one thread.

    Args:
        images: largest number of images on each path in a repeat.
        repeats: number of repeats.
        root: Market-1501 folder; None makes one of noise.

    Returns:
        A row per path, compared with the path without a cache.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            market = root or write_small_market(Path(folder) / "market", images)
            return _time_paths(_loader_paths(market, Path(folder), images), repeats)
    finally:
        torch.set_num_threads(threads)


def _loader_paths(market: Path, folder: Path, images: int) -> dict[str, tuple[int, Callable[[int], object]]]:
    """Return the number of images of each path, and a function that runs the path in a given repeat."""
    decoding = _build_data(market, None, "worker")
    count = min(images, len(decoding.train))
    files = [sample.path for sample in decoding.train.samples[:count]]
    build_cache([sample.path for sample in decoding.train.samples], folder / "cache" / "market1501")
    data = {where: _build_data(market, folder / "cache", where) for where in ("worker", "device", "resident")}
    batches = _loader(data["device"], BATCH, 0)
    batch = next(iter(batches))
    return {
        DECODE: (count, partial(_iterate, decoding, count)),
        CACHE: (count, partial(_iterate, data["worker"], count)),
        GATHER: (count, partial(_iterate, data["device"], count)),
        RESIDENT: (count, partial(_iterate, data["resident"], count)),
        AUGMENT: (len(batch.indices), lambda _: data["device"].on_after_batch_transfer(batch, 0)),
        BUILD: (count, lambda repeat: build_cache(files, folder / f"built{repeat}")),
    }


def _build_data(market: Path, cache: Path | None, augment_on: str) -> ReIDDataModule:
    """Build the data module of the paper's recipe for the training images."""
    register_resolvers()
    overrides = [
        *("data=market1501", f"data.source.root='{market}'", "data.source.allow_subset=true"),
        *(f"data.augment_on={augment_on}", "data.num_workers=0"),
        "data.cache=null" if cache is None else f"data.cache='{cache}'",
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        data = build_data(compose("train", overrides))
    data.setup("fit")
    return data


def _loader(data: ReIDDataModule, count: int, repeat: int) -> DataLoader[Any]:
    """Return the recipe's loader for the first ``count`` images, in order."""
    loader = data.train_dataloader()
    draws = [SampleIndex(position, repeat, position) for position in range(count)]
    batches = [draws[start : start + BATCH] for start in range(0, count, BATCH)]
    return DataLoader(loader.dataset, batch_sampler=batches, collate_fn=loader.collate_fn)


def _iterate(data: ReIDDataModule, count: int, repeat: int) -> None:
    """Load the first ``count`` images."""
    for _ in _loader(data, count, repeat):
        pass


def _time_paths(paths: dict[str, tuple[int, Callable[[int], object]]], repeats: int) -> list[Row]:
    """Time all paths, interleaved."""
    rates: dict[str, list[float]] = {what: [] for what in paths}
    for repeat in range(repeats + 1):  # the first repeat warms up
        for what, (count, run) in paths.items():
            start = time.process_time()
            run(repeat)
            rates[what].append(count / (time.process_time() - start))
    costs = {what: 1e6 / median(found[1:]) for what, found in rates.items()}
    return [
        Row(
            name=what,
            ours=cost,
            unit="CPU us/image",
            other=DECODE,
            theirs=costs[DECODE],
            better="higher",
            note=f"{paths[what][0]} images a repeat, median of {repeats}",
        )
        for what, cost in costs.items()
        if what != DECODE
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("loader", __doc__)
    parser.add_argument(
        "--images",
        type=command.integer_at_least(BATCH),
        default=2048,
        metavar="N",
        help="images per path and repeat; 2048 by default",
    )
    parser.add_argument(
        "--repeats", type=command.integer_at_least(1), default=3, metavar="N", help="3 by default"
    )
    parser.add_argument(
        "--root", type=command.existing_folder, metavar="DIR", help="Market-1501 folder; noise by default"
    )
    given = parser.parse_args(arguments)
    about = describe_machine()
    with command.errors_in_one_line():
        rows = measure(images=given.images, repeats=given.repeats, root=given.root)
        command.report_rows(rows, about, "microseconds of one CPU core for a training image", given.output)


if __name__ == "__main__":
    main()
