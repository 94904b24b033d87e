import csv
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console

from sharpreid.config import sweep_context as sweeps
from sharpreid.config.sweep_context import count_choices
from sharpreid.report.comparison import (
    compare_jobs,
    describe_data,
    group_by_configuration,
    group_by_data,
    varying_keys,
)
from sharpreid.report.figures import draw_sweep
from sharpreid.report.runs import Job, load_jobs, unfinished_jobs
from sharpreid.report.sweep import main
from sharpreid.report.sweep_summary import write_csv, write_markdown, write_summary
from sharpreid.sweep.summary_callback import SweepSummary

MARKET = {"name": "market1501", "synthetic": False, "subset": None}
SYNTHETIC = {"name": "synthetic", "synthetic": True, "subset": None}


def record(mAP: float, **changes: Any) -> dict[str, Any]:
    return {
        "scores": {"mAP": mAP, "mAP_trapezoid": mAP - 0.02, "rank1": mAP + 0.1, "rank5": mAP + 0.2},
        "untrained": {"mAP": 0.1, "rank1": 0.15},
        "protocol": {
            "name": "market1501",
            "crops": "plain",
            "test_mask": "noise_free",
            "re_ranking": "none",
        },
        "dataset": MARKET,
        "deviations": "",
        "seed": 0,
        "commit": "abc123",
        "minutes": 0.8,
    } | changes


def job(
    *overrides: str, mAP: float | None = None, status: str = "done", started: float = 1.0, **changes: Any
) -> Job:
    done = record(mAP, **changes) if mAP is not None else None
    error = None if done else "ValueError: loss is not finite"
    return Job(
        Path("out", *overrides), "ablation", status if done else "failed", started, overrides, error, done
    )


def put(folder: Path, written: Job) -> None:
    folder.mkdir(parents=True)
    told = {
        "status": written.status,
        "started": written.started,
        "overrides": list(written.overrides),
        "name": written.name,
        "error": written.error,
    }
    (folder / "job.json").write_text(json.dumps(told))
    if written.record is not None:
        (folder / "scores.json").write_text(json.dumps(written.record))


def block_sweep() -> list[Job]:
    return [
        job("+experiment=x", "model.blocks=[]", mAP=0.41, started=1.0),
        job("+experiment=x", "model.blocks=[1]", mAP=0.43, started=2.0),
        job("+experiment=x", "model.blocks=[1,2]", mAP=0.40, started=3.0),
        job("+experiment=x", "model.blocks=[4]", started=4.0),
    ]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_jobs_come_back_in_the_order_they_were_started(tmp_path: Path) -> None:
    for number, written in enumerate(reversed(block_sweep())):
        put(tmp_path / "deep" / str(number), written)
    jobs = load_jobs(tmp_path)
    assert [one.overrides for one in jobs] == [one.overrides for one in block_sweep()]
    assert jobs[0].score("mAP") == 0.41
    assert jobs[3].error == "ValueError: loss is not finite"


def test_jobs_that_ran_at_the_same_time_come_back_by_their_numbers(tmp_path: Path) -> None:
    def written(*numbers: int) -> list[tuple[str, ...]]:
        for place, (number, told) in enumerate(zip(numbers, block_sweep(), strict=False)):
            path = tmp_path / str(place) / "job.json"
            if not path.exists():
                put(path.parent, told)
            path.write_text(json.dumps({**json.loads(path.read_text()), "number": number}))
        return [one.overrides[1:] for one in load_jobs(tmp_path)]

    in_time = [one.overrides[1:] for one in block_sweep()[:3]]
    assert written(0, 2, 1) == [in_time[0], in_time[2], in_time[1]]
    assert written(0, 0, 1) == in_time, "of two sweeps: by time"


def ask(folder: Path, *asking: str) -> None:
    """Write into a job's job.json which sweeps asked for it."""
    path = folder / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sweeps": asking}))


def test_jobs_of_another_sweep_and_earlier_runs_are_left_out(tmp_path: Path) -> None:
    for number, written in enumerate(block_sweep()):
        put(tmp_path / str(number), written)
    for number, asking in enumerate([["a"], ["b"], ["a", "b"]]):
        ask(tmp_path / str(number), *asking)
    put(tmp_path / "1" / "previous" / "1", job("model.blocks=[1]", mAP=0.9, started=9.0))
    assert [one.started for one in load_jobs(tmp_path, "b")] == [2.0, 3.0]
    assert len(load_jobs(tmp_path)) == 4, "all jobs, also those of early versions"


