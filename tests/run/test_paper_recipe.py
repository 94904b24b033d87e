"""Every score says how its run departs from the paper's recipe."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.run.comparability import open_choices
from sharpreid.run.paper_recipe import recipe_deviations


def composed_plainly(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", [*overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        ("data=market1501",),
        (
            "data=market1501",
            "model.blocks=[1]",
            "objective=tv_as_printed",
            "schedule=beta1_drop",
            "model/sampler=sigmoid",
        ),
        ("data=market1501", "model.trunk.weights=/my/resnet50.pth", "seed=3"),
    ],
    ids=["recipe", "what the paper ablates", "weights from a file"],
)
def test_the_paper_s_recipe_departs_in_nothing(overrides: tuple[str, ...]) -> None:
    assert recipe_deviations(composed_plainly(*overrides)) == ""


def test_the_demo_names_all_that_it_shrinks() -> None:
    assert recipe_deviations(composed_plainly()) == (
        "64 x 32 images (paper: 256 x 128), bottlenecks per stage 1 1 1 1 (3 4 6 3), "
        "channels of the stem 32 (64), weights none (imagenet), P 20 (64), K 2 (4), "
        "test views plain (ten_crop), learning rate 0.0008 (0.0002), weight decay 0.0 (0.0005), "
        "tau's rate 0.01 (0.008), decay from epoch 80 (100), decay to epoch 120 (150), epochs 120 (150)"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("image.width=64", "256 x 64 images (paper: 256 x 128)"),
        ("data.eval_transform.height=128", "256 x 128 training and 128 x 128 test images (paper: 256 x 128)"),
        ("trainer.max_epochs=3", "epochs 3 (150)"),
        ("data.images_per_identity=2", "K 2 (4)"),
        ("data.train_transform.ratio=[1,2]", "crop ratio 1 2 (2 3)"),
        ("data.eval_transform.crops=flip", "test views flip (ten_crop)"),
        ("trainer.precision=bf16-mixed", "precision bf16-mixed (32-true)"),
        ("+trainer.limit_train_batches=2", "trainer.limit_train_batches 2 (unset)"),
        ("+trainer.max_steps=10", "trainer.max_steps 10 (unset)"),
        ("+trainer.max_time='00:00:01:00'", "trainer.max_time 00:00:01:00 (unset)"),
        ("+trainer.accumulate_grad_batches=11", "trainer.accumulate_grad_batches 11 (unset)"),
        ("trainer.gradient_clip_val=0.001", "trainer.gradient_clip_val 0.001 (None)"),
        ("optimizer._target_=torch.optim.SGD", "optimizer._target_ torch.optim.SGD (torch.optim.Adam)"),
        ("+optimizer.eps=1", "optimizer.eps 1 (unset)"),
        ("objective.margin=5", "objective.margin 5 (0.5)"),
        ("objective=tv", "mu 0.01 (0.1), total variation mean (sum)"),
        ("model.head.embedding_dim=8", "model.head.embedding_dim 8 (128)"),
        ("model.weights=a.ckpt", f"model.weights {Path.cwd()}/a.ckpt (none)"),
        ("model.combine=concat", "combination concat (add)"),
        ("model.combine=attended_only", "combination attended_only (add)"),
        ("model.sampler.eps=0.4", "model.sampler.eps 0.4 (1e-06)"),
        ("model.sampler.train_mask=noise_free", "model.sampler.train_mask noise_free (sample)"),
        ("schedule.learning_rate_factor.start=1", "decay from epoch 1 (100)"),
        ("schedule=constant_tau", "tau's floor 1.0 (0.5)"),
        (
            "schedule=cosine_tau",
            "schedule.temperature._target_ sharpreid.schedules.cosine_temperature "
            "(sharpreid.schedules.temperature)",
        ),
        ("data.train_transform.max_attempts=0", "data.train_transform.max_attempts 0 (10)"),
    ],
)
def test_any_override_of_the_recipe_is_named(override: str, said: str) -> None:
    assert recipe_deviations(composed_plainly("data=market1501", override)) == said


def test_up_sampling_other_than_the_paper_s_is_named_where_there_is_a_context_unit() -> None:
    nearest = ("data=market1501", "model.context_unit.upsample=nearest")
    assert recipe_deviations(composed_plainly(*nearest)) == ""
    said = recipe_deviations(composed_plainly(*nearest, "method=sab_cu"))
    assert said == "model.context_unit.upsample nearest (deconv)"
    levels = ("data=market1501", "model.context_unit.p=2", "model.context_unit.q=2")
    assert recipe_deviations(composed_plainly(*levels)) == ""
    said = recipe_deviations(composed_plainly(*levels, "method=sab_cu"))
    assert said == "model.context_unit.p 2 (1), model.context_unit.q 2 (1)"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.epoch=images", ["epochs over images"]),
        ("data.normalise=per_pixel_mean", ["normalisation per_pixel_mean"]),
        ("data.eval_transform.crops=ten_crop_8_7", []),  # said with the protocol
        ("model.sampler.sample_noise=per_view", []),
    ],
)
def test_what_the_paper_leaves_open_is_no_departure(override: str, said: list[str]) -> None:
    cfg = composed_plainly("data=market1501", override)
    assert recipe_deviations(cfg) == ""
    assert open_choices(cfg) == ["strides v1.5", *said]


def test_how_a_context_unit_starts_is_open_and_no_departure() -> None:
    copied = composed_plainly("data=market1501", "method=sab_cu", "model.context_unit.init=next_stage")
    assert recipe_deviations(copied) == ""
    assert "context unit's init next_stage" in open_choices(copied)
    assert open_choices(composed_plainly("method=sab_cu")) == ["strides v1.5"]


def test_the_baseline_does_not_depart_by_what_it_does_not_draw() -> None:
    unused = ("model.sampler.eps=0.1", "model.combine=concat")
    assert recipe_deviations(composed_plainly("data=market1501", "model.blocks=[]", *unused)) == ""


def test_a_preset_with_a_further_override_names_what_ran(composed: Callable[..., DictConfig]) -> None:
    said = recipe_deviations(
        composed_plainly("+experiment=market1501_cpu", "image.height=256", "image.width=128")
    )
    assert "images" not in said
    assert "P 16 (64)" in said
