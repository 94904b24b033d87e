"""Export a trained network to a file that runs without this package.

The exported network takes resized pixels. Scaling, normalisation, crops and the mean over the views are
inside, so the embeddings are those of `Embedder.embed`. The masks are those of evaluation mode, which have no
randomness.
"""

import copy
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from sharpreid.atomic_io import replacing
from sharpreid.attention.block import SharpAttentionBlock
from sharpreid.attention.expectation import interpolate_mean, mean_table, slope_table
from sharpreid.attention.mask import MaskSampler, average_draws, keep_logit
from sharpreid.checkpoint_files import compute_sha256
from sharpreid.data.reid_data import DataError
from sharpreid.data.synthetic import SyntheticParams
from sharpreid.data.synthetic.plan import plan_images, render_images
from sharpreid.data.transforms import IMAGENET_MEAN, IMAGENET_STD, read_image
from sharpreid.serving.arguments import UsageError
from sharpreid.serving.export_description import (
    ExportConfig,
    Format,
    Input,
    Output,
    Parity,
    Precision,
    describe_export,
)
from sharpreid.serving.model import CARD, CONFIG, Embedder, load_model, save_model

FILES: Mapping[Format, str] = {
    "onnx": "model.onnx",
    "torch_export": "model.pt2",
    "torchscript": "model.torchscript",
    "safetensors": "model.safetensors",
}
"""File of the network in an exported folder."""

OPSET = 20
"""Version of ONNX's operators."""

LIMITS: Mapping[Precision, float] = {"float32": 1e-4, "float16": 1e-2, "int8": 0.1}
"""Largest accepted difference of an embedding, relative to the largest coordinate of all embeddings.

No image may exceed it. With int8 or hard masks half of the images may: an activation outside of the
calibrated range, or one that rounding moves across pi = 0.5, changes a single image more than all others.
"""

IMAGES = 32
"""Images whose embeddings are compared."""

CALIBRATION_IMAGES = 256
"""Images, at most, that the ranges of int8 are measured on, in batches of 16."""

Pixels = npt.NDArray[np.uint8]
Embed = Callable[[Pixels], npt.NDArray[np.float32]]
"""From resized RGB images, uint8, (B, height, width, 3), to embeddings, float32, (B, D)."""


class ExportError(ValueError):
    """Error for an exported network whose embeddings are not those of the model."""


class Target(NamedTuple):
    """What a network is exported to."""

    format: Format
    precision: Precision
    images: str | None
    """Place of the images for the comparison, and for the ranges of int8; None draws people."""


def parse_target(format: str, precision: str, *, images: str | None) -> Target:
    """Check the choice of an export.

    Raises:
        UsageError: there is no such format or precision, or they do not go together.
    """
    for name, value, known in (("format", format, Format), ("precision", precision, Precision)):
        if value not in get_args(known):
            raise UsageError(f"{name} must be one of {', '.join(get_args(known))}; got {value!r}")
    if (format == "safetensors" and precision != "float32") or (precision == "int8" and format != "onnx"):
        raise UsageError(
            f"precision={precision} is not for format={format}: safetensors is float32, and int8 is for onnx"
        )
    if precision == "int8" and images is None:
        raise UsageError("precision=int8 needs images=FOLDER, a few hundred images like those of the use")
    return Target(cast(Format, format), cast(Precision, precision), images)


