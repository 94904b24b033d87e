"""Re-ranking in a run: asked for by name, used for the test alone, named in the record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from sharpreid.config.paths import CONF_DIR
from sharpreid.evaluation.re_ranking import KReciprocal, QueryExpansion
from sharpreid.run.build import build_data, build_module
from sharpreid.run.evaluation import evaluate
from sharpreid.run.records import describe_scores

NAMES = {"none", "k_reciprocal", "query_expansion"}


def scorer() -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@pytest.fixture
def checkpoint(composed: Callable[..., DictConfig], tmp_path: Path) -> Path:
    """An untrained network as a run leaves it, with its config."""
    cfg = composed("output_dir=out", "callbacks={}", "logger={}")
    path = tmp_path / "run" / "checkpoints" / "final.ckpt"
    path.parent.mkdir(parents=True)
    OmegaConf.save(cfg, tmp_path / "run" / "config.yaml")
    torch.manual_seed(0)
    torch.save({"state_dict": build_module(cfg).state_dict()}, path)
    return path


def evaluated(checkpoint: Path, *arguments: str) -> dict[str, Any]:
    output = checkpoint.with_suffix(".json")
    evaluate([f"checkpoint={checkpoint}", f"output={output}", *arguments])
    record: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return record


def test_each_config_is_built(composed: Callable[..., DictConfig]) -> None:
    assert {path.stem for path in CONF_DIR.glob("re_ranking/*.yaml")} == NAMES
    built = {
        name: build_module(composed(f"re_ranking={name}")).test_metric.re_ranking for name in sorted(NAMES)
    }
    assert built == {
        "none": None,
        "k_reciprocal": KReciprocal(k1=20, k2=6, lambda_value=0.3),
        "query_expansion": QueryExpansion(k=5),
    }
    assert composed().re_ranking is None


def test_held_out_identities_are_never_re_ranked(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("re_ranking=k_reciprocal", "data.validation_identities=2")
    module, data, trainer = build_module(cfg), build_data(cfg), scorer()
    assert module.validation_metric.re_ranking is None
    (validated,) = trainer.validate(module, data, verbose=False)
    assert "val/mAP" in validated
    assert not any("re_ranked" in name for name in validated)
    (tested,) = trainer.test(module, data, verbose=False)
    scores = module.last_scores("test")
    assert scores.plain is not None
    assert tested["test/mAP"] == pytest.approx(scores.plain.mAP)
    assert tested["test/re_ranked/mAP"] == pytest.approx(scores.mAP)
    record = describe_scores(cfg, module.test_metric.protocol, data.data, scores)
    assert record["protocol"]["re_ranking"] == "k_reciprocal k1=20 k2=6 lambda=0.3"
    assert record["scores"] == scores.as_dict()
    assert record["not_re_ranked"] == scores.plain.as_dict()


def test_evaluate_re_ranks_a_checkpoint_by_name(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = evaluated(checkpoint)
    assert (plain["protocol"]["re_ranking"], plain["not_re_ranked"]) == ("none", None)
    capsys.readouterr()
    found = evaluated(checkpoint, "re_ranking.k1=4", "re_ranking=k_reciprocal", "re_ranking.lambda_value=0")
    assert found["protocol"]["re_ranking"] == "k_reciprocal k1=4 k2=6 lambda=0"
    assert found["not_re_ranked"] == plain["scores"]
    printed = capsys.readouterr().out
    assert "re-ranking k_reciprocal k1=4 k2=6 lambda=0" in printed
    assert "│ re-ranked" in printed
    assert evaluated(checkpoint, "re_ranking=none") == plain


def test_evaluate_re_ranks_a_run_from_before_the_option(checkpoint: Path) -> None:
    config = checkpoint.parents[1] / "config.yaml"
    cfg = OmegaConf.load(config)
    assert isinstance(cfg, DictConfig)
    del cfg["re_ranking"]
    config.write_text(OmegaConf.to_yaml(cfg), encoding="utf-8")
    assert evaluated(checkpoint)["protocol"]["re_ranking"] == "none"
    assert evaluated(checkpoint, "re_ranking=query_expansion")["protocol"]["re_ranking"].endswith("k=5")


def test_an_unknown_re_ranking_is_refused(checkpoint: Path) -> None:
    expected = r"re_ranking=k: no such re-ranking; expected one of k_reciprocal, none, query_expansion"
    with pytest.raises(ValueError, match=expected):
        evaluated(checkpoint, "re_ranking=k")
    with pytest.raises(ValueError, match=r"re_ranking\.k1: the config of .* has no such key"):
        evaluated(checkpoint, "re_ranking.k1=4")
