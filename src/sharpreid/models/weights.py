"""Loading of trunk weights: strict, and with a report of what was covered."""

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

log = logging.getLogger(__name__)

_CLASSIFIER = "fc."
_COUNTER = ".num_batches_tracked"


class WeightsError(ValueError):
    """The weights do not fit the network, or cannot be had."""


@dataclass(frozen=True)
class Coverage:
    """Which parameters and buffers of a trunk a state dict covers, key by key."""

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    """Keys that have no place in a re-identification trunk: the classifier of ImageNet."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    """"key: shape found, shape wanted"."""

    @property
    def complete(self) -> bool:
        """Nothing is missing, unexpected or misshapen."""
        return not (self.missing or self.unexpected or self.misshapen)

    def describe(self) -> str:
        """One line of counts, and one per problem with every key by name."""
        lines = [f"{len(self.loaded)} tensors loaded, ignored: {', '.join(self.ignored) or 'none'}"]
        lines += [
            f"{len(keys)} {what}: {', '.join(keys)}"
            for what, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("misshapen", self.misshapen),
            )
            if keys
        ]
        return "\n".join(lines)


def compare(state: dict[str, Tensor], target: nn.Module) -> Coverage:
    """Coverage of ``target`` by ``state``. A missing batch norm counter is no gap: it starts at 0."""
    wanted = target.state_dict()
    shared = sorted(wanted.keys() & state.keys())
    return Coverage(
        loaded=tuple(key for key in shared if state[key].shape == wanted[key].shape),
        ignored=tuple(sorted(key for key in state if key.startswith(_CLASSIFIER) and key not in wanted)),
        missing=tuple(sorted(k for k in wanted if k not in state and not k.endswith(_COUNTER))),
        unexpected=tuple(sorted(k for k in state if k not in wanted and not k.startswith(_CLASSIFIER))),
        misshapen=tuple(
            f"{key}: {tuple(state[key].shape)}, wanted {tuple(wanted[key].shape)}"
            for key in shared
            if state[key].shape != wanted[key].shape
        ),
    )


def load_strictly(state: dict[str, Tensor], target: nn.Module, source: str) -> Coverage:
    """Load ``state`` into ``target``, all or nothing.

    Raises:
        WeightsError: a key is missing, unexpected or misshapen; each is named, and nothing was loaded.
    """
    coverage = compare(state, target)
    if not coverage.complete:
        raise WeightsError(f"{source} does not fit the trunk; nothing was loaded.\n{coverage.describe()}")
    target.load_state_dict({key: state[key] for key in coverage.loaded}, strict=False)
    log.info("weights from %s: %s", source, coverage.describe())
    return coverage


def check_fits(state: dict[str, Tensor], target: nn.Module, source: str) -> None:
    """See that ``state`` has every tensor of ``target`` in its shape, and no other.

    Raises:
        WeightsError: names the first tensors that are of another shape, missing or unexpected.
    """
    coverage = compare(_state_dict(state, Path(source)), target)
    if coverage.complete:
        return
    kinds = (
        ("of another shape", coverage.misshapen),
        ("missing", coverage.missing),
        ("unexpected", coverage.unexpected),
    )
    found = "; ".join(
        f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for what, keys in kinds
        if keys
    )
    raise WeightsError(
        f"{source}: a checkpoint of another network than the config describes; nothing was loaded ({found}). "
        "Keep a checkpoint in the directory of its own run, or give the model's values of that run"
    )


def take_dtype(state: dict[str, Tensor], target: nn.Module) -> None:
    """Give ``target`` the floating-point type of ``state``, which a shorter one would round when loaded."""
    types = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(types) == 1:
        target.to(types.pop())


def read_state(source: str) -> dict[str, Tensor]:
    """State dict from ``imagenet`` (torchvision's ResNet-50, v1.5) or a local .pth, .pt or .safetensors file.

    A file may hold the dict itself or one under the key ``state_dict``. Pickled code is never run.

    Raises:
        FileNotFoundError: the file does not exist.
        WeightsError: the download is impossible, or the file holds no state dict.
    """
    if source == "imagenet":
        return _download()
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such weights file; expected 'imagenet', 'none' or a .pth/.safetensors"
        )
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    return _state_dict(read_tensors(path), path)


def read_tensors(path: Path) -> Any:
    """Content of a file written by torch.save: tensors and plain values; pickled code is never run.

    Raises:
        WeightsError: it is something else, damaged, or would unpack to more bytes than it has.
    """
    try:
        _refuse_zip_bomb(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fed with foreign bytes can raise anything
        raise WeightsError(
            f"{path}: not a plain file of tensors ({_reason(error)}); expected a state dict written by "
            "torch.save"
        ) from error


def _refuse_zip_bomb(path: Path) -> None:
    """Compare what the zip's directory promises with the size of the file, before anything is unpacked."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # not torch's format since 1.6; the one before has no compression
            return
    with zipfile.ZipFile(path) as archive:
        promised = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if promised > size:
        raise WeightsError(
            f"its {size:,} bytes would unpack to {promised:,}, and torch.save compresses nothing: a zip bomb"
        )


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise WeightsError(f"{path}: expected a dict of tensors by name, got {type(content).__name__}")
    return content


def _download() -> dict[str, Tensor]:
    weights = ResNet50_Weights.IMAGENET1K_V1
    name = weights.url.rsplit("/", 1)[-1]
    place = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a wrong hash, or a file already there that holds no tensors
        raise WeightsError(
            f"ImageNet weights cannot be had from {weights.url} or {place} ({_reason(error)}). Fetch the "
            f"file elsewhere and put it at {place}, or name any ResNet-50 file by "
            f"model.trunk.weights=/path/to/{name} (and model.trunk.strides=v1 if its strides are those of "
            "ResNet v1), or train from scratch by model.trunk.weights=none"
        ) from error
    return state
