"""Parse the arguments of the commands that read a checkpoint, and load the config of its run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from sharpreid.config.early_runs import upgrade_config
from sharpreid.config.paths import CONF_DIR, PATH_KEYS
from sharpreid.config.resolvers import register_resolvers


class UsageError(ValueError):
    """Error for arguments that cannot be parsed; commands print their usage after it."""


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` arguments; values are YAML, except paths, which are taken literally.

    Raises:
        UsageError: An argument has no key, no value, or a value that is not YAML.
    """
    wrong = [argument for argument in arguments if "=" not in argument]
    if wrong:
        raise UsageError(f"{' '.join(wrong)}: arguments are key=value")
    pairs = (argument.split("=", 1) for argument in arguments)
    return {key: _value(key, text) for key, text in pairs}


def _value(key: str, text: str) -> Any:
    if not text:
        raise UsageError(f"{key}= has no value")
    if key in PATH_KEYS and text != "null":  # a path may look like YAML: "[run 1]/a.jpg", "0012"
        return os.path.expanduser(text)
    try:
        return OmegaConf.from_dotlist([f"value={text}"]).value
    except YAMLError as error:
        raise UsageError(f"{key}={text}: the value is not YAML") from error


def load_config(checkpoint: Path) -> DictConfig:
    """Load the config of the run that wrote a checkpoint, upgraded to the keys of this version.

    Raises:
        FileNotFoundError: There is no such checkpoint, or no config.yaml in its run's directory.
        ValueError: config.yaml is not the config of a run.
    """
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
    """Load a config of conf/re_ranking by the name of its file; return None for "none".

    Raises:
        ValueError: There is no such file.
    """
    folder = CONF_DIR / "re_ranking"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"re_ranking={name}: no such re-ranking; expected one of {', '.join(known)}")
    cfg = OmegaConf.load(folder / f"{name}.yaml")
    return None if name == "none" or not isinstance(cfg, DictConfig) else cfg
