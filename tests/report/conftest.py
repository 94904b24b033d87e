"""Write the folders of finished runs without training."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from sharpreid.config.resolvers import register_resolvers
from sharpreid.run.paper_recipe import compose_config, recipe_deviations

WriteRun = Callable[..., Path]

QUERIES = {"a.jpg": 1, "b.jpg": 1, "c.jpg": 2, "d.jpg": 2, "e.jpg": 3, "f.jpg": 3}
"""Image -> identity."""


def write_run(
    folder: Path,
    *overrides: str,
    seed: int = 0,
    ap: float = 0.5,
    plateau: bool = False,
    queries: Mapping[str, int] = QUERIES,
    **changed: Any,
) -> Path:
    """Write the folder of a finished run with ``recipe=miniature`` on Market-1501.

    Args:
        folder: folder of the run.
        overrides: overrides of its config.
        seed: seed of the run.
        ap: average precision of the first query; that of each further query is 0.02 higher.
        plateau: whether the training ended on the initial plateau of the batch-hard loss.
        queries: image -> identity.
        changed: keys of scores.json -> other values.
    """
    cfg = _config(overrides).copy()
    cfg.seed = seed
    (folder / "csv").mkdir(parents=True)
    values = {image: ap + 0.02 * place for place, image in enumerate(queries)}
    record = {
        "name": "does_it_help",
        "overrides": [],
        "scores": {"mAP": fmean(values.values()), "rank1": 1.0, "mAP_trapezoid": 0.4},
        "protocol": {"name": "market1501", "crops": "plain", "test_mask": "none", "re_ranking": "none"},
        "dataset": {"name": "market1501", "synthetic": False, "subset": None, "variant": None},
        "deviations": recipe_deviations(cfg),
        "seed": seed,
        "epochs": 150,
        "iterations": 1200,
        "versions": {"torch": "2.12.1", "torchvision": "0.27", "pytorch_lightning": "2.6"},
        "device": "cpu (2 threads)",
        "world_size": 1,
        "precision": "bf16-mixed",
        "commit": "0123456789ab",
        "dirty": False,
        "minutes": 30.5,
    }
    job = {"status": "done", "started": 1.0, "name": "does_it_help", "overrides": []}
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "scores.json").write_text(json.dumps({**record, **changed}))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    lines = [f"{image},{identity},1,{values[image]:.6f},1" for image, identity in queries.items()]
    (folder / "queries.csv").write_text("\n".join(["image,identity,camera,ap,rank1", *lines]) + "\n")
    loss, active = (0.5, 1.0) if plateau else (0.1, 0.25)
    steps = [f"{step},0.6,0.6,1.0" for step in range(18)]
    steps += [f"{step},{loss},{loss},{active}" for step in (18, 19)]
    header = "step,train/loss,train/triplet,train/active_triplets"
    (folder / "csv" / "metrics.csv").write_text("\n".join([header, *steps]) + "\n")
    return folder


@cache
def _config(overrides: tuple[str, ...]) -> DictConfig:
    register_resolvers()
    return compose_config("data=market1501", "recipe=miniature", *overrides)


@pytest.fixture(scope="session")
def finished() -> WriteRun:
    """Return `write_run`."""
    return write_run
