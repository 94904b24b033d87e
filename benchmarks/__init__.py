"""Benchmarks of speed and memory, side by side with other programs: ``make bench``."""
