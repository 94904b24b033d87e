"""Generator and loader of the embedded synthetic data set (docs/synthetic.md)."""

from sharpreid.data.synthetic.contact_sheet import contact_sheet
from sharpreid.data.synthetic.dataset import GENERATOR_VERSION, RECORD, ensure, generate, load_synthetic
from sharpreid.data.synthetic.plan import SyntheticParams

__all__ = [
    "GENERATOR_VERSION",
    "RECORD",
    "SyntheticParams",
    "contact_sheet",
    "ensure",
    "generate",
    "load_synthetic",
]
