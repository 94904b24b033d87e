"""Every kind of data set trains for a step and is scored, from files in its own layout to the record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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

PEOPLE = range(1, 7)
"""The first four are trained on."""

Plant = Callable[[Path], list[str]]


def paint(path: Path, mode: str = "RGB") -> None:
    """A small picture in the colour of its name's first digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(int.from_bytes(path.name[:6].encode()))
    pixels = np.clip(rng.integers(40, 216, 3) + rng.integers(-30, 31, (32, 16, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


def plant_folders_of(root: Path, name: Callable[[int, int, int], str]) -> None:
    """bounding_box_train/, query/ and bounding_box_test/; everyone twice in each of two cameras."""
    for person in PEOPLE:
        for camera in (1, 2):
            for number in (0, 1):
                test_folder = "bounding_box_test" if number else "query"
                folder = "bounding_box_train" if person <= 4 else test_folder
                paint(root / folder / name(person, camera, number))
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder / "Thumbs.db").touch()


def plant_duke(root: Path) -> list[str]:
    plant_folders_of(root, lambda person, camera, number: f"{person:04d}_c{camera}_f{number:07d}.jpg")
    return ["data=duke", f"data.source.root={root}", "data.source.allow_subset=true"]


def plant_market_with_extras(root: Path) -> list[str]:
    plant_folders_of(root, lambda person, camera, number: f"{person:04d}_c{camera}s1_{number:06d}_00.jpg")
    for number in (0, 5, 6):
        paint(root / "gt_bbox" / f"0005_c1s1_{number:06d}_00.jpg")
    paint(root / "distractors" / "0000_c1s1_000001_00.jpg", "CMYK")
    paint(root / "distractors" / "0000_c1s1_000002_00.jpg", "L")
    return [
        "data=market1501",
        f"data.source.root={root}",
        "data.source.allow_subset=true",
        "data.source.multi_query=true",
        f"data.source.distractors={root / 'distractors'}",
    ]


def plant_msmt17(root: Path) -> list[str]:
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    parts = {"train": ("train", "train", "val", "train"), "test": ("query", "query", "gallery", "gallery")}
    for folder, people in (("train", 4), ("test", 2)):
        for person in range(people):
            for number, part in enumerate(parts[folder]):
                file = f"{person:04d}/{person:04d}_{number:03d}_{1 + number % 2:02d}_0303morning_0008_0.jpg"
                paint(root / folder / file)
                lists[part].append(f"{file} {person}")
    for name, lines in lists.items():
        (root / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return ["data=msmt17", f"data.source.root={root}", "data.source.allow_subset=true"]


def plant_manifest(root: Path, cameras: tuple[str, str] = ("door", "yard")) -> list[str]:
    lines = ["path,identity,camera,split,box"]
    for person in PEOPLE:
        for number, camera in enumerate(cameras * 2):
            path = f"Bilder ☂/{person}_{number}.png"
            paint(root / path, "L" if number else "RGB")
            split = "train" if person <= 4 else ("query", "gallery")[number > 0]
            lines.append(f"{path},Person {person},{camera},{split},{'0 0 12 30' if number == 2 else ''}")
    Image.new("RGB", (1, 1)).save(root / "dot.png")
    lines.append(f"dot.png,distractor,{cameras[0]},gallery,")
    (root / "images.csv").write_text("\n".join(lines), encoding="utf-8")
    return ["data=manifest", f"data.source.manifest={root / 'images.csv'}", "data.source.name=shop"]


def plant_manifest_without_cameras(root: Path) -> list[str]:
    return plant_manifest(root, cameras=("", ""))


def plant_identity_folders(root: Path) -> list[str]:
    for person in PEOPLE:
        for number in range(3):
            paint(root / ("train" if person <= 4 else "test") / f"person {person}" / f"{person}_{number}.jpg")
    validated = ["data.validation_identities=1", "data.identities_per_batch=3"]
    return ["data=folders", f"data.source.root={root}", "data.source.name=shop", *validated]


def train_a_step_and_score(tiny_overrides: list[str], overrides: list[str]) -> dict[str, Any]:
    register_resolvers()
    tiny = [one for one in tiny_overrides if not one.startswith(("data=", "data.source"))]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg: DictConfig = compose("train", [*tiny, *overrides, "data.cache=null", "model.blocks=[4]"])
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
    assert module.test_scores is not None
    return describe_scores(cfg, module.test_metric.protocol, data.data, module.test_scores)


@pytest.mark.parametrize(
    ("plant", "name", "protocol", "queries"),
    [
        (plant_duke, "duke", "duke", 4),
        (plant_market_with_extras, "market1501+500k", "market1501 multi-query (mean)", 4),
        (plant_msmt17, "msmt17", "msmt17", 4),
        (plant_manifest, "shop", "own_data", 2),
        (plant_manifest_without_cameras, "shop", "own_data", 2),
        (plant_identity_folders, "shop", "own_data", 2),
    ],
)
def test_a_data_set_is_trained_on_and_scored_by_its_own_protocol(
    tmp_path: Path, tiny_overrides: list[str], plant: Plant, name: str, protocol: str, queries: int
) -> None:
    record = train_a_step_and_score(tiny_overrides, plant(tmp_path / "data set"))
    assert (record["dataset"]["name"], record["protocol"]["name"]) == (name, protocol)
    assert (record["scores"]["num_valid_queries"], record["scores"]["num_invalid_queries"]) == (queries, 0)
    assert 0 < record["scores"]["mAP"] <= 1
    unknown = "cameras unknown: matches from the query's own camera count"
    without_cameras = plant in (plant_manifest_without_cameras, plant_identity_folders)
    assert (unknown in protocol_line(record["protocol"])) == without_cameras


@pytest.mark.parametrize("plant", [plant_duke, plant_msmt17, plant_manifest, plant_identity_folders])
def test_a_data_set_is_read_from_folders_that_cannot_be_written(tmp_path: Path, plant: Plant) -> None:
    register_resolvers()
    overrides = plant(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    folders = [tmp_path, *(entry for entry in before if entry.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            data = build_data(compose("train", overrides))
        data.prepare_data()
        data.setup("test")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert data.data.query
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("plant", [plant_manifest, plant_market_with_extras])
def test_boxes_and_the_further_images_of_queries_are_the_same_from_the_cache(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views(cache: str) -> list[torch.Tensor]:
        register_resolvers()
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            data = build_data(compose("train", [*overrides, f"data.cache={cache}", "image.height=32"]))
        data.setup("test")
        return [data.test[number].views for number in range(len(data.test))]

    overrides = plant(tmp_path / "own")
    decoded = views("null")
    prepare([*overrides, f"data.cache={tmp_path / 'cache'}"])
    monkeypatch.setattr("sharpreid.data.pixel_cache.read_image", lambda *_: pytest.fail("decoded a file"))
    cached = views(str(tmp_path / "cache"))
    assert len(decoded) == len(cached) > 8
    assert all(torch.equal(one, other) for one, other in zip(decoded, cached, strict=True))


def test_a_box_is_what_it_cuts_out_of_its_file(tmp_path: Path) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        data = build_data(compose("train", plant_manifest(tmp_path)))
    data.setup("test")
    boxed = [number for number, sample in enumerate(data.test.samples) if sample.box]
    assert boxed
    for number in boxed:
        sample = data.test.samples[number]
        with Image.open(sample.path) as whole:
            wanted = data.test.transform(whole.convert("RGB").crop(sample.box))
        assert torch.equal(data.test[number].views, wanted)


def test_boxes_and_the_further_images_of_queries_can_be_prepared(tmp_path: Path) -> None:
    boxed = prepare([*plant_manifest(tmp_path / "own"), f"data.cache={tmp_path}"])
    assert (boxed["ready"], boxed["files"]) == (True, 6 * 4 + 1)
    multi = prepare([*plant_market_with_extras(tmp_path / "market"), f"data.cache={tmp_path}"])
    assert (multi["ready"], multi["data"], multi["files"]) == (True, "market1501+500k", 6 * 4 + 2 + 2)
