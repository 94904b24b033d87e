"""Every data set of conf/data trains for a step and is scored, from small files in its own layout.

A new data set is found by itself: ``tests/data/test_<module of its loader>.py`` has to define
``write_fake_dataset(root)``, which writes a few images in the real layout and returns the overrides for them.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.run.build import build_data, build_module
from sharpreid.run.console import protocol_line
from sharpreid.run.preparation import prepare
from sharpreid.run.records import describe_scores
from tests.data import test_manifest, test_market1501
from tests.data.fake_images import paint

NAMES = sorted(path.stem for path in (CONF_DIR / "data").glob("*.yaml") if path.stem != "synthetic")
"""All data sets; the synthetic one writes its own images, see tests/data/test_synthetic.py."""

WriteDataset = Callable[[Path], list[str]]


def composed(overrides: list[str]) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides)


def write_dataset(name: str, root: Path) -> list[str]:
    """Write the fake files of a data set and return the overrides that select them."""
    loader = composed([f"data={name}"]).data.source._target_.removeprefix("sharpreid.data.").split(".")[0]
    module = importlib.import_module(f"tests.data.test_{loader}")
    assert hasattr(module, "write_fake_dataset"), f"{module.__name__} must define write_fake_dataset(root)"
    return [f"data={name}", *module.write_fake_dataset(root)]


def write_manifest(root: Path) -> list[str]:
    return ["data=manifest", *test_manifest.write_fake_dataset(root)]


def write_manifest_without_cameras(root: Path) -> list[str]:
    return ["data=manifest", *test_manifest.write_fake_dataset(root, cameras=("", ""))]


def write_market_with_extras(root: Path) -> list[str]:
    overrides = test_market1501.write_fake_dataset(root)
    for number in (0, 5, 6):
        paint(root / "gt_bbox" / f"0005_c1s1_{number:06d}_00.jpg")
    paint(root / "distractors" / "0000_c1s1_000001_00.jpg", "CMYK")
    paint(root / "distractors" / "0000_c1s1_000002_00.jpg", "L")
    extras = ["data.source.multi_query=true", f"data.source.distractors={root / 'distractors'}"]
    return ["data=market1501", *overrides, *extras]


def train_a_step_and_score(tiny_overrides: list[str], overrides: list[str]) -> dict[str, Any]:
    tiny = [one for one in tiny_overrides if not one.startswith(("data=", "data.source"))]
    cfg = composed([*tiny, *overrides, "data.cache=null", "model.blocks=[4]"])
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=1.0 if cfg.data.validation_identities else 0,
    )
    module, data = build_module(cfg), build_data(cfg)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert trainer.global_step == 1
    record = describe_scores(cfg, module.test_metric.protocol, data.data, module.last_scores("test"))
    valid, invalid = (record["scores"][f"num_{kind}_queries"] for kind in ("valid", "invalid"))
    assert (valid, invalid) == (len(data.data.query), 0)
    assert 0 < record["scores"]["mAP"] <= 1
    unknown = "cameras unknown: matches from the query's own camera count"
    assert (unknown in protocol_line(record["protocol"])) != data.data.cameras_known
    return record


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Take the right to write away from all folders, and check that nothing has changed at the end."""
    before = sorted(root.rglob("*"))
    folders = [root, *(entry for entry in before if entry.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_in_read_only_folders_is_trained_on_and_scored_by_its_own_protocol(
    tmp_path: Path, tiny_overrides: list[str], name: str
) -> None:
    overrides = write_dataset(name, tmp_path / "data set")
    with read_only(tmp_path):
        record = train_a_step_and_score(tiny_overrides, overrides)
    cfg = composed(overrides)
    assert (record["dataset"]["name"], record["protocol"]["name"]) == (
        cfg.data.source.name,
        cfg.protocol.name,
    )
    assert record["dataset"]["name"] == ("shop" if name in ("manifest", "folders") else name)


@pytest.mark.parametrize(
    ("write", "name", "protocol", "queries"),
    [
        (write_market_with_extras, "market1501+500k", "market1501 multi-query (mean)", 4),
        (write_manifest_without_cameras, "shop", "own_data", 2),
    ],
)
def test_a_variant_of_a_data_set_is_named_in_its_scores(
    tmp_path: Path, tiny_overrides: list[str], write: WriteDataset, name: str, protocol: str, queries: int
) -> None:
    record = train_a_step_and_score(tiny_overrides, write(tmp_path / "data set"))
    assert (record["dataset"]["name"], record["protocol"]["name"]) == (name, protocol)
    assert record["scores"]["num_valid_queries"] == queries


@pytest.mark.parametrize("write", [write_manifest, write_market_with_extras])
def test_boxes_and_the_further_images_of_queries_are_the_same_from_the_cache(
    tmp_path: Path, write: WriteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views(cache: str) -> list[torch.Tensor]:
        data = build_data(composed([*overrides, f"data.cache={cache}", "image.height=32"]))
        data.setup("test")
        return [data.test[number].views for number in range(len(data.test))]

    overrides = write(tmp_path / "own")
    decoded = views("null")
    prepare([*overrides, f"data.cache={tmp_path / 'cache'}"])
    monkeypatch.setattr("sharpreid.data.pixel_cache.read_image", lambda *_: pytest.fail("decoded a file"))
    cached = views(str(tmp_path / "cache"))
    assert len(decoded) == len(cached) > 8
    assert all(torch.equal(one, other) for one, other in zip(decoded, cached, strict=True))


def test_a_box_is_what_it_cuts_out_of_its_file(tmp_path: Path) -> None:
    data = build_data(composed(write_manifest(tmp_path)))
    data.setup("test")
    boxed = [number for number, sample in enumerate(data.test.samples) if sample.box]
    assert boxed
    for number in boxed:
        sample = data.test.samples[number]
        with Image.open(sample.path) as whole:
            wanted = data.test.transform(whole.convert("RGB").crop(sample.box))
        assert torch.equal(data.test[number].views, wanted)


def test_boxes_and_the_further_images_of_queries_can_be_prepared(tmp_path: Path) -> None:
    boxed = prepare([*write_manifest(tmp_path / "own"), f"data.cache={tmp_path}"])
    assert (boxed["ready"], boxed["files"]) == (True, 6 * 4 + 1)
    multi = prepare([*write_market_with_extras(tmp_path / "market"), f"data.cache={tmp_path}"])
    assert (multi["ready"], multi["data"], multi["files"]) == (True, "market1501+500k", 6 * 4 + 2 + 2)
