"""Strict loading of trunk weights, with a report of matched and unmatched keys."""

import codecs
import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

log = logging.getLogger(__name__)

_CLASSIFIER = ("fc.", "classifier.", "head.", "projector.", "predictor.", "preprocessing.")
"""Starts of the keys of heads, which a trunk does not have."""

_COUNTER = ".num_batches_tracked"
_OUTER_KEYS = ("state_dict", "model", "net", "network", "model_state_dict")


def _numpy_scalar(dtype: Any, content: Any) -> float:
    """Return a number that NumPy wrote, such as the accuracy in a checkpoint of torchreid."""
    if np.dtype(dtype).kind not in "biuf":
        raise ValueError(f"a NumPy scalar of type {dtype}")
    content = content.encode("latin1") if isinstance(content, str) else content
    return float(np.frombuffer(content, dtype)[0])


_NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *{
        type(np.dtype(kind))
        for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    },
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (codecs.encode, "_codecs.encode"),
]
"""What an unpickler may call besides torch's own: it makes numbers only."""


class WeightsError(ValueError):
    """Error of weights that do not fit the network or cannot be read."""


@dataclass(frozen=True)
class Coverage:
    """Comparison of the keys of a state dict with those of a network."""

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    """Keys of a classifier or another head, which a re-identification trunk does not have."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    """Keys with another shape, as "key: shape found, wanted shape"."""

    @property
    def complete(self) -> bool:
        """Whether no key is missing, unexpected or misshapen."""
        return not (self.missing or self.unexpected or self.misshapen)

    def summarise(self) -> str:
        """Return a line for each kind of problem, with the first keys."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshapen),
        )
        return "\n".join(
            f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
            for what, keys in kinds
            if keys
        )

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

    The keys of the target may have a common prefix, such as ``module.``, ``encoder_q.`` or
    ``network.trunk.``. Keys without this prefix are those of other parts and are ignored.

    Args:
        state: tensors by key.
        target: module to load into.
        source: name of the weights, for messages.

    Raises:
        WeightsError: a key is missing, unexpected or misshapen under every prefix, or several prefixes fit.
            The message has at most ten lines.
    """
    state, prefix = _remove_prefix(state, target, source)
    coverage = compare(state, target)
    if not coverage.complete:
        raise WeightsError(
            f"{source} does not fit; nothing was loaded.{_likely_cause(state)}\n{coverage.summarise()}"
        )
    target.load_state_dict({key: state[key] for key in coverage.loaded}, strict=False)
    note = f", below the prefix {prefix}" if prefix else ""
    log.info("weights from %s: %s%s", source, coverage.describe(), note)
    return coverage


def _remove_prefix(state: dict[str, Tensor], target: nn.Module, source: str) -> tuple[dict[str, Tensor], str]:
    """Return the part of ``state`` that fits ``target``, without its prefix, and the prefix.

    Without a prefix that fits, it is the one with the most keys of ``target``, for the message.
    """
    wanted = {key for key in target.state_dict() if not key.endswith(_COUNTER)}
    found: dict[str, dict[str, Tensor]] = {}
    for prefix in dict.fromkeys(
        ["", *(key.removesuffix(one) for one in wanted for key in state if key.endswith(f".{one}"))]
    ):
        below = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if wanted & below.keys():
            found[prefix] = below
    fitting = [prefix for prefix in found if compare(found[prefix], target).complete]
    if len(fitting) > 1:
        fitting = [
            prefix for prefix in fitting if prefix.endswith("encoder_q.")
        ] or fitting  # MoCo's trained one
    if len(fitting) > 1:
        raise WeightsError(
            f"{source} has several networks that fit, below the prefixes {', '.join(fitting)}; save one of "
            "them in a file of its own"
        )
    best = fitting or sorted(found, key=lambda prefix: -len(wanted & found[prefix].keys()))
    return (found[best[0]], best[0]) if best else (state, "")


def _likely_cause(state: dict[str, Tensor]) -> str:
    """Return a sentence about what the weights seem to be; empty if unknown."""
    keys = " ".join(state)
    causes = {
        r"\bcls_token|\bpos_embed|\battn\.qkv": "a vision transformer",
        r"\bembedder\.|\bencoder\.stages\.": "weights with the names of Hugging Face transformers",
        r"\.IN\.|\.bn1\.BN\.": "a ResNet with instance normalisation (IBN)",
        r"layer3\.22\.": "a ResNet-101 or deeper",
        r"layer1\.0\.conv1\.weight(?!.*layer1\.0\.conv3)": "a ResNet-18 or -34, without bottlenecks",
    }
    for pattern, cause in causes.items():
        if re.search(pattern, keys):
            return (
                f" They seem to be those of {cause}; wanted are those of a ResNet-50 by torchvision's names."
            )
    return ""


def check_fits(state: dict[str, Tensor], target: nn.Module, source: str) -> None:
    """Check that ``state`` has the keys and shapes of ``target``.

    Raises:
        WeightsError: they differ. The message names the first keys of each kind of problem.
    """
    coverage = compare(_state_dict(state, Path(source)), target)
    if coverage.complete:
        return
    found = coverage.summarise().replace("\n", "; ")
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
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
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
    """Return the tensors of a file by key; they may be below a key such as ``state_dict`` or ``model``."""
    found = _find_state_dict(content)
    if found is None:
        names = f" with the keys {', '.join(map(str, [*content][:5]))}" if isinstance(content, dict) else ""
        raise WeightsError(
            f"{path}: expected a dict of tensors by name, or one below a key such as state_dict or model; "
            f"got {type(content).__name__}{names}"
        )
    return found


def _find_state_dict(content: Any, depth: int = 2) -> dict[str, Tensor] | None:
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        return content
    known = [key for key in _OUTER_KEYS if key in content]
    for key in [*known, *(key for key in content if key not in known)] if depth else []:
        found = _find_state_dict(content[key], depth - 1)
        if found is not None:
            return found
    return None


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
