from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from sharpreid.evaluate import build_empty_module, evaluate, main
from sharpreid.recipe import departures


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


def test_the_weights_that_a_run_started_from_are_not_needed_and_stay_in_its_label(
    composed: Callable[..., DictConfig],
) -> None:
    cfg = composed("model.trunk.weights=/gone/resnet50.pth")
    assert build_empty_module(cfg).network.trunk.coverage is None
    assert cfg.model.trunk.weights == "/gone/resnet50.pth"
    assert "weights none" not in departures(cfg)


@pytest.mark.parametrize("arguments", [["checkpoint"], ["seed=0"]])
def test_a_wrong_call_shows_the_usage(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"usage: python -m sharpreid\.evaluate"):
        evaluate(arguments)


def test_without_arguments_the_exit_status_says_that_it_was_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().out
