"""Preflight checks of a run and of a sweep."""

import logging
import warnings
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_EXTRAS = {"hydra_optuna_sweeper": "tune", "hydra_submitit_launcher": "slurm"}


class SweepPreflight(Callback):
    """Hydra callback that refuses an unwritable output folder, missing plugins, and a search on the test set.

    Hydra turns an exception of a callback into a warning, so a refusal is raised as SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the output folder of a single run.

        Raises:
            SystemExit: The folder cannot be created, or not written to.
        """
        _refuse_unwritable("hydra.run.dir", Path(str(config.hydra.run.dir)))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the sweep's config.

        Raises:
            SystemExit: The launcher or the sweeper is not installed, the output folder cannot be written, or
                the sweeper searches by the results of the jobs and no identities are held out.
        """
        _refuse_unwritable("hydra.sweep.dir", Path(str(config.hydra.sweep.dir)))
        for key in ("launcher", "sweeper"):
            _refuse_missing(key, str(config.hydra[key]["_target_"]))
        if str(config.hydra.sweeper["_target_"]).endswith("BasicSweeper"):
            return
        if not config.data.validation_identities:
            raise SystemExit(
                "a search must not use the scores of the test set: hold training identities out, "
                "data.validation_identities=100"
            )
        # Hydra's sweeper needs Optuna 2, which warns with SQLAlchemy 2
        logging.getLogger("alembic").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message=".*declarative_base", module="optuna")


def _refuse_missing(key: str, target: str) -> None:
    if target in Plugins.instance().class_name_to_class:
        return
    extras = [extra for plugin, extra in _EXTRAS.items() if plugin in target]
    advice = f": pip install 'sharpreid[{extras[0]}]'" if extras else ""
    raise SystemExit(f"hydra.{key}: {target} is not installed{advice}")


def _refuse_unwritable(key: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SystemExit(
            f"{key}={folder}: cannot be written ({error.strerror}); name another folder, {key}=/path"
        ) from error
