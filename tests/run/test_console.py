import io
from typing import Any

import pytest
from rich.console import Console

from sharpreid.evaluation.protocol import Protocol
from sharpreid.run.comparability import caveats
from sharpreid.run.console import error_message, print_run_table, protocol_line


def scores(mAP: float) -> dict[str, Any]:
    return {
        "mAP": mAP,
        "mAP_trapezoid": mAP - 0.02,
        "rank1": mAP + 0.1,
        "rank5": mAP + 0.2,
        "rank10": mAP + 0.3,
        "rank20": mAP + 0.4,
        "num_valid_queries": 200,
        "num_invalid_queries": 0,
    }


def record(**changes: Any) -> dict[str, Any]:
    return {
        "name": "block_ablation",
        "scores": scores(0.41),
        "untrained": scores(0.11),
        "protocol": {
            "name": "market1501",
            "crops": "plain",
            "test_mask": "noise_free",
            "re_ranking": "none",
            "ap": "step",
            "denominator": "all_queries",
        },
        "dataset": {"name": "market1501", "synthetic": False, "subset": None},
        "deviations": "",
        "seed": 3,
        "minutes": 0.84,
        "checkpoint": "checkpoints/[last].ckpt",
    } | changes


def printed(run: dict[str, Any], width: int = 80) -> str:
    text = io.StringIO()
    print_run_table(run, Console(file=text, width=width))
    return text.getvalue()


def line_with(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_untrained_and_trained_scores_stand_below_each_other_in_percent() -> None:
    text = printed(record())
    untrained = [cell.strip() for cell in line_with(text, " untrained ").strip("│").split("│")]
    assert untrained == ["untrained", "11.0", "9.0", "21.0", "31.0", "41.0", "200"]
    assert "41.0" in line_with(text, " trained ")
    assert "200" in line_with(text, " trained ")


def test_every_score_is_printed_with_what_it_was_taken_on() -> None:
    text = printed(record())
    assert line_with(text, "data set").endswith("market1501")
    assert line_with(text, "protocol").endswith(
        "market1501, crops plain, mask noise_free, re-ranking none, denominator all_queries"
    )
    assert line_with(text, "seed").endswith("  3")
    assert line_with(text, "minutes").endswith("  0.8")
    assert line_with(text, "checkpoint").endswith("checkpoints/[last].ckpt"), "brackets are not markup"


def test_nothing_is_cut_off_on_a_usual_terminal() -> None:
    assert "…" not in printed(record(), width=80)


def test_full_run_on_real_data_carries_no_warning() -> None:
    usual = {**record()["protocol"], "denominator": "valid_queries"}
    assert "Warning" not in printed(record(protocol=usual))


@pytest.mark.parametrize(
    ("protocol", "dataset", "said"),
    [
        ({}, {}, "Not the paper's protocol (denominator all_queries (valid_queries))"),
        ({"name": "own_data", "denominator": "valid_queries"}, {}, "(name own_data (market1501))"),
        ({"cameras": "unknown", "denominator": "valid_queries"}, {}, "(cameras unknown)"),
        ({}, {"name": "msmt17", "variant": "trained without list_val.txt"}, "a variant of the data set"),
    ],
)
def test_other_rules_than_the_papers_are_said(
    protocol: dict[str, Any], dataset: dict[str, Any], said: str
) -> None:
    run = record(protocol=record()["protocol"] | protocol, dataset=record()["dataset"] | dataset)
    (caveat,) = caveats(run)
    assert said in caveat
    assert caveat.endswith("not comparable with the paper.")


def test_run_that_the_paper_does_not_compare_with_says_so() -> None:
    dataset = {"name": "synthetic", "synthetic": True, "subset": "every 5th identity"}
    text = printed(record(dataset=dataset, deviations="12 epochs instead of 150."))
    assert [line for line in text.splitlines() if line.startswith("Warning")] == [
        "Warning: Synthetic data: not the paper's numbers, not comparable with the paper.",
        "Warning: Scored on a part of the data set (every 5th identity): not comparable with the paper.",
        "Warning: Not the paper's recipe (12 epochs instead of 150): not comparable with the paper.",
    ]
    assert "synthetic (every 5th identity)" in text


def test_a_job_of_a_sweep_leaves_the_reasons_to_the_sweep_s_table() -> None:
    text = io.StringIO()
    run = record(deviations="12 epochs instead of 150")
    print_run_table(run, Console(file=text, width=80), in_sweep=True)
    assert line_with(text.getvalue(), "Warning").startswith("Warning: not comparable with the paper")
    assert "12 epochs" not in text.getvalue()


@pytest.mark.parametrize(
    "message",
    [
        "unable to allocate shared memory(shm) for file </torch_29_9_0>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. Raise your shared memory limit",
        "unable to write to file </torch_18692_1954506624>",
    ],
)
def test_a_full_shared_memory_is_told_with_a_remedy(message: str) -> None:
    assert message in error_message(RuntimeError(message))
    assert "--shm-size" in error_message(RuntimeError(message))
    assert "data.num_workers=0" in error_message(RuntimeError(message))
    assert "shm" not in error_message(OSError("No space left on device: runs/scores.json"))


def test_re_ranked_scores_stand_below_those_without_and_are_not_the_paper_s() -> None:
    run = record(not_re_ranked=scores(0.37))
    run["protocol"]["re_ranking"] = "k_reciprocal k1=20 k2=6 lambda=0.3"
    text = printed(run)
    assert "37.0" in line_with(text, " trained   ")
    assert "41.0" in line_with(text, " re-ranked ")
    assert "re-ranking k_reciprocal k1=20 k2=6 lambda=0.3" in line_with(text, "protocol")
    assert "Re-ranked (k_reciprocal k1=20 k2=6 lambda=0.3): not comparable with the paper." in text
    assert "…" not in text


def test_run_without_untrained_scores_has_one_line() -> None:
    text = printed(record(untrained=None))
    assert "untrained" not in text
    assert "41.0" in line_with(text, " trained ")


def test_queries_without_a_match_are_mentioned() -> None:
    left_out = scores(0.41) | {"num_invalid_queries": 7}
    assert "7 queries without a match left out" in printed(record(scores=left_out))


def test_missing_and_undefined_scores_are_dashes() -> None:
    assert line_with(printed(record(scores={"mAP": float("nan")})), " trained ").count(" - ") == 6


@pytest.mark.parametrize(
    ("map_on", "said"),
    [
        ("full_gallery", "mAP on the full gallery (multi-shot), CMC on drawn galleries"),
        ("drawn_gallery", "mAP on the drawn galleries, CMC on drawn galleries"),
    ],
)
def test_a_drawn_gallery_says_what_map_and_cmc_were_taken_on(map_on: str, said: str) -> None:
    protocol = {**Protocol.cuhk03_single_shot().as_dict(), "map_on": map_on}
    assert said in protocol_line(protocol)
    assert "mAP on" not in protocol_line(Protocol.market1501().as_dict())


def test_record_without_data_or_protocol_is_not_an_error() -> None:
    assert caveats({}) == []
    assert protocol_line({}) == "unknown, crops unknown, mask unknown, re-ranking unknown"
