"""Measure the training throughput of ``sharpreid.train``, a bare loop and torchreid's trainer.

``python -m benchmarks.training [--batch 16] [--steps 8] [--torchreid DIR]``; on a GPU ``--batch 256
--steps 100 --workers 12 --images 12936 --bf16``. Every trainer runs in a new process, on the same images and
in the same precision.

The bare loop trains torchvision's ResNet-50 with Adam on images that are already on the device, which shows
what the device can do. The other trainer is torchreid's engine for the triplet loss with sharpreid's network,
torchreid's own loader, and the same number of worker processes. fast-reid's trainer is not compared, because
Python 3.10 and later cannot import it.
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command
from benchmarks.market import write_small_market
from benchmarks.networks import build_network
from benchmarks.process import interleaved_costs
from benchmarks.rows import Row, describe_machine
from sharpreid.run.preparation import prepare

SIZE = (256, 128)
WARM_UP = 3
"""Number of steps before the timed ones."""

ADAM: dict[str, float] = {"lr": 2e-4, "weight_decay": 5e-4}
"""Parameters of conf/optimizer/adam.yaml."""

StepTimes = dict[str, float]
"""Seconds of a step (``seconds``), and the part of them spent waiting for data (``waited``)."""

TRAINERS: dict[str, list[str]] = {
    "four blocks": ["data.augment_on=worker"],
    "ResNet-50": ["data.augment_on=worker", "method=baseline"],
}
GPU_TRAINERS: dict[str, list[str]] = {
    "four blocks, augmented on the device": ["data.augment_on=device"],
    "four blocks, data on the device": ["data.augment_on=resident"],
    "four blocks, fused Adam": ["data.augment_on=resident", "optimizer.fused=true"],
    "four blocks, triton": ["data.augment_on=resident", "model.sampler.implementation=triton"],
}
"""Overrides of ``sharpreid.train`` for each trainer."""


class FinishedError(Exception):
    """Raised when all steps have been timed."""


class StepTimer:
    """Timer of training steps, which ignores the first `WARM_UP` steps.

    Args:
        steps: number of steps to time.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._seen = 0
        self._start = self._waited_before = self._seconds = self._waited = 0.0

    def start_step(self, waited: float = 0.0) -> None:
        """Record that a step begins, when its data has arrived.

        Args:
            waited: total seconds spent waiting for data so far.

        Raises:
            FinishedError: the last step has ended.
        """
        self._seen += 1
        if self._seen not in (WARM_UP + 1, WARM_UP + 1 + self.steps):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._seen == WARM_UP + 1:
            self._start, self._waited_before = now, waited
            return
        self._seconds, self._waited = now - self._start, waited - self._waited_before
        raise FinishedError

    def mean_times(self) -> StepTimes:
        """Return the mean times of a step."""
        return {"seconds": self._seconds / self.steps, "waited": self._waited / self.steps}


