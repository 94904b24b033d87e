"""Sharp attention networks for person re-identification (Shen et al.)."""

__version__ = "0.1.0"
