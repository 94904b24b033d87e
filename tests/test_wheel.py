"""Installed from a wheel, away from the checkout, the commands work: configs and tables travel in it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, as an installation unpacks it."""
    built, place = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(built)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(place)
    return place


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import runpy; sys.argv[0] = 'sharpreid'; "
    code += "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=False)"
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_commands_find_their_configs_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    train = run(installed, tmp_path, "sharpreid.train", "--help")
    assert train.returncode == 0, train.stderr
    assert "experiment: block_ablation" in train.stdout
    prepare = run(installed, tmp_path, "sharpreid.prepare", "data=market1501")
    assert prepare.returncode == 1
    assert "bounding_box_train: no such folder" in prepare.stdout


def test_the_wheel_holds_what_the_code_reads(installed: Path) -> None:
    package = installed / "sharpreid"
    for place in ("conf", "data"):
        source = CHECKOUT / ("conf" if place == "conf" else "src/sharpreid/data")
        wanted = {
            str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in (".yaml", ".csv")
        }
        assert wanted
        assert all((package / place / name).is_file() for name in wanted)
    assert (package / "report" / "paper.csv").read_bytes() == (
        CHECKOUT / "experiments/paper.csv"
    ).read_bytes()
    assert (package / "report" / "page.html.jinja").is_file()
    assert (installed / "hydra_plugins" / "sharpreid_local.py").is_file()
    assert not list(package.rglob("test_*.py"))
