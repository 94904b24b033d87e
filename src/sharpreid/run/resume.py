"""Find the checkpoint that a run resumes from: ``resume=auto`` or ``resume=FILE.ckpt``."""

import logging
import shlex
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from sharpreid.checkpoint_files import digest_path, newest_whole, step_checkpoints, step_of, verify
from sharpreid.distributed import is_rank_zero
from sharpreid.run.fingerprint import SPLITS, Fingerprint, describe_change, read_fingerprint
from sharpreid.run.records import config_diff, is_run_dir_locked, previous_runs

log = logging.getLogger(__name__)


_FROM_CHECKPOINT = ("optimizer.", "schedule.beta1", "model.weights", "model.trunk.weights")
"""Keys whose values a checkpoint restores: a changed value would be recorded, but not used."""


class ChangedConfigError(ValueError):
    """The config differs from that of the run to be resumed."""


def find_checkpoint(cfg: DictConfig, output_dir: Path) -> Path | None:
    """Return the checkpoint that a run resumes from; None if it starts anew.

    Args:
        cfg: Config of the run. ``resume`` is ``none``, ``auto`` (the newest undamaged checkpoint in the run's
            own directory) or a file. ``allow_changed`` lists keys that may differ from the config of the run
            that wrote the checkpoint. Keys whose values the checkpoint restores cannot be among them.
        output_dir: Directory of the run.

    Raises:
        FileNotFoundError: The file, or the config of its run, is missing.
        ChangedConfigError: The config differs in other keys; the message lists them.
        DamagedCheckpointError: The file's checksum is wrong.
        ValueError: The file is not a step checkpoint.
    """
    if cfg.resume == "none":
        return None
    if cfg.resume == "auto":
        checkpoint = newest_whole(output_dir / "checkpoints")
        if checkpoint is None:
            if is_rank_zero() and not _suggest_run_moved_aside(output_dir):
                _suggest_stopped_run(cfg, output_dir)
            return None
    else:
        checkpoint = Path(cfg.resume).expanduser().resolve()
        if not checkpoint.is_file():
            raise FileNotFoundError(f"resume={cfg.resume}: no such file; expected auto, none or a checkpoint")
        step_of(checkpoint)  # refuses final.ckpt, which has no optimizer state
        verify(checkpoint)
    _reject_changed_config(cfg, checkpoint)
    return checkpoint


def reject_changed_data(cfg: DictConfig, checkpoint: Path, now: Fingerprint) -> None:
    """Check that the data set is that of the run that wrote the checkpoint.

    Args:
        cfg: Config of the run; ``data`` in ``allow_changed`` accepts any change.
        checkpoint: Checkpoint to resume from.
        now: Fingerprint of the data that the run would read.

    Raises:
        ChangedConfigError: The data set has changed; the message says what.
    """
    data = {split: now[split] for split in SPLITS}  # the checkpoint has its own weights
    change = describe_change(read_fingerprint(checkpoint.resolve().parents[1]), data)
    if change is None:
        return
    if "data" in cfg.allow_changed:
        log.warning("the data set has changed since %s: %s", checkpoint, change)
        return
    raise ChangedConfigError(
        f"{checkpoint} belongs to a run on other data: {change}\nRestore the data set, or start anew with "
        "resume=none, or allow it with 'allow_changed=[data]'"
    )


def agree_on_checkpoint(trainer: pl.Trainer, checkpoint: Path | None) -> None:
    """Check that all processes found the same checkpoint, before any file is moved or restored.

    Each process searches on its own. Processes that do not see the same output folder would silently train
    with different weights. This call already connects the processes for the training.

    Raises:
        ValueError: Names or checksums differ; the message lists them by process. All processes raise it.
    """
    if trainer.world_size == 1:
        return
    mine = "none"
    if checkpoint is not None:
        try:
            digest = digest_path(checkpoint).read_text(encoding="ascii")[:12]
        except OSError:  # a running training has removed it meanwhile
            digest = "gone"
        mine = f"{checkpoint.name}, SHA-256 {digest}..."
    trainer.strategy.setup_environment()
    found = [""] * trainer.world_size
    torch.distributed.all_gather_object(found, mine)
    if len(set(found)) > 1:
        lines = "".join(f"\n  process {rank}: {what}" for rank, what in enumerate(found))
        raise ValueError(
            f"the processes would resume from different checkpoints:{lines}\nAll need the same output "
            "folder, visible on every machine. No file was changed; copy the right files there"
        )


def _reject_changed_config(cfg: DictConfig, checkpoint: Path) -> None:
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
        restored = ", ".join(key for key in refused if key.startswith(_FROM_CHECKPOINT))
        advice += f". The checkpoint restores these, so they cannot change: {restored}"
    raise ChangedConfigError(
        f"{checkpoint} belongs to a run with another config; these keys differ:{lines}\n{advice}"
    )


def _suggest_run_moved_aside(output_dir: Path) -> bool:
    """Log the newest unfinished run in ``previous/<n>``, if any; return whether there is one."""
    earlier = [run for run in previous_runs(output_dir).glob("*") if not (run / "scores.json").is_file()]
    found = {
        run.stat().st_mtime: saved for run in earlier if (saved := step_checkpoints(run / "checkpoints"))
    }
    if not found:
        return False
    newest = found[max(found)][0]
    log.warning(
        "this run has no checkpoint, so it starts anew. An earlier run of its directory stopped unfinished; "
        "its last saved step is %d. To go on with that instead, stop this run and give the same command "
        "with %s",
        *(step_of(newest), shlex.quote(f"resume={newest}")),
    )
    return True


def _suggest_stopped_run(cfg: DictConfig, output_dir: Path) -> None:
    """Log the unfinished run with the most similar config, where this config has no checkpoint of its own.

    Candidates are the neighbouring directories of the same experiment, data set and seed.
    """
    if not output_dir.name.startswith("seed="):  # the user named the directory
        return
    stopped = []
    for run in sorted(output_dir.parent.parent.glob(f"*/{output_dir.name}")):
        if run == output_dir or not step_checkpoints(run / "checkpoints") or (run / "scores.json").is_file():
            continue
        try:
            if is_run_dir_locked(run):  # for example by another job of the sweep
                continue
            differing = config_diff(cfg, run / "config.yaml")
            if not any(key.startswith(_FROM_CHECKPOINT) for key in differing):
                stopped.append((differing, run))
        except Exception as error:  # another run's damaged files must not end this one
            log.debug("%s: its config cannot be read (%s)", run, error)
    if not stopped:
        return
    differing, run = min(stopped, key=lambda one: len(one[0]))
    if not differing:
        log.warning(
            "this run starts anew. An unfinished run of the same config is in %s; to resume it give %s",
            *(run, shlex.quote(f"hydra.run.dir={run}")),
        )
    else:
        keys = ", ".join(f"{key} {before!r} -> {now!r}" for key, (before, now) in list(differing.items())[:5])
        log.warning(
            "this config has no checkpoint, so the run starts anew. The most similar unfinished run, %s, "
            "differs in %d keys (%s); to resume it with these values give %s "
            "'allow_changed=[%s]'",
            *(run, len(differing), keys, shlex.quote(f"hydra.run.dir={run}"), ",".join(differing)),
        )
