import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import Bottleneck, ResNet

from sharpreid.models.trunk import ResNetTrunk
from sharpreid.models.weights import WeightsError, check_fits, compare, load_strictly, read_state
from sharpreid.run.build import build_module

TINY = [1, 1, 1, 1]
IMAGENET_FILE = ResNet50_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]


class Touch:
    """Pickles to code that creates a file when it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def other_state() -> dict[str, Tensor]:
    """Of `small`, with other values."""
    return {key: value + 1 for key, value in small().state_dict().items()}


def changed(**changes: Any) -> dict[str, Tensor]:
    return {**other_state(), **{key.replace("_", ".", 1): value for key, value in changes.items()}}


@pytest.fixture(scope="module")
def resnet() -> ResNet:
    """As torchvision saves it: with a classifier."""
    torch.manual_seed(0)
    return ResNet(Bottleneck, TINY, num_classes=10)


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty torch home without a way to download; returns the place of the ImageNet file."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / IMAGENET_FILE
    place.parent.mkdir(parents=True)
    return place


class TestTrunkWithWeights:
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_holds_those_of_the_file_and_reports_the_ignored_classifier(
        self, suffix: str, resnet: ResNet, tmp_path: Path
    ) -> None:
        path, state = tmp_path / f"resnet{suffix}", resnet.state_dict()
        save = torch.save if suffix == ".pth" else safetensors.torch.save_file
        save(state, path)
        trunk = ResNetTrunk(depths=TINY, strides="v1", weights=str(path))
        assert all(torch.equal(value, state[key]) for key, value in trunk.state_dict().items())
        assert trunk.coverage is not None
        assert trunk.coverage.complete
        assert trunk.coverage.ignored == ("fc.bias", "fc.weight")
        assert set(trunk.coverage.loaded) == set(trunk.state_dict())

    def test_none_covers_nothing(self) -> None:
        with torch.device("meta"):
            assert ResNetTrunk(depths=TINY, strides="v1", weights="none").coverage is None

    def test_refuses_those_of_another_depth(self, resnet: ResNet, tmp_path: Path) -> None:
        torch.save(resnet.state_dict(), tmp_path / "shallow.pth")
        with torch.device("meta"), pytest.raises(WeightsError, match=r"missing: layer1\.1\.bn1\.bias"):
            ResNetTrunk(depths=[2, 1, 1, 1], strides="v1", weights=str(tmp_path / "shallow.pth"))

    def test_of_imagenet_refuses_strides_v1_before_any_download(self, no_network: Path) -> None:
        with torch.device("meta"), pytest.raises(WeightsError, match=r"expect strides v1\.5, got v1; set"):
            ResNetTrunk(depths=TINY, strides="v1", weights="imagenet")

    def test_of_imagenet_takes_the_file_at_its_place(self, resnet: ResNet, no_network: Path) -> None:
        torch.save(resnet.state_dict(), no_network)
        trunk = ResNetTrunk(depths=TINY, strides="v1.5", weights="imagenet")
        assert torch.equal(trunk.conv1.weight, resnet.conv1.weight)


class TestDownload:
    def test_that_fails_says_which_file_to_put_where(self, no_network: Path) -> None:
        with pytest.raises(WeightsError, match="no route to host") as raised:
            read_state("imagenet")
        message = str(raised.value)
        assert ResNet50_Weights.IMAGENET1K_V1.url in message
        assert f"put it at {no_network}" in message
        assert "model.trunk.weights=none" in message
        assert isinstance(raised.value.__cause__, URLError)

    def test_that_is_damaged_says_which_file_to_put_where(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def damaged(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("invalid hash value")

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", damaged)
        with pytest.raises(WeightsError, match=rf"invalid hash value.*{IMAGENET_FILE}"):
            read_state("imagenet")

    def test_file_put_in_its_place_is_not_run_if_it_holds_code(
        self, no_network: Path, tmp_path: Path
    ) -> None:
        torch.save({"conv1.weight": Touch(tmp_path / "ran")}, no_network)
        with pytest.raises(WeightsError, match=IMAGENET_FILE):
            read_state("imagenet")
        assert not (tmp_path / "ran").exists()

    def test_file_put_in_its_place_but_cut_short_is_named(self, no_network: Path) -> None:
        no_network.write_bytes(b"")
        with pytest.raises(WeightsError, match=IMAGENET_FILE):
            read_state("imagenet")


class TestStrictLoading:
    def test_loads_every_tensor(self) -> None:
        target, state = small(), other_state()
        coverage = load_strictly(state, target, "file")
        assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())
        assert coverage.complete
        assert coverage.describe() == "7 tensors loaded, ignored: none"

    def test_names_every_missing_unexpected_and_misshapen_key_and_loads_nothing(self) -> None:
        target, state = small(), other_state()
        before = {key: value.clone() for key, value in target.state_dict().items()}
        del state["1.running_mean"], state["1.bias"]
        state["0.weight"] = torch.zeros(3, 5)
        state["module.0.weight"] = state["extra"] = torch.zeros(1)
        with pytest.raises(WeightsError, match=r"file\.pth does not fit; nothing was") as raised:
            load_strictly(state, target, "file.pth")
        assert str(raised.value).splitlines()[1:] == [
            "2 missing: 1.bias, 1.running_mean",
            "2 unexpected: extra, module.0.weight",
            "1 of another shape: 0.weight: (3, 5), wanted (3, 2)",
        ]
        assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())

    @pytest.mark.parametrize(
        ("state", "problem"),
        [
            ({k: v for k, v in other_state().items() if k != "0.bias"}, "1 missing: 0.bias"),
            (changed(tail_weight=torch.zeros(1)), "1 unexpected: tail.weight"),
            (changed(**{"0_bias": torch.zeros(4)}), r"1 of another shape: 0.bias: \(4,\), wanted \(3,\)"),
            ({}, r"6 missing: 0.bias, 0.weight, 1.bias, \.\.\."),
        ],
    )
    def test_one_problem_is_enough_to_load_nothing(self, state: dict[str, Tensor], problem: str) -> None:
        target = small()
        with pytest.raises(WeightsError, match=problem):
            load_strictly(state, target, "file")
        assert torch.equal(target[0].weight, small()[0].weight)

    def test_batch_norm_counters_may_be_missing(self) -> None:
        target, state = small(), other_state()
        del state["1.num_batches_tracked"]
        assert load_strictly(state, target, "file").complete
        assert torch.equal(target[1].running_mean, state["1.running_mean"])
        assert target[1].num_batches_tracked.item() == 0

    def test_classifier_is_ignored_and_reported(self) -> None:
        coverage = load_strictly(changed(fc_weight=torch.zeros(9, 3)), small(), "file")
        assert coverage.ignored == ("fc.weight",)
        assert coverage.describe() == "7 tensors loaded, ignored: fc.weight"

    def test_classifier_is_loaded_into_a_target_that_has_one(self) -> None:
        target = nn.ModuleDict({"fc": nn.Linear(2, 2)})
        coverage = compare({"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, target)
        assert coverage.loaded == ("fc.bias", "fc.weight")
        assert coverage.ignored == ()


def bomb(path: Path, size: int) -> Path:
    """What torch.save wrote of ``size`` zeros, compressed."""
    whole = path.with_suffix(".whole")
    torch.save({"0.weight": torch.zeros(size // 4)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    whole.unlink()
    return path


class TestCheckFits:
    def test_names_tensors_with_the_shapes_found_and_wanted(self) -> None:
        state = {**small().state_dict(), "0.weight": torch.zeros(3, 5), "other": torch.zeros(1)}
        message = (
            r"run/final\.ckpt: a checkpoint of another network than the config describes; nothing was loaded "
            r"\(1 unexpected: other; 1 of another shape: 0\.weight: \(3, 5\), wanted \(3, 2\)\)\. Keep"
        )
        with pytest.raises(WeightsError, match=message):
            check_fits(state, small(), "run/final.ckpt")

    def test_lets_the_same_network_pass(self) -> None:
        check_fits(small().state_dict(), small(), "final.ckpt")

    def test_refuses_what_is_no_state_dict(self) -> None:
        with pytest.raises(WeightsError, match="expected a dict of tensors by name"):
            check_fits({"0.weight": 1}, small(), "final.ckpt")  # type: ignore[dict-item]


class TestReadState:
    @pytest.mark.parametrize("suffix", [".pth", ".pt"])
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_finds_the_dict_itself_or_under_state_dict(
        self, suffix: str, wrapped: bool, tmp_path: Path
    ) -> None:
        path, state = tmp_path / f"file{suffix}", other_state()
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
        assert read_state(str(path)).keys() == state.keys()

    def test_refuses_pickled_code_without_running_it(self, tmp_path: Path) -> None:
        path, proof = tmp_path / "code.pth", tmp_path / "ran"
        torch.save({"0.weight": Touch(proof)}, path)
        with pytest.raises(WeightsError, match=r"code\.pth: not a plain file of tensors"):
            read_state(str(path))
        assert not proof.exists()

    def test_refuses_a_bare_pickle_of_code_without_running_it(self, tmp_path: Path) -> None:
        path, proof = tmp_path / "code.pth", tmp_path / "ran"
        path.write_bytes(pickle.dumps(Touch(proof), protocol=2))
        with pytest.raises(WeightsError, match=r"expected a state dict written by torch\.save"):
            read_state(str(path))
        assert not proof.exists()
        pickle.loads(path.read_bytes())
        assert proof.exists()  # the file was armed

    def test_refuses_a_zip_bomb_before_it_is_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = bomb(tmp_path / "bomb.pth", size=2**24)
        assert path.stat().st_size < 2**24 / 100
        assert torch.load(path, weights_only=True)["0.weight"].numel() == 2**22  # the file is armed
        monkeypatch.setattr(torch, "load", None)  # nothing may be unpacked
        with pytest.raises(
            WeightsError, match=r"bomb\.pth: .* would unpack to 16,7\d\d,\d\d\d, and torch\.save"
        ):
            read_state(str(path))

    def test_refuses_a_directory_that_names_the_same_bytes_again_and_again(self, tmp_path: Path) -> None:
        """Without any compression."""
        torch.save(other_state(), tmp_path / "file.pth")
        with zipfile.ZipFile(tmp_path / "file.pth", "a") as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
            archive.filelist += [largest] * 100
            archive._didModify = True  # type: ignore[attr-defined]
        with pytest.raises(WeightsError, match=r"would unpack to .*: a zip bomb"):
            read_state(str(tmp_path / "file.pth"))

    def test_refuses_a_whole_pickled_module(self, tmp_path: Path) -> None:
        torch.save(small(), tmp_path / "module.pth")
        with pytest.raises(WeightsError, match="not a plain file of tensors"):
            read_state(str(tmp_path / "module.pth"))

    @pytest.mark.parametrize(
        "content",
        [
            b"<html>404 Not Found</html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            b"\x00" * 64,
            b"PK\x03\x04" + b"\x00" * 60,
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"hello",
            b"just text",
            b"Go to the project's page to download",
        ],
    )
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_names_a_file_that_is_garbage(self, suffix: str, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / f"garbage{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"garbage\{suffix}: not a "):
            read_state(str(path))

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_names_a_file_that_was_cut_short(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"cut{suffix}"
        (torch.save if suffix == ".pth" else safetensors.torch.save_file)(other_state(), path)
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(WeightsError, match=rf"cut\{suffix}: not a "):
            read_state(str(path))

    @pytest.mark.parametrize("content", [[1, 2], {"model": {"a": 1}}, torch.zeros(2), {0: torch.zeros(2)}])
    def test_refuses_what_is_not_a_dict_of_tensors_by_name(self, content: Any, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=r"other\.pth: expected a dict of tensors by name"):
            read_state(str(tmp_path / "other.pth"))

    @pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.safetensors", "imagenet21k"])
    def test_names_a_file_that_does_not_exist(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=rf"{name}: no such weights file; expected 'imagenet'"):
            read_state(str(tmp_path / name))

    def test_expands_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        torch.save(other_state(), tmp_path / "file.pth")
        assert len(read_state("~/file.pth")) == 7


class TestWeightsOfOthers:
    @pytest.mark.parametrize(
        "prefix", ["module.", "encoder_q.", "module.encoder_q.", "backbone.", "network.trunk."]
    )
    def test_a_common_prefix_is_removed_and_other_parts_are_ignored(
        self, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        target = small()
        state = {f"{prefix}{key}": value for key, value in other_state().items()}
        state |= {f"{prefix}fc.0.weight": torch.zeros(1), "queue": torch.zeros(3)}
        with caplog.at_level("INFO"):
            load_strictly(state, target, "theirs.pth")
        assert torch.equal(target[0].weight, other_state()["0.weight"])
        assert f"below the prefix {prefix}" in caplog.text

    def test_of_a_network_and_its_moving_average_the_trained_one_is_taken(self) -> None:
        target = small()
        state = {f"encoder_k.{key}": value * 0 for key, value in other_state().items()}
        state |= {f"encoder_q.{key}": value for key, value in other_state().items()}
        load_strictly(state, target, "moco.pth")
        assert torch.equal(target[0].weight, other_state()["0.weight"])

    def test_two_networks_that_fit_are_refused(self) -> None:
        state = {f"{one}.{key}": value for one in "ab" for key, value in other_state().items()}
        with pytest.raises(WeightsError, match=r"several networks that fit, below the prefixes a\., b\."):
            load_strictly(state, small(), "two.pth")

    @pytest.mark.parametrize("key", ["state_dict", "model", "net"])
    def test_an_outer_key_beside_numpy_scalars_is_found(self, key: str, tmp_path: Path) -> None:
        path = tmp_path / "model.pth.tar"
        outer = {
            key: other_state(),
            "epoch": 60,
            "rank1": np.float64(0.9),
            "best": np.float32(0.5),
            "lr": [0.1],
        }
        torch.save(outer, path)
        assert read_state(str(path)).keys() == other_state().keys()

    def test_an_object_scalar_of_numpy_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "hostile.pth"
        scalar = np.empty(1, object)
        scalar[0] = Touch(tmp_path / "was_here")
        torch.save({"state_dict": other_state(), "rank1": scalar}, path)
        with pytest.raises(WeightsError, match="not a plain file of tensors"):
            read_state(str(path))
        assert not (tmp_path / "was_here").exists()

    @pytest.mark.parametrize(
        ("keys", "cause"),
        [
            (["layer1.0.conv1.weight", "layer1.0.conv3.weight", "layer3.22.conv1.weight"], "ResNet-101"),
            (["layer1.0.conv1.weight", "layer1.0.conv2.weight"], "ResNet-18"),
            (["layer1.0.conv1.weight", "layer1.0.conv3.weight", "layer1.0.bn1.IN.weight"], "IBN"),
            (["cls_token", "blocks.0.attn.qkv.weight"], "vision transformer"),
            (["resnet.embedder.embedder.convolution.weight"], "Hugging Face"),
        ],
    )
    def test_a_wrong_network_is_told_by_its_likely_name_in_ten_lines(
        self, keys: list[str], cause: str
    ) -> None:
        trunk = ResNetTrunk(depths=TINY, strides="v1", weights="none")
        with pytest.raises(WeightsError, match=cause) as raised:
            load_strictly({key: torch.zeros(1) for key in keys}, trunk, "theirs.pth")
        assert len(str(raised.value).splitlines()) <= 10


def test_a_run_starts_from_another_run_s_network_with_or_without_its_head(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    earlier = build_module(composed("method=sab_cu"))
    path = tmp_path / "final.ckpt"
    torch.save({"state_dict": earlier.state_dict(), "epoch": 2}, path)
    whole = build_module(composed("method=sab_cu", f"model.weights={path}", "model.trunk.weights=imagenet"))
    assert all(torch.equal(value, earlier.state_dict()[key]) for key, value in whole.state_dict().items())
    trunk = build_module(composed("method=baseline", f"model.trunk.weights={path}"))
    assert torch.equal(trunk.network.trunk.conv1.weight, earlier.network.trunk.conv1.weight)
    assert not torch.equal(trunk.network.head[0].weight, earlier.network.head[0].weight)
    with pytest.raises(ValueError, match="does not fit"):
        build_module(composed("method=baseline", f"model.weights={path}"))
