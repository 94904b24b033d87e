"""Description of an exported network: config.json for programs, README.md for readers and model hubs."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sharpreid.serving.model import Threshold

Format = Literal["onnx", "torch_export", "torchscript", "safetensors"]
Precision = Literal["float32", "float16", "int8"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(_Strict):
    """Input of an exported network."""

    name: Literal["images"] = "images"
    dtype: Literal["uint8"] = "uint8"
    shape: tuple[Literal["batch"], int, int, Literal[3]]
    """Any number of images; height and width in pixels."""
    layout: Literal["NHWC"] = "NHWC"
    channels: Literal["RGB"] = "RGB"
    range: tuple[Literal[0], Literal[255]] = (0, 255)
    resize: Literal["bilinear, antialiased, as Pillow does"] = "bilinear, antialiased, as Pillow does"


class Output(_Strict):
    """Output of an exported network."""

    name: Literal["embeddings"] = "embeddings"
    dtype: Literal["float32"] = "float32"
    shape: tuple[Literal["batch"], int]
    normalised: Literal[False] = False


class Parity(_Strict):
    """Difference between the embeddings of the exported network and those of the model in float32."""

    images: int
    """Number of compared images."""
    source: Literal["given", "drawn"]
    """Whether the images were given, or drawn by a program."""
    max_abs_difference: float
    relative_difference: float
    """The largest difference, divided by the largest coordinate of all embeddings."""
    median_relative_difference: float
    """The same for the median image."""
    min_cosine: float
    limit: float
    """Largest accepted relative difference."""
    limited: Literal["largest", "median"]
    """Image that has to keep the limit."""


class ExportConfig(_Strict):
    """Content of the config.json of an exported network."""

    format: Literal["sharpreid-export-1"] = "sharpreid-export-1"
    kind: Format
    precision: Precision
    file: str
    file_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    opset: int | None
    """Version of ONNX's operators; None for other formats."""
    input: Input
    output: Output
    views: str
    """Views of an image whose embeddings the network averages; see `EvalTransform`."""
    distance: Literal["euclidean"]
    threshold: Threshold | None
    model_digest: str
    """Digest of the exported model, see `ModelConfig.digest`."""
    parity: Parity
    versions: dict[str, str]
    """Package -> version that wrote the file."""


_RUNTIMES = {
    "onnx": (
        "onnx",
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx")',
        '(embeddings,) = session.run(None, {"images": images})',
    ),
    "torch_export": (
        "pytorch",
        "import torch",
        'network = torch.export.load("model.pt2").module()',
        "embeddings = network(torch.from_numpy(images)).numpy()",
    ),
    "torchscript": (
        "pytorch",
        "import torch",
        'network = torch.jit.load("model.torchscript")',
        "embeddings = network(torch.from_numpy(images)).numpy()",
    ),
}
"""Format -> library that a model hub shows, and the code that imports, opens and runs it."""

_DEFAULT_METADATA = ["pipeline_tag: image-feature-extraction", "license: other", "license_name: see-data-set"]


def describe_export(card: str, config: ExportConfig) -> str:
    """Return the card of an exported network.

    Args:
        card: card of the exported model; scores, data, licence and limits are taken from it.
        config: content of the export's config.json.
    """
    library, imports, opens, runs = _RUNTIMES[config.kind]
    metadata, title, rest = _split(card)
    kept = [line for line in metadata if not line.startswith(("library_name:", "tags:"))]
    _, height, width, _ = config.input.shape
    parity = config.parity
    shown = "\n".join([f"library_name: {library}", *kept, f"tags: [person-re-identification, {config.kind}]"])
    images = "given images" if parity.source == "given" else "drawn people"
    return f"""---
{shown}
---

# {title}, {config.kind} in {config.precision}

This network embeds the image of a person. The nearer two embeddings are, the more alike the two people look.

```python
import numpy as np
{imports}
from PIL import Image


def read(path):  # one person, filling the image as in the training images
    return np.asarray(Image.open(path).convert("RGB").resize(({width}, {height}), Image.Resampling.BILINEAR))


{opens}
images = np.stack([read("photo.jpg"), read("another.jpg")])  # uint8, (2, {height}, {width}, 3)
{runs}  # float32, (2, {config.output.shape[1]})
```

- Input: RGB, uint8, (batch, {height}, {width}, 3), resized as above. Scaling and normalisation are inside,
  and so are the views `{config.views}`, whose embeddings are averaged.
- Distance: Euclidean. Embeddings are not normalised. `config.json` has all of this for programs.
- Compared with the model in PyTorch, float32, on {parity.images} {images}: embeddings differ by
  {parity.max_abs_difference:.1e} at most, {parity.relative_difference:.1e} of the largest coordinate; cosine
  at least {parity.min_cosine:.6f}. The scores below are those of the model in PyTorch.

{rest}"""


def _split(card: str) -> tuple[list[str], str, str]:
    """Return the metadata, the title and all from the scores on of a model's card."""
    lines = card.splitlines()
    metadata = _DEFAULT_METADATA
    if lines[:1] == ["---"] and "---" in lines[1:]:
        end = lines.index("---", 1)
        metadata, lines = lines[1:end], lines[end + 1 :]
    title = next(
        (line.removeprefix("# ") for line in lines if line.startswith("# ")), "Person re-identification"
    )
    start = next((number for number, line in enumerate(lines) if line.startswith("## ")), len(lines))
    return metadata, title, "\n".join(lines[start:]) + "\n"
