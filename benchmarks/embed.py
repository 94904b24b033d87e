"""Measure how fast images are embedded, beside a bare loop over the same images.

The bare loop decodes, resizes and embeds one batch after the other. `sharpreid.embed` reads images in threads
while the network computes, and writes a gallery. Both take the same network, batch size and threads of torch,
and alternate within each repeat. The network is a ResNet-50 with four blocks and random weights.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from hydra import compose, initialize_config_dir

from benchmarks import command
from benchmarks.market import write_small_market
from benchmarks.rows import Row, describe_machine
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.run.build import build_module
from sharpreid.run.model_folder import write_model
from sharpreid.serving.embedding import embed_images
from sharpreid.serving.gallery import Gallery, embeddings_of
from sharpreid.serving.model import Embedder, load_model

EMBED, LOOP = "sharpreid.embed", "a bare loop"
BATCH = 64


def measure(*, images: int = 512, repeats: int = 3, root: Path | None = None) -> list[Row]:
    """Embed images by both programs in this process.

    Args:
        images: number of images.
        repeats: number of repeats.
        root: Market-1501 folder; None makes one of noise.

    Returns:
        One row: seconds per 1,000 images.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        market = root or write_small_market(folder / "market", images)
        files = sorted((market / "bounding_box_train").glob("*.jpg"))[:images]
        listed = folder / "images.csv"
        listed.write_text("\n".join(["path", *map(str, files)]) + "\n", encoding="utf-8")
        _write_network(folder / "model")
        embedder = load_model(folder / "model")
        seconds: dict[str, list[float]] = {EMBED: [], LOOP: []}
        for repeat in range(repeats + 1):  # the first repeat warms up
            start = time.perf_counter()
            expected = _embed_in_a_loop(embedder, files)
            middle = time.perf_counter()
            output = folder / f"gallery{repeat}"
            embed_images(str(listed), model=str(folder / "model"), output=output, batch_size=BATCH)
            seconds[LOOP].append(middle - start)
            seconds[EMBED].append(time.perf_counter() - middle)
            found = torch.from_numpy(embeddings_of(Gallery(output).read()))
            if not torch.allclose(found, expected, atol=1e-3):
                raise RuntimeError("the two programs embed differently; they cannot be compared")
    costs = {what: 1000 * median(times[1:]) / len(files) for what, times in seconds.items()}
    rates = ", ".join(f"{what} {1000 / cost:.0f} images/s" for what, cost in costs.items())
    return [
        Row(
            name=EMBED,
            ours=costs[EMBED],
            unit="s for 1,000 images",
            other=LOOP,
            theirs=costs[LOOP],
            better="higher",
            note=f"{len(files)} images, median of {repeats}: {rates}",
        )
    ]


def _write_network(folder: Path) -> None:
    """Write a model folder with random weights."""
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", ["data=market1501", "recipe=miniature", "model.trunk.weights=none"])
    torch.manual_seed(0)
    record = {"scores": {}, "protocol": {}, "dataset": {"name": "noise"}, "deviations": "", "seed": 0}
    write_model(folder, cfg, build_module(cfg), mean=None, record=record)


def _embed_in_a_loop(embedder: Embedder, files: Sequence[Path]) -> torch.Tensor:
    found = []
    for start in range(0, len(files), BATCH):
        views = [embedder.read_views(file) for file in files[start : start + BATCH]]
        found.append(embedder.embed_views(torch.stack(views)))
    return torch.cat(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("embed", __doc__)
    parser.add_argument(
        "--images", type=command.integer_at_least(1), default=512, metavar="N", help="512 by default"
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
        command.report_rows(rows, about, "seconds for 1,000 images", given.output)


if __name__ == "__main__":
    main()
