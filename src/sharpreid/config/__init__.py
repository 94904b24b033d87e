"""Locate, validate and resolve configuration; imports no torch."""
