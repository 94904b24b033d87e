"""Where an interrupted run goes on: ``resume=auto`` or ``resume=FILE.ckpt``."""

import logging
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from sharpreid.checkpoint_files import digest_path, newest_whole, step_checkpoints, step_of, verify
from sharpreid.distributed import is_rank_zero
from sharpreid.run.records import config_diff, is_run_dir_locked

log = logging.getLogger(__name__)


_FROM_CHECKPOINT = ("optimizer.", "schedule.beta1", "model.trunk.weights")
"""Keys whose values a checkpoint brings: with another config they would be on record, but not in use."""


class ChangedConfigError(ValueError):
    """The config is not that of the run that is to go on."""


def find_checkpoint(cfg: DictConfig, output_dir: Path) -> Path | None:
    """The checkpoint from which a run goes on; None starts it anew.

    Args:
        cfg: of the run. ``resume``: ``none``; ``auto``, the newest whole checkpoint of the run's own
            directory, which is a function of its config; or a file. ``allow_changed``: keys of the config
            that may differ from that of the run that wrote the checkpoint; none of the optimizer.
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
            if is_rank_zero():
                _point_to_a_stopped_run(cfg, output_dir)
            return None
    else:
        checkpoint = Path(cfg.resume).expanduser().resolve()
        if not checkpoint.is_file():
            raise FileNotFoundError(f"resume={cfg.resume}: no such file; expected auto, none or a checkpoint")
        step_of(checkpoint)  # refuses final.ckpt, which has no optimizer state
        verify(checkpoint)
    _refuse_changes(cfg, checkpoint)
    return checkpoint


def agree_on_checkpoint(trainer: pl.Trainer, checkpoint: Path | None) -> None:
    """Compare name and checksum of what each process found, before anything is moved, restored or scored.

    Each looks by itself: where the output folder is not one that all of them see, they would go on with
    different weights without a word. Connects the processes, as the training does.

    Raises:
        ValueError: they differ; lists them by process. Raised in all processes.
    """
    if trainer.world_size == 1:
        return
    mine = "none"
    if checkpoint is not None:
        try:
            digest = digest_path(checkpoint).read_text(encoding="ascii")[:12]
        except OSError:  # it is that of a run at work, which has removed it since
            digest = "gone"
        mine = f"{checkpoint.name}, SHA-256 {digest}..."
    trainer.strategy.setup_environment()
    found = [""] * trainer.world_size
    torch.distributed.all_gather_object(found, mine)
    if len(set(found)) > 1:
        lines = "".join(f"\n  process {rank}: {what}" for rank, what in enumerate(found))
        raise ValueError(
            f"the processes would go on from different checkpoints:{lines}\nAll of them need the same output "
            "folder, which every machine sees. Nothing was changed: bring the files of the right one there"
        )


def _refuse_changes(cfg: DictConfig, checkpoint: Path) -> None:
    earlier = checkpoint.resolve().parents[1] / "config.yaml"
    if not earlier.is_file():
        raise FileNotFoundError(f"{earlier}: the config of the run that wrote {checkpoint} is missing")
    refused = {
        key: values
        for key, values in config_diff(cfg, earlier).items()
        if key not in cfg.allow_changed or key.startswith(_FROM_CHECKPOINT)
    }
    if not refused:
        return
    lines = "".join(f"\n  {key}: was {before!r}, is {now!r}" for key, (before, now) in refused.items())
    advice = "Give the earlier values, or start anew with resume=none"
    if allowable := [key for key in refused if not key.startswith(_FROM_CHECKPOINT)]:
        advice += f", or allow it with 'allow_changed=[{','.join(allowable)}]'"
    if len(allowable) < len(refused):
        brought = ", ".join(key for key in refused if key.startswith(_FROM_CHECKPOINT))
        advice += f". What the checkpoint brings cannot be changed: {brought}"
    raise ChangedConfigError(f"{checkpoint} is of a run with another config; this differs:{lines}\n{advice}")


def _point_to_a_stopped_run(cfg: DictConfig, output_dir: Path) -> None:
    """Say which stopped run of another config might be meant, where this config has none to go on from.

    Looked at are those of the same experiment, data set and seed, in the directories beside.
    """
    if not output_dir.name.startswith("seed="):  # a place of the user's own: what lies beside may be anything
        return
    stopped = []
    for run in sorted(output_dir.parent.parent.glob(f"*/{output_dir.name}")):
        if run == output_dir or not step_checkpoints(run / "checkpoints") or (run / "scores.json").is_file():
            continue
        try:
            if is_run_dir_locked(run):  # by another job of the sweep, say
                continue
            differing = config_diff(cfg, run / "config.yaml")
            if not any(key.startswith(_FROM_CHECKPOINT) for key in differing):
                stopped.append((differing, run))
        except Exception as error:  # another run's files are no reason for this one to end
            log.debug("%s: its config cannot be read (%s)", run, error)
    if stopped:
        differing, run = min(stopped, key=lambda one: len(one[0]))
        keys = ", ".join(f"{key} {before!r} -> {now!r}" for key, (before, now) in list(differing.items())[:5])
        log.warning(
            "no checkpoint of this config, so it starts anew. The unfinished run that is nearest to it, %s, "
            "differs in %d keys (%s); to go on there with these values give hydra.run.dir=%s "
            "'allow_changed=[%s]'",
            *(run, len(differing), keys, run, ",".join(differing)),
        )
