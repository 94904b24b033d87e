"""The list of runs, and the comparison of two configs."""

import json
import re
from pathlib import Path

import pytest

from sharpreid.checkpoint_files import step_path
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.run.records import lock_run_dir
from sharpreid.runs import main
from tests.report.conftest import write_run


def unfinished(folder: Path, error: str | None) -> Path:
    write_run(folder)
    (folder / "scores.json").unlink()
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    status = "running" if error is None else "failed"
    (folder / "job.json").write_text(json.dumps({**job, "status": status, "error": error}), encoding="utf-8")
    return folder


def lines_of(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The line of each run, by the last part of its folder."""
    lines = capsys.readouterr().out.splitlines()
    return {Path(line.split()[0]).name: " ".join(line.split()[1:]) for line in lines if "/" in line}


def test_runs_are_listed_with_their_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "done", ap=0.3)
    unfinished(tmp_path / "failed", "DataError: no such folder")
    stopped = unfinished(tmp_path / "stopped", "interrupted")
    SafeCheckpointIO().save_checkpoint({}, step_path(stopped / "checkpoints", 120))
    (stopped / "csv" / "metrics.csv").write_text("step,epoch,val/mAP\n119,14,\n120,15,\n120,,0.3\n")
    with lock_run_dir(unfinished(tmp_path / "running", None)):
        main([str(tmp_path), str(tmp_path / "done")])
    lines = lines_of(capsys)
    assert lines.keys() == {"done", "failed", "stopped", "running"}, "a run below two folders is listed once"
    assert re.match(r"done 150 35.0 100.0 \d+ ", lines["done"])
    assert lines["failed"].startswith("failed: DataError: no such folder")
    assert re.match(r"stopped at step 120 15 - - ", lines["stopped"])
    assert lines["running"].startswith("running")


def test_two_configs_are_compared_by_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = str(write_run(tmp_path / "one")), str(write_run(tmp_path / "other", "optimizer.lr=0.5"))
    main(["--compare", one, other])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["optimizer.lr", "0.0002", "0.5"] in rows
    main(["--compare", one, one])
    assert "no difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: no run is recorded there"),
        (["--compare", "empty", "empty"], "no config of a run"),
        (["--compare", "empty"], "needs the folders of two runs, got 1"),
    ],
)
def test_a_wrong_folder_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (1, 2)
    assert message in capsys.readouterr().err