def test_scores_on_labels_that_have_changed_between_the_jobs_are_not_averaged(tmp_path: Path) -> None:
    """Jobs of early versions, whose labels are not known, have no part in it."""

    def put_all(*labels: str | None) -> list[Job]:
        folder = tmp_path / str(labels)
        for seed, known in enumerate(labels):
            put(folder / str(seed), job("model.blocks=[1]", mAP=0.5, started=seed, seed=seed))
            path, split = folder / str(seed) / "job.json", {"files": "f", "labels": known}
            data = {"query": split, "gallery": split} if known else None
            path.write_text(json.dumps({**json.loads(path.read_text()), "data": data}))
        return load_jobs(folder)

    assert [len(part) for part in group_by_data(compare_jobs(put_all("a", "a", None), None))] == [3]
    parts = group_by_data(compare_jobs(put_all("a", "b", "a"), None))
    assert [[row.job.seed for row in part] for part in parts] == [["0", "2"], ["1"]]
    assert "of its images and labels" in describe_data(parts[0])


def test_damaged_files_are_failed_jobs(tmp_path: Path) -> None:
    put(tmp_path / "0", job("a=1", mAP=0.4))
    (tmp_path / "0" / "scores.json").write_text('{"scores": {"mA')
    put(tmp_path / "1", job("a=2", mAP=0.4))
    (tmp_path / "1" / "scores.json").unlink()
    put(tmp_path / "2", job("a=3"))
    (tmp_path / "2" / "job.json").write_text("[]")
    errors = {one.folder.name: one.error for one in load_jobs(tmp_path)}
    assert {one.status for one in load_jobs(tmp_path)} == {"failed"}
    assert all("scores.json cannot be read" in str(errors[name]) for name in "01")
    assert "job.json cannot be read" in str(errors["2"])


def test_a_job_that_never_ended_is_unfinished_and_says_so(tmp_path: Path) -> None:
    put(tmp_path / "0", job("a=1", mAP=0.4))
    (tmp_path / "0" / "job.json").write_text('{"status": "running", "started": 1, "overrides": []}')
    (running,) = load_jobs(tmp_path)
    assert "its process died" in str(running.error)
    assert unfinished_jobs([running]) == [running]


def test_only_what_varies_is_a_setting_and_the_seed_is_not() -> None:
    jobs = [
        job("+a=1", "b=2", "seed=0", mAP=0.4),
        job("+a=1", "b=3", "seed=1", mAP=0.4),
        job("+a=1", mAP=0.4),
    ]
    assert varying_keys(jobs) == ["b"]
    assert [dict(row.settings) for row in compare_jobs(jobs, None)] == [{"b": "2"}, {"b": "3"}, {"b": ""}]


def split_sweep() -> list[Job]:
    return [
        job(f"data.source.split={split}", mAP=mAP, dataset=MARKET | {"split": split})
        for split, mAP in enumerate((0.80, 0.82, 0.87))
    ]


def test_a_test_split_is_a_replicate_as_a_seed_is() -> None:
    jobs = [job(f"data.source.split={split}", f"b={b}", mAP=0.4) for split in (0, 1) for b in "xy"]
    assert varying_keys(jobs) == ["b"]
    gathered = group_by_configuration(compare_jobs([*jobs, job("data.source.split=2", "b=x")], None))
    assert [(one.label, len(one.rows), len(one.done)) for one in gathered] == [("x", 3, 2), ("y", 2, 2)]


def test_csv_gives_each_split_s_score_and_mean_and_deviation_over_all(tmp_path: Path) -> None:
    write_csv(compare_jobs([*split_sweep(), job("data.source.split=3")], None), tmp_path / "summary.csv")
    lines = table(tmp_path / "summary.csv")
    assert [line["split"] for line in lines] == ["0", "1", "2", "3"], "also of the one that failed"
    assert [line["mAP"] for line in lines] == ["0.8", "0.82", "0.87", ""]
    assert {line["mAP_mean"] for line in lines} == {"0.83"}
    assert {line["mAP_std"] for line in lines} == {"0.0361"}, "sqrt((0.03^2 + 0.01^2 + 0.04^2) / 2)"
    assert {line["rank1_mean"] for line in lines} == {"0.93"}


