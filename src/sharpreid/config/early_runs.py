"""Fill in config keys that the run folders of older versions lack."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

LATER_KEYS: Mapping[str, tuple[str, Any]] = {
    "model.trunk.width": ("model.trunk.depths", 64),
    "model.combine": ("model.blocks", "add"),
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
"""A later key -> a key that has always stood beside it, and what a run without the later key did."""


def upgrade_config(config: DictConfig) -> DictConfig:
    """Return a copy of a run's config with each missing key of `LATER_KEYS` set to what older versions did.

    A key is added only where the one beside it is: a soft gate, for example, has no ``gradient``.

    >>> early = OmegaConf.create({"model": {"blocks": [1], "sampler": {"_target_": "SigmoidGate"}}})
    >>> OmegaConf.to_container(upgrade_config(early))
    {'model': {'blocks': [1], 'sampler': {'_target_': 'SigmoidGate'}, 'combine': 'add'}}
    """
    filled: DictConfig = config.copy()
    for key, (beside, value) in LATER_KEYS.items():
        if not _has(filled, key) and _has(filled, beside):
            OmegaConf.update(filled, key, value, force_add=True)
    return filled


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    return OmegaConf.is_dict(node) and name in node
