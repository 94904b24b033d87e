"""What the error of a lost process says, and which errors are not one."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from sharpreid.distributed import LostProcessError, explain_lost_processes
from sharpreid.run.build import build_trainer

SAID = [
    "Application timeout caused pair closure",
    "[unbound_buffer.cc:129] Timed out waiting 20000ms for send operation to complete",
    "[pair.cc:538] Read error [10.77.0.2]:5833: Connection reset by peer",
]
"""By gloo, when a cable was pulled and when a host was gone."""


@pytest.fixture
def group(tmp_path: Path) -> None:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("said", SAID)
@pytest.mark.usefixtures("group")
def test_a_lost_process_is_named_with_what_to_do(said: str) -> None:
    with pytest.raises(
        LostProcessError, match=r"timeout_minutes=2 .*rank 0, on .* with resume=auto"
    ) as error:
        fail_with(RuntimeError(said))
    assert said in str(error.value)


@pytest.mark.usefixtures("group")
def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2") as error:
        fail_with(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not isinstance(error.value, LostProcessError)


def test_a_process_that_is_alone_has_lost_none() -> None:
    with pytest.raises(RuntimeError, match="Timed out") as error:
        fail_with(RuntimeError("Timed out"))
    assert not isinstance(error.value, LostProcessError)


def fail_with(error: RuntimeError) -> None:
    with explain_lost_processes(2):
        raise error


@pytest.fixture
def _of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun gives the first process on the first of two nodes."""
    given = {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "GROUP_RANK": "0"}
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    for key, value in {**given, **ranks}.items():
        monkeypatch.setenv(key, value)


@pytest.mark.usefixtures("_of_two")
def test_processes_wait_for_each_other_as_long_as_the_config_says(
    composed: Callable[..., DictConfig],
) -> None:
    def timeout(*overrides: str) -> timedelta:
        trainer = build_trainer(composed("trainer.num_nodes=2", "output_dir=out", *overrides), training=False)
        return trainer.strategy._timeout

    assert timeout() == timedelta(minutes=10)
    assert timeout("trainer.timeout_minutes=0.5") == timedelta(seconds=30)
    with pytest.raises(ValueError, match=r"timeout_minutes must be a number > 0, got 0"):
        timeout("trainer.timeout_minutes=0")
