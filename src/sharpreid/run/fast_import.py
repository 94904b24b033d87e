"""Import torchmetrics, as Lightning does, without the part of SciPy that only its audio metrics need.

Where SciPy is installed, as it is with Optuna, scipy.signal takes a fifth of the CPU time of all imports, and
torchmetrics has no option to leave it out.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

_SIGNAL = "scipy.signal"


class _LazySignal(ModuleType):
    """Stand-in for scipy.signal that imports the real module when one of its names is used."""

    hamming = None  # torchmetrics checks at import whether this name exists

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        sys.modules.pop(_SIGNAL, None)
        return getattr(importlib.import_module(_SIGNAL), name)


def import_torchmetrics() -> None:
    """Import torchmetrics without ``scipy.signal``, which a later import still loads in full."""
    if _SIGNAL in sys.modules:
        return
    sys.modules[_SIGNAL] = stand_in = _LazySignal(_SIGNAL)
    try:
        importlib.import_module("torchmetrics")
    finally:
        if sys.modules.get(_SIGNAL) is stand_in:
            del sys.modules[_SIGNAL]
