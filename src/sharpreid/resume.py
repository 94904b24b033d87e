"""Where an interrupted run goes on: ``resume=auto`` or ``resume=FILE.ckpt``."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sharpreid.checkpoints import newest_whole, step_of, verify
from sharpreid.records import describe_config, of_the_result


class ChangedConfigError(ValueError):
    """The config is not that of the run that is to go on."""


def find_checkpoint(cfg: DictConfig, output_dir: Path) -> Path | None:
    """The checkpoint from which a run goes on; None starts it anew.

    Args:
        cfg: of the run. ``resume``: ``none``; ``auto``, the newest whole checkpoint of the run's own
            directory, which is a function of its config; or a file. ``allow_changed``: keys of the config
            that may differ from that of the run that wrote the checkpoint.
        output_dir: of the run.

    Raises:
        FileNotFoundError: the file, or the config of its run, is missing.
        ChangedConfigError: the config differs in a key that is not allowed to; lists all of them.
        DamagedCheckpointError: the file is not what was written.
        ValueError: it is not a step checkpoint.
    """
    if cfg.resume == "none":
        return None
    if cfg.resume == "auto":
        checkpoint = newest_whole(output_dir / "checkpoints")
        if checkpoint is None:
            return None
    else:
        checkpoint = Path(cfg.resume).expanduser().resolve()
        if not checkpoint.is_file():
            raise FileNotFoundError(f"resume={cfg.resume}: no such file; expected auto, none or a checkpoint")
        step_of(checkpoint)  # refuses final.ckpt, which has no optimizer state
        verify(checkpoint)
    _refuse_changes(cfg, checkpoint)
    return checkpoint


def _refuse_changes(cfg: DictConfig, checkpoint: Path) -> None:
    earlier = checkpoint.resolve().parents[1] / "config.yaml"
    if not earlier.is_file():
        raise FileNotFoundError(f"{earlier}: the config of the run that wrote {checkpoint} is missing")
    before = flat(of_the_result(OmegaConf.load(earlier)))
    now = flat(of_the_result(OmegaConf.create(describe_config(cfg))))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    refused = [key for key in changed if key not in cfg.allow_changed]
    if refused:
        lines = "".join(f"\n  {key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in refused)
        raise ChangedConfigError(
            f"{checkpoint} is of a run with another config; this differs:{lines}\nGive the earlier values, "
            f"start anew with resume=none, or allow it with 'allow_changed=[{','.join(refused)}]'"
        )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as one level of dotted keys.

    >>> flat({"a": {"b": 1, "c": []}, "d": None})
    {'a.b': 1, 'a.c': [], 'd': None}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
