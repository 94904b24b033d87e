"""Decide whether scores may be averaged with each other, or compared with the paper's."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sharpreid.config.early_runs import LATER_KEYS
from sharpreid.run.paper_recipe import PAPER_DATA, paper_protocol


def dataset_line(dataset: Mapping[str, Any]) -> str:
    """Return the data set's name, followed by its variant and subset if it has any.

    >>> dataset_line({"name": "market1501", "synthetic": False, "subset": "every 5th identity"})
    'market1501 (every 5th identity)'
    """
    name = str(dataset.get("name", "unknown"))
    notes = "; ".join(str(dataset[key]) for key in ("variant", "subset") if dataset.get(key))
    return f"{name} ({notes})" if notes else name


def caveats(record: Mapping[str, Any]) -> list[str]:
    """Return the reasons why scores are not comparable with the paper's; empty if they are.

    Args:
        record: Content of the run's ``scores.json``.

    >>> caveats({"dataset": {"synthetic": True, "subset": None}, "deviations": ""})
    ["Synthetic data: not the paper's numbers, not comparable with the paper."]
    """
    dataset, re_ranking = record.get("dataset", {}), record.get("protocol", {}).get("re_ranking", "none")
    found = []
    if dataset.get("synthetic"):
        found.append("Synthetic data: not the paper's numbers, not comparable with the paper.")
    if subset := dataset.get("subset"):
        found.append(f"Scored on a part of the data set ({subset}): not comparable with the paper.")
    if variant := dataset.get("variant"):
        found.append(f"Scored on a variant of the data set ({variant}): not comparable with the paper.")
    if unusual := _protocol_deviations(record):
        found.append(f"Not the paper's protocol ({unusual}): not comparable with the paper.")
    if re_ranking != "none":
        found.append(f"Re-ranked ({re_ranking}): not comparable with the paper.")
    if deviations := str(record.get("deviations") or "").strip().rstrip("."):
        found.append(f"Not the paper's recipe ({deviations}): not comparable with the paper.")
    return found


def _protocol_deviations(record: Mapping[str, Any]) -> str:
    """Return the protocol's rules that differ from the paper's, each with the paper's rule in brackets."""
    name, rules = record.get("dataset", {}).get("name"), record.get("protocol", {})
    if name not in PAPER_DATA:
        return ""
    found = [
        f"{key.replace('_', ' ')} {rules[key]} ({value})"
        for key, value in paper_protocol(name).items()
        if key in rules and str(rules[key]) != str(value)
    ]
    found += [f"cameras {rules['cameras']}"] if "cameras" in rules else []
    return ", ".join(found)


def method_of(config: DictConfig) -> str:
    """Return the choice of ``method=`` that a run's config matches, else a list of its blocks and additions.

    >>> method_of(OmegaConf.create({"model": {"blocks": [], "sampler": {}}, "objective": {"mu": 0.0}}))
    'baseline'
    """
    model = config.model
    blocks, context = tuple(sorted(model.blocks)), tuple(sorted(model.get("context_blocks") or []))
    if not blocks:
        return "baseline"
    sampler = target_name(model.sampler)
    unit = target_name(model.context_unit) if context else ""
    penalised = bool(config.objective.mu)
    known = {
        ((1, 2, 3, 4), (), "MaskSampler", "", False): "sab",
        ((3, 4), (), "MaskSampler", "", False): "sab_late",
        ((1, 2, 3, 4), (1, 2, 3), "MaskSampler", "ContextUnit", False): "sab_cu",
        ((1, 2, 3, 4), (1, 2, 3), "MaskSampler", "ContextUnit", True): "sab_cu_tv",
        ((1, 2, 3, 4), (), "SigmoidGate", "", False): "sigmoid_gate",
        ((1, 2, 3, 4), (), "SigmoidConvGate", "", False): "sigmoid_conv_gate",
        ((1, 2, 3), (1, 2, 3), "Identity", "ResidualAttentionMask", False): "residual_attention",
    }
    combine = model.get("combine", "add")
    if (name := known.get((blocks, context, sampler, unit, penalised))) and combine == "add":
        return name
    parts = ["blocks " + "+".join(map(str, blocks))]
    parts += [f"context {'+'.join(map(str, context))}"] if context else []
    parts += [name for name in (sampler, unit) if name not in ("", "MaskSampler", "ContextUnit")]
    parts += [] if combine == "add" else [combine]
    return ", ".join([*parts, "TV"] if penalised else parts)


def target_name(config: DictConfig) -> str:
    """Return the name of the class or function that a config node builds; empty without one."""
    return str(config.get("_target_", "")).rpartition(".")[2]


def averaging_rules(record: Mapping[str, Any], config: DictConfig, *ignored: str) -> tuple[str, ...]:
    """Return the rules that runs must share for their scores to be averaged, besides equal deviations.

    Args:
        record: Content of scores.json, of which ``protocol`` and ``dataset`` are read.
        config: Config of the run.
        ignored: Rules of the protocol that may differ; seed and drawn split always may.
    """
    protocol = record["protocol"].items()
    rules = (f"{key} {value}" for key, value in protocol if key not in ("split", "seed", *ignored))
    return dataset_line(record["dataset"]), *sorted(rules), *open_choices(config)


_OPEN = {
    "model.trunk.strides": "strides",
    "schedule.beta1": "beta1",
    "model.context_unit.init": "context unit's init",
    "data.epoch": "epochs over",
    "data.normalise": "normalisation",
}
"""Key of a choice that the paper leaves open, and that is thus not a deviation -> its title.

Runs that differ in one of them are not averaged. The values of `sharpreid.config.early_runs` are not named.
"""


def open_choices(config: DictConfig) -> list[str]:
    """Return the run's unusual choices among those that the paper leaves open.

    >>> model = {"trunk": {"strides": "v1"}, "context_unit": {"init": "random"}}
    >>> open_choices(OmegaConf.create({"model": model}))
    ['strides v1']
    """
    values = {key: OmegaConf.select(config, key) for key in _OPEN}
    silent = {key: (None, LATER_KEYS[key][1] if key in LATER_KEYS else None) for key in _OPEN}
    named = {key: value for key, value in values.items() if value not in silent[key]}
    return [f"{_OPEN[key]} {'dropped' if key == 'schedule.beta1' else named[key]}" for key in named]


def logged_settings(cfg: DictConfig, rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings for its loggers, with the values that dashboards group and filter by.

    Args:
        cfg: Config of the run.
        rules: Result of `sharpreid.run.records.describe_rules`.

    Returns:
        The config's values, and in addition ``method``; ``departures``, the deviations from the paper's
        recipe or ``none``; ``rules``, those of `averaging_rules`; ``comparable``, whether the scores are
        comparable with the paper's numbers on this data set.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return {
        **settings,
        "method": method_of(cfg),
        "departures": rules["deviations"] or "none",
        "rules": ", ".join(averaging_rules(rules, cfg)),
        "comparable": cfg.data.source.name in PAPER_DATA and not caveats(rules),
    }
