"""A misspelt key or choice is refused with a guess at what was meant, before anything slow is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sharpreid.config.overrides import (
    find_misspelt,
    find_misspelt_of_evaluation,
    quote_paths,
    refuse_misspelt,
)
from sharpreid.config.paths import PATH_KEYS

CLUSTER = "+cluster=slurm"


@pytest.mark.parametrize(
    ("arguments", "key", "guess"),
    [
        (["sed=1"], "sed", "seed"),
        (["modle.blocks=[1]"], "modle", "model"),
        (["objective.margn=0.5"], "objective.margn", "margin"),
        (["data=market1501", "data.source.allow_subsets=true"], "data.source.allow_subsets", "allow_subset"),
        (["margin=0.5"], "margin", "objective.margin"),
        (["sampler.draws=2"], "sampler.draws", "model.sampler.draws"),
        (["model.trunk={stride:v1}"], "model.trunk.stride", "strides"),
        (["~callbacks.progres"], "callbacks.progres", "progress"),
        (["+see=1"], "see", "seed"),
        (["+experimnt=block_ablation"], "experimnt", "experiment"),
        ([CLUSTER, "hydra.launcher.partitoin=gpu"], "hydra.launcher.partitoin", "partition"),
        (["--multirun", "objective.margn=0.1,0.5"], "objective.margn", "margin"),
        (["-m", "seed=0,1", "model.trunk={strides:v1},{stride:v1}"], "model.trunk.stride", "strides"),
        (["+experiment=fig5", "modle.blocks=[1]"], "modle", "model"),
        (["data=markt1501"], "data=markt1501", "market1501"),
        (["method=sabb"], "method=sabb", "sab"),
        (["model/sampler=sharpp"], "model/sampler=sharpp", "sharp"),
        (["recipe=halff"], "recipe=halff", "half"),
        (["logger=[wandb,cvs]"], "logger=cvs", "csv"),
        (["hydra/launcher=loca"], "hydra/launcher=loca", "local"),
        (["+experiment=block_ablatoin"], "experiment=block_ablatoin", "block_ablation"),
        (["experiment=block_ablatoin"], "experiment=block_ablatoin", "block_ablation"),
        (["--multirun", "data=market1501,dukee"], "data=dukee", "duke"),
    ],
)
def test_a_misspelt_key_or_choice_gets_a_guess(arguments: list[str], key: str, guess: str) -> None:
    problem = find_misspelt(arguments)
    assert problem is not None
    assert problem.startswith(f"{key}: no such ")
    assert f"did you mean {guess}?" in problem


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help", "sed=1"],
        ["--multirun", "seed=range(0,3)", "model.blocks=[1],[2]", "data=glob(*)"],
        ["+experiment=table1", "data=market1501", "seed=0"],
        ["+experiment=tune_tau", "hydra.sweeper.n_jobs=4"],
        ["+experiment=strides", "model.trunk={strides:v1,weights:none},{strides:v1.5,weights:none}"],
        ["+optimizer.eps=1e-7", "++optimizer.eps=1e-8", "optimizer.eps=1e-9"],
        ["+callbacks.mine={_target_:a.B}", "callbacks.mine.rate=1"],
        ["+wide=2", "objective.margin=${wide}"],
        ["callbacks.masks=null", "~callbacks.progress", "logger=null", "data.source.root=/a=b,c"],
        ["hydra.job.env_set.A=1"],
        ["model.blocks=[1"],
        ["what"],
        ["data=null"],
        ["--config-name", "sed=1", "seed=1"],
    ],
)
def test_what_is_not_misspelt_is_left_to_hydra(arguments: list[str]) -> None:
    assert find_misspelt(arguments) is None


def test_a_parameter_that_the_config_does_not_list_gets_the_advice_to_add_it() -> None:
    problem = find_misspelt(["trainer.accumulate_grad_batches=2"])
    assert problem is not None
    assert problem.endswith(
        "parameter of pytorch_lightning.Trainer needs a plus sign: +trainer.accumulate_grad_batches=..."
    )


def test_configs_of_the_user_s_own_folder_are_choices_too(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment" / "mine.yaml"
    experiment.parent.mkdir()
    experiment.write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      objective.margn: 0,1\n"
    )
    flag = f"--config-dir={tmp_path}"
    assert "did you mean mine?" in str(find_misspelt([flag, "+experiment=mnie"]))
    assert str(find_misspelt([flag, "+experiment=mine"])).startswith("objective.margn: no such key")
    assert find_misspelt([flag, "+experiment=mine", "seed=1"]) is not None
    experiment.write_text(experiment.read_text().replace("margn", "margin"))
    assert find_misspelt([flag, "+experiment=mine"]) is None


def test_a_full_error_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit, match="did you mean seed"):
        refuse_misspelt(["sed=1"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="did you mean seed"):
        refuse_misspelt(["sed=1"])


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["train", "sed=1"], 1),
        (["train", "seed=0,1", "--multirun", "method=sabb"], 1),
        (["prepare", "data=markt1501"], 2),
        (["prepare", "data=market1501", "data.source.rot=/x"], 2),
    ],
)
def test_a_refused_command_says_why_and_imports_no_torch(
    command: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    line = [sys.executable, "-X", "importtime", "-m", f"sharpreid.{command[0]}", *command[1:]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == status
    assert "did you mean" in done.stderr
    assert "+" not in "".join(line for line in done.stderr.splitlines() if "import time" not in line)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time" in line}
    assert "hydra" in modules
    assert modules.isdisjoint({"torch", "numpy", "pytorch_lightning", "pydantic"})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    run = tmp_path / "seed=0"
    run.mkdir()
    (run / "config.yaml").write_text("model: {sampler: {test_mask: hard}}\nre_ranking: null\nseed: 0\n")
    return f"checkpoint={run / 'checkpoints' / 'final.ckpt'}"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model.sampler.test_mas=mean", "model.sampler.test_mas: no such key; did you mean test_mask?"),
        ("test_mask=mean,hard", "test_mask: no such key; did you mean model.sampler.test_mask?"),
        ("re_ranking=none,k_reciprocl", "re_ranking=k_reciprocl: no such choice; did you mean k_reciprocal?"),
        ("+experiment=test_msk", "experiment=test_msk: no such choice; did you mean test_mask?"),
    ],
)
def test_an_evaluation_s_misspelt_arguments_get_a_guess(argument: str, message: str, checkpoint: str) -> None:
    problem = find_misspelt_of_evaluation(["--multirun", argument, checkpoint])
    assert problem is not None
    assert problem.startswith(message)
    assert "+" not in problem


def test_what_is_not_misspelt_is_left_to_the_evaluation(checkpoint: str, tmp_path: Path) -> None:
    right = ["model.sampler.test_mask=mean", "re_ranking=k_reciprocal", "re_ranking.k1=3", "recalibrate=8"]
    assert find_misspelt_of_evaluation([checkpoint, *right, "output=a.json", "seed=1"]) is None
    assert find_misspelt_of_evaluation(["checkpoint=none.ckpt", "modle=1", "what"]) is None
    (tmp_path / "seed=0" / "config.yaml").write_text("a: [1")
    assert find_misspelt_of_evaluation([checkpoint, "modle=1"]) is None


@pytest.mark.own_interpreter
def test_a_refused_evaluation_imports_no_torch(checkpoint: str) -> None:
    script = (
        "import sys; from sharpreid.evaluate import main\n"
        "try: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    line = [sys.executable, "-c", script, checkpoint, "model.sampler.test_mas=mean"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (1, "False")
    assert "did you mean test_mask?" in done.stderr


ODD = (
    *("it's a [test], {a=b} \u00fc", 'the "best" run', "a,b", "a'", "2024", "true", "f(x)", "a b"),
    *("\u65e5\u672c", "#1", "50%"),
)
"""Names of folders."""


def values(*arguments: str) -> list[object]:
    """The values that Hydra reads in the last argument."""
    override = OverridesParser.create().parse_override(quote_paths(arguments)[-1])
    if not override.is_sweep_override():
        return [override.value()]
    texts = override.sweep_string_iterator()
    return [OverridesParser.create().parse_override(f"a={text}").value() for text in texts]


@pytest.mark.parametrize("path", [*ODD, " a ", "a\\", "\\\\server"])
def test_a_path_is_taken_as_it_is_written(path: str, tmp_path: Path) -> None:
    for key in PATH_KEYS:
        assert values(f"{key}={path}") == [path]
        assert values(f"++{key}={tmp_path}/{path}") == [f"{tmp_path}/{path}"]
    (argument,) = quote_paths([f"data_root={path}"])
    assert quote_paths([argument]) == [argument]  # a job gets the arguments of its sweep
    assert quote_paths([f"name={path}"]) == [f"name={path}"]


@pytest.mark.parametrize("path", ODD)
def test_a_sweep_takes_several_paths(path: str, tmp_path: Path) -> None:
    (tmp_path / path).mkdir()
    swept = [f"{tmp_path}/{path}", "other", f"{tmp_path}/{path}"]
    assert values("--multirun", f"data.source.root={','.join(swept)}") == swept
    assert values("--multirun", f"hydra.sweep.dir={path}") == [path]


@pytest.mark.parametrize(
    "argument",
    [
        *("data.cache=null", "data_root=${oc.env:HOME}/a", "data_root='a,b'", "resume=auto", "output_dir="),
        *(
            "data_root=a,'b,c'",
            "data_root=choice(a,b)",
            "data_root=a\\,b",
            "model.trunk.weights=none,imagenet",
        ),
    ],
)
def test_what_hydra_takes_stays_as_it_is(argument: str) -> None:
    assert quote_paths(["--multirun", argument]) == ["--multirun", argument]


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna b")
    assert values("data_root=~/x,y") == ["/home/anna b/x,y"]
