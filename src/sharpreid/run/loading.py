"""Load a trained network, its config, and images for it."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sharpreid.checkpoint_files import digest_path, verify
from sharpreid.config.early_runs import upgrade_config
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.reid_data import list_images
from sharpreid.data.transforms import read_image
from sharpreid.evaluation.scores import RankingScores
from sharpreid.models.weights import check_fits, read_tensors
from sharpreid.module import ReIDModule
from sharpreid.run.build import build_data, build_module


def score(trainer: pl.Trainer, module: ReIDModule, data: ReIDDataModule) -> RankingScores:
    """Scores of ``module`` on the test set, in [0, 1]."""
    trainer.test(module, data, verbose=False)
    return module.last_scores("test")


def load_network(checkpoint: Path, cfg: DictConfig) -> ReIDModule:
    """The module of a run with its trained weights, on the CPU.

    Raises:
        DamagedCheckpointError: the file is not that of the checksum beside it.
        ValueError: the file is not a checkpoint of a run, or one of another network.
    """
    if digest_path(checkpoint).exists():
        verify(checkpoint)
    module = build_empty_module(cfg)
    content = read_tensors(checkpoint)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{checkpoint}: no checkpoint of a run; expected RUN/checkpoints/final.ckpt")
    check_fits(content["state_dict"], module, str(checkpoint))
    module.load_state_dict(content["state_dict"])
    return module.eval()


def build_empty_module(cfg: DictConfig) -> ReIDModule:
    """The module of a run for its checkpoint to fill, without the weights that the run started from."""
    cfg = cfg.copy()
    cfg.model.trunk.weights = "none"
    return build_module(cfg)


def load_config(checkpoint: Path) -> DictConfig:
    """The config of the run that wrote ``checkpoint``; FileNotFoundError if there is none."""
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: no such file; expected RUN/checkpoints/final.ckpt of a run")
    path = checkpoint.resolve().parents[1] / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the config of the run is missing; keep a checkpoint in its run's directory"
        )
    register_resolvers()
    cfg = OmegaConf.load(path)
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{path}: not the config of a run")
    return upgrade_config(cfg)


def load_re_ranking(name: str) -> DictConfig | None:
    """The config of a re-ranking by the name of its file in conf/re_ranking; None for "none".

    Raises:
        ValueError: there is no such file.
    """
    folder = CONF_DIR / "re_ranking"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"re_ranking={name}: no such re-ranking; expected one of {', '.join(known)}")
    cfg = OmegaConf.load(folder / f"{name}.yaml")
    return None if name == "none" or not isinstance(cfg, DictConfig) else cfg


def read_views(cfg: DictConfig, place: object, count: int) -> Tensor:
    """Up to ``count`` images, normalised, (B, 3, H, W): of a file or folder, or the test set's first queries.

    Raises:
        FileNotFoundError: there is nothing at ``place``.
        ValueError: it holds no image.
    """
    cfg = cfg.copy()
    cfg.data.eval_transform.crops = "plain"
    data = build_data(cfg)
    if place is not None:
        path = Path(str(place))
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such image or folder of images")
        files = [path] if path.is_file() else list_images(path)[:count]
        if data.normalise == "per_pixel_mean":  # of the training images, which have to be there
            data.setup("test")
        return torch.cat([data.eval_transform(read_image(file)) for file in files])
    data.setup("test")
    return torch.cat([data.test[index].views for index in range(min(count, data.test.num_query))])
