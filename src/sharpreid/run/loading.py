"""Load a trained network and images for it, and score it."""

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from sharpreid.checkpoint_files import digest_path, verify
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.datasets import load_image
from sharpreid.data.reid_data import Sample, list_images
from sharpreid.data.transforms import read_image
from sharpreid.evaluation.scores import RankingScores
from sharpreid.models.weights import check_fits, read_tensors
from sharpreid.module import ReIDModule
from sharpreid.run.build import build_data, build_module


def score(trainer: pl.Trainer, module: ReIDModule, data: ReIDDataModule) -> RankingScores:
    """Return the scores of ``module`` on the test set, in [0, 1]."""
    trainer.test(module, data, verbose=False)
    return module.last_scores("test")


def load_network(checkpoint: Path, cfg: DictConfig) -> ReIDModule:
    """Return the module of a run with its trained weights, on the CPU.

    Raises:
        DamagedCheckpointError: The checksum beside the file does not match.
        ValueError: The file is not a checkpoint of a run, or it belongs to another network.
    """
    if digest_path(checkpoint).exists():
        verify(checkpoint)
    module = build_empty_module(cfg)
    content = read_tensors(checkpoint)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{checkpoint}: not a checkpoint of a run; expected RUN/checkpoints/final.ckpt")
    check_fits(content["state_dict"], module, str(checkpoint))
    module.load_state_dict(content["state_dict"])
    return module.eval()


def build_empty_module(cfg: DictConfig) -> ReIDModule:
    """Return the module of a run without loading the weights from which its training started."""
    cfg = cfg.copy()
    cfg.model.trunk.weights = "none"
    if "weights" in cfg.model:  # early runs lack it
        cfg.model.weights = "none"
    return build_module(cfg)


def read_views(cfg: DictConfig, place: object, count: int) -> Tensor:
    """Load up to ``count`` images as the network sees them.

    Args:
        cfg: Config of the run.
        place: Image file or folder of images; None for the first queries of the test set.
        count: Largest number of images.

    Returns:
        Normalised images, (B, 3, H, W).

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The folder has no image.
    """
    cfg = cfg.copy()
    cfg.data.eval_transform.crops = "plain"
    data = build_data(cfg)
    if place is not None:
        path = Path(str(place))
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such image or folder of images")
        files = [path] if path.is_file() else list_images(path)[:count]
        if data.normalise == "per_pixel_mean":  # needs the mean of the training images
            data.setup("test")
        return torch.cat([data.eval_transform(read_image(file)) for file in files])
    data.setup("test")
    return torch.cat([data.test[index].views for index in range(min(count, data.test.num_query))])


def read_hard_pair(cfg: DictConfig, detail: str, count: int) -> tuple[Tensor, list[str]]:
    """Load images of two test people who differ in ``detail`` only.

    Of several such pairs, the one whose two people share the most cameras is taken.

    Returns:
        Up to ``count`` normalised images, (B, 3, H, W), and their captions. The two people alternate, and
        each pair of images is from the same camera.

    Raises:
        ValueError: The data set has no such pair, or no camera saw both people.
    """
    cfg = cfg.copy()
    cfg.data.eval_transform.crops = "plain"
    data = build_data(cfg)
    data.setup("test")
    pairs = [pair for pair in data.data.hard_pairs if pair.detail == detail]
    if not pairs:
        known = sorted({pair.detail for pair in data.data.hard_pairs})
        raise ValueError(f"hard_pair={detail}: {data.data.name} has no such pair; it has {known or 'none'}")
    chosen = max((_alternate_by_camera(data.data.query, pair.pids) for pair in pairs), key=len)
    if not chosen:
        raise ValueError(f"hard_pair={detail}: no camera saw both people of a pair")
    images = torch.cat([data.eval_transform(load_image(sample)) for sample in chosen[:count]])
    return images, [f"person {sample.pid}" for sample in chosen[:count]]


def _alternate_by_camera(queries: Sequence[Sample], pids: tuple[int, int]) -> list[Sample]:
    """Return one query of each person from every camera that saw both, the two people alternating."""
    one, other = ({sample.camid: sample for sample in queries if sample.pid == pid} for pid in pids)
    return [seen[camera] for camera in sorted(one.keys() & other.keys()) for seen in (one, other)]