def test_csv_of_single_jobs_has_no_deviation(tmp_path: Path) -> None:
    write_csv(compare_jobs(block_sweep(), None), tmp_path / "summary.csv")
    lines = table(tmp_path / "summary.csv")
    assert [line["mAP_mean"] for line in lines] == ["0.41", "0.43", "0.4", ""]
    assert {line["mAP_std"] for line in lines} == {""}


def test_page_and_screen_give_mean_range_and_deviation_over_splits(tmp_path: Path) -> None:
    write_markdown(compare_jobs(split_sweep(), None), tmp_path / "summary.md")
    page = (tmp_path / "summary.md").read_text()
    assert (
        "| configuration | jobs | mAP % | mAP gain | mAP std | rank-1 % | rank-1 gain | rank-1 std |" in page
    )
    assert "| ablation | 3 of 3 | 83.0 (80.0 to 87.0) | - | 3.6 | 93.0 (90.0 to 97.0) | - | 3.6 |" in page
    for written in split_sweep():
        put(tmp_path / written.overrides[0], written)
    text, code = reported(tmp_path)
    assert code == 0
    assert "83.0 \N{PLUS-MINUS SIGN} 3.6" in text


def test_page_without_repeats_has_no_column_for_deviations(tmp_path: Path) -> None:
    write_markdown(compare_jobs(block_sweep(), None), tmp_path / "summary.md")
    assert "mAP std" not in (tmp_path / "summary.md").read_text()


def test_delta_is_in_points_over_the_baseline() -> None:
    rows = compare_jobs(block_sweep(), "model.blocks = [ ]")
    assert [row.is_baseline for row in rows] == [True, False, False, False]
    assert [row.delta.get("mAP") for row in rows] == pytest.approx([0.0, 2.0, -1.0, None])
    assert [row.delta.get("rank1") for row in rows] == pytest.approx([0.0, 2.0, -1.0, None])


def test_baseline_of_several_seeds_is_their_mean() -> None:
    jobs = [job("k=a", f"seed={seed}", mAP=0.40 + seed / 100, seed=seed) for seed in (0, 2)]
    rows = compare_jobs([*jobs, job("k=b", mAP=0.43)], "k=a")
    assert [row.delta["mAP"] for row in rows] == pytest.approx([-1.0, 1.0, 2.0])


def test_each_row_has_the_baseline_that_shares_its_other_settings() -> None:
    jobs = [
        job("mu=0", "r=sum", mAP=0.40),
        job("mu=1", "r=sum", mAP=0.41),
        job("mu=0", "r=mean"),
        job("mu=1", "r=mean", mAP=0.45),
    ]
    deltas = [row.delta.get("mAP") for row in compare_jobs(jobs, "mu=0")]
    assert deltas == pytest.approx([0.0, 1.0, None, None]), "r=mean has lost its own baseline"


def test_scores_of_different_data_are_never_subtracted() -> None:
    jobs = [job("k=a", mAP=0.4), job("k=b", mAP=0.5, dataset=SYNTHETIC)]
    assert compare_jobs(jobs, "k=a")[1].delta == {}


def test_absent_or_failed_baseline_gives_no_delta() -> None:
    assert all(row.delta == {} for row in compare_jobs(block_sweep(), "model.blocks=[3]"))
    assert all(row.delta == {} for row in compare_jobs(block_sweep(), "model.blocks=[4]"))
    assert all(row.delta == {} for row in compare_jobs(block_sweep(), None))


def test_baseline_that_is_no_override_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be an override such as 'model.blocks=\[\]', got 'none'"):
        compare_jobs([], "none")


def test_rows_are_split_by_data_and_a_failed_one_joins_its_like() -> None:
    jobs = [
        job("data=m", "k=1", mAP=0.4),
        job("data=s", "k=1", mAP=0.4, dataset=SYNTHETIC),
        job("data=s", "k=2"),
    ]
    assert [[row.job.overrides for row in part] for part in group_by_data(compare_jobs(jobs, None))] == [
        [("data=m", "k=1")],
        [("data=s", "k=1"), ("data=s", "k=2")],
    ]


