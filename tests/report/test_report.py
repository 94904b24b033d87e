"""Test the report on records made by hand, and the page of real small runs in a browser."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from sharpreid.config.paths import CONF_DIR
from sharpreid.report.__main__ import main, write_report
from sharpreid.report.figures import draw_curves, read_curve
from sharpreid.report.paper_tables import (
    METHODS,
    TABLES,
    comparable_runs,
    gains_table,
    paper_table,
    read_paper,
    run_tables,
)
from sharpreid.report.runs import distinct_runs, group_sweeps, load_runs, read_experiment
from sharpreid.run.comparability import method_of

PROTOCOL = {
    "name": "market1501",
    "ap": "step",
    "crops": "ten_crop",
    "test_mask": "noise_free",
    "re_ranking": "none",
}
DUKE = {**PROTOCOL, "name": "duke"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def record(folder: Path, config: DictConfig, *, mAP: float, seed: int = 0, **changed: Any) -> None:
    """Write the folder of a finished run."""
    folder.mkdir(parents=True)
    job = {
        "status": "done",
        "started": float(seed),
        "name": "table1",
        "overrides": [f"seed={seed}"],
        "error": None,
    }
    dataset = {"name": "market1501", "synthetic": False, "subset": None, **changed.pop("dataset", {})}
    scores = {"mAP": mAP, "rank1": mAP, "rank5": mAP, "rank10": mAP}
    content = {
        "scores": scores,
        "protocol": PROTOCOL,
        "dataset": dataset,
        "deviations": "",
        "seed": seed,
        **changed,
    }
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "scores.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.merge(config, {"seed": seed})))


@pytest.mark.parametrize(
    "method",
    sorted(path.stem for path in CONF_DIR.glob("method/*.yaml")),
)
def test_a_method_is_known_by_its_config(composed: Callable[..., DictConfig], method: str) -> None:
    assert method_of(composed(f"method={method}")) == method


def test_what_is_no_method_of_the_paper_is_called_by_what_it_is(composed: Callable[..., DictConfig]) -> None:
    assert method_of(composed("model.blocks=[2,1]")) == "blocks 1+2"
    assert method_of(composed("method=sab", "objective=tv")) == "blocks 1+2+3+4, TV"
    assert method_of(composed("method=sab", "model.combine=concat")) == "blocks 1+2+3+4, concat"
    assert method_of(composed("method=sigmoid_gate", "model.blocks=[1]")) == "blocks 1, SigmoidGate"
    one = composed("method=residual_attention", "model.blocks=[1]", "model.context_blocks=[1]")
    assert method_of(one) == "blocks 1, context 1, Identity, ResidualAttentionMask"
    penalised = composed("method=residual_attention", "objective=tv")
    assert method_of(penalised) == "blocks 1+2+3, context 1+2+3, Identity, ResidualAttentionMask, TV"


def test_only_runs_by_the_papers_rules_stand_beside_its_numbers(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    sab = composed("method=sab")
    record(tmp_path / "a", sab, mAP=0.70, seed=0)
    record(tmp_path / "b", sab, mAP=0.72, seed=1)
    record(tmp_path / "synthetic", sab, mAP=0.9, dataset={"synthetic": True})
    record(tmp_path / "part", sab, mAP=0.9, dataset={"subset": "every 5th identity"})
    record(tmp_path / "deviations", sab, mAP=0.9, deviations="epochs 5 (150)")
    record(tmp_path / "re-ranked", sab, mAP=0.9, protocol={**PROTOCOL, "re_ranking": "k_reciprocal"})
    record(tmp_path / "multi", sab, mAP=0.9, protocol={**PROTOCOL, "name": "market1501 multi-query (mean)"})
    record(tmp_path / "all", sab, mAP=0.9, protocol={**PROTOCOL, "denominator": "all_queries"})
    record(tmp_path / "no cameras", sab, mAP=0.9, protocol={**PROTOCOL, "cameras": "unknown"})
    record(tmp_path / "variant", sab, mAP=0.9, dataset={"variant": "10 cameras"})
    record(tmp_path / "other", composed("method=sab_cu"), mAP=0.9, dataset={"name": "duke"}, protocol=DUKE)
    runs, others = load_runs([tmp_path])
    assert not others
    assert {run.job.folder.name for run in comparable_runs(runs, "sab", "market1501")} == {"a", "b"}
    rows = {(row.name, row.dataset): row for row in paper_table("Table I", runs, read_paper())}
    row = rows["Baseline + SAB", "market1501"]
    cell = row.cells["mAP"]
    assert (cell.paper, cell.ours, cell.difference, row.runs) == ("68.3", "71.0 (70.0 to 72.0)", "+2.7", 2)
    assert (row.missing, row.command) == ("", "")
    assert "crops ten_crop" in row.protocol
    empty = rows["Baseline + SAB + CU", "market1501"]
    assert empty.cells["mAP"].ours == "-"
    assert empty.missing == "not run"
    assert empty.command == "python -m sharpreid.train +experiment=table1 data=market1501 method=sab_cu"
    comparable = [one for one in run_tables(runs) if not one.caveats]
    assert [(one.title, len(one.rows)) for one in comparable] == [
        ("duke, by the paper's rules", 1),
        ("market1501, by the paper's rules", 1),
    ]
    others = [one for one in run_tables(runs) if one.caveats]
    assert all("not comparable with the paper" in one.title for one in others)
    own = [line for one in others for line in one.rows]
    assert len(own) == 8
    assert {line["mAP"] for line in own} == {"90.0"}


def test_a_table_states_once_what_its_runs_share(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    record(tmp_path / "a", composed("method=sab"), mAP=0.7, deviations="epochs 5 (150), P 8 (64)")
    record(tmp_path / "b", composed("method=sab"), mAP=0.6, seed=1, deviations="epochs 5 (150), P 8 (64)")
    record(tmp_path / "c", composed("method=sab_cu"), mAP=0.5, deviations="epochs 5 (150), mu 1 (0.1)")
    runs, _ = load_runs([tmp_path])
    (shown,) = run_tables(runs)
    (caveat,) = shown.caveats
    assert "epochs 5 (150); in some runs P 8 (64), mu 1 (0.1)" in caveat
    assert [line["own settings"] for line in shown.rows] == ["P 8 (64)", "mu 1 (0.1)"]
    assert [line["seeds"] for line in shown.rows] == ["0, 1", "0"]
    assert "crops ten_crop" in shown.protocol


def test_the_page_begins_with_the_runs_and_ends_with_commands(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    record(tmp_path / "runs" / "a", composed("method=sab"), mAP=0.7)
    (tmp_path / "runs" / "b").mkdir()
    stopped = {"status": "running", "started": 1.0, "overrides": ["seed=1", "model.blocks=[1, 2]"]}
    (tmp_path / "runs" / "b" / "job.json").write_text(json.dumps(stopped))
    page = write_report([tmp_path / "runs"], tmp_path / "report", images=0).read_text()
    headings = re.findall(r"<h[23][^>]*>([^<]*)<", page)
    assert headings[:2] == ["What was run", "market1501, by the paper&#39;s rules"]
    papers = headings.index("The paper's tables")
    assert headings[papers + 1 : papers + 3] == ["Table I: components", "What is missing"]
    _, _, end = page.partition('id="missing"')
    assert "sharpreid.train +experiment=table1 data=duke method=sab\n" in end
    assert "sharpreid.train" not in page.partition('id="missing"')[0]
    command = (
        f"seed=1 &#39;model.blocks=[1, 2]&#39; hydra.mode=RUN hydra.run.dir={tmp_path}/runs/b resume=auto"
    )
    assert f"python -m sharpreid.train {command}</pre>" in end


def test_runs_by_other_rules_do_not_share_a_mean(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    sab, v1 = composed("method=sab"), composed("method=sab", "model.trunk.strides=v1")
    expected = composed("method=sab", "model.sampler.test_mask=expected")
    record(tmp_path / "noise-free", sab, mAP=0.70)
    record(tmp_path / "expected", expected, mAP=0.72, protocol={**PROTOCOL, "test_mask": "expected"})
    record(tmp_path / "v1", v1, mAP=0.74)
    runs, _ = load_runs([tmp_path])
    rows = [row for row in paper_table("Table I", runs, read_paper()) if row.runs]
    assert sorted(row.cells["mAP"].ours for row in rows) == ["70.0", "72.0", "74.0"]
    assert {row.runs for row in rows} == {1}
    (v1_row,) = [row for row in rows if row.cells["mAP"].ours == "74.0"]
    assert v1_row.protocol.endswith("strides v1")


def test_the_same_run_in_two_experiments_counts_once(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    record(tmp_path / "table1", composed("method=sab", "name=table1"), mAP=0.70)
    record(tmp_path / "fig5", composed("model.blocks=[1,2,3,4]", "name=fig5", "logger=csv"), mAP=0.70)
    record(tmp_path / "seed1", composed("method=sab", "name=table1"), mAP=0.72, seed=1)
    runs, _ = load_runs([tmp_path])
    assert len(runs) == 3
    assert len(distinct_runs(runs)) == 2
    assert [row.runs for row in paper_table("Table I", runs, read_paper()) if row.runs] == [2]


def test_a_row_with_another_total_variation_says_where_its_runs_are(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    record(tmp_path / "tv", composed("method=sab_cu_tv"), mAP=0.7, deviations="mu 0.01 (0.1)")
    runs, _ = load_runs([tmp_path])
    rows = {(row.name, row.dataset): row for row in paper_table("Table I", runs, read_paper())}
    row = rows["Baseline + SAB + CU + TV", "market1501"]
    assert "not comparable" in row.missing
    assert row.command.endswith("method=sab_cu_tv objective=tv_as_printed")
    assert rows["Baseline + SAB + CU + TV", "duke"].missing == "not run"
    assert [line["method"] for one in run_tables(runs) for line in one.rows] == ["sab_cu_tv"]


def test_gains_are_over_the_baseline_by_the_same_rules(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    unmasked = {**PROTOCOL, "test_mask": "none"}
    baseline, sab = composed("method=baseline"), composed("method=sab")
    plain = composed("method=baseline", "data.eval_transform.crops=plain")
    record(tmp_path / "baseline0", baseline, mAP=0.60, seed=0, protocol=unmasked)
    record(tmp_path / "baseline1", baseline, mAP=0.62, seed=1, protocol=unmasked)
    record(tmp_path / "plain", plain, mAP=0.10, protocol={**unmasked, "crops": "plain"})
    record(tmp_path / "sab0", sab, mAP=0.63, seed=0)
    record(tmp_path / "sab1", sab, mAP=0.65, seed=1)
    record(tmp_path / "deviations", sab, mAP=0.99, seed=2, deviations="epochs 5 (150)")
    runs, _ = load_runs([tmp_path])
    rows = gains_table(runs, read_paper())
    (row,) = [row for row in rows if row.runs]
    assert (row.name, row.dataset, row.runs) == ("Fig. 5(c): SAB", "market1501", 2)
    cell = row.cells["mAP_gain"]
    assert (cell.paper, cell.ours, cell.difference) == ("+0.4 (of Table I)", "+3.0 (+2.0 to +4.0)", "+2.6")
    papers = {(row.name, row.dataset): row.cells["mAP_gain"].paper for row in rows}
    assert papers["Fig. 5(a, b): blocks 1+2+3+4", "cuhk03_labeled"] == "+2.9"
    assert papers["Fig. 5(a, b): blocks 1", "cuhk03_labeled"] == "a bar without a number"
    assert papers["Sec. IV-D: SAB + CU + TV", "duke"] == "+2.4"
    assert len(rows) == 7 + 6 + 4
    commands = {(row.name, row.dataset): (row.missing, row.command) for row in rows}
    assert commands["Sec. IV-D: SAB + CU + TV", "market1501"] == (
        "not run",
        "python -m sharpreid.train +experiment=table1 data=market1501 method=sab_cu_tv "
        "objective=tv_as_printed",
    )
    fig5 = "python -m sharpreid.train +experiment=fig5 data=cuhk03_labeled"
    assert commands["Fig. 5(a, b): blocks 1+2", "cuhk03_labeled"] == (
        "not run",
        f"{fig5} model.blocks=[]; {fig5} model.blocks=[1,2]",
    )


def test_a_gain_without_a_baseline_says_so(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    record(tmp_path / "sab", composed("method=sab"), mAP=0.63)
    runs, _ = load_runs([tmp_path])
    (row,) = [
        row
        for row in gains_table(runs, read_paper())
        if (row.name, row.dataset) == ("Fig. 5(c): SAB", "market1501")
    ]
    assert row.missing.startswith("no baseline")
    assert row.command == "python -m sharpreid.train +experiment=fig5c data=market1501 method=baseline"


def test_a_baseline_without_score_leaves_the_gain_out(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    unmasked = {**PROTOCOL, "test_mask": "none"}
    record(tmp_path / "baseline", composed("method=baseline"), mAP=float("nan"), protocol=unmasked)
    record(tmp_path / "sab", composed("method=sab"), mAP=0.63)
    runs, _ = load_runs([tmp_path])
    (row,) = [row for row in gains_table(runs, read_paper()) if row.runs]
    assert row.cells["mAP_gain"].ours == "-"


def test_a_run_at_full_size_that_the_paper_does_not_have_is_not_lost(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    record(tmp_path / "gate", composed("method=sigmoid_gate"), mAP=0.7)
    record(tmp_path / "soft", composed("method=residual_attention"), mAP=0.7)  # the paper's is on CUHK03
    record(tmp_path / "msmt17", composed("method=sab"), mAP=0.3, seed=1, dataset={"name": "msmt17"})
    record(tmp_path / "table1", composed("method=sab"), mAP=0.7)
    runs, _ = load_runs([tmp_path])
    lines = [(one.title, line) for one in run_tables(runs) for line in one.rows]
    assert [(title.partition(",")[0], line["method"]) for title, line in lines if line["own settings"]] == [
        ("market1501", "residual_attention"),
        ("market1501", "sigmoid_gate"),
        ("msmt17", "sab"),
    ]
    notes = {line["own settings"] for _, line in lines}
    assert notes == {"", "the paper has no number for it"}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", "a: [", "config.yaml"),
        (
            "config.yaml",
            "model: {sampler: {}}",
            r"config\.yaml: no model\.blocks",
        ),
        ("config.yaml", None, "config.yaml"),
        ("scores.json", "{}", r"scores\.json: no scores"),
        ("scores.json", '{"scores": {}, "dataset": {"name": "a"}, "protocol": null}', "no protocol"),
        (
            "csv/metrics.csv",
            "epoch,train/triplet\n0,fast\n",
            r"metrics\.csv: train/triplet",
        ),
    ],
)
def test_one_damaged_run_is_said_and_the_others_are_shown(
    composed: Callable[..., DictConfig], tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    runs = tmp_path / "runs"
    record(runs / "whole", composed("method=sab"), mAP=0.71)
    record(runs / "damaged", composed("method=baseline"), mAP=0.5)
    path = runs / "damaged" / file
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    write_report([runs], tmp_path / "report", images=0)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "71.0" in text
    if said.startswith(r"metrics\.csv"):  # what else the sweep has is shown
        assert re.search(said, text.partition("## Sweep")[2].partition("## What is missing")[0])
        assert "figures/sweep-" in text
    else:
        assert re.search(said, text.partition("## What is missing")[2])


def test_every_row_of_the_paper_that_can_be_run_is_in_a_table() -> None:
    paper = read_paper()
    names = {row.name for place in TABLES for row in paper_table(place, [], paper)}
    assert set(METHODS) <= names
    literature = [row for row in paper_table("Table V", [], paper) if row.name not in METHODS]
    assert literature
    assert {(row.missing, row.command) for row in literature} == {("from the literature", "")}


def test_the_parameters_of_table_iv_are_counted() -> None:
    rows = {row.name: row for row in paper_table("Table IV", [], read_paper())}
    ours, theirs = rows["Our sharp attention network"], rows["Residual attention network [19]"]
    assert (ours.cells["parameters_total"].paper, ours.cells["parameters_total"].ours) == ("10.67", "10.67")
    assert (theirs.cells["parameters_total"].paper, theirs.cells["parameters_total"].ours) == (
        "42.98",
        "42.96",
    )


def test_an_experiment_tells_its_baseline_and_claim() -> None:
    baseline, claim = read_experiment("block_ablation")
    assert baseline == "model.blocks=[]"
    assert claim.startswith("Fig. 5(a, b): which blocks should attend?")
    assert read_experiment("mine") == (None, "")


def test_curves_are_means_over_an_epoch(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text(
        "epoch,train/loss,val/mAP\n0,1,\n0,3,\n0,,0.5\n1,nan,\n1,4,\n2,,0.7\n"
    )
    assert read_curve(tmp_path, "train/loss") == [(0, 2.0), (1, 4.0)]
    assert read_curve(tmp_path, "val/mAP") == [(0, 0.5), (1, 0.7)]
    assert read_curve(tmp_path, "train/tau") == []
    assert read_curve(tmp_path / "none", "train/tau") == []


def test_short_curves_are_marked_and_long_legends_stay_on_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: seen.append(figure))
    (tmp_path / "csv").mkdir()
    quantities = [f"train/entropy_block{block}" for block in range(1, 5)]
    values = "\n".join(f"{epoch},{','.join(['0.99999'] * 4)}" for epoch in range(2))
    (tmp_path / "csv" / "metrics.csv").write_text(f"epoch,{','.join(quantities)}\n{values}\n")
    runs = {f"model.blocks={number}, {'some.long.key=value ' * 3}": [tmp_path] for number in range(3)}
    with suppress(OSError):  # the stand-in writes no file
        draw_curves(runs, {one: one for one in quantities}, [tmp_path / "a.png"], title="t")
    (figure,) = seen
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 <= page.y1
    assert all("1 seed" in text.get_text().replace("\n", " ") for text in legend.get_texts())
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert {line.get_marker() for line in axes.lines} == {"o"}
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        assert axes.yaxis.get_offset_text().get_text() == ""
        assert axes.get_ylim() == pytest.approx((-0.03, 1.03))


def test_a_repetition_is_no_further_seed(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    record(tmp_path / "a", composed("method=sab"), mAP=0.7)
    record(tmp_path / "again", composed("method=sab"), mAP=0.7)
    record(tmp_path / "b", composed("method=sab"), mAP=0.7, seed=1)
    runs, others = load_runs([tmp_path])
    assert {name: len(jobs) for name, jobs in group_sweeps(runs, others).items()} == {"table1": 2}


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "--output", str(tmp_path / "report")])
    assert stop.value.code == 1
    assert "no run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none"), "--output", str(tmp_path / "report")])
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_what_cannot_be_drawn_is_said(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Report a run with a damaged checkpoint, a failed job, and text that looks like markup."""
    record(tmp_path / "runs" / "a", composed("method=sab"), mAP=0.7, deviations="<script>alert(1)</script>")
    (tmp_path / "runs" / "a" / "checkpoints").mkdir()
    (tmp_path / "runs" / "a" / "checkpoints" / "final.ckpt").write_bytes(b"nothing")
    (tmp_path / "runs" / "b").mkdir()
    failed = {
        "status": "failed",
        "started": 1.0,
        "name": "table1",
        "overrides": ["seed=1"],
        "error": "no memory",
    }
    (tmp_path / "runs" / "b" / "job.json").write_text(json.dumps(failed))
    page = write_report([tmp_path / "runs"], tmp_path / "report", images=1).read_text()
    assert re.search(r"failed: <code>[^<]*</code><br>no memory<pre>.* seed=1 .* resume=auto<", page)
    assert "Attention on market1501: " in page.partition('id="missing"')[2]
    assert "<script>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "no memory" in (tmp_path / "report" / "report.md").read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_overrides: list[str]) -> Path:
    """Write the report of three small runs."""
    folder = tmp_path_factory.mktemp("runs")
    sweep = ["--multirun", "method=baseline,sab,sigmoid_gate", "name=methods", "score_untrained=false"]
    command = [
        sys.executable,
        "-m",
        "sharpreid.train",
        *sweep,
        *tiny_overrides,
        "data.validation_identities=2",
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=240)
    command = [sys.executable, "-m", "sharpreid.report", "--images", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder / "report"


@pytest.mark.slow
def test_the_report_has_every_figure_and_needs_no_other_file(written: Path) -> None:
    page = (written / "index.html").read_text()
    for title in (
        "Sweep methods",
        "Fig. 2 and 6 on market1501",
        "Ranked lists on market1501",
    ):
        assert f">{title}<" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len([source for source in sources if source.startswith("data:image")]) >= 9
    assert all(source.startswith(("data:", "#")) for source in sources)
    for picture in re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', page):
        links = re.findall(r'(?:href|src)="([^"]*)"', base64.b64decode(picture).decode())
        assert all(link.startswith(("#", "data:")) for link in links)
    assert "not comparable with the paper" in page
    names = {path.name for path in (written / "figures").iterdir()}
    for stem in (
        "sweep-methods",
        "sweep-methods-curves",
        "sweep-methods-sharpness",
        "tau",
        "histogram-market1501",
    ):
        assert {f"{stem}.svg", f"{stem}.png"} <= names
    markdown = (written / "report.md").read_text()
    linked = re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown)
    assert len(linked) >= 9
    assert all((written / place).is_file() for place in linked)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_is_missing_or_too_wide(written: Path, width: int, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
        said, asked = list[str](), set[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.partition(":")[0]))
        page.goto((written / "index.html").as_uri())
        missing = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
        pictures, widest = page.evaluate("document.images.length"), page.evaluate("document.body.scrollWidth")
        letters = page.evaluate("Math.min(...[...document.querySelectorAll('td,p,th,code')].map("
                                "e => parseFloat(getComputedStyle(e).fontSize)))")  # fmt: skip
        colours = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        browser.close()
    assert said == []
    assert "file" in asked
    assert asked <= {"file", "data"}
    assert pictures >= 9
    assert missing == 0
    assert widest <= width
    assert letters >= 12
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours)
    assert abs(ink - paper) > 150
    assert (ink > paper) == (scheme == "dark")
