from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from sharpreid.data.reid_data import Sample
from sharpreid.report.runs import Job, Run
from sharpreid.report.sections import choose_run, top_ranked


def sample(pid: int, camid: int, path: str) -> Sample:
    return Sample(path=Path(path), pid=pid, camid=camid)


QUERY = sample(7, 1, "query.jpg")
GALLERY = [
    sample(7, 1, "same person, same camera.jpg"),
    sample(7, 2, "match.jpg"),
    sample(8, 1, "other person, same camera.jpg"),
    sample(9, 2, "other.jpg"),
    QUERY,
]


@pytest.mark.parametrize(
    ("exclusion", "expected"),
    [
        ("same_identity_and_camera", [(2, "other"), (0, "junk"), (3, "other"), (1, "match")]),
        ("same_camera", [(0, "junk"), (3, "other"), (1, "match")]),
    ],
)
def test_a_list_follows_the_protocol(exclusion: str, expected: list[tuple[int, str]]) -> None:
    """Market-1501 ranks other people of the query's camera, CUHK03 does not; neither shows the query."""
    assert top_ranked(QUERY, GALLERY, [4, 2, 0, 3, 1], exclusion) == expected


def test_a_list_has_ten_ranks_whatever_junk_stands_before_them() -> None:
    junk = [sample(7, 1, f"{number}.jpg") for number in range(30)]
    others = [sample(9, 2, f"other{number}.jpg") for number in range(30)]
    found = top_ranked(QUERY, [*junk, *others], range(60), "same_identity_and_camera")
    assert [verdict for _, verdict in found] == ["junk"] * 10 + ["other"] * 10


def test_the_run_that_is_shown_is_not_the_best_one(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    def made(name: str, mAP: float, *, method: str = "sab", seed: int = 0, **changed: object) -> Run:
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "final.ckpt").touch()
        record = {
            "scores": {"mAP": mAP},
            "dataset": {"name": "a"},
            "protocol": {},
            "iterations": 9,
            **changed,
        }
        job = Job(folder, name, "done", 0.0, (f"seed={seed}",), None, {**record, "seed": seed})
        return Run(job, record, composed(f"method={method}"), method)

    best_of_all = made("deviations", 0.9, deviations="epochs 5 (150)")
    other_seed, other_method = made("seed 1", 0.8, seed=1), made("baseline", 0.7, method="baseline")
    usual = made("usual", 0.5)
    assert choose_run([best_of_all, other_seed, other_method, usual]) is usual
    usual.checkpoint.unlink()
    assert choose_run([best_of_all, other_seed, other_method, usual]) is other_seed
    assert choose_run([]) is None
    smoke = made("smoke", 0.6, seed=0, epochs=1, iterations=2)
    assert choose_run([smoke, other_seed]) is other_seed, "a short trial does not replace a whole training"
    assert choose_run([smoke, other_method]) is other_method
