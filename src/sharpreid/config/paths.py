"""Folder of the Hydra configs, config keys that are paths, and parsing of overrides as text."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

_PACKAGED = Path(__file__).parents[1] / "conf"

CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"
"""Folder of the Hydra configs: in the installed package, or conf/ of a checkout."""


RUN_PATHS = (
    *("data_root", "data.cache", "model.weights", "model.trunk.weights"),
    *(f"data.source.{key}" for key in ("root", "manifest", "within", "images", "distractors")),
)
"""Keys of a run's config whose values are paths, unless they are null or one of `NO_PATHS`."""

PATH_KEYS = (
    *RUN_PATHS,
    *("checkpoint", "images", "beside", "output", "output_dir", "resume", "trainer.default_root_dir"),
    *("callbacks.checkpoint.folder", "callbacks.masks.folder", "logger.csv.folder", "logger.wandb.save_dir"),
    *("hydra.run.dir", "hydra.sweep.dir"),
)
"""All keys of a command line whose values are paths. A path is taken as it is written."""

NO_PATHS = ("none", "imagenet", "auto")
"""Values of `PATH_KEYS` that are words."""


def make_paths_absolute(cfg: DictConfig, *, resolve_links: bool = False) -> DictConfig:
    """Return a copy of a run's config in which paths are absolute; references to other keys stay.

    Args:
        cfg: Config of a run. A relative path is relative to the working directory.
        resolve_links: Whether to follow symbolic links too, so that paths can be compared.
    """
    made = cfg.copy()
    for key in RUN_PATHS:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(made, parent) if parent else made
        if not OmegaConf.is_dict(node) or name not in node or OmegaConf.is_missing(node, name):
            continue
        if OmegaConf.is_interpolation(node, name) and key != "data_root":
            continue
        if isinstance(value := node[name], str) and value not in NO_PATHS:
            place = Path(value).expanduser()
            OmegaConf.update(made, key, os.path.realpath(place) if resolve_links else str(place.absolute()))
    return made


def remove_whitespace(text: str) -> str:
    """Return a text without white space; override values are compared in this form.

    >>> remove_whitespace("[1, 2]")
    '[1,2]'
    """
    return "".join(text.split())


def parse_override(override: str) -> tuple[str, str]:
    """Return key and value of a Hydra override, without white space and without the sign before the key.

    >>> parse_override("+model.blocks = [1, 2]"), parse_override("~model.context")
    (('model.blocks', '[1,2]'), ('model.context', 'deleted'))
    """
    key, _, value = remove_whitespace(override).partition("=")
    return (key[1:], "deleted") if key.startswith("~") else (key.lstrip("+"), value)
