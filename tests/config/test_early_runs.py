"""Runs that were recorded before a key came into the config are the runs with its default."""

import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from sharpreid.config.early_runs import LATER_KEYS, MOVED_TARGETS, upgrade_config
from sharpreid.run.arguments import load_config
from sharpreid.run.build import build_module
from sharpreid.run.loading import load_network
from sharpreid.run.paper_recipe import recipe_deviations
from sharpreid.run.records import config_diff, describe_config

Composed = Callable[..., DictConfig]


def without_later_keys(cfg: DictConfig) -> DictConfig:
    """The config of a run of before."""
    early = OmegaConf.create(describe_config(cfg))
    assert isinstance(early, DictConfig)
    for key in LATER_KEYS:
        parent, _, name = key.rpartition(".")
        OmegaConf.select(early, parent).pop(name)
    return early


@pytest.fixture
def config(composed: Composed, tmp_path: Path) -> DictConfig:
    cfg = composed(f"output_dir={tmp_path}", "model.trunk.width=64")
    cfg.callbacks, cfg.logger = {}, {}
    return cfg


def test_the_defaults_of_the_config_are_what_early_runs_did(config: DictConfig) -> None:
    assert {key: OmegaConf.select(config, key) for key in LATER_KEYS} == {
        key: value for key, (_, value) in LATER_KEYS.items()
    }


def test_an_early_run_is_the_same_as_a_new_one(config: DictConfig, tmp_path: Path) -> None:
    earlier = tmp_path / "config.yaml"
    OmegaConf.save(without_later_keys(config), earlier)
    assert config_diff(config, earlier) == {}
    config.model.combine = "concat"
    assert config_diff(config, earlier) == {"model.combine": ("add", "concat")}


def test_an_early_run_s_config_is_loaded_with_the_later_keys(config: DictConfig, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "final.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    OmegaConf.save(without_later_keys(config), tmp_path / "config.yaml")
    assert load_config(checkpoint).model.combine == "add"


def test_an_early_run_departs_from_the_paper_in_nothing_new(config: DictConfig) -> None:
    assert recipe_deviations(without_later_keys(config)) == recipe_deviations(config)


def test_a_key_is_only_added_where_it_belongs(config: DictConfig) -> None:
    filled = upgrade_config(without_later_keys(config))
    assert all(OmegaConf.select(filled, key) == value for key, (_, value) in LATER_KEYS.items())
    soft = upgrade_config(OmegaConf.create({"model": {"blocks": [], "sampler": {"_target_": "SigmoidGate"}}}))
    assert list(soft.model.sampler) == ["_target_"]


def test_a_frozen_config_of_the_first_version_is_the_same_run_today(composed: Composed) -> None:
    """It was composed by the version before packages were moved, and is not to be edited."""
    root = "data.source.root=${data_root}/Market-1501-v15.09.15"
    width = ["model.trunk.width=64", "model.head.in_features=2048"]
    today = composed("method=sab_cu", root, "data_root=/data", "output_dir=/runs/early", *width)
    today.callbacks, today.logger = {}, {}
    frozen = Path(__file__).with_name("early_run.yaml")
    assert config_diff(today, frozen).keys() <= {"trainer.check_val_every_n_epoch"}  # the fixture sets it
    today.seed = 1
    assert "seed" in config_diff(today, frozen)


def test_every_target_of_a_frozen_config_can_be_imported() -> None:
    config = upgrade_config(OmegaConf.load(Path(__file__).with_name("early_run.yaml")))
    targets = [line.partition("_target_: ")[2] for line in OmegaConf.to_yaml(config).splitlines()]
    found = [pkgutil.resolve_name(target) for target in targets if target]
    assert len(found) > 15
    assert all(pkgutil.resolve_name(target) for target in MOVED_TARGETS.values())
    assert not MOVED_TARGETS.keys() & MOVED_TARGETS.values()


def test_a_checkpoint_beside_a_frozen_config_is_loaded(composed: Composed, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "final.ckpt"
    checkpoint.parent.mkdir()
    shutil.copy(Path(__file__).with_name("early_run.yaml"), tmp_path / "config.yaml")
    checkpoint.touch()
    module = build_module(load_config(checkpoint))
    torch.save({"state_dict": module.state_dict()}, checkpoint)
    loaded = load_network(checkpoint, load_config(checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded.parameters(), strict=True))
