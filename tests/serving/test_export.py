"""An exported network embeds as the model does, in a runtime that knows nothing of this package."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sharpreid
from sharpreid.data.market1501 import load_market1501
from sharpreid.data.reid_data import DataError
from sharpreid.data.synthetic import SyntheticParams, generate
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking
from sharpreid.export import main
from sharpreid.serving import exporting
from sharpreid.serving.arguments import UsageError
from sharpreid.serving.export_description import ExportConfig, Format
from sharpreid.serving.exporting import FILES, ExportError, export_model, open_export, parse_target
from sharpreid.serving.model import CARD, CONFIG, WEIGHTS, ModelError
from tests.serving.test_model import damage_weights, photos, saved

__all__ = ["photos", "saved"]  # fixtures

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

Saved = Callable[..., tuple[Path, Any]]

NETWORKS = {
    "baseline": ["method=baseline"],
    "noise_free": ["method=sab"],
    "expected": ["method=sab", "model.sampler.test_mask=expected"],
    "mean": ["method=sab", "model.sampler.test_mask=mean"],
    "hard": ["method=sab", "model.sampler.test_mask=hard"],
    "sample": ["model.sampler.test_mask=sample", "model.sampler.draws=2"],
    "per_view": [
        *("model.sampler.test_mask=sample", "model.sampler.sample_noise=per_view", "model.sampler.draws=2"),
        "data.eval_transform.crops=flip",
    ],
    "context": ["method=sab_cu_tv", "model.combine=concat", "data.eval_transform.crops=ten_crop"],
    "nearest": ["method=sab_cu", "model.context_unit.upsample=nearest"],
    "bilinear": ["method=sab_cu", "model.context_unit.upsample=bilinear", "model.trunk.strides=v1"],
    "two": [
        *("method=sab_cu", "model.context_blocks=[1,2]"),
        *("model.context_unit.p=2", "model.context_unit.q=2"),
    ],
    "sigmoid": ["method=sigmoid_gate"],
    "sigmoid_conv": ["method=sigmoid_conv_gate"],
    "residual": ["method=residual_attention"],
}
"""Each mask and each form of a block that a model folder may have."""

FAST = ("context", "per_view")


def read(folder: Path, images: list[Path]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Prepare images as the config.json of an export says, without this package."""
    height, width = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["input"]["shape"][1:3]
    return np.stack([np.asarray(Image.open(path).resize((width, height), 2)) for path in images])


def export(folder: Path, format: str = "onnx", precision: str = "float32", **given: Any) -> Path:
    output = folder.parent / f"{format}-{precision}"
    export_model(folder, parse_target(format, precision, images=given.get("images")), output=output)
    return output


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_the_runtime_embeds_as_the_model(saved: Saved, photos: list[Path], name: str) -> None:
    folder, _ = saved(*NETWORKS[name])
    exported = export(folder)
    embed, pixels = open_export(exported), read(exported, photos)
    expected = sharpreid.load(folder).embed(photos)
    assert np.ptp(expected, axis=0).max() > 0.1, "the images differ"
    close = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(embed(pixels), expected, atol=close)
    np.testing.assert_allclose(embed(pixels[:1]), expected[:1], atol=close)


@pytest.mark.parametrize("format", [pytest.param("torch_export", marks=pytest.mark.slow), "torchscript"])
@pytest.mark.parametrize("name", ["context", "per_view", "mean", "residual"])
def test_formats_of_torch_embed_as_the_model(
    saved: Saved, photos: list[Path], format: Format, name: str
) -> None:
    folder, _ = saved(*NETWORKS[name])
    exported = export(folder, format)
    embed, pixels = open_export(exported), read(exported, photos)
    expected = sharpreid.load(folder).embed(photos)
    close = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(embed(pixels), expected, atol=close)
    np.testing.assert_allclose(embed(pixels[:1]), expected[:1], atol=close)


def test_scores_of_a_data_set_are_those_of_the_model(saved: Saved, tmp_path: Path) -> None:
    folder, _ = saved("method=sab", "image.height=64", "image.width=32", "model.context_blocks=[]")
    params = SyntheticParams(
        train_identities=2, test_identities=8, train_hard_pairs=0, test_hard_pairs=0, distractors=0, junk=0
    )
    data = load_market1501(root=generate(tmp_path / "people", seed=0, params=params), expected={})
    exported, model = export(folder), sharpreid.load(folder)
    embed = open_export(exported)

    def score(embed_paths: Callable[[list[Path]], np.ndarray[Any, Any]]) -> float:
        arrays: list[np.ndarray[Any, Any]] = []
        for samples in (data.query, data.gallery):
            arrays += [embed_paths([sample.path for sample in samples])]
            arrays += [np.array([getattr(sample, key) for sample in samples]) for key in ("pid", "camid")]
        return evaluate_ranking(*arrays, protocol=Protocol.market1501()).mAP

    expected = score(model.embed)
    assert 0.1 < expected < 0.9, "neither perfect nor chance"
    assert score(lambda paths: embed(read(exported, paths))) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "torchscript"])
