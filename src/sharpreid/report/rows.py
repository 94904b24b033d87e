"""Which row of a comparison a run is, and what else it was trained with: functions of its config."""

from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sharpreid.hydra_files import CONF_DIR
from sharpreid.recipe import composed, departures
from sharpreid.report.gather import class_of, left_open

_KINDS = {
    "SigmoidGate": ("sigmoid", "blocks_1234"),
    "ResidualAttentionMask": ("residual", "blocks_123_cu_123"),
}
"""Soft attentions: class -> its name, and the blocks of the paper's comparison, which the name leaves out."""

_OF_THE_ROW = {
    "objective": ("objective/triplet", ("mu", "reduction")),
    "model.sampler": ("model/sampler/sharp", ("train_mask", "gradient")),
    "model.context_unit": ("model/context_unit/context_aware", ("upsample",)),
    "schedule.temperature": ("schedule/paper", ("_target_", "floor")),
}
"""Part of the config -> its file in conf/, and the keys of it that a row's name says."""

_OF_THE_RECIPE = ("temperature", "learning_rate_factor", "beta1")
"""Schedules that no row is named by, but for the kind of temperature."""


def row_of(config: DictConfig) -> str:
    """Name the row of a run: its attention, the mask's gradient, and in what else the mask is unusual.

    For example ``baseline``; ``blocks_12-none``, blocks 1 and 2 with ``gradient=none``; ``cu_tv-whole``, the
    four blocks with context-aware units and the total variation of ``objective=tv``;
    ``blocks_1234-none-noise_free``; ``sigmoid``. What the name does not say is in `conditions_of`.

    >>> config = {"model": {"blocks": [], "sampler": {}}, "objective": {"mu": 0.0}}
    >>> row_of(OmegaConf.create(config))
    'baseline'
    """
    model = config.model
    if not model.blocks:
        return "baseline"
    context = sorted(model.get("context_blocks") or [])
    attention = "blocks_" + "".join(map(str, sorted(model.blocks)))
    attention += "_cu_" + "".join(map(str, context)) if context else ""
    sampler = class_of(model.sampler)
    unit = class_of(model.context_unit) if context else ""
    for kind in (one for one in (sampler, unit) if one not in ("", "MaskSampler", "ContextUnit", "Identity")):
        name, usual = _KINDS.get(kind, (kind, ""))
        attention = name if attention == usual else f"{name}_{attention}"
    if attention == "blocks_1234_cu_123":
        attention = "cu"
    parts = [attention + _total_variation(config.objective)]
    parts += _mask(config) if sampler == "MaskSampler" else []
    upsample = model.context_unit.get("upsample", "deconv") if unit == "ContextUnit" else "deconv"
    parts += [upsample] if upsample != "deconv" else []
    return "-".join(parts)


def _total_variation(objective: DictConfig) -> str:
    if not objective.mu:
        return ""
    usual = _file("objective/tv")
    if (objective.mu, objective.reduction) == (usual.mu, usual.reduction):
        return "_tv"
    return f"_tv_{objective.reduction}_{objective.mu:g}"


def _mask(config: DictConfig) -> list[str]:
    """The gradient, and in what the mask is not Eq. 5 as it stands, in training or at test time."""
    sampler = config.model.sampler
    parts = [str(sampler.get("gradient", "whole"))]
    if (train_mask := sampler.get("train_mask", "sample")) != "sample":
        parts.append(train_mask)
    temperature = config.schedule.temperature
    if class_of(temperature) == "cosine_temperature":
        parts.append("cosine_tau")
    elif temperature.floor == 1:
        parts.append("constant_tau")
    usual = _file("schedule/paper")
    for key, value in config.schedule.items():
        if key not in _OF_THE_RECIPE and value != usual.get(key):
            parts.append(class_of(value) if OmegaConf.is_config(value) else f"{key}_{value}")
    if (test_mask := sampler.get("test_mask", "noise_free")) != "noise_free":
        parts.append(f"test_{test_mask}" + (f"_{sampler.draws}" if test_mask == "sample" else ""))
    return parts


def conditions_of(config: DictConfig) -> str:
    """Say how a run departs from the paper's recipe in what its row's name does not say, in one line.

    Runs may be compared only if this is the same. What the paper leaves open and is no departure, such as
    the strides, is said as well.
    """
    return ", ".join([_conditions(config), *left_open(config)]).removeprefix(", ")


def recipe_of(config: DictConfig) -> str | None:
    """Find the ``recipe=`` that a config agrees with, its row aside; None if there is none."""
    name = str(config.data.source.name)
    data = name if (CONF_DIR / "data" / f"{name}.yaml").is_file() else "market1501"
    found = _conditions(config)
    return next((recipe for recipe, conditions in _recipes(data).items() if conditions == found), None)


@cache
def _recipes(data: str) -> dict[str, str]:
    """Recipe -> `_conditions` on a data set; of those that others start from, only the others."""
    files = {path.stem: _file(f"recipe/{path.stem}") for path in sorted((CONF_DIR / "recipe").glob("*.yaml"))}
    bases = (str(base) for file in files.values() for base in file.get("defaults", []))
    started_from = {base.rpartition("/")[2] for base in bases}
    return {
        name: _conditions(composed(f"data={data}", f"recipe={name}"))
        for name in files
        if name not in started_from
    }


def _conditions(config: DictConfig) -> str:
    neutral = config.copy()
    for part, (file, keys) in _OF_THE_ROW.items():
        for key in keys:
            if OmegaConf.select(neutral, f"{part}.{key}") is not None:
                OmegaConf.update(neutral, f"{part}.{key}", _usual(part, file)[key])
    usual = _file("schedule/paper")
    for key in neutral.schedule:
        if key not in _OF_THE_RECIPE:
            neutral.schedule[key] = usual.get(key)
    return departures(neutral)


def _usual(part: str, file: str) -> Any:
    return _file(file).temperature if part == "schedule.temperature" else _file(file)


@cache
def _file(name: str) -> Any:
    return OmegaConf.load(CONF_DIR / f"{name}.yaml")
