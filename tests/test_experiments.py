"""The scripts of experiments/, on a tiny network."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from sharpreid.run.build import build_module

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted(EXPERIMENTS.rglob("*.py"))

RANK_PY = """
import numpy as np

def eval_market1501(distmat, q_pids, g_pids, q_camids, g_camids, max_rank):
    cmc, precisions = np.zeros(max_rank), []
    for row, pid, camid in zip(distmat, q_pids, q_camids):
        order = np.argsort(row, kind="stable")
        order = order[~((g_pids[order] == pid) & (g_camids[order] == camid))]
        hits = np.flatnonzero(g_pids[order] == pid)
        precisions.append(np.mean((np.arange(len(hits)) + 1) / (hits + 1)))
        cmc[hits[0]:] += 1
    return cmc / len(distmat), np.mean(precisions)
"""
"""A ranking with the interface of torchreid's rank.py."""


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scripts_are_found() -> None:
    assert {script.name for script in SCRIPTS} >= {"compare_ranking.py", "measure.py"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.parent.name)
def test_a_script_imports_and_explains_itself(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(script).main(["--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_a_checkpoint_is_scored_alike_by_both_rankings(
    composed: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed(f"output_dir={tmp_path}", "name=tiny")
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=False)
    checkpoint = tmp_path / "checkpoints" / "final.ckpt"
    checkpoint.parent.mkdir()
    torch.manual_seed(0)
    torch.save({"state_dict": build_module(cfg).state_dict()}, checkpoint)
    (tmp_path / "rank.py").write_text(RANK_PY)
    load(EXPERIMENTS / "block_ablation" / "compare_ranking.py").main(
        [str(checkpoint), str(tmp_path / "rank.py")]
    )
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = {line[0]: list(map(float, line[1:])) for line in printed if line and line[0].endswith("reid")}
    assert len(scores["sharpreid"]) == 4
    assert 0 < scores["sharpreid"][0] <= 1
    assert scores["sharpreid"] == pytest.approx(scores["torchreid"], abs=1e-12)


def test_a_missing_checkout_of_torchreid_is_named(tmp_path: Path) -> None:
    script = load(EXPERIMENTS / "block_ablation" / "compare_ranking.py")
    samples = torch.zeros(1, 2), torch.ones(1), torch.ones(1)
    with pytest.raises(FileNotFoundError, match=r"none\.py"):
        script.score_by_torchreid(samples, samples, tmp_path / "none.py")


def test_the_gradient_through_the_mask_is_measured_and_drawn(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    script = load(EXPERIMENTS / "mask_gradient" / "measure.py")
    slopes = script.measure_slopes(draws=200)
    constant = [row for row in slopes if row["gradient"] == "straight_through_pi"]
    assert constant
    assert all(row["mean"] == pytest.approx(1) for row in constant), "dM/dpi is replaced by 1"
    rare = [row for row in slopes if row["gradient"] == "whole" and row["pi"] == 0.001]
    assert rare
    assert all(row["deviation"] > 1 for row in rare), "no bound as pi goes to 0"
    cosines = script.measure_cosines(composed("model.blocks=[1,2]"), noises=2)
    assert {row["part"] for row in cosines} == {"stage 1", "stage 2", "stage 3", "stage 4", "head"}
    assert all(-1 <= row["cosine"] <= 1.000001 for row in cosines)
    script.draw_figure(slopes, cosines, "tiny").savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
