"""The embedded data set: people drawn by a program, in the layout of Market-1501 (docs/synthetic.md)."""

from sharpreid.data.synthetic.contact_sheet import contact_sheet
from sharpreid.data.synthetic.dataset import GENERATOR_VERSION, RECORD, ensure, generate, load_synthetic
from sharpreid.data.synthetic.world import SyntheticWorld

__all__ = [
    "GENERATOR_VERSION",
    "RECORD",
    "SyntheticWorld",
    "contact_sheet",
    "ensure",
    "generate",
    "load_synthetic",
]