def test_seeds_are_gathered_and_the_baseline_comes_first() -> None:
    jobs = [job(f"b={value}", f"seed={seed}", mAP=0.4) for seed in (0, 1) for value in ("[1]", "[]")]
    gathered = group_by_configuration(compare_jobs(jobs, "b=[]"), {"[ ]": "none", "b=[1]": "one"})
    assert [(one.label, len(one.rows)) for one in gathered] == [("none", 2), ("one", 2)]


def test_labels_name_keys_only_where_several_vary() -> None:
    one_key = compare_jobs([job("model.mu=0", mAP=0.4), job(mAP=0.4)], None)
    assert [one.label for one in group_by_configuration(one_key)] == ["0", "default"]
    two_keys = compare_jobs([job("a.mu=0", "a.r=x", mAP=0.4), job("a.mu=1", "a.r=y", mAP=0.4)], None)
    assert [one.label for one in group_by_configuration(two_keys)] == ["mu=0, r=x", "mu=1, r=y"]
    assert [one.label for one in group_by_configuration(compare_jobs([job("a=0", mAP=0.4)], None))] == [
        "ablation"
    ]


def test_csv_has_a_line_per_job_with_scores_as_recorded(tmp_path: Path) -> None:
    write_csv(compare_jobs(block_sweep(), "model.blocks=[]"), tmp_path / "summary.csv")
    lines = table(tmp_path / "summary.csv")
    assert [line["model.blocks"] for line in lines] == ["[]", "[1]", "[1,2]", "[4]"]
    assert [line["mAP"] for line in lines] == ["0.41", "0.43", "0.4", ""]
    assert [line["delta_mAP_points"] for line in lines] == ["0.0", "2.0", "-1.0", ""]
    assert lines[1]["untrained_mAP"] == "0.1"
    assert (lines[1]["dataset"], lines[1]["protocol"], lines[1]["crops"]) == (
        "market1501",
        "market1501",
        "plain",
    )
    assert (lines[1]["test_mask"], lines[1]["seed"], lines[1]["commit"]) == ("noise_free", "0", "abc123")
    assert (lines[3]["status"], lines[3]["error"]) == ("failed", "ValueError: loss is not finite")
    assert "+experiment" not in lines[0], "it is the same in all jobs"


def test_csv_keeps_an_override_apart_from_a_column_of_the_same_name(tmp_path: Path) -> None:
    rows = compare_jobs([job("protocol=a", mAP=0.4), job("protocol=b", mAP=0.4)], None)
    write_csv(rows, tmp_path / "summary.csv")
    line = table(tmp_path / "summary.csv")[0]
    assert (line["protocol (override)"], line["protocol"]) == ("a", "market1501")


def test_page_tells_what_it_was_scored_on_and_that_the_paper_does_not_compare(tmp_path: Path) -> None:
    jobs = [
        job("b=[]", mAP=0.41, dataset=SYNTHETIC, deviations="12 epochs instead of 150"),
        job("b=[1]", mAP=0.43, dataset=SYNTHETIC, deviations="12 epochs instead of 150"),
        job("b=[2]"),
    ]
    path = tmp_path / "summary.md"
    write_markdown(compare_jobs(jobs, "b=[]"), path, title="Which blocks", labels={"[1]": "block|1"})
    page = path.read_text()
    assert page.startswith("# Which blocks\n")
    assert "data set synthetic; protocol market1501, crops plain, mask noise_free, re-ranking none." in page
    assert page.count("Synthetic data: not the paper's numbers, not comparable with the paper.") == 1
    assert "12 epochs instead of 150" in page
    assert "| [] (baseline) | 1 of 1 | 41.0 | +0.0 | 51.0 | +0.0 |" in page
    assert "| block\\|1 | 1 of 1 | 43.0 | +2.0 | 53.0 | +2.0 |" in page
    assert "| [2] | 0 of 1 | - | - |" in page
    assert "- `b=[2]` (failed): ValueError: loss is not finite" in page


