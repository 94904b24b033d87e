"""Test that paper.csv is consistent: the gains that the text states are differences of its tables."""

import csv
from decimal import Decimal
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "experiments" / "paper.csv"
DATA = ("cuhk03_labeled", "cuhk03_detected", "market1501", "duke")
BASELINE, FULL = "ResNet-50 baseline", "Baseline + SAB + CU + TV"


@pytest.fixture(scope="module")
def paper() -> dict[tuple[str, str, str, str], Decimal]:
    """Read (place, row, dataset, metric) -> printed value."""
    with PATH.open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    values = {
        (row["place"], row["row"], row["dataset"], row["metric"]): Decimal(row["value"]) for row in rows
    }
    assert len(values) == len(rows), "every number occurs once"
    return values


def test_every_table_has_all_of_its_numbers(paper: dict[tuple[str, ...], Decimal]) -> None:
    found: dict[str, int] = {}
    for place, *_ in paper:
        found[place] = found.get(place, 0) + 1
    assert {place: count for place, count in found.items() if place.startswith("Table")} == {
        "Table I": 32,
        "Table II": 37,
        "Table III": 36,
        "Table IV": 12,
        "Table V": 31,
        "Table VI": 11,
    }


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("metric", ["rank1", "mAP"])
def test_the_final_gains_are_row_4_less_row_1_of_table_i(
    paper: dict[tuple[str, ...], Decimal], data: str, metric: str
) -> None:
    stated = paper["Sec. IV-D", FULL, data, f"{metric}_gain"]
    assert paper["Table I", FULL, data, metric] - paper["Table I", BASELINE, data, metric] == stated


@pytest.mark.parametrize("metric", ["rank1", "mAP"])
def test_the_gain_of_all_four_blocks_in_fig_5_is_row_2_less_row_1_of_table_i(
    paper: dict[tuple[str, ...], Decimal], metric: str
) -> None:
    stated = paper["Fig. 5", "block1+block2+block3+block4", "cuhk03_labeled", f"{metric}_gain"]
    blocks = paper["Table I", "Baseline + SAB", "cuhk03_labeled", metric]
    assert blocks - paper["Table I", BASELINE, "cuhk03_labeled", metric] == stated


@pytest.mark.parametrize(
    ("data", "place"),
    [*zip(DATA, ("Table II", "Table III", "Table V", "Table VI"), strict=True)],
)
@pytest.mark.parametrize("metric", ["rank1", "mAP"])
def test_our_san_is_row_4_of_table_i(
    paper: dict[tuple[str, ...], Decimal], data: str, place: str, metric: str
) -> None:
    assert paper[place, "Our SAN", data, metric] == paper["Table I", FULL, data, metric]


@pytest.mark.parametrize("metric", ["rank1", "mAP"])
def test_the_gains_over_soft_attention_are_differences_of_tables_iv_and_v(
    paper: dict[tuple[str, ...], Decimal], metric: str
) -> None:
    over_parts = paper["Table V", "Our SAN", "market1501", metric]
    over_parts -= paper["Table V", "Part-Aligned [20]", "market1501", metric]
    assert over_parts == paper["Sec. IV-E", "Our SAN over Part-Aligned [20]", "market1501", f"{metric}_gain"]
    other = "Our SAN over residual attention network [19]"
    over_residual = paper["Table IV", "Our sharp attention network", "cuhk03_labeled", metric]
    over_residual -= paper["Table IV", "Residual attention network [19]", "cuhk03_labeled", metric]
    assert over_residual == paper["Sec. IV-E", other, "cuhk03_labeled", f"{metric}_gain"]


@pytest.mark.parametrize("row", ["Residual attention network [19]", "Our sharp attention network"])
def test_the_parameters_of_table_iv_add_up(paper: dict[tuple[str, ...], Decimal], row: str) -> None:
    blocks = [paper["Table IV", row, "cuhk03_labeled", f"parameters_block{block}"] for block in (1, 2, 3)]
    assert sum(blocks) == paper["Table IV", row, "cuhk03_labeled", "parameters_total"]


def test_ranks_never_fall_and_lie_within_100(paper: dict[tuple[str, ...], Decimal]) -> None:
    for (place, row, data, metric), value in paper.items():
        if not metric.startswith("parameters"):
            assert 0 < value <= 100
        for lower, higher in (("rank1", "rank5"), ("rank5", "rank10")):
            if metric == lower and (place, row, data, higher) in paper:
                assert value <= paper[place, row, data, higher]
