"""Strict loading of trunk weights, with a report of matched and unmatched keys."""

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
    """Error of weights that do not fit the network or cannot be read."""


@dataclass(frozen=True)
class Coverage:
    """Comparison of the keys of a state dict with those of a network."""

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    """Keys of ImageNet's classifier, which a re-identification trunk does not have."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    """Keys with another shape, as "key: shape found, wanted shape"."""

    @property
    def complete(self) -> bool:
        """Whether no key is missing, unexpected or misshapen."""
        return not (self.missing or self.unexpected or self.misshapen)

    def describe(self) -> str:
        """Return a line of counts, and a line with all keys for each kind of problem."""
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
    """Compare ``state`` with the state dict of ``target``.

    A missing counter of a batch norm is not reported, because it may start at 0.
    """
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
    """Load ``state`` into ``target``, completely or not at all.

    Args:
        state: tensors by key.
        target: module to load into.
        source: name of the weights, for messages.

    Raises:
        WeightsError: a key is missing, unexpected or misshapen. The message names all of them.
    """
    coverage = compare(state, target)
    if not coverage.complete:
        raise WeightsError(f"{source} does not fit the trunk; nothing was loaded.\n{coverage.describe()}")
    target.load_state_dict({key: state[key] for key in coverage.loaded}, strict=False)
    log.info("weights from %s: %s", source, coverage.describe())
    return coverage


def check_fits(state: dict[str, Tensor], target: nn.Module, source: str) -> None:
    """Check that ``state`` has the keys and shapes of ``target``.

    Raises:
        WeightsError: they differ. The message names the first keys of each kind of problem.
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
        "Keep a checkpoint in the directory of its own run, or set the model's options to those of that run"
    )


def take_dtype(state: dict[str, Tensor], target: nn.Module) -> None:
    """Convert ``target`` to the floating-point dtype of ``state``, so that loading does not round."""
    types = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(types) == 1:
        target.to(types.pop())


def read_state(source: str) -> dict[str, Tensor]:
    """Read a state dict from ``imagenet`` (torchvision's ResNet-50, v1.5) or a file.

    The file is a .pth, .pt or .safetensors file with the dict itself or a dict under the key ``state_dict``.
    Pickled code is never run.

    Raises:
        FileNotFoundError: the file does not exist.
        WeightsError: the download fails, or the file holds no state dict.
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
    """Read tensors and plain values from a file written by torch.save. Pickled code is never run.

    Raises:
        WeightsError: the file has another format, is damaged, or would unpack to more bytes than it has.
    """
    try:
        _refuse_zip_bomb(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler can raise anything on unknown bytes
        raise WeightsError(
            f"{path}: not a plain file of tensors ({_reason(error)}); expected a state dict written by "
            "torch.save"
        ) from error


def _refuse_zip_bomb(path: Path) -> None:
    """Raise WeightsError if the index of a zip archive declares more bytes than the file has."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # torch's format before 1.6, which has no compression
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
    except Exception as error:  # no network, a wrong hash, or a cached file without tensors
        raise WeightsError(
            f"ImageNet weights could not be read from {weights.url} or {place} ({_reason(error)}). Fetch the "
            f"file elsewhere and put it at {place}, or name any ResNet-50 file by "
            f"model.trunk.weights=/path/to/{name} (and model.trunk.strides=v1 if its strides are those of "
            "ResNet v1), or train from scratch by model.trunk.weights=none"
        ) from error
    return state
