import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import ConfigCompositionException
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from sharpreid.callbacks.mask_gallery import MaskGallery
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers, run_label
from sharpreid.config.validation import ConfigError, check_config, check_node
from sharpreid.evaluation.protocol import Protocol
from sharpreid.run.build import build_data, build_module, build_trainer
from sharpreid.run.paper_recipe import recipe_deviations
from sharpreid.run.records import link_latest
from sharpreid.sweep.summary_callback import SweepSummary

EXPERIMENTS = sorted(CONF_DIR.glob("experiment/**/*.yaml"))
CUHK03 = tuple(sorted(path.stem for path in CONF_DIR.glob("data/cuhk03_*.yaml")))
DATA = sorted(path.stem for path in CONF_DIR.glob("data/*.yaml"))


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def keys(node: object, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return {prefix}
    return {prefix} | {key for name, child in node.items() for key in keys(child, f"{prefix}.{name}")}


def own_keys(cfg: DictConfig) -> set[str]:
    content = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(content, dict)
    hydra = content.pop("hydra")
    assert isinstance(hydra, dict)
    return keys(content) | keys(hydra["callbacks"], "hydra.callbacks") | keys(hydra["help"], "hydra.help")


def groups_of(experiment: Path) -> list[str]:
    """The groups that an experiment file selects, as overrides of the base config."""
    return [
        f"{group}={option}"
        for group, option in re.findall(r"override /([\w/]+): (\w+)", experiment.read_text(encoding="utf-8"))
    ]


def test_there_are_experiments() -> None:
    assert {"block_ablation", "market1501_cpu", "cuhk03_splits"} <= {path.stem for path in EXPERIMENTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_has_no_key_that_its_groups_lack(path: Path) -> None:
    experiment = str(path.relative_to(CONF_DIR / "experiment").with_suffix(""))
    added = own_keys(composed(f"+experiment={experiment}")) - own_keys(composed(*groups_of(path)))
    assert not added


def check(*overrides: str) -> None:
    """`check_config` on what a job with ``overrides`` would get, without what only Hydra can tell it."""
    cfg = composed("output_dir=out", "logger=csv", "~callbacks.progress", *overrides)
    check_config(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))


def swept(path: Path) -> dict[str, str]:
    """What an experiment sweeps: key or group -> values, as one text."""
    params = composed(f"+experiment={path.stem}").hydra.sweeper.params
    return {key: str(values) for key, values in (params or {}).items()}


def values_of(override: Override) -> list[str]:
    """The values that an override sweeps; of numbers, such as seeds, the first and the last."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    values = [*override.sweep_string_iterator()]
    numbers = all(one.replace(".", "", 1).isdigit() for one in values)
    return [*dict.fromkeys((values[0], values[-1]))] if numbers else values


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_job_that_an_experiment_sweeps_can_be_composed(path: Path) -> None:
    params = swept(path)
    assert params
    parsed = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    choices = [
        [f"{one.key_or_group}={value}" for value in values_of(one)]
        for one in parsed
        if one.is_sweep_override()
    ]
    fixed = [
        f"{one.key_or_group}={one.get_value_element_as_str()}"
        for one in parsed
        if not one.is_sweep_override()
    ]
    for values in choices:
        for value in values:
            check(f"+experiment={path.stem}", *fixed, value)


def test_a_misspelt_key_that_an_experiment_sweeps_would_be_seen() -> None:
    with pytest.raises(ConfigCompositionException, match="modle"):
        composed("+experiment=block_ablation", "modle.blocks=[1]")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_everything_of_an_experiment_can_be_built(path: Path, tmp_path: Path) -> None:
    cfg = composed(f"+experiment={path.stem}", f"output_dir={tmp_path}", "logger=csv")
    cfg.model.trunk.weights = "none"
    cfg.callbacks.progress.label = "label"
    assert build_module(cfg).network.head[-1].out_features == 128
    assert build_data(cfg).images_per_identity == cfg.data.images_per_identity
    assert build_trainer(cfg, training=True).max_epochs == cfg.trainer.max_epochs
    summary: Any = hydra.utils.instantiate(cfg.hydra.callbacks.summary)
    assert isinstance(summary, SweepSummary)


@pytest.mark.parametrize(("accelerator", "gpus"), [("auto", 3), ("gpu", 3), ("cpu", None)])
def test_a_job_on_slurm_gets_a_process_per_device(accelerator: str, gpus: int | None) -> None:
    devices = ("trainer.devices=3", "trainer.num_nodes=2", f"trainer.accelerator={accelerator}")
    cfg = composed("+experiment=block_ablation", "+cluster=slurm", *devices)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher")
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 3, gpus)
    assert launcher.additional_parameters.signal == "USR1@300"
    assert (cfg.resume, cfg.skip_finished) == ("auto", True)
    assert own_keys(cfg) == own_keys(composed("+experiment=block_ablation"))


SLURM_TASK = {"PROCID": 1, "LOCALID": 1, "NODEID": 0, "NNODES": 1, "NTASKS_PER_NODE": 2, "STEP_NUM_TASKS": 2}
"""What srun gives the second of two tasks, as SLURM 22.05 does."""


def enter_slurm(monkeypatch: pytest.MonkeyPatch, *, name: str, tasks: int, **values: Any) -> None:
    given = {"JOB_ID": 1, "JOB_NAME": name, "NTASKS": tasks, **values}
    for key, value in given.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which the trainer sets


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("job.sh", {}),
        ("interactive", {}),  # srun in the shell of salloc
        ("bash", {"PTY_PORT": 1234}),  # srun in the shell of srun --pty
    ],
)
def test_slurm_s_processes_are_taken_without_lightning_s_requeueing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    enter_slurm(monkeypatch, name=name, tasks=2, **SLURM_TASK, **more)
    monkeypatch.setattr("sharpreid.run.build._has_terminal", lambda: False)
    cfg = composed(f"output_dir={tmp_path}", "trainer.devices=2", "trainer.accelerator=cpu")
    trainer = build_trainer(cfg, training=False)
    assert (trainer.world_size, trainer.global_rank) == (2, 1)
    environment = trainer.strategy.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue
    cfg.trainer.devices = 1
    with pytest.raises(ValueError, match=r"SLURM started 2 processes, but trainer\.devices=1 .* are 1"):
        build_trainer(cfg, training=False)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("interactive", {}),  # the shell of salloc
        ("interactive", {"PROCID": 0, "LOCALID": 0, "STEP_NUM_TASKS": 1}),  # the same as an interactive step
        ("zsh", {"PROCID": 0, "LOCALID": 0, "STEP_NUM_TASKS": 4, "PTY_PORT": 1234}),  # srun --pty zsh
        ("job.sh", {"PROCID": 0, "LOCALID": 0}),  # a batch script
        ("job.sh", {"PROCID": 0, "LOCALID": 0, "NTASKS_PER_NODE": 4, "NNODES": 1}),
    ],
)
def test_one_process_in_an_allocation_of_four_tasks_trains_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    enter_slurm(monkeypatch, name=name, tasks=4, **more)
    monkeypatch.setattr("sharpreid.run.build._has_terminal", lambda: "PTY_PORT" in more)
    cfg = composed(f"output_dir={tmp_path}", "trainer.accelerator=cpu")
    trainer = build_trainer(cfg, training=False)
    assert (trainer.world_size, trainer.global_rank) == (1, 0)
    cfg.trainer.devices = 4
    with pytest.raises(ValueError, match=r"needs 4 processes, .*: srun --ntasks-per-node=4"):
        build_trainer(cfg, training=False)


@pytest.mark.parametrize("devices", [2, 3])
def test_several_devices_are_refused_before_anything_starts(devices: int) -> None:
    cfg = composed("output_dir=out", f"trainer.devices={devices}", "trainer.accelerator=cpu")
    with pytest.raises(ValueError, match=rf"needs {devices} processes, .*: torchrun .* hydra/launcher=local"):
        build_trainer(cfg, training=False)


@pytest.mark.parametrize("data", DATA)
def test_a_recipe_has_no_key_that_the_groups_lack(data: str) -> None:
    paper = own_keys(composed(f"data={data}", "recipe=paper"))
    assert own_keys(composed(f"data={data}")) == paper


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_opens_with_its_claim_and_its_command(path: Path) -> None:
    head = path.read_text(encoding="utf-8")[:800]
    assert head.startswith("# @package _global_\n# ")
    assert f"python -m sharpreid.train +experiment={path.stem}" in head


def test_every_table_and_figure_has_a_command_that_exists() -> None:
    index = (CONF_DIR.parent / "experiments" / "README.md").read_text(encoding="utf-8")
    table = index.partition("# Recorded")[0]
    for number in ("I", "II", "III", "IV", "V", "VI"):
        assert re.search(rf"\| Tables? [^|]*\b{number}\b", table), number
    for number in (1, 2, 5, 6):
        assert re.search(rf"\| Fig\. [^|]*\b{number}\b", table), number
    known = {path.stem for path in EXPERIMENTS} | {"test_mask", "NAME"}
    named = set(re.findall(r"\+experiment=(\w+)", table)) | set(re.findall(r"\| `(\w+)` \|", table))
    assert {"table1", "table4", "fig5", "fig5c", "methods", "tv_scale"} <= named <= known
    for command in re.findall(r"`python -m sharpreid\.train ([^`]*)`", table):
        if "NAME" not in command:
            composed(*(re.sub(r",.*", "", word) for word in command.split()))  # the first of a list


def test_block_ablation_sweeps_the_paper_s_combinations_and_knows_its_baseline() -> None:
    hydra = composed("+experiment=block_ablation").hydra
    assert hydra.mode.name == "MULTIRUN"
    assert hydra.sweeper.params["model.blocks"] == "[],[1],[2],[3],[4],[1,2],[1,2,3],[1,2,3,4]"
    assert hydra.callbacks.summary.baseline == "model.blocks=[]"
    repeats = [["model.blocks=[]", "seed=1"], ["model.blocks=[1,2,3,4]", "seed=1"]]
    assert hydra.sweeper.repeats == repeats


PAPER = {
    # Sec. IV-B, and where it is silent the public recipe behind it
    "image": {"height": 256, "width": 128},
    "channels_last": True,
    "data.train_transform": {
        "height": 256,
        "width": 128,
        "area": [0.64, 1.0],
        "ratio": [2, 3],
        "max_attempts": 10,
        "flip_probability": 0.5,
    },
    "data.eval_transform": {"height": 256, "width": 128, "crops": "ten_crop"},
    "data.identities_per_batch": 64,
    "data.images_per_identity": 4,
    "data.validation_identities": 0,
    "model.trunk": {"depths": [3, 4, 6, 3], "width": 64, "strides": "v1.5", "weights": "imagenet"},
    "model.head": {"in_features": 2048, "hidden_features": 1024, "embedding_dim": 128, "init_std": 0.001},
    "model.blocks": [1, 2, 3, 4],
    "model.context_blocks": [],
    "model.combine": "add",
    "model.sampler.eps": 1e-6,
    "model.sampler.test_mask": "noise_free",
    "objective": {"margin": 0.5, "mu": 0.0, "reduction": "mean"},
    "optimizer": {"lr": 2e-4, "weight_decay": 5e-4, "fused": None},
    "schedule.temperature": {"rate": 0.008, "floor": 0.5},
    "schedule.learning_rate_factor": {"start": 100, "end": 150, "final": 0.001},
    "schedule.beta1": None,
    "protocol": {
        "name": "market1501",
        "exclusion": "same_identity_and_camera",
        "denominator": "valid_queries",
        "max_rank": 50,
    },
    "trainer.max_epochs": 150,
    "trainer.precision": "32-true",
    "trainer.gradient_clip_val": None,
}


@pytest.mark.parametrize("key", PAPER)
def test_on_market1501_nothing_departs_from_the_paper_s_recipe(key: str) -> None:
    cfg = composed("+experiment=block_ablation", "data=market1501")
    value = OmegaConf.select(cfg, key)
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        value = {name: one for name, one in value.items() if not name.startswith("_")}
    assert value == PAPER[key]


def test_cuhk03_has_five_variants() -> None:
    assert len(CUHK03) == 5


@pytest.mark.parametrize("data", [name for name in DATA if name != "synthetic"])
def test_on_real_data_sets_nothing_departs_from_the_paper_s_recipe(data: str) -> None:
    assert recipe_deviations(composed("+experiment=block_ablation", f"data={data}")) == ""


def test_the_recipe_of_an_experiment_follows_its_data_set() -> None:
    cfg = composed("+experiment=market1501_cpu")
    assert cfg.data.source.name == "market1501"
    assert list(cfg.model.trunk.depths) == [3, 4, 6, 3]


def test_a_misspelt_override_is_refused() -> None:
    with pytest.raises(ConfigCompositionException, match="modle"):
        composed("modle.blocks=[1]")


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.blocks=[]",),
        ("model/sampler=sigmoid",),
        ("model/sampler=sigmoid_conv",),
        ("objective=tv", "schedule=beta1_drop"),
        ("model.combine=concat",),
        ("model.combine=attended_only",),
        ("method=sab_cu", "model.context_unit.init=next_stage", "model.combine=concat"),
        ("model.context_blocks=[1]", "model.context_unit.p=2", "model.context_unit.q=2"),
        ("model.context_blocks=[1,2,3]", "model.context_unit.upsample=nearest"),
        (
            "model/context_unit=residual_attention",
            "model/sampler=none",
            "model.blocks=[1,2,3]",
            "model.context_blocks=[1,2,3]",
        ),
    ],
    ids=lambda overrides: overrides[0],
)
def test_the_options_of_the_model_are_built(overrides: tuple[str, ...]) -> None:
    module = build_module(composed(*overrides))
    assert module.network.head[-1].out_features == 128


@pytest.mark.parametrize(
    ("overrides", "swept", "label"),
    [
        ([], [], "name"),
        (["seed=3", "model.blocks=[1, 2]"], [], "seed=3 model.blocks=[1,2]"),
        (
            ["seed=3", "model.blocks=[1,2]", "+optimizer.eps=1"],
            ["seed", "optimizer.eps"],
            "seed=3 optimizer.eps=1",
        ),
        ([f"data.source.root=/{'far/' * 30}", "seed=3"], ["seed"], "seed=3"),
        (["seed=3", f"data.source.root=/{'far/' * 30}", "skip_finished=True"], [], "seed=3"),
        (["data=duke", "data_root=small"], [], "name"),
        (["seed=3", f"model.trunk.depths=[{'11,' * 30}1]"], [], "seed=3 ..."),
    ],
)
def test_a_job_is_called_by_what_varies(
    overrides: list[str], swept: list[str], label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"override_dirname": {"exclude_keys": ["seed", "skip_finished"]}}
    job: Any = OmegaConf.create({"overrides": {"task": overrides}, "job": {"config": names}})
    monkeypatch.setattr("sharpreid.config.resolvers.HydraConfig.get", lambda: job)
    monkeypatch.setattr("sharpreid.config.resolvers.swept_keys", lambda: {*swept})
    assert run_label("name") == label


@pytest.mark.parametrize("blocks", ["[1,2,3,4]", "[4]"])
def test_a_block_without_anything_to_make_its_mask_is_refused(blocks: str) -> None:
    context = blocks.replace(",4", "").replace("4", "")
    cfg = composed(
        "model/context_unit=residual_attention",
        "model/sampler=none",
        f"model.blocks={blocks}",
        f"model.context_blocks={context}",
    )
    with pytest.raises(ConfigError, match=r"needs nn\.Identity as its sampler \(model/sampler=none\)"):
        build_module(cfg)


METHODS = {
    # blocks, context_blocks, sampler, context unit, mu > 0
    "baseline": ([], [], "MaskSampler", "ContextUnit", False),
    "sab": ([1, 2, 3, 4], [], "MaskSampler", "ContextUnit", False),
    "sab_late": ([3, 4], [], "MaskSampler", "ContextUnit", False),
    "sab_cu": ([1, 2, 3, 4], [1, 2, 3], "MaskSampler", "ContextUnit", False),
    "sab_cu_tv": ([1, 2, 3, 4], [1, 2, 3], "MaskSampler", "ContextUnit", True),
    "sigmoid_gate": ([1, 2, 3, 4], [], "SigmoidGate", "ContextUnit", False),
    "sigmoid_conv_gate": ([1, 2, 3, 4], [], "SigmoidConvGate", "ContextUnit", False),
    "residual_attention": ([1, 2, 3], [1, 2, 3], "Identity", "ResidualAttentionMask", False),
}


def test_every_method_is_known_here() -> None:
    assert METHODS.keys() == {path.stem for path in CONF_DIR.glob("method/*.yaml")}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_row_of_the_paper_that_it_says(method: str) -> None:
    cfg = composed("data=market1501", f"method={method}")
    found = (
        list(cfg.model.blocks),
        list(cfg.model.context_blocks),
        cfg.model.sampler._target_.rpartition(".")[2],
        cfg.model.context_unit._target_.rpartition(".")[2],
        cfg.objective.mu > 0,
    )
    assert found == METHODS[method]
    tv = "mu 0.01 (0.1), total variation mean (sum)" if cfg.objective.mu else ""
    assert recipe_deviations(cfg) == tv


@pytest.mark.parametrize("method", METHODS)
def test_a_value_of_the_command_line_wins_over_the_method_s(method: str) -> None:
    assert list(composed(f"method={method}", "model.blocks=[2]").model.blocks) == [2]


MARKET_RULE = {
    "exclusion": "same_identity_and_camera",
    "gallery_per_identity": None,
    "repeats": 1,
    "map_on": "full_gallery",
}
SINGLE_SHOT = {"exclusion": "same_camera", "gallery_per_identity": 1, "repeats": 20, "map_on": "full_gallery"}
RULES = {
    "synthetic": ("market1501", MARKET_RULE),
    "market1501": ("market1501", MARKET_RULE),
    "duke": ("duke", MARKET_RULE),
    "msmt17": ("msmt17", MARKET_RULE),
    "manifest": ("own_data", MARKET_RULE),
    "folders": ("own_data", MARKET_RULE),
    "cuhk03_labeled": ("cuhk03_single_shot", SINGLE_SHOT),
    "cuhk03_detected": ("cuhk03_single_shot", SINGLE_SHOT),
    "cuhk03_openreid": ("openreid_compat", SINGLE_SHOT | {"repeats": 10}),
    "cuhk03_new_labeled": ("cuhk03_new", MARKET_RULE),
    "cuhk03_new_detected": ("cuhk03_new", MARKET_RULE),
}


def test_every_data_set_has_a_protocol() -> None:
    assert RULES.keys() <= {path.stem for path in CONF_DIR.glob("protocol/*.yaml")} == {*DATA}


@pytest.mark.parametrize("data", RULES)
def test_a_data_set_is_scored_by_its_own_rules(data: str) -> None:
    name, rules = RULES[data]
    protocol = hydra.utils.instantiate(composed(f"data={data}").protocol)
    common = {"max_rank": 50, "denominator": "valid_queries", "junk_identity": -1, "distractor_identity": 0}
    assert protocol == Protocol(name=name, **rules, **common, seed=0, split=0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.blocks=1", r"^model\.blocks must be a list, got 1"),
        ("model.blocks=[one]", r"^model\.blocks\[0\] must be a whole number, got 'one'"),
        ("model.blocks=[[1]]", r"^model\.blocks\[0\] must be a whole number, got \[1\]"),
        ("model.blocks=[5]", r"^model: blocks must be different numbers"),
        ("model.trunk.depths=[1]", r"model\.trunk: depths must be 4 numbers"),
        ("model.combine=sum", r"model\.combine must be 'add', 'concat' or 'attended_only', got 'sum'"),
        ("objective.mu=abc", r"objective\.mu must be a number, got 'abc'"),
        ("optimizer.lr=abc", r"optimizer\.lr must be a number, got 'abc'"),
        ("optimizer.fused=maybe", r"optimizer\.fused must be true or false or null, got 'maybe'"),
        ("model.sampler.draws=1.5", r"model\.sampler\.draws must be a whole number, got 1\.5"),
        ("model.head.hidden_features=true", r"hidden_features must be a whole number, got true"),
        ("protocol.name=null", r"protocol\.name must be text, got null"),
        ("+objective.margn=1", r"objective\.margn: no such key; did you mean margin\? Known are margin, mu,"),
        ("+model.trunk.depth=[1]", r"model\.trunk\.depth: no such key; did you mean depths\?"),
        ("schedule.temperature.floor=0", r"schedule\.temperature: .*floor=0"),
        ("schedule.learning_rate_factor.end=1", r"schedule\.learning_rate_factor: .*end=1"),
        ("protocol.exclusion=x", r"protocol\.exclusion must be '.*', got 'x'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_key(override: str, message: str) -> None:
    def check_and_build() -> None:
        check(override)
        build_module(composed(override))

    with pytest.raises(ConfigError, match=message):
        check_and_build()


@pytest.mark.parametrize("epochs", ["3.5", "0", "null", "many"])
def test_a_number_of_epochs_that_cannot_be_is_refused_before_anything_runs(epochs: str) -> None:
    cfg = composed("output_dir=out", f"trainer.max_epochs={epochs}", "logger=csv")
    cfg.callbacks = {}
    cfg.logger = {}
    with pytest.raises(ValueError, match="max_epochs"):
        build_trainer(cfg, training=True)


def test_what_lightning_refuses_is_named_with_its_key_and_no_other() -> None:
    cfg = composed("output_dir=out", "logger=csv", "~callbacks.progress", "trainer.accelerator=npu")
    with pytest.raises(ConfigError, match=r"^trainer: .*\(it was given accelerator=npu\)$"):
        build_trainer(cfg, training=True)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_refused_with_what_to_give(
    accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanted = f"trainer.accelerator={accelerator}"
    cfg = composed("output_dir=out", "logger=csv", "~callbacks.progress", wanted)
    with pytest.raises(ValueError, match=rf"{wanted}, .*trainer\.accelerator=cpu"):
        build_trainer(cfg, training=True)


def test_a_size_that_is_no_number_is_named_with_its_key() -> None:
    with pytest.raises(
        ConfigError, match=r"train_transform\.height \(\$\{image\.height\}\) must be a whole number"
    ):
        check("image.height=abc")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+seeds=1", r"^seeds: no such key; did you mean seed\? Known are "),
        ("+see=1", r"^see: no such key; did you mean seed\?"),
        ("+modle.blocks=[1]", r"^modle: no such key; did you mean model\?"),
        ("+recipe.epochs=1", r"^recipe: no such key"),
        ("+image.heigth=3", r"^image\.heigth: no such key; did you mean height\? Known are height, width"),
        ("+schedule.temprature.floor=1", r"^schedule\.temprature: no such key; did you mean temperature\?"),
        ("score_untrained=no", r"^score_untrained must be true or false, got 'no'"),
        ("channels_last=1", r"^channels_last must be true or false, got 1"),
        ("name=2024", r"""^name must be text, got 2024; as text it is '"2024"'"""),
        ("allow_changed=seed", r"^allow_changed must be a list, got 'seed'"),
        ("+trainer.max_epoch=3", r"^trainer\.max_epoch: no such key; did you mean max_epochs\?"),
        (
            "+trainer.timeout_minute=3",
            r"^trainer\.timeout_minute: .* did you mean timeout_minutes\?",
        ),
        ("+trainer.callbacks=[]", r"^trainer\.callbacks: no such key"),
        ("callbacks.masks.images=many", r"^callbacks\.masks\.images must be a whole number"),
        ("+callbacks.masks.foo=1", r"^callbacks\.masks\.foo: no such key"),
        ("+callbacks.mine.rate=1", r"^callbacks\.mine needs a _target_"),
        ("data.source.allow_subset=1", r"^data\.source\.allow_subset must be true or false, got 1"),
        (
            "data.cache=5",
            r"^data\.cache must be a path or null, got 5; as text it is",
        ),
        ("+data.batch_size=3", r"^data\.batch_size: no such key; did you mean eval_batch_size\?"),
    ],
)
def test_what_nothing_would_read_is_refused_before_a_data_set_is(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check("data=market1501", override)


@pytest.mark.parametrize("reference", ["${wide}", "${..wide}", "${oc.select:wide}"])
def test_a_further_key_that_another_refers_to_is_no_mistake(reference: str) -> None:
    check("+wide=2", f"objective.margin='{reference}'")


class Custom:
    """What a user may name as ``_target_``."""

    def __init__(
        self,
        *,
        stages: list[int] | None = None,
        rate: float | None = None,
        wait: timedelta | None = None,
        place: Path | None = None,
        pair: tuple[float, float] = (0, 1),
        other: Any = None,
    ) -> None:
        pass


Custom.__init__.__annotations__["rate"] = float  # beside a default of None, as other packages write


NODE = {"_target_": f"{__name__}.Custom"}


def unhelpful(size: Any) -> None:
    pass


unhelpful.__annotations__["size"] = "learning rate"  # text that is no type, as is allowed


def open_to_all(**options: Any) -> None:
    pass


@pytest.mark.parametrize(
    "node",
    [
        NODE | {"stages": [1, 2], "rate": None, "wait": None, "other": 5},
        NODE | {"place": Path("x"), "pair": [1, 2.5]},
        NODE | {"other": [{"_target_": "nowhere.at.all"}], "stages": []},
        NODE | {"place": "x", "rate": 1, "_partial_": True},
        {"_target_": f"{__name__}.unhelpful", "size": "large"},
        {"_target_": f"{__name__}.open_to_all", "anything": 1},
        {"_target_": "builtins.dict", "anything": 1},
        {"_target_": "nowhere.at.all", "anything": 1},
        {"_target_": None},
        {1: {"a.b": {"c": 1}}},
        {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1, "betas": [0.9, 0.99], "foreach": None},
    ],
)
def test_what_cannot_be_told_to_be_wrong_is_let_through(node: dict[Any, Any]) -> None:
    check_node(OmegaConf.create({"part": node}), "part")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"place": 3}, r"^part\.place must be a path or null, got 3"),
        ({"rate": "fast"}, r"^part\.rate must be a number, got 'fast'"),
        ({"rates": 1}, r"^part\.rates: no such key; did you mean rate\?"),
        ({"wait": 3}, r"^part\.wait must be .*duration or null, got 3"),
        ({"stages": [1, "two"]}, r"^part\.stages\[1\] must be a whole number, got 'two'"),
        ({"stages": [1, True]}, r"^part\.stages\[1\] must be a whole number, got true"),
        ({"stages": "1"}, r"^part\.stages must be a list or null, got '1'"),
        ({"other": [NODE | {"rates": 1}]}, r"^part\.other\[0\]\.rates: no such key"),
        ({"other": {"a": [1, NODE | {"rate": "fast"}]}}, r"^part\.other\.a\[1\]\.rate must be a number"),
        ({"pair": [1, 2, 3]}, r"^part\.pair must be shorter, got \[1, 2, 3\]"),
        ({"pair": [1]}, r"^part\.pair must be "),
        ({"_target_": f"{__name__}.unhelpful"}, r"^part: missing a required argument: 'size'"),
    ],
)
def test_a_class_of_ones_own_is_checked_too(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_node(OmegaConf.create({"part": NODE | node}), "part")


def test_what_cannot_be_imported_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer: Error loading 'torch\.optim\.Adamm'"):
        build_module(composed("optimizer._target_=torch.optim.Adamm"))


def test_what_is_set_to_null_is_left_out() -> None:
    cfg = composed("output_dir=out", "logger=csv", "~callbacks.progress", "callbacks.masks=null")
    assert not any(isinstance(part, MaskGallery) for part in build_trainer(cfg, training=True).callbacks)


def test_the_csv_logger_needs_no_wandb() -> None:
    assert "wandb" not in OmegaConf.to_yaml(composed("logger=csv").logger)


def test_a_run_in_the_latest_folder_does_not_make_the_link_point_at_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        link_latest(Path("outputs", name))
    assert (tmp_path / "outputs" / "latest").readlink() == Path("b")
    link_latest(Path("outputs", "latest"))
    assert (tmp_path / "outputs" / "latest").readlink() == Path("b")
    link_latest(tmp_path)
    assert (tmp_path / "outputs" / "latest").resolve() == tmp_path / "outputs" / "b"
