"""What the pages say exists: commands, options, files and names; and the paper's numbers are the paper's."""

import csv
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from omegaconf import DictConfig

import sharpreid
from sharpreid.__main__ import COMMANDS
from sharpreid.run.build import build_module
from sharpreid.run.model_folder import write_model
from tests.serving.test_model import RECORD

CHECKOUT = Path(sharpreid.__file__).parents[2]
PAGES = sorted(
    path
    for path in [
        *CHECKOUT.glob("*.md"),
        *CHECKOUT.glob("docs/**/*.md"),
        *CHECKOUT.glob("experiments/**/*.md"),
    ]
    if path.name != "CHANGELOG.md"
)
GROUPS = ("data", "logger", "method", "objective", "protocol", "re_ranking", "recipe", "schedule")
EXAMPLES = {
    "objective=soft_margin",
    "src/sharpreid/losses/soft_margin.py",
    "tests/losses/test_soft_margin.py",
    "conf/objective/soft_margin.yaml",
    "src/sharpreid/attention/spatial.py",
    "tests/attention/test_spatial.py",
    "conf/model/sampler/spatial.yaml",
    "sharpreid.losses.soft_margin.SoftMarginObjective",
    "sharpreid.attention.spatial.SpatialGate",
    "data=shop",
    "src/sharpreid/data/shop.py",
    "conf/data/shop.yaml",
    "conf/protocol/shop.yaml",
    "tests/data/test_shop.py",
}
"""What docs/architecture.md and docs/datasets/README.md add as examples."""


def texts() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        yield str(path.relative_to(CHECKOUT)), path.read_text(encoding="utf-8")


def python_block(page: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / page).read_text(encoding="utf-8"), re.S)
    return str(block)


def test_every_command_of_the_pages_exists() -> None:
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z-]+):", makefile))
    found = 0
    for page, text in texts():
        for module in re.findall(r"\bpython -m ([a-z_][\w.]*\w)", text):
            found += 1
            path = CHECKOUT / module.replace(".", "/")  # benchmarks and tests are not installed
            beside = path.is_dir() or path.with_suffix(".py").is_file()
            assert beside or importlib.util.find_spec(module), f"{page}: python -m {module}"
        for target in re.findall(r"(?m)(?:^|`)make ([a-z-]+)", text):
            assert target in targets, f"{page}: make {target}"
    assert found > 50


def test_the_page_on_running_has_every_command() -> None:
    page = (CHECKOUT / "docs" / "running.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^\| `python -m sharpreid\.([\w.]+)", page)) == set(COMMANDS)


def test_every_option_of_the_pages_exists() -> None:
    found = 0
    for page, text in texts():
        for group, values in re.findall(
            rf"(?<![\w./])({'|'.join(GROUPS)}|\+experiment)=([a-z]\w*(?:,[a-z]\w*)*)", text
        ):
            for value in values.split(","):
                found += 1
                folders = ("experiment", "evaluation") if group == "+experiment" else (group,)
                known = any((CHECKOUT / "conf" / folder / f"{value}.yaml").is_file() for folder in folders)
                assert known or f"{group}={value}" in EXAMPLES, f"{page}: {group}={value}"
    assert found > 100


def test_every_file_and_name_of_the_pages_exists() -> None:
    for page, text in texts():
        for path in re.findall(r"`((?:src|conf|tests|benchmarks|experiments|docs)/[\w/.-]+)`", text):
            assert (CHECKOUT / path).exists() or path in EXAMPLES or "NAME" in path, f"{page}: {path}"
        for path in re.findall(r"`([a-z_0-9]+/[a-z_0-9/]+\.py)`", text):
            there = (CHECKOUT / path).exists() or (CHECKOUT / "src" / "sharpreid" / path).exists()
            assert there or path in EXAMPLES, f"{page}: {path}"
        for name in re.findall(r"\bsharpreid(?:\.[A-Za-z_]\w*)+", text):
            if page.startswith("docs/reference/") or name in EXAMPLES:
                continue
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError) as error:
                raise AssertionError(f"{page}: {name}") from error


def test_the_numbers_of_the_paper_in_the_readme_are_those_of_paper_csv() -> None:
    with (CHECKOUT / "experiments" / "paper.csv").open(newline="", encoding="utf-8") as file:
        paper = {
            (line["row"], line["dataset"], line["metric"]): line["value"]
            for line in csv.DictReader(file)
            if line["place"] == "Table I"
        }
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    names = {
        "Market-1501": "market1501",
        "CUHK03 labeled": "cuhk03_labeled",
        "CUHK03 detected": "cuhk03_detected",
        "DukeMTMC-reID": "duke",
    }
    for title, data in names.items():
        cells = [
            " / ".join(paper[row, data, metric] for metric in ("mAP", "rank1"))
            for row in ("ResNet-50 baseline", "Baseline + SAB + CU + TV")
        ]
        assert f"| {title} | {cells[0]} | {cells[1]} |" in readme


def test_the_python_of_the_readme_embeds_two_photos(
    composed: Callable[..., DictConfig],
    tiny_market: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = composed("output_dir=out")
    write_model(tmp_path / "RUN" / "model", cfg, build_module(cfg), mean=None, record=RECORD)
    photos = sorted((tiny_market / "query").iterdir())[:2]
    for photo, name in zip(photos, ("a.jpg", "b.jpg"), strict=True):
        (tmp_path / name).symlink_to(photo)
    monkeypatch.chdir(tmp_path)
    names: dict[str, np.ndarray] = {}
    exec(python_block("README.md"), names)
    assert (names["embeddings"].shape, names["embeddings"].dtype) == ((2, 128), np.float32)
    assert (names["embeddings"][0] != names["embeddings"][1]).any()


def test_the_python_of_the_page_on_scores_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(python_block("docs/scoring.md"), {})
    assert capsys.readouterr().out == "0.75 0.5\n"


def test_the_reference_has_every_part_of_the_package() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in CHECKOUT.glob("docs/reference/*.md"))
    named = set(re.findall(r"(?m)^::: sharpreid\.(\w+)$", pages))
    parts = {path.stem for path in (CHECKOUT / "src" / "sharpreid").iterdir() if path.name[0] != "_"}
    assert parts - {"conf"} == named


@pytest.fixture
def site_docstrings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_docstrings", CHECKOUT / "docs" / "site_docstrings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_of_the_reference_have_an_entry_per_argument_and_a_section_of_examples(
    site_docstrings: ModuleType,
) -> None:
    written = (
        "Add.\n\nArgs:\n    x, y: numbers,\n        finite.\n    z: a third."
        "\n\n>>> add(1, 2)\n3\n\nAnd so on."
    )
    assert site_docstrings.rewrite(written) == (
        "Add.\n\nArgs:\n    x: numbers,\n        finite.\n    y: numbers,\n        finite.\n    z: a third."
        "\n\nExamples:\n    >>> add(1, 2)\n    3\n\nAnd so on."
    )
