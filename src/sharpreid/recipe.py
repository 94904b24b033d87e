"""How a run departs from the paper's recipe (Sec. IV-B): said beside every score of it."""

from contextlib import nullcontext
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from sharpreid.config import CONF_DIR

_TITLES = {
    "model.trunk.depths": "bottlenecks per stage",
    "model.trunk.weights": "weights",
    "data.identities_per_batch": "P",
    "data.images_per_identity": "K",
    "data.validation_identities": "held-out identities",
    "data.train_transform.area": "crop area",
    "data.train_transform.ratio": "crop ratio",
    "data.train_transform.flip_probability": "flip probability",
    "data.eval_transform.crops": "test views",
    "optimizer.lr": "learning rate",
    "optimizer.weight_decay": "weight decay",
    "trainer.max_epochs": "epochs",
    "trainer.precision": "precision",
}


def departures(cfg: DictConfig) -> str:
    """What differs between the composed config of a run and the paper's recipe, in one line.

    Compared are image size, trunk, batches, augmentation, test-time views, optimizer and length of the
    training; not what the paper ablates (blocks, context-aware units, sampler, objective, schedules). A
    weights file counts as the paper's ImageNet weights.

    Returns:
        For example ``64 x 32 images (paper: 256 x 128), epochs 24 (150)``; empty if nothing differs.
    """
    name = cfg.data.source.name
    data = name if (CONF_DIR / "data" / f"{name}.yaml").is_file() else "market1501"
    started = GlobalHydra.instance().is_initialized()  # by the command that runs, from the same directory
    with nullcontext() if started else initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        paper = compose("train", [f"data={data}", "recipe=paper"])
    found = []
    size, wanted = (f"{config.image.height} x {config.image.width}" for config in (cfg, paper))
    if size != wanted:
        found.append(f"{size} images (paper: {wanted})")
    for key, title in _TITLES.items():
        value, wanted = _value(cfg, key), _value(paper, key)
        if value != wanted:
            found.append(f"{title} {value} ({wanted})")
    if (part := OmegaConf.select(cfg, "trainer.limit_train_batches", default=1.0)) != 1.0:
        found.append(f"{part} of the batches of an epoch")
    return ", ".join(found)


def _value(cfg: DictConfig, key: str) -> str:
    value: Any = OmegaConf.select(cfg, key)
    if key == "model.trunk.weights":
        return "none" if value in (None, "none") else "imagenet"
    return " ".join(map(str, value)) if OmegaConf.is_list(value) else str(value)
