"""A trained network in a folder of its own: weights, config.json and a README that describes it.

The folder needs nothing of the run that it comes from. `load_model` reads it without Hydra, Lightning or a
network connection, and runs no code from it: the weights are safetensors, and config.json names parts of this
package and numbers only.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from sharpreid.atomic_io import replacing
from sharpreid.attention.block import Combine
from sharpreid.attention.context import ContextUnit, Strides
from sharpreid.attention.mask import MaskSampler
from sharpreid.attention.soft import ResidualAttentionMask, SigmoidConvGate, SigmoidGate
from sharpreid.checkpoint_files import compute_sha256
from sharpreid.data.reid_data import Box, DataError
from sharpreid.data.transforms import Crops, EvalTransform, Normalise, read_image
from sharpreid.evaluation.protocol import Exclusion
from sharpreid.models.network import EmbeddingHead, SharpAttentionNetwork
from sharpreid.models.trunk import ResNetTrunk

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""Files of a model folder."""

_MEAN = "preprocessing.mean"
"""Key of the mean image in the weights file, if the pixels' own means were subtracted in training."""

PARTS: Mapping[str, type[nn.Module]] = {
    part.__name__: part
    for part in (MaskSampler, SigmoidGate, SigmoidConvGate, nn.Identity, ContextUnit, ResidualAttentionMask)
}
"""Classes that config.json may name as mask sampler or context unit."""

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8]
"""Path of an image file, an image, or its pixels: RGB, uint8, (H, W, 3)."""


