"""The metric collects samples in any order, and scores them as `evaluate_ranking` does."""

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from sharpreid.evaluation.metric import ReIDMetric, average_groups
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking

PROTOCOL = Protocol.market1501()
SAMPLES = 53


def samples():
    """Embeddings, identities, cameras, whether they are queries, and indices of one small data set."""
    rng = torch.Generator().manual_seed(0)
    pids = torch.randint(1, 6, (SAMPLES,), generator=rng)
    embeddings = torch.randn(6, 16, generator=rng)[pids] + torch.randn(SAMPLES, 16, generator=rng)
    camids = torch.randint(1, 4, (SAMPLES,), generator=rng)
    return embeddings, pids, camids, torch.arange(SAMPLES) < 15, torch.arange(SAMPLES)


def scored(batches, **kwargs):
    """Scores of a metric that was given the rows of each batch."""
    metric = ReIDMetric(protocol=PROTOCOL, **kwargs)
    for rows in batches:
        metric.update(*(x[rows] for x in samples()))
    return metric.compute()


def direct():
    embeddings, pids, camids, is_query, _ = samples()
    sides = [x[rows] for rows in (is_query, ~is_query) for x in (embeddings, pids, camids)]
    return evaluate_ranking(*sides, protocol=PROTOCOL)


def test_metric_equals_the_function_in_any_order_of_batches():
    everything = torch.arange(SAMPLES)
    assert scored([everything], expected=SAMPLES) == direct()
    shuffled = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    assert scored(shuffled.split(8), expected=SAMPLES) == direct()
    assert scored(shuffled.split(20), compute_on_cpu=True) == direct()


def test_repeated_samples_count_once():
    rows = torch.cat([torch.arange(SAMPLES), torch.tensor([0, 0, 20, 52])])
    assert scored(rows.split(10), expected=SAMPLES) == direct()


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_repeated_index_with_another_label_is_an_error(which):
    metric = ReIDMetric(protocol=PROTOCOL)
    metric.update(*samples())
    other = [x[20:21].clone() for x in samples()]
    other[which] = ~other[which] if which == 3 else other[which] + 1
    metric.update(*other)
    with pytest.raises(ValueError, match=r"1 repeated .* index 20"):
        metric.compute()


def test_missing_and_unknown_samples_are_named():
    with pytest.raises(ValueError, match=r"3 of 53 .* missing.* \[3, 7, 52\]"):
        scored([[i for i in range(SAMPLES) if i not in (3, 7, 52)]], expected=SAMPLES)
    with pytest.raises(ValueError, match=r"0 to 51.* \[52\]"):
        scored([torch.arange(SAMPLES)], expected=SAMPLES - 1)


def test_further_images_of_a_query_are_averaged_with_it_and_not_ranked():
    embeddings, pids, camids, is_query, _ = samples()
    further = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    metric = ReIDMetric(
        protocol=PROTOCOL, expected=SAMPLES + 3, query_group=torch.tensor([*range(SAMPLES), 4, 4, 7])
    )
    into = [4, 4, 7]
    everything = [
        torch.cat([embeddings, further]),
        torch.cat([pids, pids[into]]),
        torch.cat([camids, camids[into]]),
        torch.cat([is_query, torch.zeros(3, dtype=torch.bool)]),
        torch.arange(SAMPLES + 3),
    ]
    shuffled = torch.randperm(SAMPLES + 3, generator=torch.Generator().manual_seed(1))
    for rows in shuffled.split(9):
        metric.update(*(x[rows] for x in everything))
    pooled = embeddings.clone()
    pooled[4] = torch.stack([embeddings[4], *further[:2]]).double().mean(0)
    pooled[7] = torch.stack([embeddings[7], further[2]]).double().mean(0)
    sides = [x[rows] for rows in (is_query, ~is_query) for x in (pooled, pids, camids)]
    assert metric.compute() == evaluate_ranking(*sides, protocol=PROTOCOL)
    assert metric.compute() != direct()


def test_groups_of_one_change_no_bit():
    assert scored([torch.arange(SAMPLES)], query_group=torch.arange(SAMPLES)) == direct()
    embeddings = samples()[0]
    assert torch.equal(average_groups(embeddings, torch.arange(SAMPLES)), embeddings)


def test_a_missing_image_of_a_group_is_named():
    with pytest.raises(ValueError, match=r"1 of 54 .* missing.* \[53\]"):
        scored([torch.arange(SAMPLES)], query_group=torch.tensor([*range(SAMPLES), 0]))


def test_queries_alone_are_refused():
    with pytest.raises(ValueError, match="gallery, got 15 queries of 15"):
        scored([torch.arange(15)])


@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (0, torch.zeros(SAMPLES), "embeddings must be"),
        (1, torch.zeros(SAMPLES - 1).long(), r"pids .* \(53,\) .* \(52,\)"),
        (2, torch.zeros(SAMPLES), "camids .* torch.float32"),
        (3, torch.zeros(SAMPLES).long(), "is_query .* torch.int64"),
    ],
)
def test_an_invalid_batch_is_refused(which, value, message):
    batch = list(samples())
    batch[which] = value
    with pytest.raises(ValueError, match=message):
        ReIDMetric(protocol=PROTOCOL).update(*batch)


def test_embeddings_are_held_in_float32_without_their_graph():
    metric = ReIDMetric(protocol=PROTOCOL)
    embeddings, *labels = samples()
    metric.update(embeddings.bfloat16().requires_grad_(), *labels)
    assert metric.embeddings[0].dtype == torch.float32
    assert not metric.embeddings[0].requires_grad


def test_a_metric_can_be_copied_reset_and_used_again():
    metric = ReIDMetric(protocol=PROTOCOL, expected=SAMPLES)
    metric.update(*samples())
    other = copy.deepcopy(metric)
    metric.reset()
    metric.update(*samples())
    assert metric.compute() == metric.compute() == other.compute() == direct()


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_with_uneven_shards_score_as_one(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    one = direct()
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["scores"] == one.as_dict()
        assert result["cmc"] == list(one.cmc)
        assert "1 of 54" in result["missing"]


def score_a_shard(folder: Path, rank: int) -> None:
    """One of the two processes: rank 0 has 40 samples in batches of 7, rank 1 has 16 with 3 repeats."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    rows = (
        torch.arange(40) if rank == 0 else torch.cat([torch.arange(40, SAMPLES), torch.tensor([0, 16, 39])])
    )
    metric = ReIDMetric(protocol=PROTOCOL, expected=SAMPLES)
    for part in rows.split(7):
        metric.update(*(x[part] for x in samples()))
    scores = metric.compute()
    metric.expected = SAMPLES + 1
    metric.update(*(x[rows] for x in samples()))
    missing = ""
    try:
        metric.compute()
    except ValueError as error:
        missing = str(error)
    result = {"scores": scores.as_dict(), "cmc": scores.cmc, "missing": missing}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error")
    score_a_shard(Path(sys.argv[1]), int(sys.argv[2]))
