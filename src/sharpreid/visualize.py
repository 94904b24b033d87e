"""Draw what a network attends to: ``python -m sharpreid.visualize checkpoint=RUN/checkpoints/final.ckpt``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from sharpreid.atomic_io import replacing
from sharpreid.data.datasets import load_image
from sharpreid.data.reid_data import Sample
from sharpreid.run.arguments import UsageError, parse_arguments
from sharpreid.run.build import build_data
from sharpreid.run.console import error_message, suppress_lightning_warnings
from sharpreid.run.loading import load_config, load_network, read_views
from sharpreid.visualization.attention import (
    draw_mask_comparison,
    draw_masks,
    mask_sharpness,
    record_attention,
)

USAGE = """\
usage: python -m sharpreid.visualize checkpoint=RUN/checkpoints/final.ckpt [images=PLACE] [key=value ...]

Draws each attention block's mask over the photo: its mean over channels, then the channels it lets through
most. With each mean stands the share of mask values below 0.1 or above 0.9.

  images=PHOTO.jpg | images=FOLDER       what to draw; by default the first queries of the run's test set
  hard_pair=knapsack                     instead: two test people who differ in this alone (synthetic data)
  beside=RUN/checkpoints/final.ckpt      another network's masks beside these, such as method=sigmoid_gate's
  count=4                                how many images of a folder or a test set
  channels=3                             how many single channels
  output=masks.png                       where to; by default masks.png beside config.yaml of the run
  test_mask=sample                       noise_free | expected | hard | sample; by default the run's
  data_root=/path                        folder of all data sets; by default the run's
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 2 for a wrong call, 1 for what cannot be drawn."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    suppress_lightning_warnings()
    try:
        visualize(arguments)
    except (OSError, ValueError, RuntimeError, OmegaConfBaseException, HydraException) as error:
        usage = f"\n{USAGE}" if isinstance(error, UsageError) else ""
        print(f"error: {error_message(error)}{usage}", file=sys.stderr)
        sys.exit(1)


def visualize(arguments: Sequence[str]) -> Path:
    """Draw as the arguments (``key=value``) say; where the picture is.

    Raises:
        FileNotFoundError: checkpoint, config or images are missing.
        ValueError: an argument is unknown or out of range, or the network has no attention.
    """
    given = parse_arguments(arguments)
    known = (
        *("checkpoint", "images", "hard_pair", "beside", "count", "channels", "output", "test_mask"),
        "data_root",
    )
    if unknown := sorted(set(given) - set(known)):
        raise UsageError(f"{', '.join(unknown)}: no such argument; known are {', '.join(known)}")
    if "checkpoint" not in given:
        raise UsageError("checkpoint=... is missing")
    checkpoint = Path(str(given["checkpoint"]))
    count, channels = (
        _positive(name, given.get(name, usual)) for name, usual in (("count", 4), ("channels", 3))
    )
    cfg = load_config(checkpoint)
    output = Path(str(given.get("output", checkpoint.resolve().parents[1] / "masks.png")))
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"output={output}: the name must end in .png, .jpg or .webp")
    if not cfg.model.blocks:
        raise ValueError(
            f"{checkpoint}: the network has no attention blocks (model.blocks=[]): nothing to draw"
        )
    if "data_root" in given:
        cfg.data_root = str(given["data_root"])
    if "test_mask" in given:
        if "test_mask" not in cfg.model.sampler:
            raise ValueError(f"{checkpoint}: test_mask does not concern its soft attention")
        cfg.model.sampler.test_mask = given["test_mask"]
    if "hard_pair" in given:
        images, names = read_hard_pair(cfg, str(given["hard_pair"]), count)
    else:
        images = read_views(cfg, given.get("images"), count)
        names = [f"image {number}" for number in range(1, len(images) + 1)]
    attention = record_attention(load_network(checkpoint, cfg).network, images)
    if "beside" in given:
        other = Path(str(given["beside"]))
        other_cfg = load_config(other)
        other_attention = record_attention(load_network(other, other_cfg).network, images)
        networks = {_kind(other_cfg): other_attention, _kind(cfg): attention}
        sheet = draw_mask_comparison(images, names, networks)
    else:
        sheet = draw_masks(images, attention, channels=channels)
    with replacing(output) as temporary:
        sheet.save(temporary)
    for block, (decided, entropy) in mask_sharpness(attention).items():
        share = f"{100 * decided:.1f} % of the mask below 0.1 or above 0.9"
        print(f"block {block}: {share}, entropy {entropy:.3f} bit")
    print(f"written to {output}")
    return output


def read_hard_pair(cfg: DictConfig, detail: str, count: int) -> tuple[Tensor, list[str]]:
    """Load images of two test people who differ in ``detail``: the pair that most cameras saw both of.

    Returns:
        Up to ``count`` images, normalised, (B, 3, H, W), by turns of the one and the other, each two by the
        same camera; and what to call them.

    Raises:
        ValueError: the data set has no such pair, or no camera saw both people.
    """
    cfg = cfg.copy()
    cfg.data.eval_transform.crops = "plain"
    data = build_data(cfg)
    data.setup("test")
    pairs = [pair for pair in data.data.hard_pairs if pair.detail == detail]
    if not pairs:
        known = sorted({pair.detail for pair in data.data.hard_pairs})
        raise ValueError(f"hard_pair={detail}: {data.data.name} has no such pair; it has {known or 'none'}")
    chosen = max((_seen_by_the_same(data.data.query, pair.pids) for pair in pairs), key=len)
    if not chosen:
        raise ValueError(f"hard_pair={detail}: no camera saw both people of a pair")
    images = torch.cat([data.eval_transform(load_image(sample)) for sample in chosen[:count]])
    return images, [f"person {sample.pid}" for sample in chosen[:count]]


def _seen_by_the_same(queries: Sequence[Sample], pids: tuple[int, int]) -> list[Sample]:
    """Queries of two people by turns, one each of every camera that saw both."""
    one, other = ({sample.camid: sample for sample in queries if sample.pid == pid} for pid in pids)
    return [seen[camera] for camera in sorted(one.keys() & other.keys()) for seen in (one, other)]


def _kind(cfg: DictConfig) -> str:
    """What to call a network's masks in a picture."""
    return "sharp" if str(cfg.model.sampler.get("_target_", "")).endswith(".MaskSampler") else "soft"


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1; got {value!r}")
    return value


if __name__ == "__main__":
    main()
