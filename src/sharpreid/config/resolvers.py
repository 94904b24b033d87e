"""What the configs need to be composed: names that they compute."""

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
    """Make ``${job_dir:...}``, ``${run_label:...}`` and the like known to OmegaConf."""
    OmegaConf.register_new_resolver("job_dir", job_dir, replace=True)
    OmegaConf.register_new_resolver("run_label", run_label, replace=True)
    OmegaConf.register_new_resolver("sweep_jobs", planned_jobs, replace=True)
    OmegaConf.register_new_resolver("sweep_job", _job_number, replace=True)
    OmegaConf.register_new_resolver("gpus_per_node", gpus_per_node, replace=True)


def job_dir(override_dirname: str) -> str:
    """Directory name of a run: its overrides, without characters that file systems refuse, of bounded length.

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
    """What to call the running job, briefly: in a sweep what varies, else its overrides or ``name``."""
    overrides = [parse_override(override) for override in HydraConfig.get().overrides.task]
    varying = swept_keys()
    shown = [f"{key}={value}" for key, value in overrides if not varying or key in varying]
    return textwrap.shorten(" ".join(shown), _LONGEST_LABEL, placeholder=" ...") or name


def _job_number() -> int | None:
    """Place of the running job in a sweep that this process goes through, from 1; None outside of one."""
    return None if planned_jobs() is None else HydraConfig.get().job.num + 1


def gpus_per_node(accelerator: str, devices: int) -> int | None:
    """The GPUs that a scheduler is asked for on each node; None where the CPU is trained on.

    >>> gpus_per_node("auto", 2), gpus_per_node("cpu", 2)
    (2, None)
    """
    return None if accelerator == "cpu" else devices
