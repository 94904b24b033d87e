from pathlib import Path

import pytest

from sharpreid.report.results import CHECKOUT, TABLES, find_pages, update_tables

HEAD = "overrides,dataset,protocol,crops,test_mask,deviations,seed,mAP,rank1,rank5"


def test_the_tables_in_the_readmes_are_those_of_the_records() -> None:
    found = 0
    for path in find_pages(CHECKOUT):
        text = path.read_text(encoding="utf-8")
        assert update_tables(text, CHECKOUT / "experiments") == text, (
            f"{path}: python -m sharpreid.report.results"
        )
        found += text.count("<!-- results: ")
    assert found == len(TABLES)


def test_a_number_typed_by_hand_or_a_changed_record_is_noticed(tmp_path: Path) -> None:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert "| 43.9 |" in text
    assert update_tables(text.replace("| 43.9 |", "| 73.9 |"), CHECKOUT / "experiments") == text
    folder = tmp_path / "block_ablation"
    folder.mkdir()
    for path in (CHECKOUT / "experiments" / "block_ablation").glob("*.json"):
        changed = path.read_text(encoding="utf-8").replace('"mAP": 0.4389', '"mAP": 0.9389')
        (folder / path.name).write_text(changed, encoding="utf-8")
    assert "| 93.9 |" in update_tables(text, tmp_path)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"best.*market1501-cpu"):
        update_tables("<!-- results: best -->\n<!-- end -->", CHECKOUT)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("a=1,d,p,plain,none,,1,0.2,0.2,0.5", "a=1.*not reduced"),
        ("a=1,d,p,ten_crop,none,short,1,0.2,0.2,0.5", "differ in .*crops"),
    ],
)
def test_runs_that_do_not_belong_in_a_line_are_refused(tmp_path: Path, second: str, message: str) -> None:
    (tmp_path / "open_questions").mkdir()
    (tmp_path / "open_questions" / "runs.csv").write_text(
        f"{HEAD}\na=1,d,p,plain,none,short,0,0.1,0.2,0.3\n{second}\n"
    )
    with pytest.raises(ValueError, match=message):
        TABLES["open-questions"](tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results: open-questions -->\nprose\n\n<!-- results: open-questions -->\n<!-- end -->\n",
        "<!-- results: open-questions -->\n| a |\n",
        "| a |\n<!-- end -->\n",
    ],
)
def test_a_table_without_its_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="<!-- end -->"):
        update_tables(text, CHECKOUT / "experiments")


def test_runs_of_one_line_are_a_mean_with_its_range(tmp_path: Path) -> None:
    (tmp_path / "open_questions").mkdir()
    (tmp_path / "open_questions" / "runs.csv").write_text(
        f"{HEAD}\n"
        "a=1,d,p,plain,none,short,0,0.1,0.2,0.3\n"
        "a=1,d,p,plain,none,short,1,0.2,0.2,0.5\n"
        "b=1,d,p,plain,none,short,0,0.5,0.5,0.5\n"
    )
    lines = TABLES["open-questions"](tmp_path)
    assert lines[2:] == [
        "| `a=1` | 2 | 15.0 (10.0 to 20.0) | 20.0 | 40.0 (30.0 to 50.0) |",
        "| `b=1` | 1 | 50.0 | 50.0 | 50.0 |",
    ]
