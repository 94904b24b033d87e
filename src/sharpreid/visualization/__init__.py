"""Drawings of attention that callbacks, commands and reports share."""
