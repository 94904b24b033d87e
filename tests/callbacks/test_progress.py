import io
import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sharpreid.callbacks import progress
from sharpreid.callbacks.progress import (
    Bar,
    Lines,
    Pass,
    ProgressWithTimeLeft,
    SweepClock,
    plain_line,
    sweep_left,
)

CONTROL = "\x1b"

# Lightning advises loader workers and a validation set, which these tiny runs do without on purpose, and
# asks torch's pytree in a way that newer torch releases warn about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]


class TinyModule(pl.LightningModule):
    def __init__(self, *, stop_at: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.stop_at = stop_at

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.stop_at:
            raise RuntimeError("the loss is not finite")
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/tau", 0.5, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/mAP", torch.tensor(0.25))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
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
    monkeypatch.setattr(progress, "_sweep", SweepClock())
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
    return ProgressWithTimeLeft(console=Console(file=text, force_terminal=False), **settings), text


def moving_bar(**settings: Any) -> tuple[ProgressWithTimeLeft, io.StringIO]:
    text = io.StringIO()
    return ProgressWithTimeLeft(console=Console(file=text, force_terminal=True, width=140), **settings), text


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    for display in (Bar, Lines):
        monkeypatch.setattr(display, "due", lambda self, now: True)


def test_a_pipe_gets_lines_over_all_epochs_without_control_characters(always_due: None) -> None:
    bar, text = plain_bar(label="blocks=[1,2]", job=3, jobs=8)
    trainer_with(bar).fit(TinyModule(), loader(4), loader(1))
    lines = text.getvalue().splitlines()
    steps = [line for line in lines if "step" in line]
    assert CONTROL not in text.getvalue()
    assert all(line.startswith("[3/8] blocks=[1,2]: step ") for line in lines)
    assert steps[0].split(": ")[1].startswith("step 1/12 8 % loss ")
    assert re.search(
        r"step 7/12 58 % loss \S+ held-out mAP 25.0 % tau 0.5 left 0:00, sweep 0:0\d$", "\n".join(steps), re.M
    )
    assert re.search(r"step 12/12 100 % loss \S+ held-out mAP 25.0 % tau 0.5 took 0:0\d$", steps[-1])


def test_a_short_run_prints_only_its_end() -> None:
    bar, text = plain_bar()
    trainer_with(bar).fit(TinyModule(), loader(4))
    assert len(text.getvalue().splitlines()) == 1


def test_lines_come_after_ten_seconds_or_a_tenth_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = Lines(console=Console(file=io.StringIO()))

    def due(seconds: float, done: int) -> bool:
        now[0] = seconds
        return lines.due(Pass("", "step", 100, done))

    assert not due(0.1, 0)
    assert not due(0.9, 50)
    assert not due(9.9, 9)
    assert due(1.1, 10)
    assert due(10.0, 1)
    lines.show(Pass("", "step", 100, 10))
    assert not due(19.9, 19)
    assert due(20.0, 11)


def test_a_terminal_gets_one_bar_over_all_epochs(always_due: None) -> None:
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
    text = io.StringIO()
    start = Pass("[3/8] " + "blocks=[1,2]" * 9, "step", 460)
    bar = Bar(console=Console(file=text, force_terminal=True, width=100), now=start)
    bar.show(replace(start, done=120, elapsed=12.0, left=34.6, sweep_left=250.0, figures={"loss": "0.41"}))
    bar.close()
    assert "0:12  left 0:35, sweep 4:10" in text.getvalue()


@pytest.mark.parametrize("make", [plain_bar, moving_bar])
def test_test_and_validation_passes_have_their_own_bar(make: Any, always_due: None) -> None:
    bar, text = make()
    trainer = trainer_with(bar)
    trainer.test(TinyModule(), loader(5), verbose=False)
    trainer.validate(TinyModule(), loader(3), verbose=False)
    assert "test 5/5" in text.getvalue()
    assert "validation 3/3" in text.getvalue()
    assert "step" not in text.getvalue()


