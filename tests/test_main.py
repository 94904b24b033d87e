"""The list of commands, and ``sharpreid COMMAND`` in place of ``python -m sharpreid.COMMAND``."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import sharpreid
from sharpreid.__main__ import COMMANDS, main

SOURCE = Path(sharpreid.__file__).parent


def execute(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_every_command_is_listed() -> None:
    runnable = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__main__")
        for path in SOURCE.rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert runnable - {"__main__"} == set(COMMANDS)
    status, listed, _ = execute("sharpreid")
    assert status == 0
    assert all(f"  {name} " in listed and purpose in listed for name, purpose in COMMANDS.items())
    assert execute("sharpreid", "--help") == (0, listed, "")


def test_a_misspelt_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluat"])
    assert ended.value.code == 2
    assert "did you mean evaluate?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, ["--help"]) for name in COMMANDS),
        ("train", ["seed=3", "--cfg", "all"]),
        ("train", ["sed=1"]),
        ("prepare", ["--json"]),
        ("evaluate", ["checkpoint=missing.ckpt"]),
    ],
)
def test_a_command_by_name_is_the_module(name: str, arguments: list[str]) -> None:
    as_module = execute(f"sharpreid.{name}", *arguments)
    assert execute("sharpreid", name, *arguments) == as_module
    assert as_module[1] or as_module[2]


def test_the_console_script_finds_modules_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    script = EntryPoint("sharpreid", project["scripts"]["sharpreid"], "console_scripts").load()
    (tmp_path / "own_callback.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sharpreid", "evaluate", "--help"])
    monkeypatch.delitem(sys.modules, "sharpreid.evaluate", raising=False)  # as in a new process
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    assert importlib.util.find_spec("own_callback") is None
    with pytest.raises(SystemExit) as ended:
        script()
    assert not ended.value.code
    assert importlib.util.find_spec("own_callback") is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_whose_reader_has_gone_ends_well(name: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", f"sharpreid.{name}", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert done.returncode == 0
    assert "BrokenPipeError" not in done.stderr


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", rb"81 \xb1 1, \u200b, \udcfc"), ("cp437", b"81 \xf1 1, \\u200b, \\udcfc")],
)
def test_output_in_any_encoding_shows_every_character(encoding: str, shown: bytes) -> None:
    code = (
        "import sys; from sharpreid.standard_streams import tolerate_write_errors\n"
        "tolerate_write_errors()\n"
        "for stream in (sys.stdout, sys.stderr): print('81 \\xb1 1, \\u200b, \\udcfc', end='', file=stream)"
    )
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=120)
    assert (done.stdout, done.stderr) == (shown, shown)


def test_the_other_errors_of_output_are_raised() -> None:
    """A report in a file on a full disk is not complete."""
    code = (
        "from sharpreid.standard_streams import tolerate_write_errors\n"
        "tolerate_write_errors()\n"
        "print('report', flush=True)"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode != 0
    assert b"No space left" in done.stderr
