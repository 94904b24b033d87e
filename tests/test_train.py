import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException

import sharpreid
from sharpreid.attention.mask import MaskParams, MaskSampler
from sharpreid.checkpoint_files import step_checkpoints
from sharpreid.config.overrides import quote_paths
from sharpreid.data.reid_data import random_stream
from sharpreid.module import NonFiniteLossError
from sharpreid.run.arguments import load_config
from sharpreid.run.build import build_data, build_module
from sharpreid.run.evaluation import evaluate, evaluate_sweep
from sharpreid.run.preparation import prepare
from sharpreid.run.records import config_diff, describe_config, lock_run_dir
from sharpreid.signals import EXIT_RESUMABLE, stop_on_sigterm
from sharpreid.visualize import visualize

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


def run(folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sharpreid.train", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)


def fitted(cfg: DictConfig, **trainer: Any) -> tuple[pl.Trainer, Any, Any]:
    pl.seed_everything(cfg.seed, verbose=False)
    built = pl.Trainer(**{**QUIET, "max_epochs": 1, "limit_val_batches": 0, **trainer})
    module, data = build_module(cfg), build_data(cfg)
    built.fit(module, data)
    return built, module, data


@pytest.mark.slow
@pytest.mark.own_interpreter
def test_a_run_leaves_its_record_and_evaluate_repeats_its_scores(
    tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(tmp_path, *tiny_overrides, "data.validation_identities=2", "score_untrained=true")
    assert done.returncode == 0, done.stderr
    (record_path,) = tmp_path.rglob("scores.json")
    assert (tmp_path / "outputs" / "latest").resolve() == record_path.parent
    record = json.loads(record_path.read_text())
    assert record["epochs"] == 2
    assert record["dataset"]["subset"].startswith("32 train images instead of 12,936")
    assert record["protocol"]["name"] == "market1501"
    assert record["untrained"].keys() == record["scores"].keys()
    with (record_path.parent / "queries.csv").open() as file:
        queries = list(csv.DictReader(file))
    assert len(queries) == record["dataset"]["counts"]["query_images"]
    for name, score in (("ap", "mAP"), ("rank1", "rank1")):
        mean = sum(float(row[name]) for row in queries) / len(queries)
        assert mean == pytest.approx(record["scores"][score], abs=1e-6)
    assert json.loads((record_path.parent / "job.json").read_text())["status"] == "done"
    columns = (record_path.parent / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/triplet", "train/tau", "train/lr", "train/active_triplets"} <= {*columns}
    assert {"train/embedding_norm", "train/positive_distance", "train/negative_distance"} <= {*columns}
    assert {"val/mAP", "test/mAP"} <= {*columns}
    assert {f"train/tv_block{block}" for block in (1, 2, 3, 4)} <= {*columns}
    monkeypatch.chdir(tmp_path)
    checkpoint = f"checkpoint={record_path.parent / record['checkpoint']}"
    assert evaluate([checkpoint]).as_dict() == record["scores"]
    assert sharpreid.load(record_path.parent).config.preprocessing.height == 32
    evaluate([checkpoint, f"output={tmp_path / 'again.json'}"])
    again = json.loads((tmp_path / "again.json").read_text())
    assert all(again[key] == record[key] for key in ("scores", "protocol", "dataset", "deviations", "seed"))
    draws = ("model.sampler.test_mask=noise_free,sample", "model.sampler.seed=range(0,2)")
    several = evaluate_sweep(["--multirun", checkpoint, *draws, f"output={tmp_path / 'several.json'}"])
    assert json.loads((tmp_path / "several.json").read_text()) == several
    assert [one["scores"] == record["scores"] for one in several[:2]] == [True, True]  # noise_free: no draw
    assert several[2]["protocol"]["test_mask"] == "sample (8 draws, seed 0)"
    assert several[2]["scores"] == evaluate([checkpoint, "model.sampler.test_mask=sample"]).as_dict()
    assert several[3]["settings"] == ["model.sampler.test_mask=sample", "model.sampler.seed=1"]
    once, twice = (evaluate([checkpoint, "recalibrate=17"]).as_dict() for _ in range(2))
    assert once == twice
    evaluate([checkpoint, "recalibrate=17", f"output={tmp_path / 'recalibrated.json'}"])
    recalibrated = json.loads((tmp_path / "recalibrated.json").read_text())
    assert recalibrated["protocol"]["batch_norm"] == "recalibrated on 17 training images"
    for wrong, message in (("999", "from 2 to the .* training images, got 999"), ("-1", "got -1")):
        with pytest.raises(ValueError, match=message):
            evaluate([checkpoint, f"recalibrate={wrong}"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate([checkpoint, f"data.source.root={tmp_path / 'nowhere'}"])
    saved = load_config(record_path.parent / record["checkpoint"])
    saved.image.height = 64
    assert (saved.data.eval_transform.height, saved.data.train_transform.height) == (64, 64)


@pytest.mark.slow
def test_evaluate_repeats_the_scores_of_a_run_that_reads_the_paper_otherwise(
    tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("method=sab_cu", "model.combine=concat", "model.context_unit.init=next_stage")
    noise = ("model.sampler.test_mask=sample", "model.sampler.sample_noise=per_view")
    data = ("data.normalise=per_pixel_mean", "data.epoch=images", "data.eval_transform.crops=ten_crop_8_7")
    done = run(tmp_path, *tiny_overrides, *model, *noise, *data)
    assert done.returncode == 0, done.stderr
    (record_path,) = tmp_path.rglob("scores.json")
    record = json.loads(record_path.read_text())
    assert record["iterations"] == 2 * 4  # 32 images in batches of 4 x 2, two epochs
    assert record["protocol"]["test_mask"] == "sample (8 draws, seed 0, noise per view)"
    assert record["protocol"]["crops"] == "ten_crop_8_7"
    monkeypatch.chdir(tmp_path)
    checkpoint = f"checkpoint={record_path.parent / record['checkpoint']}"
    assert evaluate([checkpoint]).as_dict() == record["scores"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns(tmp_path: Path) -> None:
    """A third of what a job of `make ablation` does: half a minute on 2 idle cores, minutes on busy ones."""
    decay = ("schedule.learning_rate_factor.start=27", "schedule.learning_rate_factor.end=40")
    third = ("trainer.max_epochs=40", *decay, "score_untrained=true")
    done = run(tmp_path, "model.blocks=[4]", "logger=csv", *third, timeout=840)
    assert done.returncode == 0, done.stderr
    (record_path,) = tmp_path.rglob("scores.json")
    record = json.loads(record_path.read_text())
    assert record["scores"]["mAP"] > 2 * record["untrained"]["mAP"]
    assert record["scores"]["rank10"] > 2 * record["untrained"]["rank10"]
    assert record["hard_pairs"]["num_queries"] == 159
    assert set(record["hard_pairs"]["details"]) == {"knapsack", "logo", "hat", "shoes", "bag"}


@pytest.mark.slow
def test_a_sweep_survives_a_failing_job_and_reports_it(tmp_path: Path, tiny_overrides: list[str]) -> None:
    blocks = "model.blocks=[],[1],[7]"
    done = run(tmp_path, "--multirun", *tiny_overrides, blocks, "score_untrained=false", "name=sweep")
    assert done.returncode == 1
    summary = tmp_path / "outputs" / "sweep" / "market1501"
    table = (summary / "summary.md").read_text()
    assert "blocks must be different numbers of 1-4" in done.stdout
    assert table.count("\n| [") >= 2
    assert (summary / "summary.png").stat().st_size > 0
    statuses = [json.loads(path.read_text())["status"] for path in summary.rglob("job.json")]
    assert sorted(statuses) == ["done", "done", "failed"]


@pytest.mark.slow
def test_a_sweep_ends_well_where_its_output_cannot_be_encoded(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    command = [sys.executable, "-m", "sharpreid.train", "--multirun", *tiny_overrides, "seed=0,1"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=ascii_only, timeout=240)
    assert done.returncode == 0, done.stderr
    assert rb"\xb1" in done.stdout, "the plus-minus sign of the table"
    assert (tmp_path / "outputs" / "train" / "market1501" / "summary.md").is_file()


@pytest.mark.slow
def test_scoring_the_untrained_network_changes_nothing_else(
    tmp_path: Path, tiny_overrides: list[str], trained: Path
) -> None:
    place = f"hydra.run.dir={tmp_path / 'run'}"
    assert run(tmp_path, *tiny_overrides, "score_untrained=true", place).returncode == 0
    with_untrained, without = (
        json.loads((folder / "scores.json").read_text()) for folder in (tmp_path / "run", trained)
    )
    assert with_untrained["untrained"]
    assert without["untrained"] is None
    assert with_untrained["scores"] == without["scores"]
    assert "not run again" in run(tmp_path, *tiny_overrides, "skip_finished=true", place).stdout


STOPPING = (
    "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: train/loss, min_delta: 1e9, patience: 1, "
    "check_on_train_epoch_end: true}"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "epochs", "iterations", "said"),
    [
        ("+trainer.max_steps=3", 1, 3, "trainer.max_steps 3 (unset), ended early"),
        (f"+callbacks.stopping={STOPPING}", 2, 4, "epochs 5 (150), ended early"),
    ],
)
def test_a_training_that_ended_early_counts_whole_epochs_and_is_not_the_paper_s(
    tmp_path: Path, tiny_overrides: list[str], option: str, epochs: int, iterations: int, said: str
) -> None:
    """Of two batches each. A second call finds all steps done and scores them."""
    place = f"hydra.run.dir={tmp_path / 'run'}"
    for _ in range(2):
        done = run(tmp_path, *tiny_overrides, "trainer.max_epochs=5", option, "resume=auto", place)
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / "run" / "scores.json").read_text())
        assert (record["epochs"], record["iterations"]) == (epochs, iterations)
        assert record["deviations"].endswith(said)
        job = json.loads((tmp_path / "run" / "job.json").read_text())
        (tmp_path / "run" / "job.json").write_text(json.dumps({**job, "status": "failed"}))


@pytest.mark.slow
def test_a_network_that_cannot_be_written_as_a_model_folder_is_scored(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    code = (
        "from sharpreid import train\n"
        "from sharpreid.run import training\n"
        "training.write_model = lambda *_, **__: {}['a part of its own']\n"
        "train.main()"
    )
    command = [sys.executable, "-c", code, *tiny_overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "model is not written: 'a part of its own'" in done.stdout
    assert len([*tmp_path.rglob("scores.json")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_two_sweeps_at_once_report_their_own_jobs(
    tmp_path: Path, tiny_overrides: list[str], launcher: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "sharpreid.train",
        "--multirun",
        *tiny_overrides,
        f"hydra/launcher={launcher}",
    ]
    both = [
        subprocess.Popen(
            [*command, f"model.blocks={blocks}"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        for blocks in ("[1],[2]", "[3],[4],[1,2]")
    ]
    for process, mine, others in zip(both, ("[1] [2]", "[3] [4] [1,2]"), ("[3]", "[2]"), strict=True):
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        table = output[output.rindex("scores in %") :]
        assert all(f" {blocks} " in table for blocks in mine.split())
        assert f" {others} " not in table
    assert (tmp_path / "outputs" / "latest").resolve() == tmp_path / "outputs" / "train"
    again = subprocess.run(
        [sys.executable, "-m", "sharpreid.report.sweep", "outputs/train"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert again.stdout.count(" 1/1") == 5, "all jobs of the folder"


@pytest.mark.slow
def test_a_sweep_over_two_data_sets_counts_the_jobs_of_both(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    names = "data.source.name=one,two"
    done = run(tmp_path, "--multirun", *tiny_overrides, names, "score_untrained=false", "name=both")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "outputs" / "both" / "summary.md").read_text()
    assert "data set one" in table
    assert "data set two" in table


@pytest.mark.slow
def test_paths_of_any_characters_reach_every_command(
    tmp_path: Path, tiny_overrides: list[str], tiny_market: Path
) -> None:
    odd = tmp_path / "it's a [test], {a=b} \u00fc"
    shutil.copytree(tiny_market, odd / "photos, all")
    place = ("logger=csv", f"data.source.root={odd / 'photos, all'}", f"data.cache={odd / 'cache=[1]'}")
    assert prepare(quote_paths([*tiny_overrides, *place]))["ready"]
    epoch = ("trainer.max_epochs=1", "score_untrained=false")
    local = ("hydra/launcher=local", f"hydra.sweep.dir={odd / '{sweep}'}")
    done = run(odd, "--multirun", *tiny_overrides, *place, *epoch, *local)
    assert done.returncode == 0, done.stdout + done.stderr
    (final,) = (odd / "{sweep}").rglob("final.ckpt")
    evaluate([f"checkpoint={final}", *place[1:], f"output={odd / 'scores, [1].json'}"])
    assert (odd / "scores, [1].json").is_file()
    visualize([f"checkpoint={final}", f"beside={final}", f"output={odd / 'a=1.png'}"])
    assert (odd / "a=1.png").is_file()


@pytest.mark.slow
def test_jobs_that_share_a_place_do_not_replace_each_other_in_silence(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    roots = f"data_root={tmp_path},{tmp_path}/."
    done = run(tmp_path, "--multirun", *tiny_overrides, roots, "score_untrained=false", "name=shared")
    assert done.returncode == 1
    assert "an earlier job of this sweep wrote there" in done.stdout + done.stderr
    assert "1 of 2 jobs left no record below" in " ".join(done.stdout.split())  # the console breaks lines
    assert len([*tmp_path.rglob("scores.json")]) == 1


@pytest.mark.slow
def test_a_file_that_a_loader_s_process_cannot_read_ends_in_one_line(
    tmp_path: Path, tiny_overrides: list[str], tiny_market: Path
) -> None:
    root = tmp_path / "Market"
    shutil.copytree(tiny_market, root)
    for path in (root / "bounding_box_train").iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    place = (f"data.source.root={root}", "data.num_workers=1", "score_untrained=false")
    done = run(tmp_path, *tiny_overrides, *place)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (job,) = tmp_path.rglob("job.json")
    error = json.loads(job.read_text())["error"]
    assert re.fullmatch(r"DataError: .*\.jpg: cannot be read as an image .*; restore the file", error)


def test_two_runs_in_one_place_do_not_write_at_the_same_time(tmp_path: Path) -> None:
    with (
        lock_run_dir(tmp_path),
        pytest.raises(RuntimeError, match="another run is writing there"),
        lock_run_dir(tmp_path),
    ):
        pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_overrides: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    done = run(folder, *tiny_overrides, "score_untrained=false", f"hydra.run.dir={folder / 'run'}")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> list[str]:
    """Overrides of a run whose directory, ``tmp_path / "run"``, has finished files already."""
    shutil.copytree(trained, tmp_path / "run")
    return [f"hydra.run.dir={tmp_path / 'run'}", "score_untrained=false"]


@pytest.mark.slow
def test_a_second_run_in_the_same_place_sets_the_first_aside(
    tmp_path: Path, tiny_overrides: list[str], finished: list[str]
) -> None:
    assert run(tmp_path, *tiny_overrides, *finished).returncode == 0
    assert len([*tmp_path.rglob("previous/1/scores.json")]) == 1
    assert len([*tmp_path.rglob("scores.json")]) == 2


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_stopped_and_reports_all_of_its_jobs(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    common = ["--multirun", *tiny_overrides, "score_untrained=false", "skip_finished=true", "name=twice"]
    assert run(tmp_path, *common, "model.blocks=[],[9]").returncode == 1
    (first,) = tmp_path.rglob("scores.json")
    before = first.read_bytes()
    done = run(tmp_path, *common, "model.blocks=[],[1]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("not run again") == 1
    assert first.read_bytes() == before
    (summary,) = tmp_path.rglob("summary.csv")
    with summary.open() as file:
        rows = [(row["model.blocks"], row["status"]) for row in csv.DictReader(file)]
    assert rows == [("[]", "done"), ("[1]", "done")]


@pytest.mark.slow
def test_a_finished_run_of_another_config_is_run_again(
    tmp_path: Path, tiny_overrides: list[str], finished: list[str]
) -> None:
    common = [*tiny_overrides, *finished, "skip_finished=true"]
    assert "not run again" in run(tmp_path, *common, "data.num_workers=1").stdout
    config = tmp_path / "run" / "config.yaml"
    early = config.read_text(encoding="utf-8").replace("  fused: null\n", "")
    assert early != config.read_text(encoding="utf-8")
    config.write_text(early, encoding="utf-8")  # as of a run that was made before there was such a key
    assert "not run again" in run(tmp_path, *common).stdout
    assert not (tmp_path / "run" / "previous").exists()
    assert "not run again" not in run(tmp_path, *common, "optimizer.lr=0.01").stdout
    assert (tmp_path / "run" / "previous" / "1" / "scores.json").exists()


@pytest.mark.slow
def test_a_finished_run_on_data_that_have_changed_since_is_run_again(
    tmp_path: Path, tiny_overrides: list[str], tiny_market: Path
) -> None:
    shutil.copytree(tiny_market, tmp_path / "Market")
    place = (f"data.source.root={tmp_path / 'Market'}", f"hydra.run.dir={tmp_path / 'run'}")
    common = [*tiny_overrides, *place, "score_untrained=false", "skip_finished=true"]
    assert run(tmp_path, *common).returncode == 0
    assert "not run again" in run(tmp_path, *common).stdout
    for path in (tmp_path / "Market" / "bounding_box_train").glob("0001_*"):
        path.unlink()
    again = run(tmp_path, *common)
    assert "28 images of 7 identities now" in again.stdout
    assert "not run again" not in again.stdout
    assert (tmp_path / "run" / "previous" / "1" / "scores.json").exists()
    (tmp_path / "Market" / "query" / "person.jpg").touch()
    assert "not run again" in run(tmp_path, *common).stdout, "what cannot be compared is kept"
    shutil.rmtree(tmp_path / "Market")
    assert "not run again" in run(tmp_path, *common).stdout


def test_a_record_has_absolute_paths_and_an_early_one_with_relative_paths_is_the_same_run(
    tmp_path: Path, composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = composed(f"output_dir={tmp_path}")
    cfg.callbacks = cfg.logger = {}
    cfg.data_root, cfg.data.source.root, cfg.data.cache = "d", "shop/images", "~/cache"
    assert OmegaConf.create(describe_config(cfg)).model.trunk.weights == "none", "a word is no path"
    cfg.model.trunk.weights = "w.pth"
    written = OmegaConf.create(describe_config(cfg))
    assert written.data_root == str(tmp_path / "d")
    assert written.data.source.root == str(tmp_path / "shop" / "images")
    assert written.data.cache == str(Path.home() / "cache")
    assert written.model.trunk.weights == str(tmp_path / "w.pth")
    written.data.source.root, written.model.trunk.weights = "shop/images", "./w.pth"  # as version 0.1 did
    OmegaConf.save(written, tmp_path / "config.yaml")
    assert config_diff(cfg, tmp_path / "config.yaml") == {}
    cfg.data.source.root = "shop/others"
    assert config_diff(cfg, tmp_path / "config.yaml").keys() == {"data.source.root"}


@pytest.mark.slow
def test_other_spellings_of_the_overrides_lead_to_the_same_run(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    common = [*tiny_overrides, "score_untrained=false", "skip_finished=true"]
    assert run(tmp_path, *common, "model.blocks=[1, 2]", "optimizer.lr=1e-3").returncode == 0
    others = ["optimizer.lr=0.0010", "model.blocks=[1,2]", "data.source.allow_subset=True"]
    assert "not run again" in run(tmp_path, *common, *others).stdout
    swept = run(tmp_path, *common, "--multirun", "model.blocks=[1,2],[3]", "optimizer.lr=0.001")
    assert swept.stdout.count("not run again") == 1
    assert len([*tmp_path.rglob("scores.json")]) == 2


@pytest.mark.slow
def test_a_run_that_cannot_start_leaves_the_earlier_one_in_its_place(
    tmp_path: Path, tiny_overrides: list[str], finished: list[str]
) -> None:
    before = (tmp_path / "run" / "scores.json").read_bytes()
    for wrong in (
        "model.blocks=[5]",
        "data.source.root=nowhere",
        "trainer.max_epochs=0",
        "data.identities_per_batch=9",
    ):
        assert run(tmp_path, *tiny_overrides, *finished, wrong).returncode == 1
    assert (tmp_path / "run" / "scores.json").read_bytes() == before
    assert not (tmp_path / "run" / "previous").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, b"by the same command with resume=auto"),
        (signal.SIGTERM, EXIT_RESUMABLE, b"stopped by a signal, saved in"),
    ],
)
def test_an_interrupted_run_says_so_and_fails(
    tmp_path: Path, tiny_overrides: list[str], number: int, status: int, said: bytes
) -> None:
    place = f"output_dir={tmp_path / 'deep' / 'run'}"
    options = ["trainer.max_epochs=100000", "callbacks.checkpoint.every_n_steps=1"]
    command = [sys.executable, "-m", "sharpreid.train", *tiny_overrides, *options, place]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        deadline = time.monotonic() + 120
        while not step_checkpoints(tmp_path / "deep" / "run" / "checkpoints"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert said in output
    job = json.loads((tmp_path / "deep" / "run" / "job.json").read_text())
    assert (job["status"], job["error"]) == ("failed", "interrupted; go on with resume=auto")


class _Terminate(pl.Callback):
    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_termination_in_the_last_batch_of_a_test_is_not_forgotten(
    composed: Callable[..., DictConfig],
) -> None:
    cfg = composed("model.blocks=[]")
    before = signal.getsignal(signal.SIGTERM)
    trainer = pl.Trainer(**QUIET, callbacks=[_Terminate()])
    with stop_on_sigterm(), pytest.raises(SIGTERMException):
        trainer.test(build_module(cfg), build_data(cfg), verbose=False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_termination_does_not_stop_the_clearing_up() -> None:
    with stop_on_sigterm():
        with pytest.raises(SIGTERMException):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("resume", "status"), [("auto", EXIT_RESUMABLE), ("none", 143)])
def test_signals_outside_of_the_training_say_whether_the_run_goes_on(
    tmp_path: Path, tiny_overrides: list[str], resume: str, status: int
) -> None:
    """And the first alone decides: schedulers repeat theirs until the process has ended."""
    signals = "for number in STOP_SIGNALS: os.kill(os.getpid(), number)"
    code = (
        "import atexit, os, sharpreid.run.training as job, sharpreid.train as train\n"
        "from sharpreid.signals import STOP_SIGNALS\n"
        "def stop(*_):\n"
        f"    {signals}\n"
        f"@atexit.register\ndef repeat():\n    {signals}\n"
        "job.score = stop\n"
        "train.main()"
    )
    command = [sys.executable, "-c", code, *tiny_overrides, f"resume={resume}", "score_untrained=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stderr
    assert "interrupted; no step was saved yet" in done.stdout


@pytest.mark.slow
def test_a_missing_data_set_ends_in_one_clear_message(tmp_path: Path) -> None:
    done = run(tmp_path, "data=market1501", "model.trunk.weights=none", "logger=csv", "data.num_workers=0")
    assert done.returncode == 1
    assert "Market-1501-v15.09.15/bounding_box_train: no such folder" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_help_shows_groups_and_examples(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for words in ("experiment: block_ablation", "+experiment=block_ablation"):
        assert words in done.stdout


@pytest.mark.slow
def test_the_csv_logger_imports_no_wandb(tmp_path: Path, tiny_overrides: list[str]) -> None:
    code = (
        "import sys; from sharpreid.train import main\n"
        "main()\n"
        "sys.exit('wandb was imported' if 'wandb' in sys.modules else 0)"
    )
    command = [sys.executable, "-c", code, *tiny_overrides, "trainer.max_epochs=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_training_sets_tau_and_learning_rate_by_epoch(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("schedule.temperature.rate=0.1", "schedule.learning_rate_factor.start=0")
    trainer, module, _ = fitted(cfg, max_epochs=3)
    assert trainer.callback_metrics["train/tau"].item() == pytest.approx(torch.e**-0.2)
    assert trainer.callback_metrics["train/lr"].item() == pytest.approx(2e-4 * 0.001 ** (2 / 150))
    for block in module.network.attention.values():
        assert block.sampler.tau.item() == pytest.approx(torch.e**-0.2)


def test_the_noise_is_ramped_in_by_epoch(composed: Callable[..., DictConfig]) -> None:
    """Of four epochs the ramp takes two: in the third the noise is whole."""
    cfg = composed("schedule=noise_ramp", "trainer.max_epochs=4", "schedule.noise_scale.share=0.5")
    for epochs, factor in ((1, 0.0), (2, 0.5), (3, 1.0)):
        _, module, _ = fitted(cfg, max_epochs=epochs)
        assert {block.sampler.noise_scale for block in module.network.attention.values()} == {factor}


def test_beta1_drops_when_the_schedule_says_so(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("schedule=beta1_drop", "schedule.learning_rate_factor.start=0")
    trainer, _, _ = fitted(cfg, max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.5, 0.999)


def test_total_variation_is_logged_per_block(composed: Callable[..., DictConfig]) -> None:
    trainer, _, _ = fitted(composed("objective=tv", "model.blocks=[2,4]"))
    logged = trainer.callback_metrics
    assert {"train/tv_block2", "train/tv_block4"} <= logged.keys()
    total = logged["train/triplet"] + 0.01 * (logged["train/tv_block2"] + logged["train/tv_block4"])
    assert logged["train/loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_the_same_seed_trains_the_same_network(composed: Callable[..., DictConfig]) -> None:
    first, second, other = (
        fitted(composed(f"seed={seed}"), max_epochs=2)[0].callback_metrics["train/loss"] for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("options", [{"limit_val_batches": 1.0, "check_val_every_n_epoch": 1}, {}])
def test_scores_taken_on_the_way_do_not_change_what_is_trained(
    composed: Callable[..., DictConfig], options: dict[str, Any]
) -> None:
    cfg = composed("data.validation_identities=2")
    plain, _, _ = fitted(cfg, max_epochs=2)
    module, data = build_module(cfg), build_data(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg)
    trainer = pl.Trainer(**QUIET, max_epochs=2, **({"limit_val_batches": 0} | options))
    trainer.test(module, data, verbose=False)
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/loss"] == plain.callback_metrics["train/loss"]


def test_blocks_steps_and_processes_draw_noise_of_their_own(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = set()
    for epoch, batch, rank in itertools.product(range(2), repeat=3):
        noise = random_stream("noise", 0, epoch, batch, rank)
        drawn |= {*noise.integers(2**63, size=4).tolist()}
    assert len(drawn) == 32
    seeds = []
    mask_params = MaskSampler.mask_params

    def record(self: MaskSampler, noise_seed: int | None = None, first_image: int = 0) -> MaskParams:
        seeds.append(noise_seed)
        return mask_params(self, noise_seed, first_image)

    monkeypatch.setattr(MaskSampler, "mask_params", record)
    trainer, _, _ = fitted(composed("model.blocks=[1,2]"))
    assert None not in seeds
    assert len(set(seeds)) == 2 * trainer.global_step


def test_an_image_s_embedding_is_the_mean_over_its_views(composed: Callable[..., DictConfig]) -> None:
    module = build_module(composed()).eval()
    views = torch.randn(2, 3, 3, 32, 16)
    with torch.no_grad():
        each = torch.stack([module.network(views[:, view]).embedding for view in range(3)])
        torch.testing.assert_close(module.embed_views(views), each.mean(0))
    assert not torch.allclose(each[0], each.mean(0), rtol=1e-2)


@torch.no_grad()
def test_the_noise_of_a_view_depends_on_its_number_alone(composed: Callable[..., DictConfig]) -> None:
    views = torch.randn(1, 1, 3, 32, 16, generator=torch.Generator().manual_seed(0)).repeat(3, 4, 1, 1, 1)
    found = {}
    for noise in ("shared", "per_view"):
        cfg = composed("model.sampler.test_mask=sample", f"model.sampler.sample_noise={noise}")
        module = build_module(cfg).eval()
        each = module.network(views[0], views=4).embedding
        assert torch.allclose(each[0], each[1], rtol=1e-4, atol=1e-7) == (noise == "shared")
        found[noise] = module.embed_views(views)
        torch.testing.assert_close(found[noise][0], each.mean(0))
        torch.testing.assert_close(module.embed_views(views[1:]), found[noise][1:])
        assert torch.equal(module.embed_views(views), found[noise])


def test_a_test_image_that_was_never_embedded_is_missed(composed: Callable[..., DictConfig]) -> None:
    module, data = build_module(composed()), build_data(composed())
    data.eval_batch_size = 5
    with pytest.raises(ValueError, match="6 of 16 samples are missing"):
        pl.Trainer(**QUIET, limit_test_batches=2).test(module, data, verbose=False)


def test_gradients_are_clipped_where_asked(composed: Callable[..., DictConfig]) -> None:
    seen = []

    class Norm(pl.Callback):
        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in module.network.parameters() if p.grad is not None]
            if grads:
                seen.append(torch.nn.utils.get_total_norm(grads).item())

    fitted(composed(), callbacks=[Norm()], max_epochs=2)
    assert max(seen) > 1e-3
    seen.clear()
    fitted(composed(), callbacks=[Norm()], max_epochs=2, gradient_clip_val=1e-3)
    assert seen
    assert max(seen) == pytest.approx(1e-3, rel=1e-3)


def test_a_non_finite_gradient_stops_before_the_update(composed: Callable[..., DictConfig]) -> None:
    cfg = composed()
    module, data = build_module(cfg), build_data(cfg)
    module.network.trunk.conv1.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = module.network.head[-1].weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"gradient is (nan|inf) in epoch 0, step 0.*_c1s1_"):
        pl.Trainer(**QUIET, max_epochs=1, limit_val_batches=0).fit(module, data)
    assert torch.equal(module.network.head[-1].weight, before)


def test_a_non_finite_loss_stops_before_the_update_and_names_the_batch(
    composed: Callable[..., DictConfig],
) -> None:
    cfg = composed()
    module, data = build_module(cfg), build_data(cfg)
    with torch.no_grad():
        module.network.head[-1].bias[0] = torch.nan
    before = module.network.trunk.conv1.weight.clone()
    trainer = pl.Trainer(**QUIET, max_epochs=1, limit_val_batches=0)
    with pytest.raises(NonFiniteLossError, match=r"loss is nan in epoch 0, step 0.*_c1s1_"):
        trainer.fit(module, data)
    assert torch.equal(module.network.trunk.conv1.weight, before)


def test_bf16_autocast_trains_with_finite_losses(composed: Callable[..., DictConfig]) -> None:
    # Not smaller: the weight gradient of torch's own bf16 convolution on the CPU (2.12.1: 3 x 3, stride 2) is
    # not finite on a 2 x 1 map.
    size = ("image.height=64", "image.width=32")
    trainer, _, _ = fitted(composed("model.context_blocks=[1,2,3]", *size), precision="bf16-mixed")
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_a_fused_optimizer_trains_the_same_network_to_rounding(composed: Callable[..., DictConfig]) -> None:
    trained = [fitted(composed(*more), precision="64-true") for more in ([], ["optimizer.fused=true"])]
    assert [trainer.optimizers[0].defaults["fused"] for trainer, _, _ in trained] == [None, True]
    one, fused = (module.network.state_dict() for _, module, _ in trained)
    assert len(one) > 50
    for name, value in one.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.fused=maybe"], "optimizer.fused must be true or false or null, got 'maybe'"),
        (
            ["optimizer.fused=true", "trainer.precision=16-mixed"],
            "optimizer.fused=true is incompatible with trainer.precision=16-mixed; use bf16-mixed, or",
        ),
        (
            ["model.sampler.implementation=triton", "trainer.accelerator=cpu"],
            "model.sampler.implementation=triton needs a GPU, but the training would run on cpu; use",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_scored(
    tmp_path: Path, tiny_overrides: list[str], overrides: list[str], message: str
) -> None:
    done = run(tmp_path, *tiny_overrides, *overrides)
    assert done.returncode == 1
    assert message in done.stdout
    assert not [*tmp_path.rglob("untrained.json")]
