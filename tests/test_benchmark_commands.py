"""What the benchmarks' commands say of wrong options: before anything is measured, in one line."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__, attention, command, loader, re_ranking, scoring, startup, training

MAINS = {
    "": __main__,
    "attention": attention,
    "loader": loader,
    "re_ranking": re_ranking,
    "scoring": scoring,
    "startup": startup,
    "training": training,
}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", ["--tolerance", "nan"], "--tolerance: must be at least 0 and less than 1; got nan"),
        ("", ["--fast-reid", "/nowhere"], "--fast-reid: /nowhere is no folder"),
        ("", ["--record", "/nowhere"], "--record /nowhere: no such file; make one with --output"),
        ("attention", ["--batch", "0"], "--batch: must be a whole number, at least 1; got 0"),
        ("attention", ["--output", "/nowhere/x.json"], "must be a file in a folder that is there"),
        ("loader", ["--root", "/nowhere"], "--root: /nowhere is no folder"),
        ("re_ranking", ["--size", "-1", "100"], "at least 2; got -1"),
        (
            "re_ranking",
            ["--torchreid", "{}"],
            "has no torchreid/utils/rerank.py: another version",
        ),
        ("scoring", ["--torchreid", "{}"], "run `python setup.py build_ext --inplace` in its rank_cylib"),
        ("startup", ["--repeats", "x"], "--repeats: must be a whole number, at least 1; got x"),
        ("training", ["--batch", "10"], "at least 8, a multiple of 4; got 10"),
        ("training", ["--images", "8"], "--images must be at least --batch; got 8 and 16"),
    ],
)
def test_a_wrong_option_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        MAINS[name].main([option.format(tmp_path) for option in options])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert f"usage: python -m benchmarks{name and '.'}{name} " in said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(KeyboardInterrupt(), 130, "interrupted"), (ValueError("no room"), 1, "ValueError: no room")],
)
def test_what_ends_a_measurement_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, command.one_line_at_the_end():
        raise error
    assert signal.getsignal(signal.SIGTERM) == before
    assert stop.value.code == status
    assert capsys.readouterr().err == f"{said}\n"


def test_sigterm_clears_temporary_folders(tmp_path: Path) -> None:
    program = (
        "import os, signal, tempfile\n"
        "from benchmarks.command import one_line_at_the_end\n"
        f"with one_line_at_the_end(), tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], timeout=120)
    assert done.returncode == 143
    assert [*tmp_path.iterdir()] == []
