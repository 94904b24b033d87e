"""Configurations ranked by held-out identities, over the seeds that they share."""

from pathlib import Path

import pytest

from sharpreid.report.comparison import Ranking, compare_jobs, group_by_configuration, rank_by_held_out
from sharpreid.report.runs import Job
from sharpreid.report.sweep_summary import write_markdown


def job(blocks: str, seed: int, held_out: float | None, *, split: int | None = None) -> Job:
    dataset = {"name": "market1501", **({} if split is None else {"split": split})}
    record = {"scores": {"mAP": 0.4}, "dataset": dataset, "protocol": {}, "seed": seed}
    overrides = (f"b={blocks}", f"seed={seed}")
    done = None if held_out is None else {**record, "held_out": {"mAP": held_out}}
    return Job(Path(), "choose", "failed" if done is None else "done", 0.0, overrides, "", done)


def ranking(*jobs: Job) -> Ranking:
    return rank_by_held_out(group_by_configuration(compare_jobs(jobs, None)))


def order(found: Ranking) -> list[str]:
    return [one.label for one in found.order]


EASY_SEED = (job("1", 0, 0.5), job("1", 9, 0.9), job("2", 0, 0.4), job("2", 9, 0.8), job("3", 9, 0.85))
"""Seed 9 is easy for all, and the only seed of the third choice."""


def test_a_choice_with_one_easy_seed_does_not_win() -> None:
    found = ranking(*EASY_SEED)
    assert found.replicates == (("9", ""),)
    assert order(found) == ["1", "3", "2"]
    assert [found.held_out(one) for one in found.order] == [[0.9], [0.85], [0.8]]


def test_choices_with_the_same_seeds_are_ranked_by_their_means() -> None:
    found = ranking(
        job("1", 0, 0.5), job("1", 10, 0.6), job("2", 10, 0.5), job("2", 0, 0.65), job("2", 2, 0.1)
    )
    assert found.describe_replicates() == "seeds 0, 10"
    assert order(found) == ["2", "1"]


def test_a_choice_without_a_held_out_score_is_last_and_hides_no_seed() -> None:
    found = ranking(job("1", 0, None), job("2", 0, 0.4), job("3", 0, 0.5))
    assert order(found) == ["3", "2", "1"]
    assert found.describe_replicates() == "seed 0"


@pytest.mark.parametrize(
    "jobs", [[job("1", 0, 0.2), job("2", 1, 0.9)], [job("1", 0, None), job("2", 1, None)]]
)
def test_choices_without_a_shared_seed_are_not_ranked(jobs: list[Job]) -> None:
    found = ranking(*jobs)
    assert order(found) == ["1", "2"]
    assert not found.replicates
    assert [found.held_out(one) for one in found.order] == [[], []]


def test_a_seed_on_another_split_is_another_replicate() -> None:
    found = ranking(job("1", 0, 0.5, split=1), job("2", 0, 0.4, split=1), job("2", 0, 0.9, split=2))
    assert found.replicates == (("0", "1"),)
    assert order(found) == ["1", "2"]


def test_the_table_names_the_seeds_it_is_ranked_over(tmp_path: Path) -> None:
    write_markdown(compare_jobs(EASY_SEED, None), tmp_path / "summary.md", by_held_out=True)
    page = (tmp_path / "summary.md").read_text()
    assert "held-out mAP % (seed 9)" in page
    rows = [line.split(" | ")[:3] for line in page.splitlines() if line[:4] in ("| 1 ", "| 2 ", "| 3 ")]
    assert rows == [["| 1", "2 of 2", "90.0"], ["| 3", "1 of 1", "85.0"], ["| 2", "2 of 2", "80.0"]]