def held_out_sweep() -> list[Job]:
    """The best by held-out identities is not the best by the test set."""
    scores = {"[]": (0.40, 0.5), "[1]": (0.43, 0.4), "[2]": (0.41, 0.6)}
    return [
        job(f"b={blocks}", f"seed={seed}", mAP=mAP, seed=seed, held_out={"mAP": held_out + seed / 100})
        for blocks, (mAP, held_out) in scores.items()
        for seed in (0, 2)
    ] + [job("b=[3]")]


def test_a_choice_of_blocks_is_ranked_by_the_held_out_identities_alone(tmp_path: Path) -> None:
    rows = compare_jobs(held_out_sweep(), "b=[]")
    path = tmp_path / "summary.md"
    write_markdown(rows, path, by_held_out=True)
    lines = [line for line in path.read_text().splitlines() if line.startswith("| [")]
    assert [line.split(" | ")[0] for line in lines] == ["| [2]", "| [] (baseline)", "| [1]", "| [3]"]
    assert lines[0].startswith("| [2] | 2 of 2 | 61.0 (60.0 to 62.0) | 41.0 ")
    write_markdown(rows, path)
    page = path.read_text()
    assert "held-out" not in page
    assert page.index("| [1]") < page.index("| [2]")
    write_csv(rows, tmp_path / "summary.csv")
    assert [line["held_out_mAP"] for line in table(tmp_path / "summary.csv")][-3:] == ["0.6", "0.62", ""]


def test_the_ranking_is_printed_too(tmp_path: Path) -> None:
    for number, written in enumerate(held_out_sweep()[:-1]):
        put(tmp_path / str(number), written)
    console = Console(record=True, width=120, file=io.StringIO())
    write_summary(tmp_path, baseline="b=[]", by_held_out=True, console=console)
    text = console.export_text()
    assert "held-out mAP" in text
    assert text.index(" [2] ") < text.index("[] (baseline)") < text.index(" [1] ")


def test_page_gives_mean_and_range_over_seeds(tmp_path: Path) -> None:
    jobs = [job("k=a", f"seed={seed}", mAP=0.40 + seed / 100, seed=seed) for seed in (0, 2)]
    write_markdown(compare_jobs([*jobs, job("k=b", mAP=0.43)], "k=a"), tmp_path / "summary.md")
    page = (tmp_path / "summary.md").read_text()
    assert "| a (baseline) | 2 of 2 | 41.0 (40.0 to 42.0) | +0.0 (-1.0 to +1.0) |" in page


def texts_of_figure(
    monkeypatch: pytest.MonkeyPatch, path: Path, jobs: list[Job], baseline: str | None
) -> str:
    seen: list[str] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: Any, **settings: Any) -> None:
        save(figure, *args, **settings)
        seen.extend(text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")))

    monkeypatch.setattr(Figure, "savefig", spy)
    draw_sweep(compare_jobs(jobs, baseline), path)
    return "\n".join(seen)


def test_figure_shows_differences_and_names_its_baseline_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = texts_of_figure(monkeypatch, tmp_path / "summary.png", block_sweep(), "model.blocks=[]")
    assert "mAP (baseline: 41.0 %)" in shown
    assert "rank-1 (baseline: 51.0 %)" in shown
    assert "+2.0" in shown
    assert "\N{MINUS SIGN}1.0" in shown
    assert " failed " in shown
    assert "percentage points" in shown
    assert "data set market1501; protocol market1501" in shown
    assert "Synthetic" not in shown
    with Image.open(tmp_path / "summary.png") as image:
        assert image.width > 800


def bars_of(
    monkeypatch: pytest.MonkeyPatch, path: Path, jobs: list[Job], baseline: str
) -> list[list[tuple[float, bool]]]:
    """Of each panel the length of every bar and whether it is filled."""
    seen: list[list[tuple[float, bool]]] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: Any, **settings: Any) -> None:
        save(figure, *args, **settings)
        for axes in figure.findobj(Axes):
            bars = [bar for container in axes.containers for bar in container if isinstance(bar, Rectangle)]
            seen.append([(bar.get_width(), bar.get_facecolor()[3] > 0) for bar in bars])

    monkeypatch.setattr(Figure, "savefig", spy)
    draw_sweep(compare_jobs(jobs, baseline), path)
    return seen


