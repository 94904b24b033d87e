"""OmegaConf resolvers of the configs: names of runs and of their folders."""

import hashlib
import re
import textwrap

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sharpreid.config.paths import parse_override
from sharpreid.config.sweep_context import planned_jobs, swept_keys

_LONGEST_NAME = 120
_LONGEST_LABEL = 60


def register_resolvers() -> None:
    """Register ``${job_dir:...}``, ``${run_label:...}`` and the other resolvers of conf/ with OmegaConf."""
    OmegaConf.register_new_resolver("job_dir", job_dir, replace=True)
    OmegaConf.register_new_resolver("run_label", run_label, replace=True)
    OmegaConf.register_new_resolver("sweep_jobs", planned_jobs, replace=True)
    OmegaConf.register_new_resolver("sweep_job", _job_number, replace=True)
    OmegaConf.register_new_resolver("gpus_per_node", gpus_per_node, replace=True)


def job_dir(override_dirname: str) -> str:
    """Return the folder name of a run: its overrides, in at most 120 portable characters.

    >>> job_dir("model.blocks=[1,2],model.trunk.weights=/a/b.pth")
    'model.blocks=[1,2],model.trunk.weights=_a_b.pth'
    >>> job_dir("")
    'default'
    """
    name = re.sub(r"[^\w.=,+\[\]-]", "_", override_dirname) or "default"
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(override_dirname.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"


def run_label(name: str) -> str:
    """Return a short label of the running job: the overrides that its sweep varies, or all, or ``name``."""
    overrides = [parse_override(override) for override in HydraConfig.get().overrides.task]
    varying = swept_keys()
    shown = [f"{key}={value}" for key, value in overrides if not varying or key in varying]
    return textwrap.shorten(" ".join(shown), _LONGEST_LABEL, placeholder=" ...") or name


def _job_number() -> int | None:
    """Return the number of the running job in the sweep of this process, from 1; None without a sweep."""
    return None if planned_jobs() is None else HydraConfig.get().job.num + 1


def gpus_per_node(accelerator: str, devices: int) -> int | None:
    """Return the number of GPUs per node to request from a scheduler; None for a training on the CPU.

    >>> gpus_per_node("auto", 2), gpus_per_node("cpu", 2)
    (2, None)
    """
    return None if accelerator == "cpu" else devices