def export_model(model: str | Path, target: Target, *, output: Path) -> ExportConfig | None:
    """Write a trained network to a new folder, completely or not at all.

    Args:
        model: model folder, or the directory of a run.
        target: format, precision and images.
        output: folder to write; it must not exist, or be empty.

    Returns:
        Content of the folder's config.json; None for safetensors, which is a model folder.

    Raises:
        FileExistsError: the folder has files already.
        FileNotFoundError: there is no such model.
        ImportError: a package that the format needs is not installed.
        ExportError: the embeddings differ by more than the limit.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists already; delete it, or give another output folder")
    embedder = load_model(model)
    if target.images is None:
        pixels = _draw_people(embedder)
    else:
        pixels = _read_pixels(embedder, target.images, least=2 * IMAGES if target.precision == "int8" else 1)
    with _new_folder(output) as folder:
        if target.format == "safetensors":
            save_model(embedder, folder)
            config = None
        else:
            config = _write_export(embedder, target, pixels, folder)
    size = (output / FILES[target.format]).stat().st_size / 2**20
    print(f"{output / FILES[target.format]}: {size:.1f} MiB")
    if config is not None:
        parity = config.parity
        print(
            f"embeddings of {parity.images} images differ by {parity.max_abs_difference:.1e} at most "
            f"({parity.relative_difference:.1e} of the largest coordinate; median image "
            f"{parity.median_relative_difference:.1e}; limit of the {parity.limited} {parity.limit:.0e}); "
            f"cosine at least {parity.min_cosine:.6f}"
        )
    return config


def open_export(folder: str | Path, *, threads: int | None = None) -> Embed:
    """Open an exported network, on the CPU.

    Args:
        folder: folder that `export_model` wrote; not one of safetensors, which `load_model` reads.
        threads: threads of ONNX Runtime; None takes one for each core. PyTorch has its own setting.

    Raises:
        FileNotFoundError: there is no such folder.
        ExportError: a file is damaged, or not of an exported network.
        ImportError: the runtime is not installed.
    """
    place = Path(folder)
    try:
        config = ExportConfig.model_validate_json((place / CONFIG).read_bytes())
    except ValidationError as error:
        raise ExportError(
            f"{place / CONFIG}: not of an exported network ({error.errors()[0]['msg']})"
        ) from error
    if compute_sha256(place / config.file) != config.file_sha256:
        raise ExportError(f"{place / config.file}: damaged, or not the file of this {CONFIG}")
    return _open_file(place / config.file, config.kind, threads)


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``output`` when the block ends."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        draft.chmod(0o755)
        yield draft
        draft.replace(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_export(embedder: Embedder, target: Target, pixels: Pixels, folder: Path) -> ExportConfig:
    file = folder / FILES[target.format]
    network = PixelNetwork(embedder, half=target.precision == "float16")
    example = torch.zeros(2, *pixels.shape[1:], dtype=torch.uint8)  # formats keep it: no image of a person
    {"onnx": _write_onnx, "torch_export": _write_torch_export, "torchscript": _write_torchscript}[
        target.format
    ](network, example, file)
    if target.precision == "int8":
        _quantise(file, pixels[IMAGES:])
    parity = _compare(embedder, _open_file(file, target.format, None), pixels[:IMAGES], target)
    size = embedder.transform.resized
    packages = ("torch", "onnx", "onnxruntime") if target.format == "onnx" else ("torch",)
    config = ExportConfig(
        kind=target.format,
        precision=target.precision,
        file=file.name,
        file_sha256=compute_sha256(file),
        opset=OPSET if target.format == "onnx" else None,
        input=Input(shape=("batch", size[1], size[0], 3)),
        output=Output(shape=("batch", embedder.dim)),
        views=embedder.config.preprocessing.crops,
        distance=embedder.config.distance,
        threshold=embedder.config.threshold,
        model_digest=embedder.digest,
        parity=parity,
        versions={name: version(name) for name in packages},
    )
    for name, text in (
        (CONFIG, config.model_dump_json(indent=2) + "\n"),
        (CARD, describe_export(embedder.card, config)),
    ):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return config


class PixelNetwork(nn.Module):
    """Network from pixels to embeddings, for exports.

    Batch norms are folded into the layers in front of them. The noise and the tables of masks are constants.

    Args:
        embedder: the trained network, which is copied.
        half: whether the trunk and the context units compute in float16. Masks, head and normalisation are
            float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, embedder: Embedder, *, half: bool) -> None:
        super().__init__()
        transform = embedder.transform
        self.boxes, self.mirrored = transform.boxes, transform.crops != "plain"
        self.views = len(self.boxes) * (2 if self.mirrored else 1)
        self.size = (transform.height, transform.width)
        mean = torch.tensor(IMAGENET_MEAN)[:, None, None] if transform.mean is None else transform.mean
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])
        self.network = copy.deepcopy(embedder.network).cpu().eval().requires_grad_(False)
        fold_batch_norm(self.network)
        cast(Any, self.network).to(memory_format=torch.contiguous_format)  # others cannot be saved
        self._fix_masks()
        self.dtype = torch.float16 if half else torch.float32
        if half:
            self._halve()

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images, uint8, (B, height, width, 3), to embeddings, float32, (B, D)."""
        planes = images.permute(0, 3, 1, 2).float() / 255
        views = []
        for left, upper, right, lower in self.boxes:
            view = planes[:, :, upper:lower, left:right]
            views += [view, view.flip(3)] if self.mirrored else [view]
        batch = views[0] if len(views) == 1 else torch.stack(views, 1).flatten(0, 1)
        batch = ((batch - self.mean) / self.std).to(self.dtype)
        embeddings: Tensor = self.network(batch, views=self.views).embedding
        return embeddings if len(views) == 1 else embeddings.view(-1, len(views), embeddings.shape[1]).mean(1)

    def _fix_masks(self) -> None:
        """Replace the masks that draw noise or look up a table by masks with the same values as constants."""
        blocks = cast(Mapping[str, SharpAttentionBlock], self.network.attention)
        shapes: dict[str, torch.Size] = {}
        handles = [
            block.register_forward_pre_hook(lambda _, inputs, key=key: shapes.update({key: inputs[0].shape}))
            for key, block in blocks.items()
        ]
        with torch.inference_mode():
            self.network(torch.zeros(self.views, 3, *self.size), views=self.views)
        for handle in handles:
            handle.remove()
        for key, block in blocks.items():
            sampler = block.sampler
            if isinstance(sampler, MaskSampler) and sampler.test_mask == "sample":
                noise = sampler.draw_test_noise(shapes[key][1:], self.views, torch.float32)
                block.sampler = _ConstantNoiseMask(sampler, torch.stack([*noise]))
            elif isinstance(sampler, MaskSampler) and sampler.test_mask == "mean":
                block.sampler = _TableMask(sampler)

    def _halve(self) -> None:
        self.network.trunk.half()
        for block in cast(Mapping[str, SharpAttentionBlock], self.network.attention).values():
            for part in (block.context, block.sampler):
                if part is not None and not isinstance(part, MaskSampler | _ConstantNoiseMask | _TableMask):
                    part.half()
        self.network.head = nn.Sequential(_ToFloat32(), self.network.head)


class _ToFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class _ConstantNoiseMask(nn.Module):
    """The mask ``sample`` of a sampler, with noise drawn before: (draws, V or 1, C, H, W)."""

    noise: Tensor

    def __init__(self, sampler: MaskSampler, noise: Tensor) -> None:
        super().__init__()
        self.eps, self.tau = sampler.eps, float(sampler.tau)
        self.register_buffer("noise", noise)

    def forward(self, x: Tensor) -> Tensor:
        return average_draws(keep_logit(x, self.eps), self.noise.unbind(0), self.tau)


class _TableMask(nn.Module):
    """The mask ``mean`` of a sampler."""

    means: Tensor
    slopes: Tensor

    def __init__(self, sampler: MaskSampler) -> None:
        super().__init__()
        self.eps = sampler.eps
        for name, table in (("means", mean_table), ("slopes", slope_table)):
            self.register_buffer(name, table(float(sampler.tau), torch.device("cpu"), torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return interpolate_mean(keep_logit(x, self.eps), self.means, self.slopes)


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each batch norm that follows a convolution or linear layer into that layer, in place.

    Layers follow each other if they are registered one after the other in the same module, as in all networks
    of this package.
    """
    for (first, layer), (second, norm) in pairwise(list(module.named_children())):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, first, fuse_conv_bn_eval(layer, norm))
            setattr(module, second, nn.Identity())
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            setattr(module, first, fuse_linear_bn_eval(layer, norm))
            setattr(module, second, nn.Identity())
    for child in module.children():
        fold_batch_norm(child)


