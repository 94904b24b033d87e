"""OmegaConf resolvers of the configs: names of runs and of their folders."""

import hashlib
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from omegaconf import DictConfig, OmegaConf

from sharpreid.config.paths import PATH_KEYS
from sharpreid.config.sweep_context import planned_jobs, swept_keys

_LONGEST_NAME = 120  # bytes; file systems allow 255
_LONGEST_LABEL = 60


def register_resolvers() -> None:
    """Register ``${job_dir:...}``, ``${run_label:...}`` and the other resolvers of conf/ with OmegaConf."""
    OmegaConf.register_new_resolver("job_dir", job_dir, replace=True)
    OmegaConf.register_new_resolver("run_label", run_label, replace=True)
    OmegaConf.register_new_resolver("sweep_jobs", planned_jobs, replace=True)
    OmegaConf.register_new_resolver("sweep_job", _job_number, replace=True)
    OmegaConf.register_new_resolver("gpus_per_node", gpus_per_node, replace=True)


def job_dir(folder: str, *, _root_: DictConfig) -> str:
    """Return the folder name of the running job, see `name_job`.

    If ``folder`` has no run of this name, but one by the name that version 0.1 gave for this spelling of the
    overrides, the name is that one: its finished runs are still found.
    """
    overrides = OverridesParser.create().parse_overrides(list(_root_.hydra.overrides.task))
    excluded = list(_root_.hydra.job.config.override_dirname.exclude_keys)
    name = name_job(overrides, excluded, str(_root_.data.source.name))
    kept = sorted(str(one.input_line) for one in overrides if one.key_or_group not in excluded)
    earlier = _portable(",".join(kept))
    return name if Path(folder, name).exists() or not Path(folder, earlier).exists() else earlier


def name_job(overrides: Sequence[Override], excluded: Collection[str], data: str) -> str:
    """Return the folder name of a run: its overrides by value, in at most 120 bytes of portable characters.

    Args:
        overrides: Hydra overrides of the run; their spelling and order do not matter.
        excluded: Keys that are left out.
        data: Name of the data set, which is a folder of its own and thus left out.

    >>> parse = OverridesParser.create().parse_overrides
    >>> name_job(parse(["model.blocks=[1, 2]", "data=duke", "seed=1"]), ["seed"], "duke")
    'model.blocks=[1,2]'
    >>> name_job(parse(["flag=False", "model.trunk.weights=/a/b.pth", "+x=1.0"]), [], "duke")
    '+x=1,flag=false,model.trunk.weights=_a_b.pth'
    >>> name_job([], [], "duke")
    'default'
    """
    left_out = (f"data={data}", f"data.source.name={data}")
    last = {one.get_key_element(): canonical_override(one) for one in overrides}  # the last of a key counts
    named = (text for key, text in last.items() if key.lstrip("+~") not in excluded)
    return _portable(",".join(sorted(one for one in named if one not in left_out)))


def canonical_override(override: Override) -> str:
    """Return an override in one spelling for all equal values, such as ``+model.blocks=[1,2]``."""
    if override.is_delete():
        return str(override.input_line)
    sign = {OverrideType.ADD: "+", OverrideType.FORCE_ADD: "++"}.get(override.type, "")
    return f"{sign}{override.get_key_element().lstrip('+')}={canonical_value(override.value())}"


def canonical_value(value: Any) -> str:
    """Return the value of an override as text; equal values have equal texts.

    >>> [canonical_value(one) for one in (False, None, 1.0, 1e-05, [1, 2], {"b": 1, "a": "x"})]
    ['false', 'null', '1', '1e-5', '[1,2]', '{a:x,b:1}']
    """
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return str(int(value)) if whole else re.sub(r"e([+-])0+", r"e\1", repr(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{canonical_value(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(canonical_value, value)) + "]"
    return str(value)


def _portable(overrides: str) -> str:
    """Return a folder name for the overrides; a long one is cut and ends in a checksum."""
    name = re.sub(r"[^\w.=,+\[\]-]", "_", overrides) or "default"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(overrides.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name.encode()[: _LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def run_label(name: str) -> str:
    """Return a short label of the running job: the overrides that its sweep varies.

    Outside of a sweep they are those that can change a score, without paths, and the seed. Without any it is
    ``name``.
    """
    hydra = HydraConfig.get()
    varying = swept_keys()
    silent = {"data", *PATH_KEYS, *hydra.job.config.override_dirname.exclude_keys} - {"seed"}
    shown = [
        canonical_override(one).lstrip("+")
        for one in OverridesParser.create().parse_overrides(list(hydra.overrides.task))
        if (one.key_or_group in varying if varying else one.key_or_group not in silent)
    ]
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
