"""Compare a run with the paper's recipe (Sec. IV-B); the deviations are printed with each score."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from sharpreid.config.early_runs import upgrade_config
from sharpreid.config.paths import CONF_DIR
from sharpreid.evaluation.protocol import Protocol

PAPER_DATA = ("cuhk03_labeled", "cuhk03_detected", "market1501", "duke")
"""Names of the data sets in the paper's tables."""

_GROUPS = ("model", "data", "optimizer", "schedule", "objective", "trainer")

_NO_DEVIATION = (
    # keys that the paper ablates or leaves open, and the data set itself
    *("model.blocks", "model.context_blocks", "model.sampler._target_", "model.sampler._partial_"),
    *("model.context_unit._target_", "model.context_unit.strides", "model.context_unit.lowest_channels"),
    *("model.context_unit.init", "data.epoch", "data.normalise"),
    *("model.trunk.strides", "schedule.beta1", "data.source"),
    *("model.sampler.test_mask", "model.sampler.draws", "model.sampler.seed"),  # named with the protocol
    "model.sampler.sample_noise",  # named with the protocol
    # already named by other keys: channels of the stem, image size, seed
    "model.head.in_features",
    *("data.train_transform.height", "data.train_transform.width", "data.seed"),
    *("data.eval_transform.height", "data.eval_transform.width"),
    # keys that change a score by rounding at most
    *("data.eval_batch_size", "data.num_workers", "data.cache", "data.augment_on"),
    *("model.sampler.implementation", "optimizer.fused"),
    *(
        "trainer.accelerator",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.timeout_minutes",
        "trainer.strategy",
        "trainer.deterministic",
    ),
    *("trainer.benchmark", "trainer.default_root_dir", "trainer.use_distributed_sampler"),
    *("trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps", "trainer.log_every_n_steps"),
    *("trainer.enable_model_summary", "trainer.enable_progress_bar"),
)

_TITLES = {
    "model.trunk.depths": "bottlenecks per stage",
    "model.trunk.width": "channels of the stem",
    "model.trunk.weights": "weights",
    "model.combine": "combination",
    "data.identities_per_batch": "P",
    "data.images_per_identity": "K",
    "data.validation_identities": "held-out identities",
    "data.training_identities": "training identities",
    "data.train_transform.area": "crop area",
    "data.train_transform.ratio": "crop ratio",
    "data.train_transform.flip_probability": "flip probability",
    "data.eval_transform.crops": "test views",
    "optimizer.lr": "learning rate",
    "optimizer.weight_decay": "weight decay",
    "schedule.temperature.rate": "tau's rate",
    "schedule.temperature.floor": "tau's floor",
    "schedule.learning_rate_factor.start": "decay from epoch",
    "schedule.learning_rate_factor.end": "decay to epoch",
    "objective.mu": "mu",
    "objective.reduction": "total variation",
    "schedule.noise_scale": "factor on the noise",
    "trainer.max_epochs": "epochs",
    "trainer.precision": "precision",
}
"""Titles of the usual deviations, in the order in which they are named; others have their key as title."""


def recipe_deviations(cfg: DictConfig) -> str:
    """Describe in one line how a run's config deviates from the paper's recipe.

    All values that a training depends on are compared, except those that the paper ablates (blocks,
    context-aware units, kind of attention) or leaves open, and those that change a score by rounding at most.
    A weights file counts as the paper's ImageNet weights. A run with total variation is compared with the
    printed mu and the sum.

    Returns:
        For example ``64 x 32 images (paper: 256 x 128), epochs 24 (150)``; empty without deviations.
    """
    name = cfg.data.source.name
    data = name if (CONF_DIR / "data" / f"{name}.yaml").is_file() else "market1501"
    objective = "tv_as_printed" if cfg.objective.mu else "triplet"
    paper = _paper(data, objective)
    found = []
    size, wanted = _size(cfg), _size(paper)
    if size != wanted:
        found.append(f"{size} images (paper: {wanted})")
    if statistics := _batch_norm(cfg):
        found.append(statistics)
    ours, theirs = _leaves(upgrade_config(cfg)), _leaves(paper)
    for key in dict.fromkeys([*_TITLES, *ours, *theirs]):
        if key.startswith(("model.sampler.", "model.combine")) and (key not in ours or not cfg.model.blocks):
            continue  # no mask is drawn, or another sampler has no such key
        if key.startswith("model.context_unit.") and (key not in ours or not cfg.model.context_blocks):
            continue  # no unit is used, or another unit has no such key
        value, wanted = ours.get(key, "unset"), theirs.get(key, "unset")
        if value != wanted:
            found.append(f"{_TITLES.get(key, key)} {value} ({wanted})")
    return ", ".join(found)


@cache
def _paper(data: str, objective: str) -> DictConfig:
    return compose_config(f"data={data}", "recipe=paper", f"objective={objective}")


@cache
def paper_protocol(data: str) -> Mapping[str, Any]:
    """Return the paper's scoring rules for one of `PAPER_DATA`, without split, seed and max_rank."""
    cfg = compose_config(f"data={data}").protocol
    rules = Protocol(**{key: value for key, value in cfg.items() if key != "_target_"}).as_dict()
    return {key: value for key, value in rules.items() if key not in ("split", "seed", "max_rank")}


def compose_config(*overrides: str) -> DictConfig:
    """Compose a training config with these overrides."""
    started = GlobalHydra.instance().is_initialized()  # by the running command
    with nullcontext() if started else initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", list(overrides))


def _batch_norm(cfg: DictConfig) -> str:
    """Describe the batch-norm statistics; empty if they are over the whole batch, as in the paper."""
    over = cfg.get("batch_norm", "process")  # early runs have no such key
    processes = [cfg.trainer.get("devices", 1), cfg.trainer.get("num_nodes", 1)]
    if over == "global" or (over == "process" and processes == [1, 1]):
        return ""
    return f"batch norm over {over} images" if over != "process" else "batch norm over each process's images"


def _size(cfg: DictConfig) -> str:
    train, test = (
        f"{view.height} x {view.width}" for view in (cfg.data.train_transform, cfg.data.eval_transform)
    )
    return train if train == test else f"{train} training and {test} test"


def _leaves(cfg: DictConfig) -> dict[str, str]:
    """Return the compared values as text, by dotted key."""
    found: dict[str, str] = {}

    def walk(key: str, node: Any) -> None:
        if OmegaConf.is_dict(node):
            for name in node:
                if (below := f"{key}.{name}") not in _NO_DEVIATION:
                    walk(below, node[name])
        elif key == "model.trunk.weights":
            found[key] = "none" if node in (None, "none") else "imagenet"
        elif key == "model.weights":
            found[key] = str(node) if node in (None, "none") else str(Path(node).expanduser().absolute())
        elif key == "schedule.noise_scale" or key.startswith("schedule.noise_scale."):
            found["schedule.noise_scale"] = "ramped in" if key != "schedule.noise_scale" else "whole"
        elif key == "data.training_identities":
            found[key] = "all" if node is None else str(node)
        elif key == "data.eval_transform.crops":  # the scale of ten crops is open; the protocol names it
            found[key] = "ten_crop" if str(node).startswith("ten_crop") else str(node)
        else:
            found[key] = " ".join(map(str, node)) if OmegaConf.is_list(node) else str(node)

    for group in _GROUPS:
        walk(group, OmegaConf.select(cfg, group))
    return found
