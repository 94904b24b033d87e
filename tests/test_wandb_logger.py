import builtins
from pathlib import Path
from typing import Any

import pytest

from sharpreid.wandb_logger import build_wandb_logger, has_key

LOGIN = "machine {host} login user password 0123456789\n"


@pytest.fixture(autouse=True)
def _no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who never logged in; WANDB_MODE and WANDB_SILENT are restored afterwards."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def build(folder: Path) -> Any:
    return build_wandb_logger(
        project="project", group="sweep", name="run", tags=("a", "b"), save_dir=str(folder)
    )


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
    def test_is_offline_without_a_key_and_never_asks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def asked(*args: Any) -> str:
            raise RuntimeError("the logger asked a question")

        monkeypatch.setattr(builtins, "input", asked)
        monkeypatch.setattr("getpass.getpass", asked)
        made = build(tmp_path / "deep" / "folder")
        assert made._offline
        assert (tmp_path / "deep" / "folder").is_dir()

    def test_is_online_with_a_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789")
        assert not build(tmp_path)._offline

    def test_mode_in_the_environment_wins_over_a_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789")
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert build(tmp_path)._offline

    def test_mode_in_the_environment_wins_over_a_missing_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "online")
        assert not build(tmp_path)._offline

    def test_disabled_mode_is_not_turned_into_an_offline_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert not build(tmp_path)._offline  # Lightning would overwrite WANDB_MODE

    def test_hands_project_group_name_and_tags_on(self, tmp_path: Path) -> None:
        made = build(tmp_path)
        assert (made.name, made.save_dir) == ("project", str(tmp_path))
        assert made._wandb_init["group"] == "sweep"
        assert made._wandb_init["name"] == "run"
        assert made._wandb_init["tags"] == ["a", "b"]
