"""Fixtures: a tiny data set in Market-1501's layout, and a run of the whole chain on it."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from tests import forked

TRAIN_IDENTITIES = range(1, 9)
TEST_IDENTITIES = range(9, 13)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what changes the machine, its network or its packages, unless it is asked for by name."""
    for mark in ("hosts", "slurm"):
        if mark not in config.option.markexpr:
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(mark)])
            items[:] = [item for item in items if not item.get_closest_marker(mark)]


@pytest.fixture(scope="session", autouse=True)
def _single_thread() -> None:
    """On a busy machine the tiny tensors of these tests wait for each other's threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _server_of_processes() -> Iterator[None]:
    yield
    forked.close()


@pytest.fixture(autouse=True)
def _forked_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the Python processes that tests start, see `tests.forked`; not where marked own_interpreter."""
    if request.node.get_closest_marker("own_interpreter") is None:
        monkeypatch.setattr(subprocess, "Popen", forked.Popen)


@pytest.fixture(scope="session")
def quiet() -> dict[str, Any]:
    """Options of a trainer that writes and shows nothing."""
    return {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }


def write_market(root: Path, train: range, test: range) -> None:
    """Training and test identities, seen twice by each of two cameras; each has a colour of its own."""
    rng = np.random.default_rng(0)
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        (root / folder).mkdir()
    for pid in (*train, *test):
        colour = rng.integers(40, 216, 3)
        for camera in (1, 2):
            for number in range(2):
                test_folder = "bounding_box_test" if number else "query"
                folder = "bounding_box_train" if pid in train else test_folder
                pixels = np.clip(colour + rng.integers(-30, 31, (32, 16, 3)), 0, 255).astype(np.uint8)
                name = f"{pid:04d}_c{camera}s1_{number:06d}_00.jpg"
                Image.fromarray(pixels).save(root / folder / name)


@pytest.fixture(scope="session")
def tiny_market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 4 test identities in Market-1501's layout."""
    root = tmp_path_factory.mktemp("market")
    write_market(root, TRAIN_IDENTITIES, TEST_IDENTITIES)
    return root


@pytest.fixture(scope="session")
def market_of_16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training identities, enough for a batch of 16 x 4."""
    root = tmp_path_factory.mktemp("market_of_16")
    write_market(root, range(1, 17), range(17, 19))
    return root


@pytest.fixture(scope="session")
def tiny_overrides(tiny_market: Path) -> list[str]:
    """What makes the whole chain small enough to run in a second or two."""
    return [
        "data=market1501",
        f"data.source.root={tiny_market}",
        "data.source.allow_subset=true",
        "data.identities_per_batch=4",
        "data.images_per_identity=2",
        "data.num_workers=0",
        "data.cache=null",
        "data.eval_transform.crops=plain",
        "image.height=32",
        "image.width=16",
        "model.trunk.depths=[1,1,1,1]",
        "model.trunk.weights=none",
        "model.trunk.width=8",
        "model.head.in_features=256",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.check_val_every_n_epoch=1",
        "logger=csv",
    ]


@pytest.fixture(scope="session")
def composed(tiny_overrides: list[str]) -> Callable[..., DictConfig]:
    """Compose the config of a tiny run with further overrides."""

    def build(*overrides: str) -> DictConfig:
        register_resolvers()
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("train", [*tiny_overrides, *overrides])

    return build
