"""A model folder embeds as the run did, and nothing else than such a folder is loaded."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from omegaconf import DictConfig
from PIL import Image

import sharpreid
from sharpreid.checkpoint_files import compute_sha256
from sharpreid.data.reid_data import DataError
from sharpreid.run.build import build_data, build_module
from sharpreid.run.model_folder import describe_model, write_model
from sharpreid.serving.model import CARD, CONFIG, WEIGHTS, ModelError, load_model

RECORD: dict[str, Any] = {
    "scores": {"mAP": 0.25, "rank1": 0.5},
    "protocol": {"name": "market1501", "crops": "plain", "test_mask": "noise_free", "re_ranking": "none"},
    "dataset": {"name": "market1501", "synthetic": False, "subset": "every 5th identity"},
    "deviations": "",
    "seed": 3,
}


@pytest.fixture
def saved(composed: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Write the model folder of an untrained network whose weights and statistics are random."""

    def write(*overrides: str, mean: torch.Tensor | None = None) -> tuple[Path, Any]:
        torch.manual_seed(0)
        cfg = composed("model.head.init_std=0.1", *overrides)
        module = build_module(cfg).eval()
        for name, value in module.network.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_()
        module.network.set_temperature(0.37)
        write_model(tmp_path / "model", cfg, module, mean=mean, record=RECORD)
        return tmp_path / "model", module

    return write


@pytest.fixture
def photos(tiny_market: Path) -> list[Path]:
    return sorted((tiny_market / "query").glob("*.jpg"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=baseline"],
        ["method=sab"],
        ["method=sab_cu_tv", "model.context_unit.init=next_stage", "model.combine=concat"],
        ["method=sigmoid_conv_gate", "data.eval_transform.crops=ten_crop"],
        ["method=residual_attention", "model.trunk.strides=v1"],
        ["model.sampler.test_mask=sample", "model.sampler.sample_noise=per_view"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_loaded_model_embeds_as_the_module_that_was_saved(
    saved: Callable[..., tuple[Path, Any]], photos: list[Path], overrides: list[str]
) -> None:
    folder, module = saved(*overrides)
    model = sharpreid.load(folder)
    embeddings = model.embed(photos, batch_size=3)
    views = torch.stack([model.read_views(path) for path in photos])
    with torch.no_grad():
        expected = module.embed_views(views).numpy()
    assert embeddings.dtype == np.float32
    assert np.ptp(expected, axis=0).max() > 0.01, "the images differ"
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert embeddings.shape == (len(photos), model.dim)


def test_the_mean_image_travels_too(
    saved: Callable[..., tuple[Path, Any]], photos: list[Path], composed: Callable[..., DictConfig]
) -> None:
    data = build_data(composed("data.normalise=per_pixel_mean"))
    data.setup("test")
    mean = data.eval_transform.mean
    assert mean is not None
    folder, _ = saved("data.normalise=per_pixel_mean", mean=mean)
    with_mean = load_model(folder).read_views(photos[0])
    assert torch.equal(with_mean, data.test[0].views)


def test_paths_images_and_pixels_are_embedded_alike(
    saved: Callable[..., tuple[Path, Any]], photos: list[Path]
) -> None:
    model = load_model(saved()[0])
    from_path = model.embed(photos[0])
    image = Image.open(photos[0])
    both = model.embed([image, np.asarray(image)])
    np.testing.assert_allclose(both, np.concatenate([from_path, from_path]), atol=1e-4)
    assert model.embed([]).shape == (0, model.dim)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(DataError, match="RGB, uint8"):
            model.embed([wrong])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_size"):
        model.embed(photos, batch_size=0)


def test_it_is_loaded_without_hydra_lightning_and_a_network(
    saved: Callable[..., tuple[Path, Any]], photos: list[Path], tmp_path: Path
) -> None:
    folder, _ = saved()
    code = (
        "import socket, sys\n"
        "for name in ('hydra', 'omegaconf', 'pytorch_lightning', 'lightning_fabric', 'wandb'):\n"
        "    sys.modules[name] = None\n"
        "socket.socket.connect = None\n"
        f"import sharpreid\nprint(sharpreid.load({str(folder)!r}).embed({str(photos[0])!r}).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout.strip(), done.returncode) == ("(1, 128)", 0), done.stderr


def test_the_directory_of_the_run_will_do(saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = saved()
    assert load_model(folder.parent).digest == load_model(folder).digest


def test_models_have_different_digests(saved: Callable[..., tuple[Path, Any]]) -> None:
    first = load_model(saved()[0]).digest
    assert load_model(saved("data.eval_transform.crops=flip")[0]).digest != first
    assert load_model(saved()[0]).digest == first


def test_the_card_names_scores_data_and_reservations(saved: Callable[..., tuple[Path, Any]]) -> None:
    card = (saved()[0] / CARD).read_text(encoding="utf-8")
    assert card == load_model(saved()[0]).card
    for part in ("mAP 25.0", "every 5th identity", "research only", "## Misuse", "(2, 128)", "Seed 3"):
        assert part in card


def damage_weights(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-9] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def change(key: str, value: Any) -> Callable[[Path], None]:
    def change_config(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")

    return change_config


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "damaged"),
        (lambda folder: (folder / CONFIG).write_text("{"), "JSON"),
        (change("format", "another"), "format"),
        (change("code", "print(1)"), "code"),
        (change("architecture.sampler.name", "os.system"), "no part of a network"),
        (change("architecture.sampler.arguments", {"eps": 7}), "eps must be"),
        (change("architecture.sampler.arguments", {"module": "os"}), "module"),
        (change("architecture.blocks", [1, 9]), "blocks must be"),
        (change("architecture.trunk.depths", [1, 1, 2, 1]), "these keys differ"),
        (change("architecture.trunk.width", 10**9), "trunk.width"),
        (change("preprocessing.height", 10**9), "preprocessing.height"),
        (change("preprocessing.normalise", "per_pixel_mean"), "mean image"),
    ],
)
def test_a_damaged_or_hostile_folder_is_refused(
    saved: Callable[..., tuple[Path, Any]], damage: Callable[[Path], None], message: str
) -> None:
    folder, _ = saved()
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_pickled_code_in_the_weights_is_not_run(saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = saved()

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "was_here"),)

    torch.save({"weight": Hostile()}, folder / WEIGHTS)
    change("weights_sha256", compute_sha256(folder / WEIGHTS))(folder)
    with pytest.raises(ModelError, match="safetensors"):
        load_model(folder)
    assert not (folder / "was_here").exists()


def test_missing_files_are_named(saved: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a model folder"):
        load_model(tmp_path / "nowhere")
    folder, _ = saved()
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        load_model(folder)


def test_other_tools_find_plain_tensors(saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, module = saved("method=baseline")
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    assert torch.equal(tensors["trunk.conv1.weight"], module.network.trunk.conv1.weight)


def test_a_network_with_a_part_of_one_s_own_is_refused(composed: Callable[..., DictConfig]) -> None:
    cfg = composed()
    cfg.model.head = {"_target_": "torch.nn.Linear", "in_features": 256, "out_features": 8}
    with pytest.raises(ValueError, match=r"model folder.*Linear"):
        describe_model(cfg)