def two_seeds_of_some() -> list[Job]:
    pairs = {"rank1": 0.6, "chance": 0.49, "num_queries": 160, "details": {}}
    return [
        job("k=a", "seed=0", mAP=0.40, seed=0, untrained=None, hard_pairs=pairs),
        job("k=b", "seed=0", mAP=0.43, seed=0, untrained=None, hard_pairs=pairs | {"rank1": 0.7}),
        job("k=c", "seed=0", mAP=0.38, seed=0, untrained=None, hard_pairs=pairs | {"rank1": 0.5}),
        job("k=a", "seed=1", mAP=0.42, seed=1, untrained=None, hard_pairs=pairs | {"rank1": 0.64}),
        job("k=c", "seed=1", mAP=0.36, seed=1, untrained=None, hard_pairs=pairs | {"rank1": 0.5}),
    ]


def test_a_bar_of_one_run_is_hollow_and_one_of_several_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = two_seeds_of_some()
    panels = bars_of(monkeypatch, tmp_path / "summary.png", jobs, "k=a")
    assert panels == [
        [(pytest.approx(2.0), False), (pytest.approx(-4.0), True)],
        [(pytest.approx(2.0), False), (pytest.approx(-4.0), True)],
        [(pytest.approx(8.0), False), (pytest.approx(-12.0), True)],
    ]
    shown = texts_of_figure(monkeypatch, tmp_path / "summary.png", jobs, "k=a")
    assert "Hollow bars: one seed" in shown
    assert "rank-1 on hard pairs\n(baseline: 62.0 %)" in shown


def test_hard_pairs_have_columns_where_the_data_set_knows_them(tmp_path: Path) -> None:
    rows = compare_jobs(two_seeds_of_some(), "k=a")
    write_csv(rows, tmp_path / "summary.csv")
    lines = table(tmp_path / "summary.csv")
    assert [line["hard_pair_rank1"] for line in lines] == ["0.6", "0.7", "0.5", "0.64", "0.5"]
    assert [line["delta_hard_pair_rank1_points"] for line in lines] == [
        "-2.0",
        "8.0",
        "-12.0",
        "2.0",
        "-12.0",
    ]
    write_markdown(rows, tmp_path / "summary.md")
    page = (tmp_path / "summary.md").read_text()
    assert "| rank-1 on hard pairs % | rank-1 on hard pairs gain | rank-1 on hard pairs std |" in page
    assert "| a (baseline) | 2 of 2 | 41.0 (40.0 to 42.0) |" in page
    assert "| b | 1 of 1 | 43.0 | +2.0 | - |" in page
    assert "A random ranking reaches 49.0 %." in page
    write_csv(compare_jobs(block_sweep(), None), tmp_path / "others.csv")
    assert "hard_pair_rank1" not in table(tmp_path / "others.csv")[0]


def test_the_screen_gives_hard_pairs_and_leaves_out_untrained_scores_that_were_not_taken(
    tmp_path: Path,
) -> None:
    for number, written in enumerate(two_seeds_of_some()):
        put(tmp_path / str(number), written)
    text, code = reported(tmp_path, baseline="k=a")
    assert code == 0
    headings = text.split("\N{BOX DRAWINGS LIGHT HORIZONTAL}")[0]
    assert "hard" in headings
    assert "62.0 \N{PLUS-MINUS SIGN} 2.8" in text
    assert "A random ranking reaches 49.0 %." in text
    assert "untrained" not in text
    for number, written in enumerate(block_sweep()[:2]):
        put(tmp_path / "other" / str(number), written)
    assert "untrained" in reported(tmp_path / "other", baseline="model.blocks=[]")[0]


def test_figure_of_synthetic_data_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job("k=a", mAP=0.4, dataset=SYNTHETIC), job("k=b", mAP=0.5, dataset=SYNTHETIC)]
    shown = texts_of_figure(monkeypatch, tmp_path / "summary.png", jobs, "k=a")
    assert "Synthetic data: not the paper's numbers" in shown


def test_figure_without_a_baseline_shows_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts_of_figure(monkeypatch, tmp_path / "summary.png", block_sweep(), "model.blocks=[4]")
    assert "score (%)" in shown
    assert "43.0" in shown
    assert "The baseline has no score" in shown


