"""Preflight checks of a sweep."""

import logging
import warnings
from typing import Any

from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_EXTRAS = {"hydra_optuna_sweeper": "tune", "hydra_submitit_launcher": "slurm"}


class SweepPreflight(Callback):
    """Hydra callback that refuses missing plugins, and a hyperparameter search by scores of the test set.

    Hydra turns an exception of a callback into a warning, so a refusal is raised as SystemExit.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the sweep's config.

        Raises:
            SystemExit: The launcher or the sweeper is not installed, or the sweeper searches by the results
                of the jobs and no identities are held out.
        """
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
