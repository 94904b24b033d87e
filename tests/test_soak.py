"""`make soak` in small: what it finds in two kills."""

from pathlib import Path

import pytest

from tests.soak.__main__ import failures, soak


@pytest.mark.slow
def test_a_training_that_was_killed_twice_ends_as_one_that_was_not(tmp_path: Path) -> None:
    record = soak(tmp_path, cycles=2, seed=0, width=8)
    assert failures(record) == []
    assert sum(record["kills"].values()) == 2
    assert failures({**record, "scores_equal": False}) == ["scores_equal"]  # it can tell