class StopAfterSteps(pl.Callback):
    """Callback that stops a training after some steps, and writes their mean times.

    Args:
        steps: number of steps to time.
        file: JSON file to write.
    """

    def __init__(self, steps: int, file: str) -> None:
        self.timer, self.file = StepTimer(steps), Path(file)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the step; at the last one, write the file and stop."""
        loader: Any = trainer.train_dataloader
        try:
            self.timer.start_step(loader.waited)
        except FinishedError:
            self.file.write_text(json.dumps(self.timer.mean_times()), encoding="utf-8")
            raise


def sharpreid_trainer(
    overrides: list[str], *, root: str, cache: str, batch: int, steps: int, bf16: bool, workers: int
) -> Callable[[], StepTimes]:
    """Prepare ``python -m sharpreid.train`` without scoring and W&B.

    Args:
        overrides: overrides of the trainer.
        root: Market-1501 folder.
        cache: folder of cached images.
        batch: number of images, a multiple of 4.
        steps: number of timed steps.
        bf16: use autocast to bfloat16.
        workers: number of processes that load data.
    """
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "figures.json"
    command = [
        *(sys.executable, "-m", "sharpreid.train", "data=market1501", *overrides),
        *(f"data.source.root={root}", "data.source.allow_subset=true", f"data.cache={cache}"),
        *(f"data.identities_per_batch={batch // 4}", f"data.num_workers={workers}"),
        *(f"image.height={SIZE[0]}", f"image.width={SIZE[1]}", "model.trunk.weights=none"),
        *(f"trainer.precision={'bf16-mixed' if bf16 else '32-true'}", "logger=csv", "score_untrained=false"),
        *("trainer.max_epochs=100000", "trainer.check_val_every_n_epoch=100000"),
        f"hydra.run.dir={folder.name}/run",
        "+callbacks.end._target_=benchmarks.training.StopAfterSteps",
        *(f"+callbacks.end.steps={steps}", f"+callbacks.end.file={file}"),
    ]

    def train() -> StepTimes:
        done = subprocess.run(command, capture_output=True, text=True)
        if not file.is_file():
            said = (done.stdout + done.stderr).strip().splitlines()[-3:]
            raise RuntimeError(f"sharpreid.train ended with {done.returncode}: {'; '.join(said)}")
        figures: StepTimes = json.loads(file.read_text(encoding="utf-8"))
        folder.cleanup()
        return figures

    return train


def bare_loop(*, batch: int, steps: int, bf16: bool) -> Callable[[], StepTimes]:
    """Prepare a bare loop of torchvision's ResNet-50 with Adam, on images on the device.

    Args:
        batch: number of images.
        steps: number of timed steps.
        bf16: use autocast to bfloat16.
    """
    device = _device()
    images = torch.randn(batch, 3, *SIZE, device=device).to(memory_format=torch.channels_last)
    movable: Any = torchvision.models.resnet50()
    built: nn.Module = movable.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(built.parameters(), **ADAM)
    timer = StepTimer(steps)

    def train() -> StepTimes:
        try:
            while True:
                timer.start_step()
                optimizer.zero_grad()
                with _autocast(device, bf16):
                    loss = built(images).float().square().mean()
                loss.backward()
                optimizer.step()
        except FinishedError:
            return timer.mean_times()

    return train


class _TorchreidModel(nn.Module):
    """Sharpreid's network with the outputs that torchreid's triplet engine expects.

    The first output, class scores, has no weight in the loss.
    """

    def __init__(self, bf16: bool) -> None:
        super().__init__()
        movable: Any = build_network()
        self.network = movable.to(memory_format=torch.channels_last)
        self.bf16 = bf16

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with _autocast(images.device.type, self.bf16):
            output = self.network.training_forward(
                images.to(memory_format=torch.channels_last), total_variation=False
            )
        embedding = output.embedding.float()
        return embedding, embedding


def torchreid_trainer(
    *, checkout: str, root: str, batch: int, steps: int, bf16: bool, workers: int
) -> Callable[[], StepTimes]:
    """Prepare torchreid's engine for the triplet loss with sharpreid's four-block network.

    Args:
        checkout: checkout of torchreid.
        root: Market-1501 folder.
        batch: number of images, a multiple of 4.
        steps: number of timed steps.
        bf16: use autocast to bfloat16.
        workers: number of processes that load data.
    """
    sys.path.insert(0, checkout)
    torchreid: Any = importlib.import_module("torchreid")

    folder = tempfile.TemporaryDirectory()
    place = Path(folder.name, "market1501")
    place.mkdir()
    (place / "Market-1501-v15.09.15").symlink_to(Path(root).resolve())
    data = torchreid.data.ImageDataManager(
        root=folder.name,
        sources="market1501",
        height=SIZE[0],
        width=SIZE[1],
        transforms=["random_flip", "random_crop"],
        batch_size_train=batch,
        num_instances=4,
        train_sampler="RandomIdentitySampler",
        workers=workers,
    )
    model = _TorchreidModel(bf16).to(_device())
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    engine = torchreid.engine.ImageTripletEngine(data, model, optimizer, weight_t=1, weight_x=0)
    timer, step = StepTimer(steps), engine.forward_backward

    def timed(batch_of_data: Any) -> Any:
        timer.start_step()
        return step(batch_of_data)

    engine.forward_backward = timed

    def train() -> StepTimes:
        try:
            engine.run(save_dir=f"{folder.name}/log", max_epoch=100_000)
        except FinishedError:
            engine.writer.close()
            folder.cleanup()
        return timer.mean_times()

    return train


def matmul_throughput(*, bf16: bool) -> Callable[[], float]:
    """Prepare to measure the FLOP/s of square matrix products, as the best of 20.

    On a GPU, float32 products use TF32, as convolutions do by default.
    """
    device = _device()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    n = 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)

    def multiply() -> float:
        best = 0.0
        for _ in range(20):
            start = time.perf_counter()
            a @ a
            if a.is_cuda:
                torch.cuda.synchronize()
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
        return best

    return multiply


def flops_per_image(*overrides: str) -> int:
    """Count the floating-point operations of an image, forward and backward.

    Args:
        overrides: see `benchmarks.networks.build_network`.
    """
    built = build_network(*overrides)
    with FlopCounterMode(display=False) as counter:
        built.training_forward(torch.randn(2, 3, *SIZE), total_variation=False).embedding.sum().backward()
    return int(counter.get_total_flops()) // 2


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _autocast(device: str, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()


def measure(
    checkouts: dict[str, str],
    *,
    batch: int = 16,
    steps: int = 8,
    bf16: bool = False,
    images: int = 512,
    workers: int = 2,
    root: Path | None = None,
    repeats: int = 1,
) -> list[Row]:
    """Measure every trainer, interleaved, each in a new process.

    Args:
        checkouts: checkouts of other toolboxes, of which torchreid's is used.
        batch: number of images, a multiple of 4.
        steps: number of timed steps.
        bf16: use autocast to bfloat16.
        images: size of the training set of noise that is made if ``root`` is None.
        workers: number of processes that load data.
        root: Market-1501 folder; None makes one of noise.
        repeats: number of repeats, whose median is reported.
    """
    setting: dict[str, Any] = {"batch": batch, "steps": steps, "bf16": bf16}
    trainers = TRAINERS | (GPU_TRAINERS if torch.cuda.is_available() else {})
    with tempfile.TemporaryDirectory() as folder:
        market = root or write_small_market(Path(folder) / "market", images)
        data = {"root": str(market), "workers": workers}
        cache = f"{folder}/cache"
        prepare(
            [
                *("data=market1501", f"data.source.root={market}", "data.source.allow_subset=true"),
                f"data.cache={cache}",
            ]
        )
        calls: list[tuple[str, dict[str, Any]]] = [
            ("benchmarks.training:matmul_throughput", {"bf16": bf16}),
            ("benchmarks.training:bare_loop", setting),
        ]
        calls += [
            (
                "benchmarks.training:sharpreid_trainer",
                {"overrides": overrides, "cache": cache, **data, **setting},
            )
            for overrides in trainers.values()
        ]
        if "torchreid" in checkouts:
            calls.append(
                (
                    "benchmarks.training:torchreid_trainer",
                    {"checkout": checkouts["torchreid"], **data, **setting},
                )
            )
        products, loop, *others = (
            one if isinstance(one, str) else [cost.value for cost in one]
            for one in interleaved_costs(calls, repeats)
        )
    if isinstance(products, str) or isinstance(loop, str):
        raise RuntimeError(f"the bare loop failed: {loop if isinstance(loop, str) else products}")
    named = f"training{' on cuda' if _device() == 'cuda' else ''}, batch {batch}, {_precision_name(bf16)}"
    ideal = DeviceLimits(_median(loop)["seconds"] / batch, max(products))
    figures = {
        name: one if isinstance(one, str) else _median(one)
        for name, one in zip(trainers, others, strict=False)
    }
    rows = [row for name, one in figures.items() for row in _trainer_rows(named, name, one, ideal, batch)]
    theirs = "no checkout of torchreid was named"
    if len(others) > len(trainers):
        theirs = others[-1] if isinstance(others[-1], str) else _median(others[-1])
    return [*rows, _torchreid_row(named, figures["four blocks"], theirs, batch)]


class DeviceLimits(NamedTuple):
    """Speed of the device without a trainer."""

    seconds: float
    """Seconds of an image in the bare loop."""
    products: float
    """FLOP/s of matrix products."""


def _median(figures: list[StepTimes]) -> StepTimes:
    """Return the repeat with the median step time, the lower one if there are two."""
    return sorted(figures, key=lambda one: one["seconds"])[(len(figures) - 1) // 2]


def _precision_name(bf16: bool) -> str:
    return "bf16" if bf16 else "float32"


def _trainer_rows(
    named: str, name: str, figures: StepTimes | str, ideal: DeviceLimits, batch: int
) -> list[Row]:
    """Return a row for throughput and one for data waiting time, or a single row with an error message."""
    title, unit, loop = f"{named}, {name}", "ms/image", "torchvision's ResNet-50 in a bare loop"
    theirs = ideal.seconds * 1e3
    if isinstance(figures, str):
        why = f"failed: {figures}"
        return [Row(name=title, ours=None, unit=unit, other=loop, theirs=theirs, better="lower", note=why)]
    each, waited = figures["seconds"] / batch, figures["waited"] / batch
    rate = flops_per_image(*(["model.blocks=[]"] if name == "ResNet-50" else [])) / each
    note = f"{1 / each:.0f} images/s, {rate / 1e12:.3g} TFLOP/s, which is "
    note += f"{rate / ideal.products:.0%} of a matrix product's"
    return [
        Row(name=title, ours=each * 1e3, unit=unit, other=loop, theirs=theirs, better="lower", note=note),
        Row(
            name=f"{title}, with waiting for data",
            ours=each * 1e3,
            unit=unit,
            other="without",
            theirs=(each - waited) * 1e3,
            better="lower",
            limit=1.02,
            note=f"{waited / each:.2%} of the time",
        ),
    ]


def _torchreid_row(named: str, mine: StepTimes | str, theirs: StepTimes | str, batch: int) -> Row:
    """Compare sharpreid's trainer with torchreid's."""
    return Row(
        name=f"{named}, four blocks against torchreid",
        ours=None if isinstance(mine, str) else mine["seconds"] / batch * 1e3,
        unit="ms/image",
        other="torchreid's engine with the same network",
        theirs=None if isinstance(theirs, str) else theirs["seconds"] / batch * 1e3,
        better="higher",
        note=theirs if isinstance(theirs, str) else "",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("training", __doc__)
    parser.add_argument(
        "--batch",
        type=command.integer_at_least(8, multiple_of=4),
        default=16,
        metavar="N",
        help="images, 4 of each identity; 16 by default",
    )
    for name, least, default, what in (
        ("steps", 1, 8, "timed steps, after three that warm up"),
        ("repeats", 1, 1, "repeats, whose median is reported"),
        ("images", 8, 512, "size of the training set of noise, at least a batch"),
        ("workers", 0, 2, "processes that load data"),
    ):
        parser.add_argument(
            f"--{name}",
            type=command.integer_at_least(least),
            default=default,
            metavar="N",
            help=f"{what}; {default} by default",
        )
    parser.add_argument("--bf16", action="store_true", help="use autocast to bfloat16; float32 by default")
    parser.add_argument(
        "--root", type=command.existing_folder, metavar="DIR", help="Market-1501 folder; noise by default"
    )
    checkout = command.checkout_containing("torchreid/__init__.py", "another version, or another project")
    parser.add_argument("--torchreid", type=checkout, metavar="DIR", help="checkout of torchreid")
    given = parser.parse_args(arguments)
    if given.images < given.batch:
        parser.error(f"--images must be at least --batch; got {given.images} and {given.batch}")
    about = describe_machine()
    with command.errors_in_one_line():
        rows = measure(
            {"torchreid": given.torchreid} if given.torchreid else {},
            batch=given.batch,
            steps=given.steps,
            bf16=given.bf16,
            images=given.images,
            workers=given.workers,
            root=given.root,
            repeats=given.repeats,
        )
        title = f"training, batch {given.batch}, {SIZE[0]} x {SIZE[1]}, on {_device()}"
        command.report_rows(rows, about, title, given.output)


if __name__ == "__main__":
    main()