class ModelError(ValueError):
    """Error for a model folder that is damaged, or not of this format."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Size = Annotated[int, Field(ge=1, le=65536)]


class Trunk(_Strict):
    """Arguments of `ResNetTrunk`."""

    depths: Annotated[list[Annotated[int, Field(ge=1, le=200)]], Field(min_length=4, max_length=4)]
    width: Annotated[int, Field(ge=1, le=1024)]
    strides: Strides


class Head(_Strict):
    """Arguments of `EmbeddingHead`."""

    in_features: _Size
    hidden_features: _Size
    embedding_dim: _Size


class Part(_Strict):
    """A mask sampler or a context unit: the name of its class, one of `PARTS`, and its arguments."""

    name: str
    arguments: dict[str, str | int | float]

    def factory(self) -> partial[Any]:
        """Return a function that builds the part.

        Raises:
            ModelError: The name is not in `PARTS`.
        """
        if self.name not in PARTS:
            raise ModelError(f"{self.name}: no part of a network; known are {', '.join(PARTS)}")
        return partial(PARTS[self.name], **self.arguments)


class Architecture(_Strict):
    """Arguments of `SharpAttentionNetwork`."""

    trunk: Trunk
    head: Head
    blocks: list[int]
    context_blocks: list[int]
    combine: Combine
    sampler: Part
    context_unit: Part

    def build(self) -> SharpAttentionNetwork:
        """Build the network on torch's meta device, that is without memory for its weights.

        Raises:
            ModelError: A part is unknown, or has a wrong argument.
        """
        try:
            with torch.device("meta"):
                return SharpAttentionNetwork(
                    trunk=ResNetTrunk(**self.trunk.model_dump(), weights="none"),
                    head=EmbeddingHead(**self.head.model_dump(), init_std=0.0),
                    blocks=self.blocks,
                    context_blocks=self.context_blocks,
                    sampler=self.sampler.factory(),
                    context_unit=self.context_unit.factory(),
                    combine=self.combine,
                )
        except (TypeError, ValueError) as error:
            raise ModelError(f"{CONFIG} describes no network of this package: {error}") from error


class Preprocessing(_Strict):
    """From an image to the input of the network.

    The image is resized to ``height`` x ``width`` (bilinear, antialiased, as Pillow does) and divided by 255.
    ImageNet's mean colour, or the mean image in the weights file, is subtracted. The result is divided by
    ImageNet's standard deviation.
    """

    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    crops: Crops
    normalise: Normalise


class Threshold(_Strict):
    """Distance up to which a gallery image is taken for the person of a query."""

    distance: Annotated[float, Field(ge=0)]
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)]
    """Share of the queries of people who are not in the gallery that are matched nevertheless, as chosen."""
    interval: tuple[float, float]
    """95 % interval of that rate in a gallery of as many other people, see `calibration.calibrate`."""
    detection_rate: float | None
    """Share of the queries of people in the gallery that find their person first and within the distance."""
    gallery_identities: Annotated[int, Field(ge=1)]
    """Number of people in the gallery that the rates hold for; the false-positive rate grows with it."""
    gallery_images: Annotated[int, Field(ge=1)]
    """Mean number of images of that many people."""
    identities: int
    """Number of people that the threshold was chosen on."""
    queries: int
    """Number of their images."""
    exclusion: Exclusion
    """Gallery images that were not valid for a query."""
    dataset: str
    """Name of these people."""

    def describe(self) -> str:
        """Return the threshold, its rates and what they hold for, in sentences."""
        low, high = self.interval
        text = (
            f"Distance {self.distance:.4g}: {self.false_positive_rate:.2%} of the queries of people who are "
            f"not in the gallery are matched (95 % interval in another gallery: {low:.2%} to {high:.2%}). "
        )
        if self.detection_rate is not None:
            text += (
                f"Of the queries of people in the gallery, {self.detection_rate:.1%} find their person first "
                "and within this distance. "
            )
        return (
            f"{text}This holds for galleries of {self.gallery_identities} people with about "
            f"{self.gallery_images} images; in a larger gallery more strangers are matched. Chosen on "
            f"{self.identities} people of {self.dataset} ({self.queries} images, exclusion {self.exclusion})."
        )

    def find_caution(self, gallery_images: int) -> str | None:
        """Return a warning if a gallery is more than twice as large as that of the calibration, else None."""
        if gallery_images <= 2 * self.gallery_images:
            return None
        times = gallery_images / self.gallery_images
        return (
            f"the threshold was chosen for galleries of about {self.gallery_images} images, and this one has "
            f"{gallery_images}: up to {1 - (1 - self.false_positive_rate) ** times:.1%} of the queries of "
            f"people who are not in it may be matched, instead of {self.false_positive_rate:.2%}; calibrate "
            "on more people"
        )


class ModelConfig(_Strict):
    """Content of config.json."""

    format: Literal["sharpreid-model-1"]
    architecture: Architecture
    preprocessing: Preprocessing
    channels_last: bool
    distance: Literal["euclidean"]
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    threshold: Threshold | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of what embeddings depend on; embeddings of two models must not be compared."""
        parts = self.model_dump(mode="json", exclude={"threshold"})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Embedder:
    """A trained network that embeds images.

    Args:
        network: the network; it is put into evaluation mode.
        config: content of config.json.
        mean: mean image, float32, (3, height, width); None for ImageNet's mean colour.
        card: text of the model's README.md.
    """

    def __init__(
        self,
        network: SharpAttentionNetwork,
        config: ModelConfig,
        *,
        mean: Tensor | None = None,
        card: str = "",
    ) -> None:
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        movable: Any = network.eval()
        self.network: SharpAttentionNetwork = movable.to(memory_format=self.memory_format)
        self.config = config
        self.card = card
        size = config.preprocessing
        self.transform = EvalTransform(height=size.height, width=size.width, crops=size.crops)
        self.transform.mean = mean

    @property
    def dim(self) -> int:
        """D, dimensions of an embedding."""
        return self.config.architecture.head.embedding_dim

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the model, see `ModelConfig.digest`."""
        return self.config.digest

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> "Embedder":
        """Move the network to a device such as ``cuda`` and return the embedder."""
        self.network.to(device)
        return self

    def embed(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 64, workers: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed images, each of one person; the nearer two embeddings (Euclidean), the more alike the people.

        Args:
            images: paths, Pillow images or RGB pixels (uint8, (H, W, 3)), of any size; or one of these.
            batch_size: images per pass of the network, > 0.
            workers: threads that decode and resize, > 0; None takes one for each CPU core.

        Returns:
            Embeddings, float32, (B, D), not normalised, in the order of the images.

        Raises:
            DataError: an image cannot be read.
        """
        several = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else images
        read = (partial(self.read_views, one) for one in several)
        found = [part for _, part in self.embed_batches(read, batch_size=batch_size, workers=workers)]
        return np.concatenate(found) if found else np.empty((0, self.dim), np.float32)

    def embed_batches(
        self,
        read: Iterable[Callable[[], Tensor]],
        *,
        batch_size: int = 64,
        workers: int | None = None,
        skip: Callable[[int, DataError], None] | None = None,
    ) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        """Embed images batch by batch; threads read the next images while the network embeds.

        Args:
            read: for each image a function that returns its views, see `read_views`; threads call it.
            batch_size: images per pass of the network, > 0.
            workers: threads that decode and resize, > 0; None takes one for each CPU core.
            skip: called with the number of an image that cannot be read, and the error; None raises it.

        Yields:
            Numbers of up to ``batch_size`` images, from 0 in the order of ``read``, and their embeddings,
            float32, (B, D).
        """
        workers = workers or os.cpu_count() or 1
        if batch_size < 1 or workers < 1:
            raise ValueError(f"batch_size and workers must be > 0, got {batch_size} and {workers}")
        waiting = enumerate(read)
        with ThreadPoolExecutor(workers) as pool:
            ahead = [(n, pool.submit(one)) for n, one in islice(waiting, 2 * batch_size)]
            while ahead:
                batch, ahead = ahead[:batch_size], ahead[batch_size:]
                views: dict[int, Tensor] = {}
                for number, one in batch:
                    try:
                        views[number] = one.result()
                    except DataError as error:
                        if skip is None:
                            raise
                        skip(number, error)
                ahead += [(n, pool.submit(one)) for n, one in islice(waiting, batch_size)]
                if views:
                    yield [*views], self.embed_views(torch.stack([*views.values()])).numpy()

    def read_views(self, image: ImageLike, box: Box | None = None) -> Tensor:
        """Return the views of an image as the network sees them, float32, (V, 3, H, W).

        Args:
            image: path, Pillow image or RGB pixels.
            box: part of the image that shows the person; None is the whole image.

        Raises:
            DataError: the image cannot be read, the array is not RGB pixels, or the box is not inside.
        """
        if isinstance(image, (str, Path)):
            picture = read_image(Path(image))
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise DataError(
                    f"pixels must be RGB, uint8, (height, width, 3); got {image.dtype}, {image.shape}"
                )
            picture = Image.fromarray(image)
        else:
            picture = image.convert("RGB")
        return self.transform(crop_box(picture, box))

    @torch.inference_mode()
    def embed_views(self, views: Tensor) -> Tensor:
        """Return the mean embedding over the views of each image.

        Args:
            views: normalised views, float, (B, V, 3, H, W).

        Returns:
            Embeddings, float32, (B, D), on the CPU.
        """
        images = views.flatten(0, 1).to(self.device, memory_format=self.memory_format)
        embeddings = self.network(images, views=views.shape[1]).embedding.float()
        return cast(Tensor, embeddings.view(*views.shape[:2], -1).mean(1)).cpu()


