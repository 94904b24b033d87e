"""Loaders of CUHK03: MATLAB file, unpacked images and published splits."""

from sharpreid.data.cuhk03.splits import (
    PUBLISHED,
    PUBLISHED_NEW,
    load_cuhk03,
    load_cuhk03_new,
    new_protocol_queries,
)

__all__ = ["PUBLISHED", "PUBLISHED_NEW", "load_cuhk03", "load_cuhk03_new", "new_protocol_queries"]
