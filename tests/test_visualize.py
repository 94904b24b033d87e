import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.reid_data import HardPair, ReIDData
from sharpreid.run.build import build_data, build_module
from sharpreid.run.loading import read_hard_pair, read_views
from sharpreid.visualization.attention import record_attention
from sharpreid.visualize import main, visualize


@pytest.fixture
def run(composed: Callable[..., DictConfig], quiet: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes the checkpoint and config of an untrained run as a trained one would have them."""

    def build(*overrides: str) -> Path:
        cfg = composed("output_dir=out", "callbacks={}", "logger={}", *overrides)
        folder = tmp_path / "[run 1]"
        (folder / "checkpoints").mkdir(parents=True)
        OmegaConf.save(cfg, folder / "config.yaml")
        trainer = pl.Trainer(**{**quiet, "max_epochs": 1, "limit_train_batches": 0, "limit_val_batches": 0})
        trainer.fit(build_module(cfg), build_data(cfg))
        trainer.save_checkpoint(folder / "checkpoints" / "final.ckpt", weights_only=True)
        return folder / "checkpoints" / "final.ckpt"

    return build


def test_masks_of_the_test_set_are_drawn_beside_the_config(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run("model.blocks=[1,3]")
    output = visualize([f"checkpoint={checkpoint}", "count=2", "channels=1"])
    assert output == checkpoint.parents[1] / "masks.png"
    with Image.open(output) as sheet:
        lines = sheet.height / 200  # a picture, its caption, a gap
    assert 4 <= lines < 4.3, "two images, and a channel of each block below them"
    printed = capsys.readouterr().out
    assert "block 1: " in printed
    assert "block 3: " in printed
    assert "block 2: " not in printed


def test_a_photo_of_any_mode_and_a_folder_of_photos_are_drawn(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint, photos = run("model.blocks=[1]"), tmp_path / "[my] photos"
    photos.mkdir()
    Image.new("L", (40, 90), 100).save(photos / "grey.png")
    Image.new("RGBA", (90, 40), (9, 200, 9, 128)).save(photos / "wide.png")
    Image.new("RGB", (30, 60), "navy").save(photos / "1.jpg")
    output = tmp_path / "0012.png"
    for place, count, drawn in ((photos / "grey.png", 4, 1), (photos, 4, 3), (photos, 2, 2)):
        visualize([f"checkpoint={checkpoint}", f"images={place}", f"output={output}", f"count={count}"])
        with Image.open(output) as sheet:
            assert sheet.height // 200 == drawn


def test_the_mask_at_test_time_can_be_chosen(run: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = run("model.blocks=[1]")
    pictures = []
    for mask in ("noise_free", "hard"):
        output = visualize([f"checkpoint={checkpoint}", f"test_mask={mask}", f"output={tmp_path / mask}.png"])
        with Image.open(output) as sheet:
            pictures.append(sheet.tobytes())
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=none.jpg"], r"none\.jpg: no such image or folder of images"),
        (["images="], "images= has no value"),
        (["output=x.gif"], r"output=x\.gif: the name must end in \.png, \.jpg or \.webp"),
        (["count=0"], "count must be a whole number, at least 1; got 0"),
        (["channels=-1"], "channels must be a whole number, at least 0; got -1"),
        (["chanels=3"], "chanels: no such argument; known are checkpoint, images"),
        (["test_mask=soft"], "test_mask must be one of noise_free"),
        (["count=[2"], r"count=\[2: the value is not YAML"),
    ],
)
def test_a_wrong_call_says_what_was_wanted_and_writes_nothing(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    checkpoint = run("model.blocks=[1]")
    before = sorted(checkpoint.parents[1].rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main([f"checkpoint={checkpoint}", *arguments])
    assert stop.value.code == 1
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert sorted(checkpoint.parents[1].rglob("*")) == before


def test_a_photo_is_seen_as_the_network_was_trained_to(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    Image.new("RGB", (30, 60), "navy").save(tmp_path / "1.png")
    cfg = composed("data.normalise=per_pixel_mean")
    (photo,) = read_views(cfg, tmp_path / "1.png", 1)
    data = build_data(cfg)
    data.setup("test")
    with Image.open(tmp_path / "1.png") as image:
        assert torch.equal(photo, data.eval_transform(image)[0])
    assert not torch.equal(photo, read_views(composed(), tmp_path / "1.png", 1)[0])
    assert read_views(composed(f"data.source.root={tmp_path}"), tmp_path / "1.png", 1).shape == (1, 3, 32, 16)


def test_a_network_without_attention_is_refused(run: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"no attention blocks \(model\.blocks=\[\]\): nothing to draw"):
        visualize([f"checkpoint={run('model.blocks=[]')}"])


def test_attending_leaves_every_part_in_its_mode(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("model.blocks=[1]")
    network = build_module(cfg).network
    network.train()
    network.trunk.eval()
    modes = [module.training for module in network.modules()]
    assert len(record_attention(network, read_views(cfg, None, 1))) == 1
    assert [module.training for module in network.modules()] == modes


def test_a_hard_pair_is_drawn_by_the_cameras_that_saw_both(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed()
    pairs = (HardPair((9, 10), "hat"),)
    data = build_data(cfg)
    data.setup("test")
    whole = replace(data.data, hard_pairs=pairs)
    seen_once = [sample for sample in whole.query if (sample.pid, sample.camid) != (10, 1)]
    for queries, names in (
        (whole.query, ["person 9", "person 10"] * 2),
        (tuple(seen_once), ["person 9", "person 10"]),
    ):
        known = replace(whole, query=queries)
        monkeypatch.setattr("sharpreid.run.loading.build_data", lambda _, known=known: _Known(known, data))
        images, found = read_hard_pair(cfg, "hat", 4)
        assert found == names
        assert images.shape == (len(names), 3, 32, 16)
    with pytest.raises(ValueError, match=r"hard_pair=bag: market1501 has no such pair; it has \['hat'\]"):
        read_hard_pair(cfg, "bag", 4)


class _Known:
    """A data module of data that are read already."""

    def __init__(self, data: ReIDData, module: ReIDDataModule) -> None:
        self.data = data
        self.eval_transform = module.eval_transform

    def setup(self, stage: str) -> None:
        """Have nothing to do."""


def test_another_network_s_masks_are_drawn_beside(run: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = run("model.blocks=[1]")
    alone = visualize([f"checkpoint={checkpoint}", "count=1", f"output={tmp_path / 'alone.png'}"])
    both = [f"checkpoint={checkpoint}", f"beside={checkpoint}", "count=1", f"output={tmp_path / 'both.png'}"]
    with Image.open(alone) as one, Image.open(visualize(both)) as other:
        assert one.height == other.height
