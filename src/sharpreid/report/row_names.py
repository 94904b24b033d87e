"""Name a run by its config: its row in a table, its recipe, and its other deviations from the paper."""

import re
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sharpreid.config.paths import CONF_DIR
from sharpreid.run.comparability import open_choices, target_name
from sharpreid.run.paper_recipe import compose_config, recipe_deviations

_KINDS = {
    "SigmoidGate": ("sigmoid", "blocks_1234"),
    "SigmoidConvGate": ("sigmoid_conv", "blocks_1234"),
    "ResidualAttentionMask": ("residual", "blocks_123_cu_123"),
}
"""Soft attention class -> name, and the blocks in the paper's comparison, which the name omits."""

_MODEL_PARTS = ("sampler", "context_unit", "trunk", "head")

_CHOICES = {
    "model": (
        "model/sharp_resnet50",
        ("defaults", "_target_", "_convert_", "blocks", "context_blocks", *_MODEL_PARTS),
    ),
    "model.sampler": (
        "model/sampler/sharp",
        ("_target_", "_partial_", "implementation", "gradient", "draws", "seed"),
    ),
    "model.context_unit": ("model/context_unit/context_aware", ("_target_", "_partial_", "strides")),
    "schedule": ("schedule/paper", ("temperature", "learning_rate_factor", "beta1")),
}
"""Part of the config -> its file in conf/, and the keys that a row name ignores or treats separately.

A row name states every other key of these parts whose value differs from the file.
"""


def row_name(config: DictConfig) -> str:
    """Return the name of a run's row: attention, gradient through the mask, and unusual choices.

    Examples are ``baseline``; ``blocks_12-none``, which is blocks 1 and 2 with ``gradient=none``;
    ``cu_tv-whole``, which is four blocks with context-aware units and the total variation of
    ``objective=tv``; ``blocks_1234-none-noise_free``; and ``sigmoid``. For everything else see
    `describe_conditions`.

    >>> config = {"model": {"blocks": [], "sampler": {}}, "objective": {"mu": 0.0}}
    >>> row_name(OmegaConf.create(config))
    'baseline'
    """
    model = config.model
    if not model.blocks:
        return "baseline"
    context = sorted(model.get("context_blocks") or [])
    attention = "blocks_" + "".join(map(str, sorted(model.blocks)))
    attention += "_cu_" + "".join(map(str, context)) if context else ""
    sampler = target_name(model.sampler)
    unit = target_name(model.context_unit) if context else ""
    for kind in (one for one in (sampler, unit) if one not in ("", "MaskSampler", "ContextUnit", "Identity")):
        name, default = _KINDS.get(kind, (kind, ""))
        attention = name if attention == default else f"{name}_{attention}"
    if attention == "blocks_1234_cu_123":
        attention = "cu"
    parts = [attention + _total_variation(config.objective)]
    if sampler == "MaskSampler":
        parts.append(str(model.sampler.get("gradient", "whole")))
    return "-".join([*parts, *_temperature(config.schedule.temperature), *_unusual_choices(config)])


def _total_variation(objective: DictConfig) -> str:
    if not objective.mu:
        return ""
    default = _file("objective/tv")
    if (objective.mu, objective.reduction) == (default.mu, default.reduction):
        return "_tv"
    return f"_tv_{objective.reduction}_{objective.mu:g}"


def _temperature(temperature: DictConfig) -> list[str]:
    if temperature.floor == 1:
        return ["constant_tau"]
    shape = ["cosine_tau"] if target_name(temperature) == "cosine_temperature" else []
    default = _file("schedule/paper").temperature.floor
    return shape if temperature.floor == default else [*shape, f"tau_floor_{temperature.floor:g}"]


def _parts(config: DictConfig) -> list[str]:
    """Return the parts of `_CHOICES` that a run uses."""
    unused = [] if target_name(config.model.sampler) == "MaskSampler" else ["model.sampler"]
    if not config.model.get("context_blocks") or target_name(config.model.context_unit) != "ContextUnit":
        unused.append("model.context_unit")
    return [part for part in _CHOICES if part not in unused]


