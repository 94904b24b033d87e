import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from sharpreid.loggers.wandb import build_wandb_logger, has_key
from sharpreid.run.training import finish_loggers

START = """
import os, sys
mode = os.environ.get("WANDB_MODE", "")
from sharpreid.loggers.wandb import build_wandb_logger
made = build_wandb_logger(project="p", group="g", name="n", tags=(), save_dir=sys.argv[1])
made.experiment.log({"x": 1})
made.experiment.finish()
assert os.environ.get("WANDB_MODE", "") == mode, "the next job of a sweep would be told another mode"
"""

LOGIN = "machine {host} login user password 0123456789\n"


@pytest.fixture(autouse=True)
def _no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who never logged in; WANDB_MODE and WANDB_SILENT are restored afterwards."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def build(folder: Path, **options: bool) -> Any:
    return build_wandb_logger(
        project="project", group="sweep", name="run", tags=("a", "b"), save_dir=str(folder), **options
    )


def mode_of(made: Any) -> str:
    """The mode that W&B is started with."""
    return str(made._wandb_init["mode"])


class TestHasKey:
    def test_is_false_where_nothing_is_configured(self) -> None:
        assert not has_key()

    def test_finds_the_environment_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789")
        assert has_key()

    def test_takes_an_empty_environment_variable_for_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "")
        assert not has_key()

    def test_finds_the_login_in_the_named_netrc_file(self, tmp_path: Path) -> None:
        (tmp_path / "netrc").write_text(LOGIN.format(host="api.wandb.ai"))
        assert has_key()

    def test_finds_the_login_in_the_users_own_netrc_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("NETRC")
        (tmp_path / ".netrc").write_text(LOGIN.format(host="api.wandb.ai"))
        (tmp_path / ".netrc").chmod(0o600)
        assert has_key()

    def test_is_false_where_the_netrc_file_knows_other_machines_only(self, tmp_path: Path) -> None:
        (tmp_path / "netrc").write_text(LOGIN.format(host="github.com"))
        assert not has_key()

    def test_looks_for_the_server_that_is_configured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "netrc").write_text(LOGIN.format(host="wandb.example.org"))
        assert not has_key()
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
        assert has_key()

    def test_finds_the_login_of_a_server_with_a_port(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080")
        (tmp_path / "netrc").write_text(LOGIN.format(host="localhost:8080"))
        assert has_key()

    @pytest.mark.parametrize("content", [b"", b"machine", b"nonsense", b"\xff\xfe\x00"])
    def test_takes_a_damaged_netrc_file_for_none(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "netrc").write_bytes(content)
        assert not has_key()


class TestBuildWandbLogger:
    def test_is_offline_without_a_key(self, tmp_path: Path) -> None:
        made = build(tmp_path / "deep" / "folder")
        assert mode_of(made) == "offline"
        assert (tmp_path / "deep" / "folder").is_dir()

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["", "online"])
    def test_never_asks_on_a_terminal(self, tmp_path: Path, mode: str) -> None:
        """A run is started on a terminal that nobody types at; W&B, which would ask there, must not wait."""
        (tmp_path / "start.py").write_text(START)
        environment = {**os.environ, "WANDB_MODE": mode}
        master, slave = pty.openpty()
        command = [sys.executable, str(tmp_path / "start.py"), str(tmp_path)]
        with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
            os.close(slave)
            shown = b""
            with contextlib.suppress(OSError):  # how the end of a terminal reads
                while part := os.read(master, 4096):
                    shown += part
                    assert b"Enter your choice" not in shown
        os.close(master)
        assert process.returncode == 0, shown
        assert b"anonymous" not in shown
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))

    def test_is_online_with_a_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789")
        assert mode_of(build(tmp_path)) == "online"

    def test_mode_in_the_environment_wins_over_a_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789")
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert mode_of(build(tmp_path)) == "offline"

    def test_online_without_a_key_is_offline_with_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "online")
        assert mode_of(build(tmp_path)) == "offline"
        assert "no key is configured" in caplog.text

    def test_disabled_mode_is_not_turned_into_an_offline_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert mode_of(build(tmp_path)) == "disabled"

    def test_hands_project_group_name_and_tags_on(self, tmp_path: Path) -> None:
        made = build(tmp_path)
        assert (made.name, made.save_dir) == ("project", str(tmp_path))
        assert made._wandb_init["group"] == "sweep"
        assert made._wandb_init["name"] == "run"
        assert made._wandb_init["tags"] == ["a", "b"]

    def test_a_long_tag_is_cut_to_what_wandb_takes(self, tmp_path: Path) -> None:
        made = build_wandb_logger(
            project="p", group="g", name="n", tags=("t" * 70,), save_dir=str(tmp_path), required=True
        )
        made.experiment.finish()
        assert made.experiment.tags == ("t" * 64,)

    def test_each_run_of_a_process_has_the_id_that_was_set_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """W&B reads WANDB_RUN_ID once; of a trial of its own sweep it takes no id as an argument."""
        given = []
        monkeypatch.setattr(wandb, "init", lambda **options: given.append(options["id"]))
        for number in ("first", "second"):
            monkeypatch.setenv("WANDB_RUN_ID", number)
            _ = build(tmp_path).experiment
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
        _ = build(tmp_path).experiment
        assert given == ["first", "second", None]


