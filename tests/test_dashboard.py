import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger

from sharpreid import dashboard
from sharpreid.callbacks.mask_gallery import MaskGallery
from sharpreid.callbacks.sharpness import SharpnessCurves
from sharpreid.config import build_data, build_module
from sharpreid.hydra_files import CONF_DIR
from sharpreid.recipe import PAPER_DATA
from sharpreid.train import logged_settings

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


def _group(settings: Mapping[str, Any]) -> tuple[str, ...]:
    values = []
    for key in dashboard.GROUPS:
        node: Any = settings
        for part in key.split("."):
            node = node[part]
        values.append(str(node))
    return tuple(values)


def test_only_runs_that_differ_in_their_seed_are_averaged(composed: Callable[..., DictConfig]) -> None:
    full = ("recipe=paper", "model.trunk.depths=[3,4,6,3]", "model.trunk.weights=imagenet")
    runs = [[f"method={method}"] for method in METHODS] + [
        ["method=sab", "trainer.max_epochs=5"],
        ["method=sab", "model.sampler.train_mask=noise_free"],
        ["method=sab", "data.source.name=own"],
    ]
    groups = [
        _group(logged_settings(composed(*full, *overrides, "output_dir=out", "~callbacks", "~logger")))
        for overrides in runs
    ]
    assert len({*groups}) == len(runs)
    again = _group(
        logged_settings(composed(*full, "method=sab", "seed=5", "output_dir=out", "~callbacks", "~logger"))
    )
    assert again == groups[METHODS.index("sab")]


def test_the_reports_filters_are_of_values_that_runs_log(composed: Callable[..., DictConfig]) -> None:
    settings = logged_settings(composed("output_dir=out", "~callbacks", "~logger"))
    assert settings["departures"] != "none"
    blocks = dashboard.specification("team", "project")["report"]["blocks"]
    filters = [runs["filters"] for block in blocks for runs in block.get("runsets", [])]
    for data in PAPER_DATA:
        assert f"Config('departures') = 'none' and Config('data.source.name') = '{data}'" in filters
    assert "Config('departures') != 'none'" in filters


def test_without_a_key_nothing_is_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as stop:
        dashboard.main(["--entity", "team"])
    assert stop.value.code == 1
    assert "no W&B key is configured: wandb login, or --dry-run" in capsys.readouterr().err
