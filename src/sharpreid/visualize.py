"""Draw a network's masks: ``python -m sharpreid.visualize checkpoint=RUN/checkpoints/final.ckpt``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sharpreid.atomic_io import replacing
from sharpreid.run.arguments import UsageError, load_config, parse_arguments
from sharpreid.run.console import error_message, suppress_lightning_warnings
from sharpreid.run.fast_import import import_torchmetrics
from sharpreid.standard_streams import tolerate_write_errors

USAGE = """\
usage: python -m sharpreid.visualize checkpoint=RUN/checkpoints/final.ckpt [images=PLACE] [key=value ...]

Draws a row for each photo: the photo, and over it the mean mask of each attention block. A caption gives
the share of mask values below 0.1 or above 0.9 ("decided"). channels=3 adds a row for each of the three
channels of a block with the most attention.

  images=PHOTO.jpg | images=FOLDER       photos to draw; by default the first queries of the run's test set
  hard_pair=knapsack                     or two test people who differ in this detail only (synthetic data)
  beside=RUN/checkpoints/final.ckpt      a second network, whose masks are drawn beside those of the first
  count=4                                number of images from a folder or test set
  channels=0                             number of single channels below each mean mask
  output=masks.png                       picture file; by default masks.png beside config.yaml of the run
  test_mask=sample                       noise_free | expected | hard | sample; by default the run's
  data_root=/path                        folder of all data sets; by default the run's
"""

_ARGUMENTS = (
    *("checkpoint", "images", "hard_pair", "beside", "count", "channels", "output", "test_mask"),
    "data_root",
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit with status 2 without arguments, and with 1 for any other error."""
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
    """Draw the masks that the arguments (``key=value``) describe, and return the path of the picture.

    Raises:
        FileNotFoundError: The checkpoint, its run's config or the images are missing.
        ValueError: An argument is unknown or out of range, or the network has no attention blocks.
    """
    given = parse_arguments(arguments)
    if unknown := sorted(set(given) - set(_ARGUMENTS)):
        raise UsageError(f"{', '.join(unknown)}: no such argument; known are {', '.join(_ARGUMENTS)}")
    if "checkpoint" not in given:
        raise UsageError("checkpoint=... is missing")
    checkpoint = Path(str(given["checkpoint"]))
    count = _whole_number("count", given.get("count", 4), least=1)
    channels = _whole_number("channels", given.get("channels", 0), least=0)
    cfg = _override(load_config(checkpoint), checkpoint, given)
    output = Path(str(given.get("output", checkpoint.resolve().parents[1] / "masks.png")))
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"output={output}: the name must end in .png, .jpg or .webp")
    beside = Path(str(given["beside"])) if "beside" in given else None
    beside_cfg = None if beside is None else load_config(beside)

    import_torchmetrics()
    from sharpreid.run.loading import load_network, read_hard_pair, read_views  # slow, so after the checks
    from sharpreid.visualization import attention as pictures

    if "hard_pair" in given:
        images, names = read_hard_pair(cfg, str(given["hard_pair"]), count)
    else:
        images = read_views(cfg, given.get("images"), count)
        names = [f"image {number}" for number in range(1, len(images) + 1)]
    attention = pictures.record_attention(load_network(checkpoint, cfg).network, images)
    if beside is None or beside_cfg is None:
        sheet = pictures.draw_masks(images, attention, channels=channels)
    else:
        other = pictures.record_attention(load_network(beside, beside_cfg).network, images)
        networks = {_mask_kind(beside_cfg): other, _mask_kind(cfg): attention}
        sheet = pictures.draw_mask_comparison(images, names, networks)
    with replacing(output) as temporary:
        sheet.save(temporary)
    for block, (decided, entropy) in pictures.mask_sharpness(attention).items():
        share = f"{100 * decided:.1f} % of the mask below 0.1 or above 0.9"
        print(f"block {block}: {share}, entropy {entropy:.3f} bit")
    print(f"written to {output}")
    return output


def _override(cfg: DictConfig, checkpoint: Path, given: Mapping[str, Any]) -> DictConfig:
    """Return the run's config with the arguments that override it; ValueError if they do not apply to it."""
    if not cfg.model.blocks:
        raise ValueError(
            f"{checkpoint}: the network has no attention blocks (model.blocks=[]): nothing to draw"
        )
    if "data_root" in given:
        cfg.data_root = str(given["data_root"])
    if "test_mask" in given:
        if "test_mask" not in cfg.model.sampler:
            raise ValueError(f"{checkpoint}: test_mask does not apply to the soft attention of this network")
        cfg.model.sampler.test_mask = given["test_mask"]
    return cfg


def _mask_kind(cfg: DictConfig) -> str:
    """Return the label of a network's masks in the picture, sharp or soft."""
    return "sharp" if str(cfg.model.sampler.get("_target_", "")).endswith(".MaskSampler") else "soft"


def _whole_number(name: str, value: object, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
    return value


if __name__ == "__main__":
    tolerate_write_errors()
    main()
