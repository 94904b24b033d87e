"""What has to be so before a sweep, or a search over hyperparameters, starts."""

import logging
import warnings
from typing import Any

from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_EXTRAS = {"hydra_optuna_sweeper": "tune", "hydra_submitit_launcher": "slurm"}


class CheckSearch(Callback):
    """Hydra callback: refuses a plugin that is not installed, and a search by the test set.

    Hydra turns an exception of a callback into a warning; so a refusal leaves as SystemExit, which passes.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the sweep's config.

        Raises:
            SystemExit: the launcher or the sweeper is not installed, or the sweeper chooses by what jobs
                return, and no identities are held out.
        """
        for key in ("launcher", "sweeper"):
            _refuse_missing(key, str(config.hydra[key]["_target_"]))
        if str(config.hydra.sweeper["_target_"]).endswith("BasicSweeper"):
            return
        if not config.data.validation_identities:
            raise SystemExit(
                "a search needs scores that are not those of the test set: hold training identities out, "
                "data.validation_identities=100"
            )
        # Optuna 2.10, the last that Hydra's sweeper works with, on SQLAlchemy 2.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message=".*declarative_base", module="optuna")


def _refuse_missing(key: str, target: str) -> None:
    if target in Plugins.instance().class_name_to_class:
        return
    extras = [extra for plugin, extra in _EXTRAS.items() if plugin in target]
    advice = f": pip install 'sharpreid[{extras[0]}]'" if extras else ""
    raise SystemExit(f"hydra.{key}: {target} is not installed{advice}")