@pytest.mark.parametrize("name", ["baseline", "context", "residual", "sigmoid_conv"])
def test_float16_keeps_the_embeddings(saved: Saved, photos: list[Path], format: Format, name: str) -> None:
    blocks = ["model.blocks=[1,2]", "model.context_blocks=[1,2]"] if name == "context" else []
    folder, _ = saved(*NETWORKS[name], *blocks)  # later maps of these small images have two pixels
    exported = export(folder, format, "float16")
    expected = sharpreid.load(folder).embed(photos)
    found = open_export(exported)(read(exported, photos))
    assert (exported / FILES[format]).stat().st_size < (folder / WEIGHTS).stat().st_size
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())


def test_int8_is_calibrated_on_images(saved: Saved, tmp_path: Path, tiny_market: Path) -> None:
    folder, _ = saved("method=sab")
    with pytest.raises(DataError, match=r"8 images; at least 64"):
        export(folder, "onnx", "int8", images=str(tiny_market / "query"))
    (tmp_path / "people").mkdir()
    for number in range(64):
        colour = np.random.default_rng(number).integers(0, 256, (2, 1, 3), dtype=np.uint8)
        Image.fromarray(colour).resize((16, 32), 2).save(tmp_path / "people" / f"{number}.png")
    photos = sorted((tmp_path / "people").iterdir())
    exported = export(folder, "onnx", "int8", images=str(tmp_path / "people"))
    assert (exported / "model.onnx").stat().st_size < 0.5 * (folder / WEIGHTS).stat().st_size
    config = ExportConfig.model_validate_json((exported / CONFIG).read_bytes())
    assert (config.parity.source, config.parity.limited) == ("given", "median")
    found = open_export(exported)(read(exported, photos))
    expected = sharpreid.load(folder).embed(photos)
    distances = np.linalg.norm(found[:, None] - expected, axis=2)
    assert (distances.argmin(1) == np.arange(64)).mean() > 0.9
    assert sorted(path.name for path in exported.iterdir()) == [CARD, CONFIG, "model.onnx"]


def test_safetensors_is_a_model_folder(saved: Saved, photos: list[Path]) -> None:
    folder, _ = saved()
    exported = sharpreid.load(export(folder, "safetensors"))
    model = sharpreid.load(folder)
    assert exported.digest == model.digest
    np.testing.assert_array_equal(exported.embed(photos), model.embed(photos))


def test_the_mean_image_is_inside(saved: Saved, photos: list[Path]) -> None:
    mean = torch.rand(3, 32, 16, generator=torch.Generator().manual_seed(0))
    crops = "data.eval_transform.crops=ten_crop_8_7"
    folder, _ = saved("data.normalise=per_pixel_mean", crops, mean=mean)
    exported = export(folder, "torchscript")
    assert read(exported, photos).shape[1:] == (37, 18, 3)
    found = open_export(exported)(read(exported, photos))
    np.testing.assert_allclose(found, sharpreid.load(folder).embed(photos), rtol=1e-4, atol=1e-4)


def test_config_and_card_describe_the_file(saved: Saved) -> None:
    folder, _ = saved("data.eval_transform.crops=ten_crop")
    exported = export(folder)
    assert sorted(path.name for path in exported.iterdir()) == sorted([CARD, CONFIG, "model.onnx"])
    config = ExportConfig.model_validate_json((exported / CONFIG).read_bytes())
    assert config.input.shape == ("batch", 36, 18, 3)
    assert config.output.shape == ("batch", 128)
    assert config.model_digest == sharpreid.load(folder).digest
    assert 0 <= config.parity.relative_difference < config.parity.limit
    card = (exported / CARD).read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: onnx\npipeline_tag: image-feature-extraction\n")
    for part in ("tags: [person-re-identification, onnx]", "research only", "mAP 25.0", "resize((18, 36)"):
        assert part in card
    assert "sharpreid.load" not in card