AGENT = """
import sys, wandb
from wandb.agents import pyagent
from wandb.apis.public import sweeps
from sharpreid.train import main

overrides, left = sys.argv[1:], [("trial1", {"seed": 1, "model.blocks": [1, 2]}), ("trial2", {"seed": 2})]

def heartbeat(api, agent, metrics, running):
    if running or not left:
        return []
    run_id, values = left.pop(0)
    return [{"type": "run", "run_id": run_id, "args": {key: {"value": one} for key, one in values.items()}}]

def trial():
    with wandb.init() as run:
        sys.argv[1:] = [*overrides, *(f"{key}={value}" for key, value in run.config.items())]
        main()

wandb.Api = type("Api", (), {})
sweeps._register_agent = lambda *args, **options: {"id": "agent"}
sweeps._agent_heartbeat = heartbeat
pyagent.Agent.HEARTBEAT_SLEEP_SECONDS = 0.1
pyagent.pyagent("sweep", trial, "entity", "project", count=2)
"""
"""W&B's agent, whose calls of the server are answered here."""


@pytest.mark.slow
def test_each_trial_of_wandb_s_agent_is_a_training_of_its_own(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    overrides = [*tiny_overrides, "logger=wandb", "callbacks.masks.images=0", "score_untrained=false"]
    done = subprocess.run(
        [sys.executable, "-c", AGENT, *overrides],
        cwd=tmp_path,
        env={**os.environ, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    jobs = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("job.json")]
    told = {(job["wandb_id"], job["overrides"][-1], job["status"]) for job in jobs}
    assert told == {("trial1", "model.blocks=[1, 2]", "done"), ("trial2", "seed=2", "done")}, done.stderr
    assert len([*tmp_path.rglob("run-trial?.wandb")]) == 2


END_WANDB = """
import os, signal, subprocess, sys, time
from sharpreid.run.training import finish_loggers
from sharpreid.loggers.wandb import build_wandb_logger
made = build_wandb_logger(project="p", group="g", name="n", tags=(), save_dir=sys.argv[1])
made.log_metrics({"x": 1}, 0)
service = int(subprocess.check_output(["pgrep", "-P", str(os.getpid()), "wandb-core"]))
os.kill(service, signal.SIGTERM)
while os.path.exists(f"/proc/{service}/exe"):  # a process that has ended has none
    time.sleep(0.1)
time.sleep(1)
for step in range(1, 3):
    made.log_metrics({"x": 1}, step)
finish_loggers(type("Trainer", (), {"loggers": [made]}), succeeded=False)
"""


@pytest.mark.slow
def test_a_signal_that_ends_wandb_s_process_does_not_end_ours(tmp_path: Path) -> None:
    command = [sys.executable, "-c", END_WANDB, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B's process has ended") == 1


class TestAFailureOfWandb:
    @pytest.fixture(autouse=True)
    def _no_service(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(**_: Any) -> Any:
            raise RuntimeError("the service does not start")

        monkeypatch.setattr(wandb, "init", fail)

    def test_costs_one_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        made = build(tmp_path)
        made.log_hyperparams({"lr": 1.0})
        made.log_metrics({"train/loss": 1.0}, step=0)
        made.log_image("masks", [object()])
        made.experiment.finish(exit_code=0)
        assert [one for one in caplog.records if one.levelname == "WARNING"] == [caplog.records[-1]]
        assert "the service does not start" in caplog.text

    def test_at_its_end_costs_one_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        def fail(exit_code: int) -> None:
            raise RuntimeError("no network")

        trainer: Any = SimpleNamespace(loggers=[SimpleNamespace(experiment=SimpleNamespace(finish=fail))])
        finish_loggers(trainer, succeeded=True)
        assert "did not end well: no network" in caplog.text

    def test_is_an_error_where_wandb_was_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(RuntimeError, match="does not start"):
            build(tmp_path, required=True).log_metrics({})
        monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
        with pytest.raises(RuntimeError, match="does not start"):
            build(tmp_path).log_metrics({})

    def test_of_its_import_leaves_no_logger(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sharpreid.loggers.wandb.WandbLogger.__init__", lambda *_, **__: 1 / 0)
        assert build(tmp_path) is None
        with pytest.raises(ZeroDivisionError):
            build(tmp_path, required=True)
