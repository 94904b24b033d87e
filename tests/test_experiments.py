"""The scripts of experiments/, on a tiny network."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from sharpreid.run.build import build_data, build_module
from sharpreid.run.model_folder import write_model
from sharpreid.serving import calibration
from tests.serving.test_calibration import on_a_circle
from tests.serving.test_model import RECORD

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


def test_thresholds_are_measured_on_the_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SPLITS", 50)
    script = load(EXPERIMENTS / "threshold" / "measure.py")
    rows = script.measure(on_a_circle(np.random.default_rng(0), 600, images=1), splits=2)
    sizes = [(row["rate"], row["enrolled"], row["measured_enrolled"]) for row in rows]
    assert sizes[::3] == [(0.01, 150, 150), (0.01, 50, 50), (0.01, 50, 150)]
    for row in rows:
        if row["rate"] == 0.1:
            expected = 1 - 0.9 ** (row["measured_enrolled"] / row["enrolled"])
            assert row["measured"] == pytest.approx(expected, rel=0.5)
        assert row["interval"][0] < row["rate"] < row["interval"][1]
        assert row["measured_95"][0] <= row["measured"] <= row["measured_95"][1]


def test_test_people_are_embedded_without_distractors(
    composed: Callable[..., DictConfig], tiny_market: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_market, tmp_path / "market")
    test = tmp_path / "market" / "bounding_box_test"
    shutil.copy(next(iter(test.glob("*.jpg"))), test / "0000_c1s1_000000_00.jpg")
    cfg = composed(f"output_dir={tmp_path}", "name=tiny", f"data.source.root={tmp_path / 'market'}")
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=False)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "final.ckpt").touch()
    write_model(tmp_path / "model", cfg, build_module(cfg), mean=None, record=RECORD)
    script = load(EXPERIMENTS / "threshold" / "measure.py")
    distances = script.embed_test_people(tmp_path, tmp_path / "gallery")
    data = build_data(cfg)
    data.setup("test")
    people = [sample.pid for sample in (*data.data.query, *data.data.gallery)]
    assert people.count(0) == 1
    assert len(distances.person) == len(people) - 1
    assert distances.people == len({*people}) - 1
