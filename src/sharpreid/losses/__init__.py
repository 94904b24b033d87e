"""Losses of the paper (Sec. III-B and reference [15])."""
