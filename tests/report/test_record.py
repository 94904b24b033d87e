"""Record finished runs in runs.csv and queries/."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.report.ablation import COLUMNS, read_lines, read_table
from sharpreid.report.record import FinalMeans, left_plateau, main, read_final_means
from sharpreid.report.row_names import describe_conditions, recipe_name, row_name
from sharpreid.run.paper_recipe import compose_config

ROWS = CONF_DIR.parent / "experiments" / "does_it_help" / "rows.csv"


def config(*overrides: str) -> DictConfig:
    register_resolvers()
    return compose_config("data=market1501", *overrides)


@pytest.mark.parametrize(
    ("overrides", "row"),
    [
        ("method=baseline model.sampler.gradient=none schedule=constant_tau", "baseline"),
        ("method=sab", "blocks_1234-whole"),
        ("model.blocks=[2,1] model.sampler.gradient=none", "blocks_12-none"),
        ("method=sab_cu model.sampler.gradient=expected", "cu-expected"),
        ("method=sab_cu model.context_unit.upsample=nearest", "cu-whole-nearest"),
        ("method=sab_cu_tv", "cu_tv-whole"),
        ("method=sab_cu_tv objective=tv_as_printed", "cu_tv_sum_0.1-whole"),
        ("method=sab objective=tv", "blocks_1234_tv-whole"),
        ("model.blocks=[1,2] model.context_blocks=[1]", "blocks_12_cu_1-whole"),
        ("model.sampler.train_mask=noise_free", "blocks_1234-whole-noise_free"),
        ("schedule=constant_tau", "blocks_1234-whole-constant_tau"),
        (
            "schedule=cosine_tau model.sampler.test_mask=expected",
            "blocks_1234-whole-cosine_tau-test_expected",
        ),
        ("model.sampler.test_mask=sample model.sampler.draws=3", "blocks_1234-whole-test_sample_3"),
        ("method=sigmoid_gate", "sigmoid"),
        ("method=sigmoid_gate model.blocks=[1]", "sigmoid_blocks_1"),
        ("method=residual_attention", "residual"),
    ],
)
def test_a_row_s_name_says_all_of_its_config_but_the_conditions(overrides: str, row: str) -> None:
    one = config("recipe=miniature", *overrides.split())
    assert row_name(one) == row
    assert recipe_name(one) == "miniature"
    assert describe_conditions(one) == describe_conditions(config("recipe=miniature", "method=baseline"))


def test_ramps_and_floors_that_differ_are_different_rows() -> None:
    rows = [
        row_name(config("recipe=miniature", *overrides.split()))
        for overrides in (
            "schedule=noise_ramp",
            "schedule=noise_ramp schedule.noise_scale.share=0.5",
            "schedule.temperature.floor=0.3",
            "schedule=cosine_tau schedule.temperature.floor=0.3",
        )
    ]
    assert [row.removeprefix("blocks_1234-whole-") for row in rows] == [
        "noise_ramp",
        "noise_ramp_share_0.5",
        "tau_floor_0.3",
        "cosine_tau-tau_floor_0.3",
    ]


def test_a_reading_of_the_context_unit_is_no_condition() -> None:
    baseline, unit = (
        config("recipe=miniature", *overrides.split())
        for overrides in ("method=baseline", "method=sab_cu model.context_unit.init=next_stage")
    )
    assert describe_conditions(unit) == describe_conditions(baseline)
    assert "init_next_stage" in row_name(unit)


@pytest.mark.parametrize(
    ("key", "value", "row"),
    [
        ("schedule.noise", {"_target_": "sharpreid.schedules.ramp"}, "blocks_1234-whole-noise_ramp"),
        ("model.sampler.eps", 0.001, "blocks_1234-whole-eps_0.001"),
        ("model.scale", "mask only", "blocks_1234-whole-scale_mask_only"),
    ],
)
def test_a_reading_that_came_later_names_a_row_and_is_no_condition(key: str, value: object, row: str) -> None:
    one = config("recipe=miniature")
    OmegaConf.update(one, key, value, force_add=True)
    assert row_name(one) == row
    if key == "model.sampler.eps":  # the others have no default in conf/ to compare with
        assert recipe_name(one) == "miniature"


def test_a_run_of_before_a_key_came_is_the_same_row() -> None:
    one = config("recipe=miniature")
    OmegaConf.set_struct(one, False)
    for key in ("gradient", "train_mask", "test_mask"):
        del one.model.sampler[key]
    assert (row_name(one), recipe_name(one)) == ("blocks_1234-whole", "miniature")


@pytest.mark.parametrize("recipe", ["miniature", "half", "cpu", "paper"])
def test_a_recipe_is_found_by_what_it_changes(recipe: str) -> None:
    assert recipe_name(config(f"recipe={recipe}", "method=sab_cu_tv")) == recipe


def test_what_no_recipe_changes_has_none_and_is_said() -> None:
    one = config("recipe=half", "trainer.max_epochs=3")
    assert recipe_name(one) is None
    assert "epochs 3 (150)" in describe_conditions(one)
    register_resolvers()
    assert recipe_name(compose_config("data=synthetic")) == "synthetic"


@pytest.mark.slow
def test_every_line_of_the_experiment_is_the_row_and_the_recipe_that_it_is_called() -> None:
    lines = list(csv.DictReader(io.StringIO(ROWS.read_text(encoding="utf-8"))))
    assert lines
    for line in lines:
        overrides = ("+experiment=does_it_help", f"recipe={line['recipe']}", *line["overrides"].split())
        register_resolvers()
        one = compose_config(*overrides, f"seed={line['seeds'].split(',')[0]}")
        assert (row_name(one), recipe_name(one)) == (line["row"], line["recipe"])


def test_a_finished_run_becomes_a_line_whatever_its_folder_is_called(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "runs" / "half" / "baseline" / "seed=3", "model.sampler.gradient=none", seed=2)
    main([str(tmp_path / "runs"), "--into", str(tmp_path / "table")])
    (line,) = read_lines(tmp_path / "table")
    told = {"dataset": "market1501", "recipe": "miniature", "row": "blocks_1234-none", "seed": "2"}
    told |= {"gradient": "none", "loss_at_end": "0.1", "active_at_end": "0.25", "left_plateau": "True"}
    told |= {"commit": "0123456789ab", "dirty": "False", "torch": "2.12.1", "minutes": "30.5"}
    assert {key: line[key] for key in told} == told
    assert float(line["mAP"]) == pytest.approx(0.55)
    assert "training identities 128" in line["deviations"]
    assert "model.sampler.gradient none" in line["deviations"]
    assert "gradient" not in line["conditions"]
    folder = tmp_path / "table" / "queries" / "miniature" / "market1501"
    assert read_table(folder / "images.csv.gz")[0] == ["a.jpg", "1", "1"]
    assert read_table(folder / "blocks_1234-none-seed2.csv.gz")[1] == ["0.520000", "1"]
    assert "recorded market1501 miniature blocks_1234-none seed 2\n" in capsys.readouterr().out


def test_a_run_recorded_again_replaces_its_line(finished: Callable[..., Path], tmp_path: Path) -> None:
    into = str(tmp_path / "table")
    for number, ap in enumerate((0.2, 0.6)):
        finished(tmp_path / str(number), "method=baseline", ap=ap)
        finished(tmp_path / str(number) / "other", "method=baseline", seed=number + 1)
        main([str(tmp_path / str(number)), "--into", into])
    lines = read_lines(Path(into))
    assert [line["seed"] for line in lines] == ["0", "1", "2"]
    assert float(lines[0]["mAP"]) == pytest.approx(0.65)


def test_the_same_run_leaves_the_same_bytes(finished: Callable[..., Path], tmp_path: Path) -> None:
    finished(tmp_path / "run")
    found = []
    for name in ("one", "two"):
        main([str(tmp_path / "run"), "--into", str(tmp_path / name)])
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        found.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_the_queries_of_market_take_less_than_40_kilobytes_a_run(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    folder = finished(tmp_path / "run")
    ap = rng.random(3368).round(6)
    lines = [f"{n:04}_c1s1_{n:06}_00.jpg,{n},1,{one:.6f},{n % 2}" for n, one in enumerate(ap)]
    (folder / "queries.csv").write_text("\n".join(["image,identity,camera,ap,rank1", *lines]) + "\n")
    record = json.loads((folder / "scores.json").read_text())
    record["scores"] |= {"mAP": float(ap.mean()), "rank1": 0.5}
    (folder / "scores.json").write_text(json.dumps(record))
    main([str(folder), "--into", str(tmp_path / "table")])
    (path,) = (tmp_path / "table").rglob("*-seed0.csv.gz")
    assert path.stat().st_size < 40_000


@pytest.mark.parametrize(("dirty", "told"), [(True, "True"), (None, "")])
def test_changed_and_uncommitted_code_is_recorded_as_such(
    finished: Callable[..., Path],
    tmp_path: Path,
    dirty: bool | None,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished(tmp_path / "run", dirty=dirty, commit=None)
    main([str(tmp_path / "run"), "--into", str(tmp_path / "table")])
    (line,) = read_lines(tmp_path / "table")
    assert (line["dirty"], line["commit"]) == (told, "")
    assert "uncommitted code" in capsys.readouterr().out


def test_a_run_that_has_not_ended_is_left_out_and_said(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "runs" / "done")
    running = finished(tmp_path / "runs" / "running", seed=1)
    (running / "job.json").write_text('{"status": "running", "started": 2.0}')
    main([str(tmp_path / "runs"), "--into", str(tmp_path / "table")])
    assert len(read_lines(tmp_path / "table")) == 1
    assert f"left out {running}: running" in capsys.readouterr().out


def spoil_queries(folder: Path) -> None:
    path = folder / "queries.csv"
    path.write_text(path.read_text().replace("0.500000", "0.900000"))


def spoil_record(folder: Path, key: str) -> None:
    record = json.loads((folder / "scores.json").read_text())
    del record[key]
    (folder / "scores.json").write_text(json.dumps(record))


def spoil_log(folder: Path) -> None:
    (folder / "csv" / "metrics.csv").write_text("step,train/lr\n0,0.1\n")


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "queries of another run": (
        spoil_queries,
        "0.616667",
    ),
    "no queries": (lambda folder: (folder / "queries.csv").unlink(), "queries.csv"),
    "no line per query": (
        lambda folder: (folder / "queries.csv").write_text("a\n"),
        "image,identity,camera",
    ),
    "no log": (spoil_log, "train/triplet"),
    "half a record": (lambda folder: spoil_record(folder, "epochs"), "'epochs'"),
    "no scores": (lambda folder: (folder / "scores.json").write_text("{}"), "no scores"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_run_that_cannot_be_read_stops_the_command_before_anything_is_written(
    finished: Callable[..., Path], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = SPOILT[how]
    finished(tmp_path / "runs" / "good")
    spoil(finished(tmp_path / "runs" / "spoilt", seed=1))
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "runs"), "--into", str(tmp_path / "table")])
    assert stop.value.code == 1
    told = capsys.readouterr().err
    assert message in told
    assert "nothing was recorded" in told
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("overrides", "changed", "message"),
    [
        (["trainer.max_epochs=3"], {}, r"conf/recipe.*epochs 3 (150).*--recipe"),
        ([], {"protocol": {"name": "market1501", "re_ranking": "k_reciprocal"}}, "re-ranked"),
        (["model.trunk.strides=v1"], {}, "conditions"),
        ([], {"protocol": {"name": "market1501", "crops": "ten_crop"}}, "scored_on"),
        ([], {}, "two of.*market1501 miniature blocks_1234-whole seed 0"),
        (["seed=1"], {"queries": {"x.jpg": 1}}, "other queries"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    finished: Callable[..., Path],
    tmp_path: Path,
    overrides: list[str],
    changed: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished(tmp_path / "runs" / "one")
    seed = 0 if message.startswith("two of") else 1
    finished(tmp_path / "runs" / "two", *overrides, seed=seed, **changed)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "runs"), "--into", str(tmp_path / "table")])
    told = capsys.readouterr().err
    first, *rest = message.split(".*")
    assert first in told
    assert all(part in told for part in rest)
    assert not (tmp_path / "table").exists()


def test_other_queries_than_those_recorded_are_refused(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "one")
    finished(tmp_path / "two", seed=1, queries={"x.jpg": 1})
    into = str(tmp_path / "table")
    main([str(tmp_path / "one"), "--into", into])
    before = (tmp_path / "table" / "runs.csv").read_bytes()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "two"), "--into", into])
    assert "other queries" in capsys.readouterr().err
    assert (tmp_path / "table" / "runs.csv").read_bytes() == before


def test_a_recipe_of_ones_own_can_be_given_a_name(finished: Callable[..., Path], tmp_path: Path) -> None:
    finished(tmp_path / "run", "trainer.max_epochs=3")
    main([str(tmp_path / "run"), "--into", str(tmp_path / "table"), "--recipe", "short"])
    assert read_lines(tmp_path / "table")[0]["recipe"] == "short"


@pytest.mark.parametrize("arguments", [[], ["runs"], ["--into", "table"], ["runs", "--in", "a", "--x"]])
def test_a_wrong_call_is_answered_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_a_folder_without_a_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, message in ((tmp_path, "no finished run"), (tmp_path / "none", "no such folder")):
        with pytest.raises(SystemExit) as stop:
            main([str(place), "--into", str(tmp_path / "table")])
        assert stop.value.code == 1
        assert message in capsys.readouterr().err


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=",".join(COLUMNS)):
        read_lines(tmp_path)


def test_the_end_of_a_training_is_the_last_tenth_of_its_steps(tmp_path: Path) -> None:
    header = "epoch,step,train/active_triplets,train/loss,train/triplet,train/data_wait"
    steps = [f"0,{step},1.0,0.5,0.5," for step in range(18)]
    steps += ["0,18,0.5,0.3,0.2,", "0,19,0.7,0.5,0.4,", "0,19,,,,0.01"]  # the last is of an epoch
    (tmp_path / "metrics.csv").write_text("\n".join([header, *steps]) + "\n")
    assert read_final_means(tmp_path / "metrics.csv") == pytest.approx(
        FinalMeans(loss=0.4, triplet=0.3, active=0.6)
    )


@pytest.mark.parametrize(
    ("triplet", "active", "left"),
    [(0.1, 0.5, True), (0.449, 0.899, True), (0.45, 0.5, False), (0.1, 0.9, False)],
)
def test_a_training_has_left_the_plateau_if_loss_and_active_triplets_have(
    triplet: float, active: float, left: bool
) -> None:
    assert left_plateau(FinalMeans(loss=9.0, triplet=triplet, active=active), margin=0.5) is left
