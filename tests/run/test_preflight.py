"""What config and data lists show is refused before the first step, not after hours."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from sharpreid.run.build import build_data, build_module, build_trainer
from sharpreid.run.evaluation import _score
from sharpreid.run.preflight import check_test, check_training, choose_small_batches

HELD_OUT = "data.validation_identities=4"


@pytest.fixture
def check(composed: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., None]:
    """Check a tiny training of 8 identities with overrides, after a change of its data."""

    def run(*overrides: str, change: Callable[[Any], None] | None = None) -> None:
        cfg = composed(f"output_dir={tmp_path}", *overrides)
        cfg.callbacks = cfg.logger = None  # some of them need Hydra's state
        data = build_data(cfg)
        data.setup("fit")
        if change is not None:
            change(data)
        check_training(cfg, build_trainer(cfg, training=True), build_module(cfg), data, None)

    return run


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [HELD_OUT, "trainer.num_sanity_val_steps=-1"],
        ["+trainer.limit_train_batches=1", "+trainer.limit_test_batches=1"],  # there is one batch
        ["trainer.check_val_every_n_epoch=null", "+trainer.max_steps=3"],
        ["schedule=noise_ramp", "batch_norm=4", "trainer.gradient_clip_val=0.5"],
    ],
)
def test_what_works_is_not_refused(overrides: list[str], check: Callable[..., None]) -> None:
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.identities_per_batch=9"], "only 8 training identities; .* recipe=small"),
        ([HELD_OUT, "data.identities_per_batch=5"], "only 4 training identities"),
        (["data.images_per_identity=1"], "must be at least 2"),
        (["data.eval_batch_size=0"], "eval_batch_size must be at least 1"),
        (["data.num_workers=-1"], "num_workers at least 0"),
        (["trainer.precision=16-true"], "Take 16-mixed or bf16-mixed"),
        (["batch_norm=3"], "batch_norm=3 must divide the 8 images"),
        (["model.head.in_features=100"], "head.in_features must be 256"),
        (["data.eval_batch_size=4", "+trainer.limit_test_batches=2"], "all 4 test batches"),
        (["data.eval_batch_size=4", "+trainer.limit_test_batches=0.9"], "all 4 test batches"),
        (["data.eval_batch_size=4", "+trainer.fast_dev_run=true"], "all 4 test batches"),
        (["data.eval_batch_size=8", HELD_OUT, "trainer.num_sanity_val_steps=1"], "all 2 validation batches"),
        (["+trainer.limit_train_batches=0"], "leaves none of 2 batches"),
        (["+trainer.limit_train_batches=0.3"], "leaves none of 2 batches"),
        (["+trainer.max_steps=0"], "max_steps must be .* at least 1"),
        (["+trainer.accumulate_grad_batches=0"], "accumulate_grad_batches must be"),
        (["trainer.gradient_clip_val=-1"], "gradient_clip_val must be > 0"),
        ([HELD_OUT, "trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch must be"),
        ([HELD_OUT, "+trainer.val_check_interval=5"], "val_check_interval=5 must be at most 1"),
        (["schedule=beta1_drop", "schedule.beta1.start=0", "schedule.beta1.after=1"], "beta1 .* in epoch 1"),
    ],
)
def test_what_would_fail_later_is_refused(
    overrides: list[str], message: str, check: Callable[..., None]
) -> None:
    with pytest.raises(ValueError, match=message):
        check(*overrides)


@pytest.mark.parametrize(
    ("batch", "overrides", "taken"),
    [
        (9, ["data=market1501", "seed=1"], 4),
        (9, ["+data.identities_per_batch=9"], 9),
        (9, ["recipe=paper"], 9),
        (9, ["+experiment=table1"], 9),
        (8, [], 8),
    ],
)
def test_few_identities_get_small_batches_unless_a_batch_was_chosen(
    composed: Callable[..., DictConfig],
    caplog: pytest.LogCaptureFixture,
    batch: int,
    overrides: list[str],
    taken: int,
) -> None:
    cfg = composed(f"data.identities_per_batch={batch}")
    data = build_data(cfg)
    used = choose_small_batches(cfg, data, overrides)
    assert used.data.identities_per_batch == data.identities_per_batch == taken
    told = "8 training identities are fewer than the 9 of a batch, so this training takes recipe=small"
    assert (told in caplog.text) == (taken == 4)


def test_data_that_cannot_be_read_leave_the_batches_as_they_are(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = composed(f"data.source.root={tmp_path}")
    assert choose_small_batches(cfg, build_data(cfg), []) == cfg


def of_one_camera(data: Any) -> None:
    data.test.samples = [sample._replace(camid=1) for sample in data.test.samples]


def without_gallery(data: Any) -> None:
    del data.test.samples[data.test.num_query :]


def with_a_distractor_as_query(data: Any) -> None:
    data.test.samples[0] = data.test.samples[0]._replace(pid=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_one_camera, "no query has a valid match .* 8 have matches only in their own camera"),
        (without_gallery, "8 queries and 0 gallery images"),
        (with_a_distractor_as_query, "1 queries, .* distractor_identity"),
    ],
)
def test_a_test_set_without_a_score_is_refused_before_the_training(
    change: Callable[[Any], None], message: str, check: Callable[..., None]
) -> None:
    with pytest.raises(ValueError, match=message):
        check(change=change)


@pytest.mark.parametrize(
    ("processes", "overrides", "message"),
    [
        (3, [], "multiple of the number of processes, 3"),
        (4, ["batch_norm=4"], "batch_norm=4 must divide the 2 images"),
        (18, ["data.identities_per_batch=18"], "only 8 training identities"),
        (4, ["+trainer.limit_test_batches=1", "data.eval_batch_size=2"], "all 2 test batches"),
    ],
)
def test_each_process_gets_its_part(
    processes: int,
    overrides: list[str],
    message: str,
    check: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda _: processes))
    monkeypatch.setattr("sharpreid.run.build._check_processes", lambda _: None)
    monkeypatch.setattr("sharpreid.run.preflight._runs_sweep_in_process", lambda: False)
    with pytest.raises(ValueError, match=message):
        check(*overrides)


def test_a_decay_that_never_starts_is_told(
    check: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check("schedule.learning_rate_factor.start=1")
    assert not caplog.records
    check()
    assert "does not decay" in caplog.text
    assert "trainer.max_epochs=2" in caplog.text


def test_a_score_without_test_images_is_refused_by_what_is_missing(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = composed(f"output_dir={tmp_path}")
    cfg.callbacks = cfg.logger = None
    data = build_data(cfg)
    whole = data.source()
    data.source = lambda: replace(whole, query=(), gallery=())
    with pytest.raises(ValueError, match="market1501 has no query and no gallery images"):
        check_test(build_trainer(cfg, training=False), build_module(cfg), data)


def test_an_evaluation_is_refused_before_it_embeds(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(f"output_dir={tmp_path}", "data.eval_batch_size=4", "+trainer.limit_test_batches=2")
    monkeypatch.setattr("sharpreid.run.loading.load_network", lambda *_: build_module(cfg))
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    with pytest.raises(ValueError, match="all 4 test batches"):
        _score(tmp_path / "final.ckpt", cfg, 0)
