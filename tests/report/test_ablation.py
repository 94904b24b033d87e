"""Test the tables and figures of experiments/does_it_help on records made by hand."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sharpreid.report import results
from sharpreid.report.ablation import QUESTIONS, find_comparisons, read_studies
from sharpreid.report.bootstrap import Difference
from sharpreid.report.forest_plot import ForestPlot, Panel, draw_differences, forest_plots
from sharpreid.report.record import main as record
from sharpreid.report.results import TABLES, update_tables

NAMES = sorted(name for name in TABLES if name.startswith("does-it-help"))


@pytest.fixture(scope="module")
def experiments(finished: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record two seeds of three rows, one seed of a fourth, and one run that stayed on the plateau."""
    root = tmp_path_factory.mktemp("checkout")
    runs, none = root / "runs", "model.sampler.gradient=none"
    for seed, ap in enumerate((0.3, 0.4)):
        finished(runs / f"baseline{seed}", "method=baseline", seed=seed, ap=ap)
        finished(runs / f"whole{seed}", "method=sab", seed=seed, ap=ap - 0.1)
        finished(runs / f"none{seed}", "method=sab", none, seed=seed, ap=ap + 0.1, dirty=seed == 1)
    finished(runs / "cu", "method=sab_cu", none, ap=0.5)
    finished(runs / "stuck", "method=sab_cu", none, seed=1, ap=0.01, plateau=True)
    record([str(runs), "--into", str(root / "experiments" / "does_it_help")])
    rows = 'recipe,row,seeds,overrides\nminiature,baseline,"0,1",method=baseline\n'
    (root / "experiments" / "does_it_help" / "rows.csv").write_text(rows)
    return root / "experiments"


def cells(lines: list[str], row: str) -> list[str]:
    (line,) = (line for line in lines if line.startswith(f"| `{row}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_its_scores_and_its_difference_to_the_baseline(experiments: Path) -> None:
    lines = TABLES["does-it-help-runs"](experiments)
    assert cells(lines, "baseline")[:4] == ["`baseline`", "2", "40.0 (35.0 to 45.0)", "-"]
    none = cells(lines, "blocks_1234-none")
    assert none[2:4] == ["50.0 (45.0 to 55.0)", "+10.0 (+10.0 to +10.0)"]
    assert none[-3:] == ["0.10", "25 %", "2 of 2"]
    assert lines[0].startswith("**market1501, miniature**: 128 x 64 images (paper: 256 x 128), P 16 (64)")
    assert "Of changed or uncommitted code: `blocks_1234-none` seed 1." in lines


def test_one_seed_says_that_its_interval_is_of_the_test_set_alone(experiments: Path) -> None:
    lines = TABLES["does-it-help-runs"](experiments)
    assert cells(lines, "cu-none")[1:4] == ["1", "55.0", "+20.0 (+20.0 to +20.0; test set only)"]


def test_a_run_on_the_plateau_is_in_no_mean_and_is_named(experiments: Path) -> None:
    lines = TABLES["does-it-help-runs"](experiments)
    assert cells(lines, "cu-none")[-1] == "1 of 2"
    assert "- `cu-none` seed 1: triplet loss 0.50, 100 % active, mAP 6.0" in lines
    (study,) = read_studies(experiments / "does_it_help")
    assert [len(row.lines) for row in study.rows.values()] == [2, 2, 2, 1]


def test_rows_that_differ_in_what_is_asked_are_compared_with_each_other(experiments: Path) -> None:
    studies = read_studies(experiments / "does_it_help")
    pairs = {(one.question, one.row, one.other) for one in find_comparisons(studies)}
    assert pairs == {
        ("gradient", "blocks_1234-none", "blocks_1234-whole"),
        ("blocks", "blocks_1234-none", "baseline"),
        ("blocks", "blocks_1234-whole", "baseline"),
        ("context", "cu-none", "blocks_1234-none"),
    }
    lines = TABLES["does-it-help-key"](experiments)
    (line,) = (line for line in lines if "Which gradient" in line)
    assert "| `blocks_1234-none` | `blocks_1234-whole` | 2 | +20.0 (+20.0 to +20.0) |" in line
    assert line.endswith("| higher |")
    assert lines[-1].endswith("| higher (one seed) |")


@pytest.mark.parametrize(
    ("question", "row", "other"),
    [
        ("context", "cu_tv-none", "cu-none"),
        ("context", "blocks_1234_tv-whole", "blocks_1234-whole"),
        ("soft", "blocks_1234-none", "sigmoid sigmoid_conv"),
        ("noise", "blocks_1234-none-noise_free", "blocks_1234-none"),
        ("noise", "blocks_1234-whole-noise_ramp", "blocks_1234-whole"),
        ("gradient", "blocks_1234-straight_through_pi", "blocks_1234-whole"),
        ("blocks", "blocks_12-none", "baseline"),
    ],
)
def test_each_question_names_what_a_row_is_compared_with(question: str, row: str, other: str) -> None:
    found = [
        match.expand(replacement)
        for pattern, replacement in QUESTIONS[question].pairs
        if (match := re.fullmatch(pattern, row))
    ]
    assert found == other.split()
    assert re.fullmatch(QUESTIONS[question].rows, row)


def test_a_row_beside_the_paper_says_in_the_same_cell_what_was_reduced(experiments: Path) -> None:
    lines = TABLES["does-it-help"](experiments)
    baseline = cells(lines, "baseline")
    assert baseline[1] == "67.9 / 84.0"
    assert baseline[2].startswith(
        "40.0 (35.0 to 45.0) / 100.0, 2 seeds; **reduced, not comparable**: 128 x 64"
    )
    assert cells(lines, "blocks_1234-whole")[1] == "68.3 / 84.3"
    assert cells(lines, "cu-none")[1] == "69.6 / 85.6"
    assert "one seed; **reduced" in cells(lines, "cu-none")[2]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "does-it-help-commands"])
