"""A run is the same only on the same data: what is noticed, and what is no change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from sharpreid.data.pixel_cache import build_cache
from sharpreid.run.build import build_data
from sharpreid.run.fingerprint import describe_change, read_fingerprint, take_fingerprint
from sharpreid.run.resume import ChangedConfigError, reject_changed_data


@pytest.fixture
def taken(composed: Callable[..., DictConfig], tmp_path: Path, tiny_market: Path) -> Callable[..., Any]:
    """Take the fingerprint of a copy of the tiny data set, in ``tmp_path / "here"`` or elsewhere."""
    shutil.copytree(tiny_market, tmp_path / "here")

    def take(*overrides: str, place: str = "here") -> Any:
        cfg = composed(*overrides)
        cfg.data.source.root = str(tmp_path / place)
        data = build_data(cfg)
        data.setup("fit")
        return take_fingerprint(cfg, data)

    return take


def test_the_same_data_in_another_folder_are_no_change(taken: Callable[..., Any], tmp_path: Path) -> None:
    before = taken()
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert describe_change(before, taken(place="there")) is None
    assert json.loads(json.dumps(before)) == before


def test_other_labels_are_told_from_other_images(taken: Callable[..., Any], tmp_path: Path) -> None:
    before = taken()
    train = tmp_path / "here" / "bounding_box_train"
    for path in train.glob("0003_*"):
        path.rename(train / path.name.replace("0003_", "0030_"))
    change = describe_change(before, taken())
    assert change == "train: other images; query: unchanged; gallery: unchanged"
    for path in train.glob("0001_*"):
        path.unlink()
    assert "train: 32 images of 8 identities then, 28 images of 7 identities now" in str(
        describe_change(before, taken())
    )


def test_a_corrected_label_is_noticed(
    composed: Callable[..., DictConfig], tmp_path: Path, tiny_market: Path
) -> None:
    lines = ["path,identity,camera,split"]
    splits = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    for path in sorted(tiny_market.rglob("*.jpg")):
        lines.append(f"{path},{path.name[:4]},{path.name[6]},{splits[path.parent.name]}")

    def take() -> Any:
        manifest = tmp_path / "images.csv"
        manifest.write_text("\n".join(lines), encoding="utf-8")
        cfg = composed()
        cfg.data.source = {
            "_target_": "sharpreid.data.manifest.load_manifest",
            "_partial_": True,
            "name": "shop",
            "manifest": str(manifest),
            "within": str(tiny_market),
        }
        data = build_data(cfg)
        data.setup("fit")
        return take_fingerprint(cfg, data)

    before = take()
    place = next(number for number, line in enumerate(lines) if line.endswith(",train"))
    assert ",0001," in lines[place]
    lines[place] = lines[place].replace(",0001,", ",0002,")
    change = describe_change(before, take())
    assert change == "train: the same images with other labels; query: unchanged; gallery: unchanged"


def test_other_pixels_are_noticed_once_the_files_were_read(taken: Callable[..., Any], tmp_path: Path) -> None:
    def cached() -> Any:
        paths = sorted((tmp_path / "here").rglob("*.jpg"))
        build_cache(paths, tmp_path / "cache" / "market1501")
        return taken(f"data.cache={tmp_path / 'cache'}")

    before, unread = cached(), taken()
    one, other = sorted((tmp_path / "here" / "query").glob("*.jpg"))[:2]
    one.write_bytes(other.read_bytes())
    assert "query: files of the same names with another content" in str(describe_change(before, cached()))
    assert describe_change(unread, cached()) is None, "unknown is no change"


def test_another_file_of_initial_weights_is_noticed(taken: Callable[..., Any], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    before = taken(f"model.trunk.weights={weights}")
    weights.write_bytes(b"two")
    assert "initial weights: another file" in str(
        describe_change(before, taken(f"model.trunk.weights={weights}"))
    )
    weights.unlink()
    assert describe_change(before, taken(f"model.trunk.weights={weights}")) is None


def test_a_checkpoint_of_other_data_is_refused_unless_it_is_allowed(
    taken: Callable[..., Any],
    composed: Callable[..., DictConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step=000001.ckpt"
    checkpoint.parent.mkdir(parents=True)
    before = taken()
    reject_changed_data(composed(), checkpoint, before)  # a run of an early version: nothing is known
    (tmp_path / "run" / "job.json").write_text(json.dumps({"data": before}), encoding="utf-8")
    assert read_fingerprint(tmp_path / "run") == before
    reject_changed_data(composed(), checkpoint, before)
    for path in (tmp_path / "here" / "bounding_box_train").glob("0001_*"):
        path.unlink()
    with pytest.raises(ChangedConfigError, match=r"(?s)28 images of 7 .*allow_changed=\[data\]"):
        reject_changed_data(composed(), checkpoint, taken())
    reject_changed_data(composed("allow_changed=[data]"), checkpoint, taken())
    assert "28 images of 7 identities now" in caplog.text