def crop_box(picture: Image.Image, box: Box | None) -> Image.Image:
    """Return the part of an image in a box; without a box the image itself.

    Raises:
        DataError: the box is not inside the image.
    """
    if box is None:
        return picture
    left, upper, right, lower = box
    if not (0 <= left < right <= picture.width and 0 <= upper < lower <= picture.height):
        raise DataError(f"box {box} is not inside the image, {picture.width} x {picture.height} pixels")
    return picture.crop(box)


def save_model(embedder: Embedder, folder: Path) -> None:
    """Write a model folder: weights, config.json and the card, each file completely or not at all."""
    state = embedder.network.state_dict()
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    if embedder.transform.mean is not None:
        tensors[_MEAN] = embedder.transform.mean.contiguous()
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    config = embedder.config.model_copy(update={"weights_sha256": compute_sha256(folder / WEIGHTS)})
    for name, text in ((CONFIG, config.model_dump_json(indent=2) + "\n"), (CARD, embedder.card)):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def load_model(folder: str | Path) -> Embedder:
    """Load a model folder, on the CPU.

    Args:
        folder: the folder, or the directory of the run that wrote it.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ModelError: a file is damaged, or describes no network of this package.
    """
    place = _find_folder(folder)
    config = _read_config(place / CONFIG)
    found = compute_sha256(place / WEIGHTS)
    if found != config.weights_sha256:
        raise ModelError(
            f"{place / WEIGHTS}: damaged, or not the file of this {CONFIG} (SHA-256 {found[:12]}..., "
            f"expected {config.weights_sha256[:12]}...); copy the folder again"
        )
    try:
        tensors = safetensors.torch.load_file(place / WEIGHTS)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{place / WEIGHTS}: no readable safetensors file ({error})") from error
    mean = tensors.pop(_MEAN, None)
    if (mean is not None) != (config.preprocessing.normalise == "per_pixel_mean"):
        raise ModelError(f"{place / WEIGHTS}: the mean image does not fit preprocessing.normalise")
    network = config.architecture.build()
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    if wrong := [key for key in wanted.keys() | tensors.keys() if wanted.get(key) != _shape(tensors, key)]:
        raise ModelError(f"{place / WEIGHTS}: not the network of {CONFIG}; these keys differ: {wrong[:3]}")
    network.load_state_dict(tensors, assign=True)
    card = place / CARD
    return Embedder(
        network, config, mean=mean, card=card.read_text(encoding="utf-8") if card.is_file() else ""
    )


def read_config(folder: str | Path) -> ModelConfig:
    """Read the config.json of a model folder, or of the run that wrote it, without its weights.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ModelError: config.json is damaged.
    """
    return _read_config(_find_folder(folder) / CONFIG)


def save_threshold(folder: str | Path, threshold: Threshold) -> None:
    """Write a threshold into config.json and the card of a model folder, in place of an earlier one.

    The digest of the model stays the same.

    Args:
        folder: the folder, or the directory of the run that wrote it.
        threshold: the threshold.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ModelError: config.json is damaged.
    """
    place = _find_folder(folder)
    config = _read_config(place / CONFIG).model_copy(update={"threshold": threshold})
    card = place / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    text = re.sub(r"\n## Threshold\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL).rstrip("\n")
    text = f"{text}\n\n## Threshold\n\n{threshold.describe()}\n"
    for name, content in ((CONFIG, config.model_dump_json(indent=2) + "\n"), (CARD, text)):
        with replacing(place / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _find_folder(folder: str | Path) -> Path:
    place = Path(folder).expanduser()
    if (place / "model" / CONFIG).is_file():
        place /= "model"
    for name in (CONFIG, WEIGHTS):
        if not (place / name).is_file():
            raise FileNotFoundError(
                f"{place / name}: no such file; expected a model folder with {CONFIG} and {WEIGHTS}, or the "
                "directory of a run that has one in model/"
            )
    return place


def _shape(tensors: Mapping[str, Tensor], key: str) -> torch.Size | None:
    return tensors[key].shape if key in tensors else None


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "content"
        raise ModelError(f"{path}: {place}: {first['msg']}; expected the config of a model folder") from error
