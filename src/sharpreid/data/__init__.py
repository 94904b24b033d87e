"""Data sets, sampling and image transforms."""
