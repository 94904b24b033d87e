"""Modules that commands do not import, or not before they need them."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SLOW = {
    *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric"),
    *("wandb", "matplotlib", "scipy", "numba", "optuna", "submitit"),
}
"""Packages that take seconds altogether; torch brings torch._dynamo and torch._inductor."""


def find_imports(folder: Path, *command: str) -> tuple[set[str], int]:
    """Run ``python -m``; return the modules that it imports, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert lines, done.stderr
    return {line.rpartition("|")[2].strip() for line in lines}, done.returncode


def packages_of(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("train --help", 0),
        ("train --cfg job", 0),
        ("train sed=1", 1),
        ("train --multirun sed=1,2", 1),
        ("evaluate checkpoint=missing.ckpt", 1),
        ("evaluate --multirun checkpoint=missing.ckpt data.num_workers=0,1", 1),
        ("visualize checkpoint=missing.ckpt", 1),
        ("prepare data=markt1501", 2),
        ("report missing", 1),
        ("report.sweep --help", 0),
        ("report.record --help", 0),
        ("report.results --help", 0),
        ("dashboard --help", 0),
        ("export --help", 0),
        ("data.synthetic --help", 0),
    ],
)
def test_help_and_refusals_import_nothing_slow(tmp_path: Path, command: str, status: int) -> None:
    name, *arguments = command.split()
    modules, found = find_imports(tmp_path, f"sharpreid.{name}", *arguments)
    assert found == status
    assert "sharpreid" in modules
    assert packages_of(modules) & SLOW == set()


@pytest.mark.parametrize("command", ["sharpreid", "sharpreid.evaluate", "sharpreid.prepare"])
def test_some_help_does_not_even_import_hydra(tmp_path: Path, command: str) -> None:
    modules, found = find_imports(tmp_path, command, "--help")
    assert found == 0
    assert packages_of(modules) & {"hydra", "omegaconf", *SLOW} == set()


@pytest.mark.slow
def test_a_training_imports_only_what_it_uses(tmp_path: Path, tiny_overrides: list[str]) -> None:
    command = ["sharpreid.train", *tiny_overrides, "score_untrained=false", f"hydra.run.dir={tmp_path}/run"]
    command.append("+callbacks.end._target_=own_callbacks.ExitAtFirstBatch")
    (tmp_path / "own_callbacks.py").write_text(
        "import os, pytorch_lightning as pl\n"
        "class ExitAtFirstBatch(pl.Callback):\n"
        "    def on_train_batch_start(self, *args):\n"
        "        os._exit(17)\n"
    )
    modules, found = find_imports(tmp_path, *command)
    assert found == 17
    assert "torch" in modules
    unused = {"wandb", "h5py", "jinja2", "numba", "optuna", "wandb_workspaces", "pandas", "tensorboard"}
    assert packages_of(modules) & unused == set()
    assert modules & {"scipy.signal", "scipy.stats", "torch._inductor.compile_fx"} == set()


@pytest.mark.skipif(find_spec("scipy") is None, reason="needs SciPy")
def test_scipy_is_left_out_until_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "use_scipy.py").write_text(
        "import sys\n"
        "from sharpreid.run.fast_import import import_torchmetrics\n"
        "import_torchmetrics()\n"
        "assert 'torchmetrics' in sys.modules and 'scipy.signal' not in sys.modules\n"
        "import scipy.signal\n"
        "assert scipy.signal.find_peaks([0, 1, 0])[0] == [1]\n"
    )
    modules, found = find_imports(tmp_path, "use_scipy")
    assert found == 0
    assert {"scipy.signal", "scipy.stats"} <= modules
