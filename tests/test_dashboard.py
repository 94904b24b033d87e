import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger

from sharpreid import dashboard
from sharpreid.callbacks.mask_gallery import MaskGallery
from sharpreid.callbacks.sharpness import SharpnessCurves
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.run.build import build_data, build_module
from sharpreid.run.comparability import logged_settings
from sharpreid.run.paper_recipe import PAPER_DATA
from sharpreid.run.records import describe_rules

METHODS = sorted(path.stem for path in CONF_DIR.glob("method/*.yaml"))


class Names(CSVLogger):
    """Keeps the names of everything that is logged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.names |= set(metrics)

    def log_image(self, key: str, images: list[Any], step: int, caption: list[str]) -> None:
        self.names.add(key)


def test_every_panel_shows_what_runs_really_log(
    composed: Callable[..., DictConfig], quiet: dict[str, Any], tmp_path: Path
) -> None:
    cfg = composed("method=sab_cu_tv", "data.validation_identities=2")
    logger = Names(tmp_path)
    gallery = MaskGallery(folder=str(tmp_path / "attention"), every_n_epochs=1, images=1, channels=1)
    options = {**quiet, "logger": logger, "callbacks": [SharpnessCurves(), gallery]}
    trainer = pl.Trainer(**options, max_epochs=1, log_every_n_steps=1, check_val_every_n_epoch=1)
    data, module = build_data(cfg), build_module(cfg)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    shown = {*dashboard.shown_metrics(), dashboard.GALLERY, "epoch"}  # the last is the curves' axis
    assert shown <= logger.names, shown - logger.names


def _values(node: Any) -> set[str]:
    if isinstance(node, dict):
        return set().union(*map(_values, node.values()))
    if isinstance(node, list):
        return set().union(*map(_values, node))
    return {node} if isinstance(node, str) else set()


def test_a_dry_run_prints_every_panel_without_network_or_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    dashboard.main(["--entity", "team", "--dry-run"])
    printed = json.loads(capsys.readouterr().out)
    for part in ("workspace", "report"):
        values = _values(printed[part])
        assert {*dashboard.shown_metrics(), dashboard.GALLERY} <= values
        assert any("| Table I | Baseline + SAB | cuhk03_labeled | 87.8 | 85.0 |" in text for text in values)


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """What a run of this config logs, on a data set of the name without the data set."""
    source: Any = cfg.data.source
    data: Any = SimpleNamespace(
        name=source.name,
        synthetic=source.name == "synthetic",
        subset=source.get("allow_subset") and "every 5th identity",
        split=None,
        variant=None,
        counts=dict,
        multi_query=None,
        cameras_known=True,
    )
    re_ranking = "none" if cfg.re_ranking is None else instantiate(cfg.re_ranking).describe()
    return logged_settings(cfg, describe_rules(cfg, instantiate(cfg.protocol), data, re_ranking))


def _paper(*overrides: str) -> DictConfig:
    """The paper's recipe on Market-1501, with overrides."""
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", ["data=market1501", *overrides, "output_dir=out", "~callbacks", "~logger"])


def _group(settings: Mapping[str, Any]) -> tuple[str, ...]:
    values = []
    for key in dashboard.GROUPS:
        node: Any = settings
        for part in key.split("."):
            node = node[part]
        values.append(str(node))
    return tuple(values)


def test_only_runs_that_differ_in_their_seed_are_averaged() -> None:
    runs = [[f"method={method}"] for method in METHODS] + [
        ["method=sab", "trainer.max_epochs=5"],
        ["method=sab", "model.sampler.train_mask=noise_free"],
        ["method=sab", "data.source.name=own"],
        ["method=sab", "model.trunk.strides=v1"],
        ["method=sab", "schedule=beta1_drop"],
        ["method=sab", "model.sampler.test_mask=expected"],
        ["method=sab", "model.sampler.test_mask=sample", "model.sampler.draws=8"],
        ["method=sab", "protocol.denominator=all_queries"],
        ["method=sab", "data.eval_transform.crops=plain"],
        ["method=sab", "re_ranking=k_reciprocal"],
        ["method=sab", "data.source.allow_subset=true"],
    ]
    settings = [_settings(_paper(*overrides)) for overrides in runs]
    groups = list(map(_group, settings))
    assert len({*groups}) == len(runs)
    assert _group(_settings(_paper("method=sab", "seed=5"))) == groups[METHODS.index("sab")]
    beside_the_paper = [overrides for overrides, one in zip(runs, settings, strict=True) if one["comparable"]]
    assert beside_the_paper == [
        *([f"method={method}"] for method in METHODS if method != "sab_cu_tv"),  # not the printed TV
        ["method=sab", "model.trunk.strides=v1"],
        ["method=sab", "schedule=beta1_drop"],
        ["method=sab", "model.sampler.test_mask=expected"],
        ["method=sab", "model.sampler.test_mask=sample", "model.sampler.draws=8"],
    ]


def test_the_reports_filters_are_of_values_that_runs_log(composed: Callable[..., DictConfig]) -> None:
    settings = _settings(composed("output_dir=out", "~callbacks", "~logger"))
    assert settings["comparable"] is False
    blocks = dashboard.specification("team", "project")["report"]["blocks"]
    filters = [runs["filters"] for block in blocks for runs in block.get("runsets", [])]
    for data in PAPER_DATA:
        assert f"Config('comparable') = True and Config('data.source.name') = '{data}'" in filters
    assert "Config('comparable') = False" in filters


def test_without_a_key_nothing_is_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as stop:
        dashboard.main(["--entity", "team"])
    assert stop.value.code == 1
    assert "no W&B key is configured" in capsys.readouterr().err
