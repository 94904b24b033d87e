"""Measure whether calibrated thresholds keep their false-positive rate on other people.

    python experiments/threshold/measure.py outputs/RUN gallery

The test people of the run's data set are embedded, and split into two halves many times. A threshold is
chosen on one half, and its rates are measured in a gallery of the other half.
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpreid.atomic_io import replacing
from sharpreid.config.early_runs import upgrade_record
from sharpreid.run.arguments import load_config
from sharpreid.run.build import build_data
from sharpreid.serving.calibration import PersonDistances, calibrate, measure_rates, person_distances
from sharpreid.serving.embedding import embed_images
from sharpreid.serving.gallery import Gallery, embeddings_of
from sharpreid.serving.model import load_model

HERE = Path(__file__).parent
RATES = (0.01, 0.05, 0.1)
SPLITS = 200
RECORDED = ("seed", "dataset", "protocol", "deviations", "scores", "commit")
"""Fields of the run's scores.json that are kept."""
TIMES = 3
"""How many times as large as in its calibration the gallery of a second measurement is."""


def embed_test_people(run: Path, gallery: Path) -> PersonDistances:
    """Embed query and gallery images of the test people of a run, without distractors, and compare them."""
    data = build_data(load_config(run / "checkpoints" / "final.ckpt"))
    data.setup("test")
    gallery.mkdir(parents=True, exist_ok=True)
    images = gallery / "people.csv"
    with replacing(images) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "identity", "camera"))
        for sample in (*data.data.query, *data.data.gallery):
            if sample.pid > 0:
                writer.writerow((sample.path.absolute(), sample.pid, sample.camid))
    embed_images(str(images), model=str(run), output=gallery)
    table = Gallery(gallery, load_model(run).digest).read()
    return person_distances(embeddings_of(table), table["identity"].to_pylist(), table["camera"].to_pylist())


def measure_split(
    chosen_on: PersonDistances, measured_on: PersonDistances, rate: float, enrolled: int, times: Sequence[int]
) -> list[dict[str, float | None]]:
    """Choose a threshold for galleries of ``enrolled`` people; measure it in others, ``times`` as large."""
    threshold = calibrate(chosen_on, false_positive_rate=rate, gallery_identities=enrolled, dataset="half")
    rows = []
    for each in times:
        first = np.arange(measured_on.people) < each * enrolled
        found = measure_rates(measured_on, first, threshold.distance)
        rows.append(
            {
                "false_positive": found.false_positive,
                "low": threshold.interval[0],
                "high": threshold.interval[1],
                "detection": found.detection,
                "stated_detection": threshold.detection_rate,
            }
        )
    return rows


def measure(distances: PersonDistances, splits: int = SPLITS, seed: int = 0) -> list[dict[str, Any]]:
    """Return a row for each rate and size of the gallery, see `summarize`."""
    half = distances.people // 2
    sizes = {half // 2: (1,), half // (2 * TIMES): (1, TIMES)}
    found: dict[tuple[int, int, float], list[dict[str, float | None]]] = {
        (enrolled, each, rate): [] for enrolled, times in sizes.items() for each in times for rate in RATES
    }
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        order = rng.permutation(distances.people)
        one, other = distances.among(order[:half]), distances.among(order[half:])
        for enrolled, times in sizes.items():
            for rate in RATES:
                rows = measure_split(one, other, rate, enrolled, times)
                for each, row in zip(times, rows, strict=True):
                    found[enrolled, each, rate].append(row)
    return [
        {"rate": rate, "enrolled": enrolled, "measured_enrolled": each * enrolled, **summarize(rows)}
        for (enrolled, each, rate), rows in found.items()
    ]


def summarize(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Summarize the splits of one rate and size.

    Returns:
        Mean and central 95 % of the measured rates, the mean ends of the intervals, the number of splits
        whose measured rate is inside, and the mean detection rates, measured and stated.
    """
    columns = {key: np.array([row[key] for row in rows], float) for key in rows[0]}
    measured = columns["false_positive"]
    return {
        "measured": measured.mean(),
        "measured_95": np.quantile(measured, [0.025, 0.975]).tolist(),
        "interval": [columns["low"].mean(), columns["high"].mean()],
        "inside": int(((columns["low"] <= measured) & (measured <= columns["high"])).sum()),
        "detection": columns["detection"].mean(),
        "stated_detection": columns["stated_detection"].mean(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Embed, measure, and write measured.json beside this script."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, help="directory of a finished run, with model/ and scores.json")
    parser.add_argument("gallery", type=Path, help="folder for the embeddings; kept, and used again")
    given = parser.parse_args(arguments)
    record = upgrade_record(json.loads((given.run / "scores.json").read_text(encoding="utf-8")))
    distances = embed_test_people(given.run, given.gallery)
    content = {
        "run": {key: record[key] for key in RECORDED},
        "people": distances.people,
        "images": len(distances.person),
        "splits": SPLITS,
        "rows": measure(distances),
    }
    with replacing(HERE / "measured.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {HERE / 'measured.json'}")


if __name__ == "__main__":
    main()
