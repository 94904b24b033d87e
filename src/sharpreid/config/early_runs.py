"""Upgrade configs and records of older versions; all added, renamed and moved names are listed here."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

LATER_KEYS: Mapping[str, tuple[str, Any]] = {
    "model.trunk.width": ("model.trunk.depths", 64),
    "model.combine": ("model.blocks", "add"),
    "model.weights": ("model.blocks", "none"),
    "model.context_unit.init": ("model.context_unit.upsample", "random"),
    "model.context_unit.p": ("model.context_unit.upsample", 1),
    "model.context_unit.q": ("model.context_unit.upsample", 1),
    "model.sampler.gradient": ("model.sampler.train_mask", "whole"),
    "model.sampler.sample_noise": ("model.sampler.draws", "shared"),
    "data.training_identities": ("data.identities_per_batch", None),
    "schedule.noise_scale": ("schedule.temperature", None),
    "data.normalise": ("data.identities_per_batch", "imagenet"),
    "data.epoch": ("data.identities_per_batch", "identities"),
}
"""Added key -> an older key of the same node, and the value that older versions used implicitly."""

RENAMED_KEYS: Mapping[str, str] = {"data.train_transform.tries": "data.train_transform.max_attempts"}
"""Earlier key of a config -> its present name."""

MOVED_TARGETS: Mapping[str, str] = {
    "sharpreid.csv_logger.ContinuedCSVLogger": "sharpreid.loggers.csv.AppendingCSVLogger",
    "sharpreid.evaluation.ranking.Protocol": "sharpreid.evaluation.protocol.Protocol",
    "sharpreid.wandb_logger.build_wandb_logger": "sharpreid.loggers.wandb.build_wandb_logger",
}
"""Earlier ``_target_`` of a config -> present path of the class or function."""

RENAMED_FIELDS: Mapping[str, str] = {"reduced": "deviations"}
"""Earlier field of scores.json -> its present name."""


def upgrade_config(config: DictConfig) -> DictConfig:
    """Return a copy of a run's config with this version's names and with the keys added since.

    A key of `LATER_KEYS` is added only if its node has the older key: a soft gate, for example, gets no
    ``gradient``.

    >>> early = OmegaConf.create({"model": {"blocks": [1], "sampler": {"_target_": "SigmoidGate"}}})
    >>> OmegaConf.to_container(upgrade_config(early))
    {'model': {'blocks': [1], 'sampler': {'_target_': 'SigmoidGate'}, 'combine': 'add', 'weights': 'none'}}
    """
    upgraded: DictConfig = config.copy()
    OmegaConf.set_struct(upgraded, False)
    for earlier, key in RENAMED_KEYS.items():
        if _has(upgraded, earlier):
            parent, _, name = earlier.rpartition(".")
            node = OmegaConf.select(upgraded, parent)
            node[key.rpartition(".")[2]] = node.pop(name)
    for key, (beside, value) in LATER_KEYS.items():
        if not _has(upgraded, key) and _has(upgraded, beside):
            OmegaConf.update(upgraded, key, value, force_add=True)
    _move_targets(upgraded)
    return upgraded


def upgrade_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a run's scores.json with the field names and the words of this version.

    >>> upgrade_record({"seed": 0, "reduced": "training identities 128 (None)"})
    {'seed': 0, 'deviations': 'training identities 128 (all)'}
    """
    upgraded = {RENAMED_FIELDS.get(field, field): value for field, value in record.items()}
    if "deviations" in upgraded:
        upgraded["deviations"] = str(upgraded["deviations"] or "").replace("(None)", "(all)")
    return upgraded


def _move_targets(node: DictConfig) -> None:
    for key in map(str, node):
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            _move_targets(value)
        elif key == "_target_" and value in MOVED_TARGETS:
            node[key] = MOVED_TARGETS[value]


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    return OmegaConf.is_dict(node) and name in node
