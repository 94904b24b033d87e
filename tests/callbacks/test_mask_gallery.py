from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from sharpreid.callbacks.mask_gallery import MaskGallery
from sharpreid.data import market1501
from sharpreid.run.build import build_data, build_module


class ImageLogger(CSVLogger):
    """Keeps what W&B's logger would upload."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images: list[tuple[str, int]] = []

    def log_image(self, key: str, images: list[Image.Image], step: int, caption: list[str]) -> None:
        assert len(images) == len(caption) == 1
        self.images.append((key, step))
        self.sent = images[0]


def fit(
    cfg: DictConfig, quiet: dict[str, Any], folder: Path, images: int, **options: Any
) -> tuple[pl.Trainer, dict[str, Any]]:
    where = str(folder / "attention")
    gallery = MaskGallery(folder=where, every_n_epochs=2, images=images, channels=1, **options)
    trainer = pl.Trainer(
        **{**quiet, "logger": ImageLogger(folder)},
        max_epochs=3,
        limit_val_batches=0,
        log_every_n_steps=1,
        callbacks=[gallery],
    )
    pl.seed_everything(0, verbose=False)
    module = build_module(cfg)
    trainer.fit(module, build_data(cfg))
    return trainer, {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_masks_are_drawn_every_so_many_epochs_and_at_the_end_and_change_nothing(
    composed: Callable[..., DictConfig], quiet: dict[str, Any], tmp_path: Path
) -> None:
    cfg = composed("model.blocks=[1,4]")
    trainer, with_pictures = fit(cfg, quiet, tmp_path / "with", images=2)
    drawn = sorted((tmp_path / "with" / "attention").iterdir())
    assert [path.name for path in drawn] == ["epoch0002.png", "epoch0003.png"]
    assert isinstance(trainer.logger, ImageLogger)
    steps = trainer.global_step
    assert trainer.logger.images == [("masks", steps // 3 * 2), ("masks", steps)]
    with Image.open(drawn[0]) as first, Image.open(drawn[1]) as second:
        assert first.size == second.size
        assert first.tobytes() != second.tobytes()
    _, without = fit(cfg, quiet, tmp_path / "without", images=0)
    assert not (tmp_path / "without" / "attention").exists()
    assert all(torch.equal(with_pictures[name], without[name]) for name in without)


@pytest.mark.parametrize("upload", [False, True])
@pytest.mark.parametrize("synthetic", [False, True])
def test_photos_of_real_people_are_uploaded_only_if_asked_for(
    composed: Callable[..., DictConfig],
    quiet: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    upload: bool,
    synthetic: bool,
) -> None:
    load = market1501.load_market1501
    monkeypatch.setattr(
        market1501, "load_market1501", lambda **place: replace(load(**place), synthetic=synthetic)
    )
    trainer, _ = fit(composed("model.blocks=[1]"), quiet, tmp_path, images=1, upload_photos=upload)
    assert isinstance(trainer.logger, ImageLogger)
    with Image.open(tmp_path / "attention" / "epoch0003.png") as kept:
        assert (kept.tobytes() == trainer.logger.sent.tobytes()) == (upload or synthetic)
    (colours,) = [trainer.logger.sent.crop((10, 10, 60, 150)).getcolors(10_000)]  # of the photo
    assert (len(colours) == 1) == (not upload and not synthetic)


def test_a_picture_that_cannot_be_drawn_does_not_stop_the_training(
    composed: Callable[..., DictConfig],
    quiet: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "attention").write_text("a file where the folder should be")
    trainer, _ = fit(composed("model.blocks=[1]"), quiet, tmp_path, images=1)
    assert trainer.current_epoch == 3
    assert "no image of the masks after epoch 2" in caplog.text


def test_of_a_network_without_attention_nothing_is_drawn(
    composed: Callable[..., DictConfig], quiet: dict[str, Any], tmp_path: Path
) -> None:
    trainer, _ = fit(composed("model.blocks=[]"), quiet, tmp_path, images=2)
    assert isinstance(trainer.logger, ImageLogger)
    assert trainer.logger.images == []
    assert not (tmp_path / "attention").exists()


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1"):
        MaskGallery(folder="x", every_n_epochs=0, images=1, channels=1)
