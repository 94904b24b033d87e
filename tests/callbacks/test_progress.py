import contextlib
import io
import pickle
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sharpreid.callbacks import progress
from sharpreid.callbacks.progress import ProgressWithTimeLeft

CONTROL = "\x1b"

# Lightning advises loader workers and a validation set, which these tiny runs do without on purpose, and
# asks torch's pytree in a way that newer torch releases warn about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]


class Clock:
    """Seconds that pass in a batch only."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


class TinyModule(pl.LightningModule):
    """Each batch takes some seconds of `CLOCK`, ten unless told otherwise: enough to be shown."""

    def __init__(
        self, *, stop_at: int | None = None, seconds: Callable[[int], float] = lambda step: 10
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.stop_at = stop_at
        self.seconds = seconds

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.stop_at:
            raise RuntimeError("the loss is not finite")
        CLOCK.now += self.seconds(self.global_step)
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/tau", 0.5, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        CLOCK.now += 10
        self.log("val/mAP", torch.tensor(0.25))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        CLOCK.now += 10
        self.log("test/mAP", torch.tensor(0.25))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        while True:
            yield (torch.ones(2),)


def loader(batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(2 * batches, 2)), batch_size=2)


@pytest.fixture(autouse=True)
def fresh_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_trained_jobs", [])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=CLOCK))
    CLOCK.now = 0.0
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("TTY_INTERACTIVE", raising=False)


def trainer_with(bar: ProgressWithTimeLeft, **settings: Any) -> pl.Trainer:
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "max_epochs": 3,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=[bar], **(chosen | settings))


def plain_bar(**settings: Any) -> tuple[ProgressWithTimeLeft, io.StringIO]:
    text = io.StringIO()
    return ProgressWithTimeLeft(
        console=Console(file=text, force_terminal=False, get_time=CLOCK), **settings
    ), text


def moving_bar(*, width: int = 140, **settings: Any) -> tuple[ProgressWithTimeLeft, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, get_time=CLOCK)
    return ProgressWithTimeLeft(console=console, **settings), text


def test_a_pipe_gets_lines_over_all_epochs_without_control_characters() -> None:
    bar, text = plain_bar(label="blocks=[1,2]", job=3, jobs=8)
    trainer_with(bar).fit(TinyModule(), loader(4), loader(1))
    lines = text.getvalue().splitlines()
    steps = [line for line in lines if "step" in line]
    assert CONTROL not in text.getvalue()
    assert all(line.startswith("[3/8] blocks=[1,2]: step ") for line in lines)
    assert steps[0].split(": ")[1].startswith("step 1/12 8 % loss ")
    assert "step 7/12 58 % loss " in text.getvalue()
    # 6 steps and a validation took 70 s, so 5 steps take 59 s; each later job takes 90 s + 59 s
    assert re.search(
        r"^\[3/8\] .* step 7/12 58 % loss \S+ held-out mAP 25.0 % tau 0.5 left 0:59, sweep 13:24$",
        text.getvalue(),
        re.MULTILINE,
    )
    assert re.search(r"step 12/12 100 % loss \S+ held-out mAP 25.0 % tau 0.5 took 2:30$", steps[-1])


def test_a_short_run_prints_only_its_end() -> None:
    bar, text = plain_bar()
    trainer_with(bar).fit(TinyModule(seconds=lambda step: 0.05), loader(4))
    assert len(text.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (1 / 16, [*range(16, 100, 16), 100]),  # a tenth of the way in less than a second
        (0.5, [*range(10, 101, 10), 100]),
        (2, [*range(5, 101, 5), 100]),
        (30, [*range(1, 101), 100]),
    ],
)
def test_lines_come_after_ten_seconds_or_a_tenth_of_the_way(seconds: float, shown: list[int]) -> None:
    bar, text = plain_bar()
    trainer_with(bar, max_epochs=1).fit(TinyModule(seconds=lambda step: seconds), loader(100))
    assert [int(step) for step in re.findall(r"step (\d+)/100 ", text.getvalue())] == shown


def test_a_terminal_gets_one_bar_over_all_epochs() -> None:
    bar, text = moving_bar(label="blocks=[1,2]", job=1, jobs=2)
    trainer_with(bar).fit(TinyModule(), loader(4), loader(1))
    shown = text.getvalue()
    assert CONTROL in shown
    assert "[1/2] blocks=[1,2]" in shown
    assert "step 12/12" in shown
    assert "held-out mAP 25.0 %" in shown
    assert "sweep" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, (
        "the cursor is hidden once and shown again"
    )


def test_a_narrow_terminal_still_shows_the_time_left() -> None:
    bar, text = moving_bar(width=100, label="blocks=[1,2]" * 9, job=3, jobs=8)
    trainer_with(bar).fit(TinyModule(), loader(4))
    assert "0:20  left 1:40, sweep 11:40" in text.getvalue()
    drawn = re.split(r"\r|\n", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue()))
    assert max(map(len, drawn)) <= 100


@pytest.mark.parametrize("make", [plain_bar, moving_bar])
def test_test_and_validation_passes_have_their_own_bar(make: Any) -> None:
    bar, text = make()
    trainer = trainer_with(bar)
    trainer.test(TinyModule(), loader(5), verbose=False)
    trainer.validate(TinyModule(), loader(3), verbose=False)
    assert "test 5/5" in text.getvalue()
    assert "validation 3/3" in text.getvalue()
    assert "step" not in text.getvalue()


@pytest.mark.parametrize("make", [plain_bar, moving_bar])
def test_sanity_validation_shows_nothing(make: Any) -> None:
    bar, text = make()

    class LooksBeforeTraining(pl.Callback):
        seen: str | None = None

        def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.seen = text.getvalue()

    look = LooksBeforeTraining()
    trainer = trainer_with(bar, num_sanity_val_steps=2)
    trainer.callbacks.append(look)
    trainer.fit(TinyModule(), loader(4), loader(2))
    assert look.seen == ""


@pytest.mark.parametrize("make", [plain_bar, moving_bar])
def test_a_run_of_unknown_length_counts_without_a_total(make: Any) -> None:
    bar, text = make()

    class StopsAtSix(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 6

    trainer = trainer_with(bar, max_epochs=-1)
    trainer.callbacks.append(StopsAtSix())
    trainer.fit(TinyModule(), DataLoader(Endless(), batch_size=2))
    assert "step 6" in text.getvalue()
    assert "step 6/" not in text.getvalue()


def test_steps_are_the_optimizers_when_gradients_accumulate() -> None:
    bar, text = plain_bar()
    trainer_with(bar, accumulate_grad_batches=2).fit(TinyModule(), loader(4))
    assert text.getvalue().splitlines()[-1].startswith("step 6/6 100 %")


def test_a_resumed_run_goes_on_from_its_step(tmp_path: Any) -> None:
    first = trainer_with(plain_bar()[0], max_epochs=1)
    first.fit(TinyModule(), loader(4))
    first.save_checkpoint(tmp_path / "last.ckpt")
    bar, text = plain_bar()
    trainer_with(bar).fit(TinyModule(), loader(4), ckpt_path=tmp_path / "last.ckpt")
    assert text.getvalue().splitlines()[0].startswith("step 5/12 41 %")


def test_an_error_gives_the_terminal_back() -> None:
    bar, text = moving_bar()
    with pytest.raises(RuntimeError, match="not finite"):
        trainer_with(bar).fit(TinyModule(stop_at=2), loader(4))
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h") == 1


def test_disabled_bar_is_silent_and_enabling_brings_it_back() -> None:
    bar, text = plain_bar()
    trainer = trainer_with(bar)
    bar.disable()
    trainer.test(TinyModule(), loader(2), verbose=False)
    assert not bar.is_enabled
    assert text.getvalue() == ""
    bar.enable()
    trainer.test(TinyModule(), loader(2), verbose=False)
    assert bar.is_enabled
    assert "test 2/2" in text.getvalue()


def test_only_the_first_process_shows_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, text = plain_bar()
    monkeypatch.setattr(pl.Trainer, "is_global_zero", property(lambda self: False))
    trainer_with(bar).fit(TinyModule(), loader(4))
    assert text.getvalue() == ""


def test_lightning_takes_it_as_its_progress_bar() -> None:
    bar, _ = plain_bar()
    trainer = trainer_with(bar)
    module = TinyModule()
    trainer.fit(module, loader(4))
    assert trainer.progress_bar_callback is bar
    assert bar.get_metrics(trainer, module)["train/tau"] == 0.5


def test_a_module_prints_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Talks(TinyModule):
        def on_train_start(self) -> None:
            self.print("hello")

    trainer_with(plain_bar()[0]).fit(Talks(), loader(4))
    assert "hello" in capsys.readouterr().out


def test_without_a_console_a_captured_output_gets_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    trainer_with(ProgressWithTimeLeft(label="alone")).fit(TinyModule(), loader(4))
    out = capsys.readouterr().out
    assert "alone: step 12/12 100 %" in out
    assert CONTROL not in out


def test_it_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(ProgressWithTimeLeft(label="x", job=1, jobs=2))).label == "[1/2] x"


def test_a_timed_test_pass_counts_as_time_left_of_training() -> None:
    bar, text = plain_bar()
    trainer = trainer_with(bar, max_epochs=1)
    trainer.test(TinyModule(), loader(3), verbose=False)
    trainer.fit(TinyModule(seconds=lambda step: 2 if step else 100), loader(10))
    assert re.search(r"step 3/10 .* left 0:44$", text.getvalue(), re.MULTILINE), (
        "7 steps of 2 s and a test of 30 s: the slow first step is no part of the pace"
    )


def test_a_job_that_failed_is_no_measure_and_a_first_job_starts_a_new_sweep() -> None:
    def line_of(job: int, seconds: float, stop_at: int | None = None) -> str:
        bar, text = plain_bar(job=job, jobs=4)
        with contextlib.suppress(RuntimeError):
            module = TinyModule(stop_at=stop_at, seconds=lambda step: seconds)
            trainer_with(bar, max_epochs=1).fit(module, loader(4))
        return text.getvalue().splitlines()[2]

    line_of(1, 100)
    line_of(2, 500, stop_at=3)
    assert line_of(3, 10).endswith("left 0:10, sweep 6:50"), "job 4 as long as job 1, 400 s"
    line_of(1, 20)
    assert line_of(2, 10).endswith("left 0:10, sweep 2:50"), "two jobs as long as job 1, 80 s each"


def test_jobs_of_one_process_time_each_other() -> None:
    for job, first in ((1, 100), (2, 10)):
        bar, text = plain_bar(job=job, jobs=3)
        module = TinyModule(seconds=lambda step, first=first: 10 if step else first)  # type: ignore[misc]
        trainer_with(bar, max_epochs=1).fit(module, loader(4))
    assert re.search(r"step 2/4 .* left 0:20, sweep 2:30$", text.getvalue(), re.MULTILINE), (
        "20 s of this job, and 130 s of the third, as long as the first took"
    )


def test_the_last_job_s_sweep_has_no_more_left_than_itself() -> None:
    bar, text = plain_bar(job=2, jobs=2)
    trainer_with(bar, max_epochs=1).fit(TinyModule(), loader(4))
    assert re.search(r"step 3/4 .* left 0:10, sweep 0:10$", text.getvalue(), re.MULTILINE)


@pytest.mark.parametrize("wrong", [{"job": 1}, {"jobs": 2}, {"job": 3, "jobs": 2}, {"job": 0, "jobs": 2}])
def test_job_and_jobs_must_fit_together(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="job"):
        ProgressWithTimeLeft(**wrong)