def _unusual_choices(config: DictConfig) -> list[str]:
    """Return the choices of a run that differ from the files of conf/."""
    found = []
    for part in _parts(config):
        node = OmegaConf.select(config, part)
        file, excluded = _CHOICES[part]
        found += [
            _choice_name(key, value, node)
            for key, value in node.items()
            if key not in excluded and value != _file(file).get(key)
        ]
    return found


def _choice_name(key: str, value: Any, node: DictConfig) -> str:
    if OmegaConf.is_config(value) and "_target_" in value:
        name = target_name(value)
        name = name if name.startswith(key.partition("_")[0]) else f"{key}_{name}"
        path = CONF_DIR / "schedule" / f"{name}.yaml"
        default = OmegaConf.select(OmegaConf.load(path), key) if path.is_file() else {}
        arguments = [argument for argument in value if argument not in ("_target_", "_partial_", "epochs")]
        unusual = [f"{one}_{value[one]:g}" for one in arguments if value[one] != default.get(one)]
        return "_".join([name, *unusual])
    if key in ("train_mask", "upsample"):
        return str(value)
    if key == "test_mask":
        return f"test_{value}" + (f"_{node.draws}" if value == "sample" else "")
    return re.sub(r"[^\w.]+", "_", f"{key}_{value}").strip("_")


def describe_conditions(config: DictConfig) -> str:
    """Describe, in one line, how a run deviates from the paper's recipe beyond the name of its row.

    Only runs with the same description are comparable. It includes choices that the paper leaves open and
    that are thus no deviation, such as the strides.
    """
    rest = config.copy()
    OmegaConf.update(rest, "model.context_unit", {}, merge=False)  # its choices are in the row's name
    return ", ".join([_conditions(config), *open_choices(rest)]).removeprefix(", ")


def recipe_name(config: DictConfig) -> str | None:
    """Return the ``recipe=`` that a config follows, whatever its row; None if there is none."""
    name = str(config.data.source.name)
    data = name if (CONF_DIR / "data" / f"{name}.yaml").is_file() else "market1501"
    found = _conditions(config)
    return next((recipe for recipe, conditions in _recipes(data).items() if conditions == found), None)


@cache
def _recipes(data: str) -> dict[str, str]:
    """Return recipe -> `_conditions` on a data set, without recipes on which others are based."""
    files = {path.stem: _file(f"recipe/{path.stem}") for path in sorted((CONF_DIR / "recipe").glob("*.yaml"))}
    defaults = (str(base) for file in files.values() for base in file.get("defaults", []))
    bases = {base.rpartition("/")[2] for base in defaults}
    return {
        name: _conditions(compose_config(f"data={data}", f"recipe={name}"))
        for name in files
        if name not in bases
    }


def _conditions(config: DictConfig) -> str:
    """Return the deviations of a run from the paper, except for the choices that its row name states.

    These choices are reset to the files of conf/, also where the config of an early run lacks the key.
    """
    neutral = config.copy()
    OmegaConf.set_struct(neutral, False)
    for part in _parts(config):
        file, excluded = _CHOICES[part]
        node = OmegaConf.select(neutral, part)
        for key in {*node, *_file(file)}.difference(excluded):
            node[key] = _file(file).get(key)
    if "gradient" in neutral.model.sampler:
        neutral.model.sampler.gradient = _file("model/sampler/sharp").gradient
    default = _file("schedule/paper").temperature
    neutral.schedule.temperature.merge_with({"_target_": default["_target_"], "floor": default.floor})
    triplet = _file("objective/triplet")
    neutral.objective.merge_with({"mu": triplet.mu, "reduction": triplet.reduction})
    return recipe_deviations(neutral)


@cache
def _file(name: str) -> Any:
    return OmegaConf.load(CONF_DIR / f"{name}.yaml")