def test_the_card_is_one_that_the_hub_takes(saved: Saved) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(export(saved()[0], "torchscript") / CARD)
    assert (card.data.library_name, card.data.license) == ("pytorch", "other")
    assert card.data.license_name == "see-data-set"
    assert card.data.tags == ["person-re-identification", "torchscript"]


@pytest.mark.parametrize(
    "format",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "torch_export")), "torchscript"],
)
def test_the_code_of_the_card_runs_without_this_package(
    saved: Saved, photos: list[Path], format: Format
) -> None:
    folder, _ = saved("method=sab_cu_tv")
    exported = export(folder, format)
    for name, photo in zip(("photo.jpg", "another.jpg"), photos, strict=False):
        (exported / name).write_bytes(photo.read_bytes())
    card = (exported / CARD).read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    code = f"import sys; sys.modules['sharpreid'] = None\n{code}\nnp.save('found.npy', embeddings)"
    done = subprocess.run([sys.executable, "-c", code], cwd=exported, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(exported / "found.npy")
    np.testing.assert_allclose(found, sharpreid.load(folder).embed(photos[:2]), rtol=1e-4, atol=1e-4)


def test_it_exports_without_hydra_and_lightning(saved: Saved, tmp_path: Path) -> None:
    folder, _ = saved()
    code = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'pytorch_lightning', 'wandb', 'pyarrow', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "from sharpreid.export import main\n"
        f"main(['--model', {str(folder)!r}, '--format', 'torchscript', '--output={tmp_path / 'out'}'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "32 images differ by" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("format", ["onnx", "torch_export", "torchscript"])
def test_no_path_of_this_computer_is_exported(saved: Saved, format: Format) -> None:
    exported = export(saved()[0], format)
    for content in contents(exported / FILES[format]):
        assert str(Path(sharpreid.__file__).parent).encode() not in content
        assert str(exported.parent).encode() not in content


def contents(file: Path) -> list[bytes]:
    if not zipfile.is_zipfile(file):
        return [file.read_bytes()]
    with zipfile.ZipFile(file) as archive:
        return [archive.read(name) for name in archive.namelist()]


def test_a_network_that_differs_is_not_written(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = saved()
    monkeypatch.setattr(exporting, "IMAGENET_STD", (0.2, 0.2, 0.2))
    with pytest.raises(ExportError, match=r"accepted are 1e-04 in float32\. Nothing was written"):
        export(folder, "torchscript")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_an_existing_folder_is_kept(saved: Saved) -> None:
    folder, _ = saved()
    exported = export(folder, "safetensors")
    before = (exported / WEIGHTS).stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="delete it, or give another"):
        export(folder, "safetensors")
    assert (exported / WEIGHTS).stat().st_mtime_ns == before


def test_damage_is_found_before_and_after(saved: Saved) -> None:
    folder, _ = saved()
    exported = export(folder, "torchscript")
    content = bytearray((exported / FILES["torchscript"]).read_bytes())
    content[-9] ^= 1
    (exported / FILES["torchscript"]).write_bytes(content)
    with pytest.raises(ExportError, match="damaged"):
        open_export(exported)
    with pytest.raises(ExportError, match="not of an exported network"):
        open_export(folder)
    damage_weights(folder)
    with pytest.raises(ModelError, match="damaged"):
        export(folder)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["model=a", "output=b"], 2, "format=... is missing"),
        (["model=a", "output=b", "format=onx"], 2, "format must be one of onnx, torch_export"),
        (["model=a", "output=b", "format=onnx", "precision=bfloat16"], 2, "precision must be one of float32"),
        (["model=a", "output=b", "format=torchscript", "precision=int8"], 2, "int8 is for onnx"),
        (["model=a", "output=b", "format=safetensors", "precision=float16"], 2, "safetensors is float32"),
        (["model=a", "output=b", "--format", "onnx", "--precision", "int8"], 2, "needs images="),
        (["model=a", "output=b", "--format"], 2, "format=: arguments are key=value"),
        (["model=a", "output=b", "--fromat", "onnx"], 2, "did you mean format?"),
        (["model=nowhere", "output=b", "format=onnx"], 1, "expected a model folder"),
        (["model=nowhere", "output=.", "format=onnx"], 1, "exists already"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "extra"), [("onnxscript", "export"), ("sharpreid.serving.sources", "serve")]
)
def test_a_missing_package_is_named(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    folder, _ = saved()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'sharpreid\[{extra}\]'"):
        export(folder, images="photos" if extra == "serve" else None)


def test_formats_and_precisions_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UsageError):
        parse_target("torch_export", "int8", images="a")
