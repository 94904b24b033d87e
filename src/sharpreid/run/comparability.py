"""Decide whether scores may be averaged with each other, or stand beside the paper's."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sharpreid.config.early_runs import LATER_KEYS
from sharpreid.run.paper_recipe import PAPER_DATA, paper_protocol


def dataset_line(dataset: Mapping[str, Any]) -> str:
    """The data set's name and, where another than the usual whole of it was scored, which variant and part.

    >>> dataset_line({"name": "market1501", "synthetic": False, "subset": "every 5th identity"})
    'market1501 (every 5th identity)'
    """
    name = str(dataset.get("name", "unknown"))
    notes = "; ".join(str(dataset[key]) for key in ("variant", "subset") if dataset.get(key))
    return f"{name} ({notes})" if notes else name


def caveats(record: Mapping[str, Any]) -> list[str]:
    """Why a run's scores may not stand beside the paper's, one sentence each; empty if they may.

    Args:
        record: the run's ``scores.json``.

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
    if unusual := _unlike_the_paper(record):
        found.append(f"Not the paper's protocol ({unusual}): not comparable with the paper.")
    if re_ranking != "none":
        found.append(f"Re-ranked ({re_ranking}): not comparable with the paper.")
    if deviations := str(record.get("deviations") or "").strip().rstrip("."):
        found.append(f"Not the paper's recipe ({deviations}): not comparable with the paper.")
    return found


def _unlike_the_paper(record: Mapping[str, Any]) -> str:
    """The rules of a score on a data set of the paper that are not the paper's, in brackets the paper's."""
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
    """Which of ``method=`` a run's config is, whatever it was called with; else its blocks and what is added.

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
    """Name of the class or function that a part of a config builds; empty without one."""
    return str(config.get("_target_", "")).rpartition(".")[2]


def averaging_rules(record: Mapping[str, Any], config: DictConfig, *ignored: str) -> tuple[str, ...]:
    """What runs have to share for their scores to share a mean, seed and departures aside.

    Args:
        record: with the run's ``protocol`` and ``dataset``, as in scores.json.
        config: of the run.
        ignored: rules of the protocol that may differ; the drawn split always may.
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
"""What the paper leaves open and no departure tells: runs that differ in it share no mean.

The values of `sharpreid.config.early_runs` are not said.
"""


def open_choices(config: DictConfig) -> list[str]:
    """Return the run's choice in what the paper leaves open.

    >>> model = {"trunk": {"strides": "v1"}, "context_unit": {"init": "random"}}
    >>> left_open(OmegaConf.create({"model": model}))
    ['strides v1']
    """
    values = {key: OmegaConf.select(config, key) for key in _OPEN}
    silent = {key: (None, LATER_KEYS[key][1] if key in LATER_KEYS else None) for key in _OPEN}
    said = {key: value for key, value in values.items() if value not in silent[key]}
    return [f"{_OPEN[key]} {'dropped' if key == 'schedule.beta1' else said[key]}" for key in said]


def logged_settings(cfg: DictConfig, rules: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config for its loggers, with what dashboards group and filter by.

    Args:
        cfg: of the run.
        rules: of `describe_rules`.

    Returns:
        The config's values and: ``method``; ``departures`` from the paper's recipe, or ``none``; ``rules`` of
        the scores, all that runs have to share to be averaged; ``comparable``, whether they may stand beside
        the paper's numbers on this data.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return {
        **settings,
        "method": method_of(cfg),
        "departures": rules["deviations"] or "none",
        "rules": ", ".join(averaging_rules(rules, cfg)),
        "comparable": cfg.data.source.name in PAPER_DATA and not caveats(rules),
    }
