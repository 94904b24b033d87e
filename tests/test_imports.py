"""The folders of docs/architecture.md: imports point downwards only, and never run in a circle."""

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sharpreid

SOURCE = Path(sharpreid.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        *("attention", "losses", "schedules", "evaluation", "config"),
        *("atomic_io", "distributed", "signals", "checkpoint_files", "standard_streams"),
    ),
    ("models", "data"),
    ("module", "checkpoint_io", "loggers", "visualization", "serving"),
    ("callbacks", "exploration"),
    ("run",),
    ("report",),
    ("sweep",),
    (
        *("train", "evaluate", "visualize", "embed", "calibrate", "search", "explore"),
        *("export", "prepare", "runs", "dashboard", "__main__"),
    ),
)
"""Names at the top of the package, the lowest first: a layer may import those below it, and itself not."""


def read_imports(source: Path) -> dict[str, set[str]]:
    """Return the modules of the package, without its name, and which of each other they import anywhere."""
    paths = {_name(path.relative_to(source)): path for path in source.rglob("*.py")}
    return {name: set(_imported(path.read_text(encoding="utf-8"), paths)) for name, path in paths.items()}


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imported(text: str, known: Iterable[str]) -> Iterable[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sharpreid."):
            module = str(node.module).removeprefix("sharpreid.")
            for alias in node.names:
                yield name if (name := f"{module}.{alias.name}") in known else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("sharpreid."):
                    yield alias.name.removeprefix("sharpreid.")


def find_circle(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the modules of one circle, in the order of their imports; empty if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def upward_edges(
    imports: Mapping[str, Iterable[str]], layers: tuple[tuple[str, ...], ...]
) -> list[tuple[str, str]]:
    """Return the imports of a higher layer, or of another name in the same one."""
    height = {name: number for number, layer in enumerate(layers) for name in layer}

    def top(module: str) -> str:
        return module.partition(".")[0]

    return [
        (importer, imported)
        for importer, several in sorted(imports.items())
        for imported in sorted(several)
        if top(importer) != top(imported) and height[top(importer)] <= height[top(imported)]
    ]


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    found = read_imports(SOURCE)
    found.pop("__init__")
    assert len(found) > 100
    return found


def test_no_import_circle(imports: dict[str, set[str]]) -> None:
    circle = find_circle(imports)
    assert not circle, " -> ".join(circle)


def test_no_import_points_upwards(imports: dict[str, set[str]]) -> None:
    edges = [f"sharpreid.{a} imports sharpreid.{b}" for a, b in upward_edges(imports, LAYERS)]
    assert not edges, "\n".join([*edges, "move the imported name down; LAYERS has the order"])


def test_circles_and_upward_imports_are_found(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "a.py").write_text("def f():\n    from sharpreid.high import b\n")
    (tmp_path / "high.py").write_text("from sharpreid.low.a import f\n")
    found = read_imports(tmp_path)
    assert found == {"low.a": {"high"}, "high": {"low.a"}}
    assert find_circle(found) in (["low.a", "high", "low.a"], ["high", "low.a", "high"])
    assert upward_edges(found, (("low",), ("high",))) == [("low.a", "high")]


def test_the_picture_of_the_architecture_has_the_layers() -> None:
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = page.partition("## Folders")[2].split("```")[1]
    shown = [{line.split()[0] for line in layer.splitlines()} for layer in picture.strip().split("\n\n")]
    assert shown[1:] == [set(layer) for layer in reversed(LAYERS[:-1])]
    assert set(LAYERS[-1]) - {"__main__"} == set(picture.split("\n")[1].split()[1:])