@pytest.mark.parametrize(
    "jobs",
    [
        [job("k=a")],
        [job(mAP=0.4)],
        [job("k=a", mAP=0.4)],
        [job(f"k={letter}{'-long-value' * 3}", mAP=0.4) for letter in "abcdefghijklmnopqrstuvwx"],
        [job("k=a", mAP=0.4), job("k=b", mAP=0.5, dataset=SYNTHETIC), job("k=c", mAP=float("nan"))],
    ],
    ids=["all failed", "no overrides", "only the baseline", "many long names", "two data sets"],
)
def test_odd_sweeps_are_drawn_and_written_too(tmp_path: Path, jobs: list[Job]) -> None:
    rows = compare_jobs(jobs, "k=a")
    draw_sweep(rows, tmp_path / "summary.png")
    write_csv(rows, tmp_path / "summary.csv")
    write_markdown(rows, tmp_path / "summary.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.csv", "summary.md", "summary.png"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.png"
    path.write_bytes(b"old")

    def fail(*args: Any, **settings: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_sweep(compare_jobs(block_sweep(), None), path)
    assert path.read_bytes() == b"old"
    assert [left.name for left in tmp_path.iterdir()] == ["summary.png"]


def reported(folder: Path, **settings: Any) -> tuple[str, object]:
    text = io.StringIO()
    code: object = 0
    try:
        write_summary(folder, console=Console(file=text, width=80), **settings)
    except SystemExit as stop:
        code = stop.code
    return text.getvalue(), code


def test_report_prints_paths_and_failures_and_then_fails(tmp_path: Path) -> None:
    for number, written in enumerate(block_sweep()):
        put(tmp_path / str(number), written)
    text, code = reported(tmp_path, baseline="model.blocks=[]")
    assert code == 1
    assert str(tmp_path / "3") in text
    assert "ValueError: loss is not finite" in text
    assert "1 of 4 jobs have no score" in text
    for name in ("summary.csv", "summary.md", "summary.png"):
        assert str(tmp_path / name) in text
        assert (tmp_path / name).stat().st_size > 0


def test_report_of_a_complete_sweep_is_no_failure(tmp_path: Path) -> None:
    for number, written in enumerate(block_sweep()[:3]):
        put(tmp_path / str(number), written)
    text, code = reported(tmp_path, baseline="model.blocks=[]", labels={"[1,2]": "blocks 1+2"})
    assert code == 0
    assert "blocks 1+2" in text
    assert "…" not in text


def test_folder_without_jobs_is_a_clear_message(tmp_path: Path) -> None:
    text, code = reported(tmp_path)
    assert text == ""
    assert code == f"{tmp_path}: no job.json of this sweep below this folder; did any job start?"


def test_by_hand_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, written in enumerate(block_sweep()[:3]):
        put(tmp_path / str(number), written)
    main([str(tmp_path), "--baseline", "model.blocks=[]", "--title", "Blocks", "--label", "[1,2]=both"])
    assert "both" in capsys.readouterr().out
    assert (tmp_path / "summary.md").read_text().startswith("# Blocks\n")


def multirun_config(folder: Path, target: str = "BasicSweeper", **overrides: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "hydra": {
                "runtime": {"cwd": str(folder)},
                "sweep": {"dir": "out"},
                "sweeper": {"_target_": f"hydra.x.{target}", "params": overrides.pop("params", None)},
                "overrides": {"task": overrides.pop("task", [])},
            }
        }
    )


def test_relative_sweep_folder_is_below_where_hydra_was_started(tmp_path: Path) -> None:
    callback = SweepSummary(baseline="model.blocks=[]", labels=OmegaConf.create({"[1]": 1}))
    callback.on_multirun_start(multirun_config(tmp_path))
    put(tmp_path / "out" / "another", job("model.blocks=[]", mAP=0.4, started=1.0))
    put(tmp_path / "out" / "mine", job("model.blocks=[1]", mAP=0.4, started=2.0))
    ask(tmp_path / "out" / "mine", str(callback.sweep))
    callback.on_multirun_end(multirun_config(tmp_path))
    assert [line["folder"] for line in table(tmp_path / "out" / "summary.csv")] == ["mine"]


def test_error_while_reporting_does_not_become_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "out" / "0", job("k=a", mAP=0.4))
    with pytest.raises(SystemExit, match=r"no summary of the sweep .*must be an override"):
        SweepSummary(baseline="none").on_multirun_end(multirun_config(tmp_path))