@pytest.mark.parametrize("make", [plain_bar, moving_bar])
def test_sanity_validation_shows_nothing(make: Any, always_due: None) -> None:
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
def test_a_run_of_unknown_length_counts_without_a_total(make: Any, always_due: None) -> None:
    bar, text = make()

    class StopsAtSix(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 6

    trainer = trainer_with(bar, max_epochs=-1)
    trainer.callbacks.append(StopsAtSix())
    trainer.fit(TinyModule(), DataLoader(Endless(), batch_size=2))
    assert "step 6" in text.getvalue()
    assert "step 6/" not in text.getvalue()


def test_steps_are_the_optimizers_when_gradients_accumulate(always_due: None) -> None:
    bar, text = plain_bar()
    trainer_with(bar, accumulate_grad_batches=2).fit(TinyModule(), loader(4))
    assert text.getvalue().splitlines()[-1].startswith("step 6/6 100 %")


def test_a_resumed_run_goes_on_from_its_step(tmp_path: Any, always_due: None) -> None:
    first = trainer_with(plain_bar()[0], max_epochs=1)
    first.fit(TinyModule(), loader(4))
    first.save_checkpoint(tmp_path / "last.ckpt")
    bar, text = plain_bar()
    trainer_with(bar).fit(TinyModule(), loader(4), ckpt_path=tmp_path / "last.ckpt")
    assert text.getvalue().splitlines()[0].startswith("step 5/12 41 %")


def test_an_error_gives_the_terminal_back() -> None:
    bar, text = moving_bar()
    with pytest.raises(RuntimeError, match="the loss is not finite"):
        trainer_with(bar).fit(TinyModule(stop_at=2), loader(4))
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h") == 1


def test_disabled_bar_is_silent_and_enabling_brings_it_back(always_due: None) -> None:
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


def test_only_the_first_process_shows_anything(monkeypatch: pytest.MonkeyPatch, always_due: None) -> None:
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


def test_a_timed_test_pass_counts_as_time_left_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar, _ = plain_bar()
    bar._open("step", 10, 0)
    bar._test_seconds = 30.0
    for second, done in ((100.0, 1), (102.0, 2), (104.0, 3)):
        now[0] = second
        bar._count(done)
    assert bar._left() == pytest.approx(7 * 2.0 + 30.0), "the slow first step is no part of the pace"


def test_sweep_clock_counts_trained_jobs_from_start_to_start() -> None:
    sweep = SweepClock()
    sweep.begin(1, now=0.0)
    sweep.trained = True
    sweep.begin(1, now=50.0)
    sweep.begin(2, now=100.0)
    sweep.begin(3, now=101.0)
    assert sweep.finished == [100.0], "job 2 did not train to its end"
    sweep.begin(1, now=500.0)
    assert sweep.finished == [], "an earlier number is another sweep"


def test_jobs_of_one_process_time_each_other() -> None:
    for job in (1, 2, 3):
        trainer_with(plain_bar(job=job, jobs=3)[0], max_epochs=1).fit(TinyModule(), loader(2))
    assert len(progress._sweep.finished) == 2


def test_sweep_left_after_the_last_job_is_the_jobs_own() -> None:
    assert sweep_left(10.0, 50.0, later_jobs=0, finished=[80.0]) == 10.0


def test_plain_line_of_a_sweep_has_both_times() -> None:
    line = plain_line(Pass("a", "step", 4, 1, 3.0, 9.0, 3700.0))
    assert line == "a: step 1/4 25 % left 0:09, sweep 1:01:40"


@pytest.mark.parametrize("wrong", [{"job": 1}, {"jobs": 2}, {"job": 3, "jobs": 2}, {"job": 0, "jobs": 2}])
def test_job_and_jobs_must_fit_together(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="job"):
        ProgressWithTimeLeft(**wrong)