def test_a_table_without_a_run_says_so(tmp_path: Path, name: str) -> None:
    assert TABLES[name](tmp_path) == ["no finished run yet"]


def test_every_row_has_its_command(experiments: Path) -> None:
    assert TABLES["does-it-help-commands"](experiments)[2:] == [
        "| miniature | `baseline` | `recipe=miniature method=baseline seed=0,1` |"
    ]


def test_a_row_without_a_baseline_has_a_score_and_no_difference(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished(tmp_path / "runs" / "one", "method=sab")
    record([str(tmp_path / "runs"), "--into", str(tmp_path / "does_it_help")])
    assert cells(TABLES["does-it-help-runs"](tmp_path), "blocks_1234-whole")[2:4] == ["55.0", "-"]
    assert TABLES["does-it-help-key"](tmp_path) == ["no finished run yet"]
    assert forest_plots(tmp_path / "does_it_help") == {}


def test_damaged_queries_are_refused(experiments: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(experiments / "does_it_help", tmp_path / "does_it_help")
    (path,) = folder.rglob("baseline-seed0.csv.gz")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"baseline-seed0\.csv\.gz: .*record the run again"):
        read_studies(folder)


def checkout(experiments: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a checkout with these experiments and a README that has all of their tables."""
    shutil.copytree(experiments, place / "experiments")
    text = "".join(f"<!-- results: {name} -->\n<!-- end -->\n" for name in NAMES)
    (place / "README.md").write_text(text)
    (place / "docs").mkdir()
    (place / "docs" / "serving.md").touch()
    monkeypatch.setattr(results, "CHECKOUT", place)
    return place


def status(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stop:
        results.main(arguments)
    return stop.value.code


def test_a_number_typed_by_hand_and_an_old_figure_fail_the_check(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = checkout(experiments, tmp_path / "checkout", monkeypatch)
    assert status("--check") == 1
    assert status() == 0
    assert status("--check") == 0
    drawn = sorted(path.name for path in root.rglob("*.png"))
    assert drawn == ["blocks.png", "context.png", "gradient.png", "noise.png", "soft.png"]

    text = (root / "README.md").read_text()
    assert "![Which blocks?](blocks.png)" in text
    (root / "README.md").write_text(text.replace("+10.0 (+10.0 to", "+12.0 (+10.0 to"))
    capsys.readouterr()
    assert status("--check") == 1
    assert "README.md: stale" in capsys.readouterr().out
    assert status() == 0
    assert (root / "README.md").read_text() == text

    old = root / "experiments" / "does_it_help" / "noise.png"
    shutil.copy(old.with_name("context.png"), old)
    assert status("--check") == 1
    assert "noise.png: stale" in capsys.readouterr().out


def test_the_same_runs_draw_the_same_file(experiments: Path, tmp_path: Path) -> None:
    figure = forest_plots(experiments / "does_it_help")[experiments / "does_it_help" / "gradient.png"]
    for name in ("one.png", "two.png"):
        figure.draw(tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert figure.is_drawn(tmp_path / "one.png")


def test_another_number_is_another_figure(tmp_path: Path) -> None:
    def figure(mean: float) -> ForestPlot:
        one = Difference(mean, -0.1, 0.1, {0: mean})
        return ForestPlot("t", (Panel("p", ("row",), {"mAP": (one,), "rank1": (one,)}),))

    figure(0.01).draw(tmp_path / "a.png")
    assert figure(0.01).is_drawn(tmp_path / "a.png")
    assert not figure(0.02).is_drawn(tmp_path / "a.png")
    assert not figure(0.01).is_drawn(tmp_path / "none.png")


def test_one_seed_is_hollow_and_every_seed_is_a_point() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    both = Difference(0.01, 0.0, 0.02, {0: 0.0, 1: 0.02})
    draw_differences(axes, ("one", "two"), (Difference(0.01, 0.0, 0.02, {0: 0.01}), both))
    hollow, filled, seeds, _ = axes.lines
    assert hollow.get_markerfacecolor() == "white"
    assert filled.get_markerfacecolor() == filled.get_color()
    assert list(seeds.get_xdata()) == [0.0, 2.0]


def test_the_tables_of_the_checkout_are_current() -> None:
    for path in results.find_pages(results.CHECKOUT):
        text = path.read_text(encoding="utf-8")
        assert update_tables(text, results.CHECKOUT / "experiments") == text
    for path, figure in forest_plots(results.CHECKOUT / "experiments" / "does_it_help").items():
        assert figure.is_drawn(path), f"{path}: python -m sharpreid.report.results"
