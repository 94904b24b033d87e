"""What a training image costs of one CPU core, path by path: ``python -m benchmarks.loader --help``.

Times are CPU time (user and system, all threads of the process), so that a busy machine disturbs them little.
The paths take turns within each repeat; a figure is the median over the repeats.
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
from benchmarks.rows import Row, machine
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.pixel_cache import build_cache
from sharpreid.data.sampler import Draw
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
        images: how many go through each path in a repeat, at most.
        repeats: how often.
        root: a Market-1501 folder; None makes one of noise.

    Returns:
        A row per path, beside the path without a cache.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            market = root or write_small_market(Path(folder) / "market", images)
            return _rates(_paths(market, Path(folder), images), repeats)
    finally:
        torch.set_num_threads(threads)


def _paths(market: Path, folder: Path, images: int) -> dict[str, tuple[int, Callable[[int], object]]]:
    """By name the number of images of each path, and what takes the number of a repeat and runs it."""
    decoding = _data(market, None, "worker")
    count = min(images, len(decoding.train))
    files = [sample.path for sample in decoding.train.samples[:count]]
    build_cache([sample.path for sample in decoding.train.samples], folder / "cache" / "market1501")
    data = {where: _data(market, folder / "cache", where) for where in ("worker", "device", "resident")}
    batches = _loader(data["device"], BATCH, 0)
    batch = next(iter(batches))
    return {
        DECODE: (count, partial(_run, decoding, count)),
        CACHE: (count, partial(_run, data["worker"], count)),
        GATHER: (count, partial(_run, data["device"], count)),
        RESIDENT: (count, partial(_run, data["resident"], count)),
        AUGMENT: (len(batch.indices), lambda _: data["device"].on_after_batch_transfer(batch, 0)),
        BUILD: (count, lambda repeat: build_cache(files, folder / f"built{repeat}")),
    }


def _data(market: Path, cache: Path | None, augment_on: str) -> ReIDDataModule:
    """The training images of the paper's recipe."""
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
    """The recipe's loader, but over the first ``count`` images in order, each once."""
    loader = data.train_dataloader()
    draws = [Draw(position, repeat, position) for position in range(count)]
    batches = [draws[start : start + BATCH] for start in range(0, count, BATCH)]
    return DataLoader(loader.dataset, batch_sampler=batches, collate_fn=loader.collate_fn)


def _run(data: ReIDDataModule, count: int, repeat: int) -> None:
    for _ in _loader(data, count, repeat):
        pass


def _rates(paths: dict[str, tuple[int, Callable[[int], object]]], repeats: int) -> list[Row]:
    rates: dict[str, list[float]] = {what: [] for what in paths}
    for repeat in range(repeats + 1):  # the first one warms up
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
    """Measure, print a table, and write it if asked to."""
    parser = command.parser("loader", __doc__)
    parser.add_argument(
        "--images", type=command.at_least(BATCH), default=2048, metavar="N", help="per path and repeat; 2048"
    )
    parser.add_argument("--repeats", type=command.at_least(1), default=3, metavar="N", help="3 by default")
    parser.add_argument(
        "--root", type=command.folder, metavar="DIR", help="a Market-1501 folder; noise by default"
    )
    given = parser.parse_args(arguments)
    about = machine()
    with command.one_line_at_the_end():
        rows = measure(images=given.images, repeats=given.repeats, root=given.root)
        command.report(rows, about, "microseconds of one CPU core for a training image", given.output)


if __name__ == "__main__":
    main()
