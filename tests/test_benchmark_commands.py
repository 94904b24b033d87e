"""The benchmarks' commands refuse wrong options before they measure anything."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import (
    __main__,
    attention,
    command,
    embed,
    export,
    loader,
    re_ranking,
    scoring,
    search,
    startup,
    training,
)

MAINS = {
    "": __main__,
    "attention": attention,
    "export": export,
    "embed": embed,
    "loader": loader,
    "re_ranking": re_ranking,
    "scoring": scoring,
    "search": search,
    "startup": startup,
    "training": training,
}


@pytest.mark.parametrize(
    ("name", "options", "key_words"),
    [
        ("", ["--tolerance", "nan"], ["--tolerance", "less than 1", "nan"]),
        ("", ["--fast-reid", "/nowhere"], ["--fast-reid", "/nowhere", "folder"]),
        ("", ["--record", "/nowhere"], ["--record", "/nowhere", "--output"]),
        ("attention", ["--batch", "0"], ["--batch", "at least 2", "got 0"]),
        ("attention", ["--output", "/nowhere/x.json"], ["--output", "/nowhere/x.json", "existing folder"]),
        ("export", ["--repeats", "0"], ["--repeats", "at least 1", "got 0"]),
        ("embed", ["--images", "0"], ["--images", "at least 1", "got 0"]),
        ("loader", ["--root", "/nowhere"], ["--root", "/nowhere", "folder"]),
        ("re_ranking", ["--size", "-1", "100"], ["--size", "at least 2", "got -1"]),
        ("re_ranking", ["--torchreid", "{}"], ["torchreid/utils/rerank.py", "another version"]),
        ("scoring", ["--torchreid", "{}"], ["python setup.py build_ext --inplace", "rank_cylib"]),
        ("search", ["--sizes", "10"], ["--sizes", "at least 100", "got 10"]),
        ("startup", ["--repeats", "x"], ["--repeats", "at least 1", "got x"]),
        ("training", ["--batch", "10"], ["--batch", "multiple of 4", "got 10"]),
        ("training", ["--images", "8"], ["--images", "--batch", "got 8 and 16"]),
    ],
)
def test_a_wrong_option_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str], key_words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        MAINS[name].main([option.format(tmp_path) for option in options])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(word in said.splitlines()[-1] for word in key_words), said
    assert f"usage: python -m benchmarks{name and '.'}{name} " in said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(KeyboardInterrupt(), 130, "interrupted"), (ValueError("no room"), 1, "ValueError: no room")],
)
def test_an_error_is_printed_in_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, command.errors_in_one_line():
        raise error
    assert signal.getsignal(signal.SIGTERM) == before
    assert stop.value.code == status
    assert capsys.readouterr().err == f"{said}\n"


def test_sigterm_removes_temporary_folders(tmp_path: Path) -> None:
    program = (
        "import os, signal, tempfile\n"
        "from benchmarks.command import errors_in_one_line\n"
        f"with errors_in_one_line(), tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], timeout=120)
    assert done.returncode == 143
    assert [*tmp_path.iterdir()] == []