@contextmanager
def _ignore_torch_warnings() -> Iterator[None]:
    """Ignore warnings of torch about its own code, and about TorchScript, which is asked for by name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".isinstance.treespec, LeafSpec", FutureWarning)  # torch 2.12
        warnings.filterwarnings("ignore", ".*torch.jit.* is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # loading
        yield


def _capture(network: PixelNetwork, example: Tensor) -> torch.export.ExportedProgram:
    """Return the graph of a network for any number of images, without paths of this computer."""
    with _ignore_torch_warnings():
        program = torch.export.export(
            network, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
        )
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        node.meta.pop("stack_trace", None)
    return program


def _write_torch_export(network: PixelNetwork, example: Tensor, file: Path) -> None:
    program = _capture(network, example)
    with _ignore_torch_warnings():
        torch.export.save(program, file)


def _write_torchscript(network: PixelNetwork, example: Tensor, file: Path) -> None:
    script: Any = torch.jit  # parts of it have no types
    with _ignore_torch_warnings():
        warnings.filterwarnings("ignore", category=script.TracerWarning)  # sizes of features are constant
        script.save(script.trace(network, (example,), check_trace=False), file)
    with zipfile.ZipFile(file) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    with zipfile.ZipFile(file, "w") as archive:  # without the source files' paths on this computer
        for name, content in kept.items():
            archive.writestr(name, content)


def _write_onnx(network: PixelNetwork, example: Tensor, file: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  # the exporter's
    except ImportError as error:
        raise ImportError(f"format=onnx needs pip install 'sharpreid[export]' ({error})") from error
    with _ignore_torch_warnings():
        program = torch.onnx.export(
            _capture(network, example),
            input_names=["images"],
            output_names=["embeddings"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for part in (model, graph, *graph.input, *graph.output, *graph.node, *graph.initializer):
        del part.metadata_props[:]
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


class _Batches:
    """Calibration images as ONNX Runtime reads them."""

    def __init__(self, pixels: Pixels) -> None:
        self._batches = iter([pixels[start : start + 16] for start in range(0, len(pixels), 16)])

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def _quantise(file: Path, pixels: Pixels) -> None:
    """Quantise convolutions and linear layers to int8 in place.

    Weights have a range per channel, and inputs the mean over the batches of their smallest and largest
    values. The first convolution, masks and sums stay in float32. Weights have 7 bits, so that processors
    without VNNI do not saturate.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        prepared = Path(folder) / file.name
        quant_pre_process(file, prepared, skip_optimization=True, skip_symbolic_shape=True)
        nodes = onnx.load(prepared, load_external_data=False).graph.node
        quantize_static(
            prepared,
            file,
            _Batches(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            nodes_to_exclude=[next(node.name for node in nodes if node.op_type == "Conv")],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
        )


def _open_file(file: Path, kind: Format, threads: int | None) -> Embed:
    if kind == "onnx":
        return _open_onnx(file, threads)
    network: Any
    if kind == "torch_export":
        with _ignore_torch_warnings():
            network = torch.export.load(file).module()
    else:
        with _ignore_torch_warnings():
            script: Any = torch.jit  # parts of it have no types
            network = script.load(file, map_location="cpu")

    @torch.inference_mode()
    def embed(pixels: Pixels) -> npt.NDArray[np.float32]:
        embeddings: npt.NDArray[np.float32] = network(torch.from_numpy(pixels)).numpy()
        return embeddings

    return embed


def _open_onnx(file: Path, threads: int | None) -> Embed:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{file}: needs pip install onnxruntime ({error})") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def embed(pixels: Pixels) -> npt.NDArray[np.float32]:
        embeddings: npt.NDArray[np.float32] = session.run(None, {"images": pixels})[0]
        return embeddings

    return embed


def _compare(embedder: Embedder, embed: Embed, pixels: Pixels, target: Target) -> Parity:
    """Compare the embeddings of both networks, in batches of one, two and more images.

    Raises:
        ExportError: the embeddings differ by more than the limit.
    """
    expected = embedder.embed([Image.fromarray(one) for one in pixels], batch_size=8)
    parts = (pixels[:1], pixels[1:3], *(pixels[start : start + 8] for start in range(3, len(pixels), 8)))
    found = np.concatenate([embed(part) for part in parts if len(part)])
    differences = np.abs(found - expected).max(1)
    difference, scale = float(differences.max()), max(float(np.abs(expected).max()), sys.float_info.min)
    products = (found * expected).sum(1)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    parity = Parity(
        images=len(pixels),
        source="drawn" if target.images is None else "given",
        max_abs_difference=difference,
        relative_difference=difference / scale,
        median_relative_difference=float(np.median(differences)) / scale,
        min_cosine=float((products / np.maximum(norms, sys.float_info.min)).min()),
        limit=LIMITS[target.precision],
        limited="median" if target.precision == "int8" or _has_hard_masks(embedder) else "largest",
    )
    limited = parity.relative_difference if parity.limited == "largest" else parity.median_relative_difference
    if not limited <= parity.limit:
        raise ExportError(
            f"the embeddings of the exported network differ by {limited:.1e} of the largest coordinate (the "
            f"{parity.limited} of {len(pixels)} images); accepted are {parity.limit:.0e} in "
            f"{target.precision}. Nothing was written; "
            + ("take another precision" if target.precision != "float32" else "please report this model")
        )
    return parity


def _has_hard_masks(embedder: Embedder) -> bool:
    return any(
        isinstance(part, MaskSampler) and part.test_mask == "hard" for part in embedder.network.modules()
    )


def _draw_people(embedder: Embedder) -> Pixels:
    """Return images of drawn people as the exported network takes them."""
    params = SyntheticParams(
        train_identities=2, test_identities=IMAGES // 8, train_hard_pairs=0, test_hard_pairs=0, junk=0
    )
    drawn = islice(render_images(0, params, plan_images(0, params)), IMAGES)
    return np.stack([_resize(embedder, Image.fromarray(one.pixels)) for one in drawn])


def _read_pixels(embedder: Embedder, images: str, *, least: int) -> Pixels:
    """Return images of a place in random order, no more than are compared and calibrated on.

    Raises:
        DataError: an image cannot be read, or they are fewer than are needed.
        ImportError: the packages that read places of images are not installed.
    """
    try:
        from sharpreid.serving.sources import find_items
    except ImportError as error:
        raise ImportError(f"images={images} needs pip install 'sharpreid[serve]' ({error})") from error
    items = find_items(images, boxes=None, camera_pattern=None)
    if len(items) < least:
        raise DataError(f"images={images}: {len(items)} images; at least {least} are needed")
    chosen = np.random.default_rng(0).permutation(len(items))[: IMAGES + CALIBRATION_IMAGES]
    pixels = []
    for item in (items[number] for number in chosen):
        picture = read_image(Path(item.path))
        pixels.append(_resize(embedder, picture.crop(item.box) if item.box else picture))
    return np.stack(pixels)


def _resize(embedder: Embedder, picture: Image.Image) -> Pixels:
    return np.asarray(picture.resize(embedder.transform.resized, Image.Resampling.BILINEAR))
