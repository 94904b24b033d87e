import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from sharpreid.attention.mask import TestMask
from sharpreid.checkpoint_files import DamagedCheckpointError
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.evaluate import main
from sharpreid.run.console import gather_readings, print_readings
from sharpreid.run.evaluation import combinations, evaluate, evaluate_sweep, load_sweeps
from sharpreid.run.loading import build_empty_module, load_network
from sharpreid.run.paper_recipe import recipe_deviations


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such file; expected RUN/checkpoints"):
        evaluate([f"checkpoint={tmp_path / 'none.ckpt'}"])


def test_a_checkpoint_away_from_its_run_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "final.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(FileNotFoundError, match=r"config\.yaml: the config of the run is missing"):
        evaluate([f"checkpoint={checkpoint}"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An empty file in the place of a run's checkpoint."""
    path = tmp_path / "run" / "checkpoints" / "final.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_an_unknown_key_is_refused(checkpoint: Path) -> None:
    (checkpoint.parents[1] / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError, match=r"data\.eval_transform\.rot: the config of .* has no such key"):
        evaluate([f"checkpoint={checkpoint}", "data.eval_transform.rot=flip"])


@pytest.mark.parametrize(
    "key", ["seed", "name", "optimizer.lr", "model.blocks", "trainer.max_epochs", "data.source.split"]
)
def test_what_does_not_concern_the_scoring_cannot_be_given(checkpoint: Path, key: str) -> None:
    (checkpoint.parents[1] / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError, match=f"{key} does not concern the scoring; allowed are data_root"):
        evaluate([f"checkpoint={checkpoint}", f"{key}=1"])


def test_a_baseline_has_no_mask_to_change(checkpoint: Path) -> None:
    (checkpoint.parents[1] / "config.yaml").write_text(
        "model: {blocks: [], sampler: {test_mask: noise_free}}\ndata: {num_workers: 0}\n"
    )
    with pytest.raises(ValueError, match=r"test_mask: the network of .* has no attention block"):
        evaluate([f"checkpoint={checkpoint}", "model.sampler.test_mask=hard"])


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_named(
    checkpoint: Path, content: bytes, composed: Callable[..., DictConfig]
) -> None:
    checkpoint.write_bytes(content)
    OmegaConf.save(
        composed("output_dir=out", "callbacks={}", "logger={}"), checkpoint.parents[1] / "config.yaml"
    )
    with pytest.raises(ValueError, match=r"final\.ckpt: not a plain file of tensors"):
        evaluate([f"checkpoint={checkpoint}"])


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_not_run(
    checkpoint: Path, composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with status 1."""
    torch.save({"state_dict": Touch(checkpoint.with_name("ran"))}, checkpoint)
    OmegaConf.save(
        composed("output_dir=out", "callbacks={}", "logger={}"), checkpoint.parents[1] / "config.yaml"
    )
    with pytest.raises(SystemExit) as stop:
        main([f"checkpoint={checkpoint}"])
    assert stop.value.code == 1
    assert "final.ckpt: not a plain file of tensors" in capsys.readouterr().err
    assert not checkpoint.with_name("ran").exists()


def test_a_checkpoint_of_another_network_is_compared_with_the_config(
    checkpoint: Path, composed: Callable[..., DictConfig]
) -> None:
    cfg = composed("output_dir=out", "callbacks={}", "logger={}", "model.blocks=[1]")
    torch.save({"state_dict": build_empty_module(cfg).state_dict()}, checkpoint)
    load_network(checkpoint, cfg)
    cfg.model.head.embedding_dim = 64
    with pytest.raises(ValueError, match=r"final\.ckpt: a checkpoint of another network .*wanted \(64, "):
        load_network(checkpoint, cfg)


def test_a_checkpoint_that_is_not_that_of_its_checksum_is_refused(
    checkpoint: Path, composed: Callable[..., DictConfig]
) -> None:
    cfg = composed("output_dir=out", "callbacks={}", "logger={}", "model.blocks=[1]")
    SafeCheckpointIO().save_checkpoint({"state_dict": build_empty_module(cfg).state_dict()}, checkpoint)
    load_network(checkpoint, cfg)
    with checkpoint.open("r+b") as file:
        file.seek(-100_000, 2)
        file.write(b"\xff")
    with pytest.raises(DamagedCheckpointError, match=r"damaged: its SHA-256 is .*; take another copy"):
        load_network(checkpoint, cfg)


def test_the_weights_that_a_run_started_from_are_not_needed_and_stay_in_its_label(
    composed: Callable[..., DictConfig],
) -> None:
    cfg = composed("model.trunk.weights=/gone/resnet50.pth")
    assert build_empty_module(cfg).network.trunk.coverage is None
    assert cfg.model.trunk.weights == "/gone/resnet50.pth"
    assert "weights none" not in recipe_deviations(cfg)


@pytest.mark.parametrize("arguments", [["checkpoint"], ["seed=0"]])
def test_a_wrong_call_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "usage: python -m sharpreid.evaluate" in capsys.readouterr().err


def test_without_arguments_the_exit_status_says_that_it_was_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().out


def test_a_sweep_looks_at_every_key_before_it_scores(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint.parents[1] / "config.yaml").write_text("model: {sampler: {test_mask: expected}}\n")
    with pytest.raises(ValueError, match=r"model\.sampler\.draw: the config of .* has no such key"):
        evaluate_sweep(
            [f"checkpoint={checkpoint}", "model.sampler.test_mask=hard,expected", "model.sampler.draw=1"]
        )
    assert capsys.readouterr().out == ""


def test_the_named_evaluation_has_every_reading_of_the_mask() -> None:
    """Five, one of them drawn with one and with eight draws, five times each."""
    settings = [combination for sweep in load_sweeps("test_mask") for combination in combinations(sweep)]
    masks = [setting[0].removeprefix("model.sampler.test_mask=") for setting in settings]
    assert sorted({*masks}) == sorted(get_args(TestMask))
    assert masks.count("sample") == 10
    assert [one["settings"] for one in next(iter(gather(settings).values()))] == [settings[0]]
    assert sorted(map(len, gather(settings).values())) == [1, 1, 1, 1, 5, 5]


def gather(settings: list[list[str]]) -> dict[str, list[Mapping[str, Any]]]:
    return gather_readings([{"settings": setting} for setting in settings], together="model.sampler.seed")


def test_an_unknown_evaluation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match="no such evaluation; expected one of test_mask"):
        evaluate_sweep(["checkpoint=final.ckpt", "+experiment=test_masks"])


def test_readings_of_one_setting_are_printed_as_mean_and_range() -> None:
    scores = {"mAP": 0.2, "rank1": 0.3, "rank5": 0.4}
    dataset, reduced = {"name": "market1501"}, "short"
    records = [
        {"settings": ["draws=1", f"seed={seed}"], "scores": {**scores, "mAP": value}, "dataset": dataset}
        | {"deviations": reduced}
        for seed, value in enumerate((0.2, 0.4))
    ]
    console = Console(file=io.StringIO(), width=100)
    print_readings(records, together="seed", console=console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "30.0 (20.0 to 40.0)" in text
    assert "market1501" in text
    assert text.count("not comparable with the paper") == 1
