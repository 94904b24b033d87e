"""Names of runs and of their folders."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sharpreid.config.resolvers import job_dir, name_job


def named(*overrides: str, data: str = "market1501") -> str:
    return name_job(OverridesParser.create().parse_overrides(list(overrides)), ["seed"], data)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["flag=False"], ["flag=false"]),
        (["a=[1, 1]", "b=2"], ["b=2", "a=[1,1]"]),
        (["lr=1e-3"], ["lr=0.001"]),
        (["lr=1", "lr=2"], ["lr=2"]),
        (["mu=2.0"], ["mu=2"]),
        (["text='x'"], ["text=x"]),
        (['text="x"'], ["text=x"]),
        (["none=null"], ["none=Null"]),
        (["node={a: 1, b: [x]}"], ["node={b:['x'],a:1}"]),
        (["data=market1501", "seed=3"], []),
        (["data=folders", "data.source.name=market1501"], ["data=folders"]),
    ],
)
def test_equal_overrides_have_one_name(one: list[str], other: list[str]) -> None:
    assert named(*one) == named(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a=1"], ["a=2"]),
        (["a=1"], ["+a=1"]),
        (["a=[1,2]"], ["a=[2,1]"]),
        (["lr=1e-3"], ["lr=1.1e-3"]),
        (["data=market1501"], ["data=duke"]),
        (["method=sab"], ["~method"]),
    ],
)
def test_other_overrides_have_another_name(one: list[str], other: list[str]) -> None:
    assert named(*one) != named(*other)


def test_a_long_name_is_cut_in_bytes_and_stays_distinct() -> None:
    first, second = (named(f"name_of_a_key='{'ü' * 100}{end}'") for end in ("a", "\udcfc"))
    assert len(first.encode()) <= 120
    assert first != second
    assert first.startswith("name_of_a_key=üü")


@pytest.mark.parametrize(
    ("existing", "found"),
    [
        ([], "model.blocks=[1,2]"),
        (["data=market1501,model.blocks=[1,_2]"], "data=market1501,model.blocks=[1,_2]"),
        (["data=market1501,model.blocks=[1,_2]", "model.blocks=[1,2]"], "model.blocks=[1,2]"),
    ],
)
def test_a_run_by_its_earlier_name_is_still_found(tmp_path: Path, existing: list[str], found: str) -> None:
    for name in existing:
        (tmp_path / name).mkdir()
    root = OmegaConf.create(
        {
            "data": {"source": {"name": "market1501"}},
            "hydra": {
                "overrides": {"task": ["model.blocks=[1, 2]", "data=market1501", "seed=1"]},
                "job": {"config": {"override_dirname": {"exclude_keys": ["seed"]}}},
            },
        }
    )
    assert job_dir(str(tmp_path), _root_=root) == found
