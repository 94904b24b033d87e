"""`hydra/sweeper=repeating`: which jobs there are."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hydra_plugins.sharpreid_repeats import RepeatingBasicSweeper
from sharpreid.config.sweep_context import count_choices, count_repeats, repeats_of

PARAMS = {"model.blocks": "[],[1],[2]"}
REPEATS = [["model.blocks=[]", "seed=1"]]


def jobs_of(*arguments: str) -> list[list[str]]:
    sweeper = RepeatingBasicSweeper(None, PARAMS, REPEATS)
    sweeper._arguments = list(arguments)
    wanted = [*sweeper._parse_config(), *arguments]
    (batch,) = sweeper.split_arguments(OverridesParser.create().parse_overrides(wanted), None)
    return batch


def planned(*arguments: str) -> int:
    cfg = OmegaConf.create(
        {
            "hydra": {
                "sweeper": {"_target_": "RepeatingBasicSweeper", "params": PARAMS, "repeats": REPEATS},
                "overrides": {"task": list(arguments)},
            }
        }
    )
    choices = count_choices(cfg)
    assert choices is not None
    grid = 1
    for count in choices.values():
        grid *= count
    return grid + count_repeats(repeats_of(cfg), choices)


def test_the_repeats_follow_the_grid() -> None:
    assert jobs_of("+experiment=x") == [
        ["model.blocks=[]", "+experiment=x"],
        ["model.blocks=[1]", "+experiment=x"],
        ["model.blocks=[2]", "+experiment=x"],
        ["model.blocks=[]", "seed=1", "+experiment=x"],
    ]


def test_a_repeat_goes_through_the_other_keys_of_the_grid() -> None:
    jobs = jobs_of("optimizer.lr=1,2")
    assert len(jobs) == 8
    assert jobs[6:] == [
        ["model.blocks=[]", "seed=1", "optimizer.lr=1"],
        ["model.blocks=[]", "seed=1", "optimizer.lr=2"],
    ]


def test_the_command_line_takes_the_place_of_repeats() -> None:
    assert len(jobs_of("seed=0,1,2")) == 9
    assert len(jobs_of("model.blocks=[1],[2]")) == 2


def test_the_planned_jobs_are_those_that_run() -> None:
    for arguments in ((), ("optimizer.lr=1,2",), ("seed=0,1,2",), ("model.blocks=[1],[2]",)):
        assert planned(*arguments) == len(jobs_of(*arguments))
