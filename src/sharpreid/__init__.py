"""Sharp attention networks for person re-identification (Shen et al.)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sharpreid.serving.model import Embedder

__version__ = "0.1.0"


def load(folder: "str | Path") -> "Embedder":
    """Load a trained network: a model folder, or the directory of a run.

    >>> model = sharpreid.load("outputs/.../seed=0")  # doctest: +SKIP
    >>> model.embed(["a.jpg", "b.jpg"]).shape  # doctest: +SKIP
    (2, 128)

    Raises:
        FileNotFoundError: There is no model in the folder.
        sharpreid.serving.model.ModelError: The model is damaged.
    """
    from sharpreid.serving.model import load_model  # imports torch

    return load_model(folder)
