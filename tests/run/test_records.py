"""Files of a run directory."""

import csv
import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sharpreid.data.reid_data import Sample
from sharpreid.run.records import describe_queries, write_text


def test_a_photo_of_any_name_is_a_row_of_the_queries(tmp_path: Path) -> None:
    """A name that could not be written would cost the scores of a whole training."""
    names = ["a.jpg", 'a, "b".jpg', "a\nb.jpg", "M\xfcller \udcfc.jpg"]
    samples = [Sample(Path("shop", name), 7, 2) for name in names]
    values = np.array([0.5, 1.0, math.nan, 0.25]), np.array([0.0, 1.0, math.nan, 0.0])
    scores: Any = SimpleNamespace(queries=values)
    text = describe_queries(samples, scores)
    assert text.startswith("image,identity,camera,ap,rank1\na.jpg,7,2,0.500000,0\n")
    write_text(tmp_path / "queries.csv", text)
    read = (tmp_path / "queries.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(read, newline="")))
    assert [row["image"] for row in rows] == [*names[:3], "M\xfcller \\udcfc.jpg"]
    assert [row["ap"] for row in rows] == ["0.500000", "1.000000", "", "0.250000"]