def test_jobs_are_counted_as_the_basic_sweeper_will_run_them(tmp_path: Path) -> None:
    params = {"model.blocks": "[],[1],[1,2]", "seed": "range(0,4)"}
    assert count_choices(multirun_config(tmp_path, params=params)) == {"model.blocks": 3, "seed": 4}
    task = ["seed=7", "+a=1,2"]
    counted = count_choices(multirun_config(tmp_path, params=params, task=task))
    assert counted == {"model.blocks": 3, "seed": 1, "+a": 2}
    assert count_choices(multirun_config(tmp_path)) == {}
    assert count_choices(multirun_config(tmp_path, task=["data=glob(*)"])) is None
    assert count_choices(multirun_config(tmp_path, target="OptunaSweeper")) is None


def test_planned_jobs_are_known_only_while_the_sweep_runs(tmp_path: Path) -> None:
    callback = SweepSummary(baseline=None)
    config = multirun_config(tmp_path, task=["k=a,b", "+j=0"])
    callback.on_multirun_start(config)
    assert sweeps.planned_jobs() == 2
    assert sweeps.swept_keys() == {"k"}
    sent = pickle.dumps(callback)
    with pytest.raises(SystemExit, match=r"no such folder"):
        callback.on_multirun_end(config)
    assert sweeps.planned_jobs() is None
    assert sweeps.swept_keys() == set()
    pickle.loads(sent).on_job_start(config)  # as in the process of a job that a launcher started
    assert sweeps.planned_jobs() is None
    assert sweeps.swept_keys() == {"k"}
    SweepSummary(baseline=None).on_job_start(config)
    assert sweeps.swept_keys() == set()


APP = """
import json, time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    hydra_cfg = HydraConfig.get()
    from sharpreid.config.sweep_context import planned_jobs, sweep_id
    assert planned_jobs() == 3
    out = Path(hydra_cfg.runtime.output_dir)
    overrides = list(hydra_cfg.overrides.task)
    job = {"status": "done", "started": time.time(), "overrides": overrides, "name": "app", "error": None}
    if cfg.x in cfg.broken:
        job |= {"status": "failed", "error": f"ValueError: x is {cfg.x}"}
    else:
        scores = {"mAP": 0.4 + cfg.x / 100, "rank1": 0.5 + cfg.x / 100}
        record = {"scores": scores, "dataset": {"name": "toy"}, "protocol": {"name": "toy"}}
        (out / "scores.json").write_text(json.dumps(record))
    (out / "job.json").write_text(json.dumps({**job, "sweeps": [sweep_id()]}))


main()
"""

CONFIG = """
x: 0
broken: []
hydra:
  mode: MULTIRUN
  sweep: {dir: "runs/${hydra.job.name}"}
  sweeper: {params: {x: "0,1,2"}}
  callbacks:
    summary:
      _target_: sharpreid.sweep.summary_callback.SweepSummary
      baseline: x=0
      labels: {"1": one}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "code"), [("[]", 0), ("[2]", 1)])
def test_a_real_sweep_ends_with_the_summary_and_the_right_exit_status(
    tmp_path: Path, broken: str, code: int
) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text(CONFIG)
    command = [sys.executable, "app.py", f"broken={broken}"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "raised" not in ran.stderr, "Hydra must have nothing to warn of"
    lines = table(tmp_path / "runs" / "app" / "summary.csv")
    assert [line["x"] for line in lines] == ["0", "1", "2"]
    assert [line["delta_mAP_points"] for line in lines] == ["0.0", "1.0", "2.0" if code == 0 else ""]
    assert ("ValueError: x is 2" in ran.stdout) == (code == 1)


def test_a_baseline_that_no_job_has_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.json").write_text(
        json.dumps({"status": "done", "started": 1.0, "name": "a", "overrides": ["model.blocks=[]"]})
    )
    (folder / "scores.json").write_text(json.dumps(record(0.5)))
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--baseline", "model.block=[]"])
    assert "no job below" in capsys.readouterr().err
    assert not (tmp_path / "summary.csv").exists()
    main([str(tmp_path), "--baseline", "model.blocks=[]"])
    assert (tmp_path / "summary.csv").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nope: no such folder"):
        main([str(tmp_path / "nope")])
