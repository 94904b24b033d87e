"""Time and memory of scoring, beside the rankers of other toolboxes.

``python -m benchmarks.scoring [--fast-reid DIR] [--torchreid DIR]``: checkouts of the two, in each of which
``python setup.py build_ext --inplace`` was run in its ``rank_cylib`` folder. Without them only ours are run.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.embeddings import of_size
from benchmarks.process import Cost, in_turns
from benchmarks.rows import Row, beside, machine, show, write
from sharpreid.evaluation import ranking
from sharpreid.evaluation.ranking import Protocol, evaluate_ranking

RANKERS = {
    "fast-reid": "fastreid/evaluation/rank_cylib",
    "torchreid": "torchreid/metrics/rank_cylib",
}
"""Where a checkout has its compiled ranker."""


SIZES = [("market1501", 128, 5), ("market1501", 2048, 1), ("msmt17", 128, 1), ("market1501+500k", 128, 1)]
"""Name, length of an embedding and repeats of what is measured."""

TOO_LARGE = {"fast-reid": ["market1501+500k"], "torchreid": ["msmt17", "market1501+500k"]}
"""Where theirs want more than 20 GiB."""


def ours(size: str, dim: int, *, numba: bool) -> Callable[[], float]:
    """Our scoring, ready to be called; Numba has compiled its kernel."""
    _warm_up(numba)
    data = of_size(size, dim)
    return lambda: evaluate_ranking(*data, protocol=Protocol.market1501()).mAP


def _warm_up(numba: bool) -> None:
    ranking.COMPILED_FROM = 0 if numba else 10**15
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 8 + 1, np.arange(64) % 3
    x = rng.normal(size=(64, 16)).astype(np.float32)
    evaluate_ranking(x, *labels, x, *labels, protocol=Protocol.market1501())


def theirs(size: str, dim: int, *, checkout: str, peer: str) -> Callable[[], float]:
    """Another toolbox's: squared Euclidean distances by one product, then its compiled ranker."""
    ranker = _ranker(Path(checkout) / RANKERS[peer])
    data = of_size(size, dim)

    def score() -> float:
        query, gallery = torch.from_numpy(data.query), torch.from_numpy(data.gallery)
        squares = query.square().sum(1, keepdim=True) + gallery.square().sum(1)
        distances = squares.addmm_(query, gallery.T, alpha=-2).numpy()
        labels = data.query_pids, data.gallery_pids, data.query_camids, data.gallery_camids
        result = ranker.evaluate_cy(distances, *labels, 50)
        return float(np.mean(result[1]))

    return score


def _ranker(folder: Path) -> ModuleType:
    built = sorted(folder.glob("rank_cy.*.so"))
    if not built:
        raise SystemExit(
            f"{folder}: no compiled ranker; run `python setup.py build_ext --inplace` there, with Cython"
        )
    spec = importlib.util.spec_from_file_location("rank_cy", built[0])
    if spec is None or spec.loader is None:
        raise SystemExit(f"{built[0]}: not a module of this Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(checkouts: dict[str, str], *, sizes: Sequence[tuple[str, int, int]] | None = None) -> list[Row]:
    """Rows of every size.

    Args:
        checkouts: of the toolboxes in `RANKERS` that are there.
        sizes: name in `benchmarks.embeddings.SIZES`, length of an embedding, repeats; None for all.
    """
    rows = []
    for size, dim, repeats in sizes or SIZES:
        peers = {peer: named for peer, named in checkouts.items() if size not in TOO_LARGE[peer]}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("benchmarks.scoring:ours", {"size": size, "dim": dim, "numba": numba}) for numba in (True, False)
        ]
        calls += [
            ("benchmarks.scoring:theirs", {"size": size, "dim": dim, "checkout": checkout, "peer": peer})
            for peer, checkout in peers.items()
        ]
        with_numba, without, *others = in_turns(calls, repeats)
        found = dict(zip(peers, others, strict=True))
        rows += _rows(f"scoring {size} {dim}-d", with_numba, without, found)
    return rows


LIMITS = {  # times faster than fast-reid: with Numba, without
    "scoring market1501 128-d": (8, 2),
    "scoring msmt17 128-d": (10, None),
}
GIGABYTES = {"scoring msmt17 128-d": 1.0, "scoring market1501+500k 128-d": 3.0}


def _rows(name: str, with_numba: Cost | str, without: Cost | str, others: dict[str, Cost | str]) -> list[Row]:
    rows: list[Row] = []
    limits = LIMITS.get(name, (None, None))
    for how, cost, limit in (("Numba", with_numba, limits[0]), ("numpy", without, limits[1])):
        if isinstance(cost, str):
            raise RuntimeError(f"{name} by {how} failed: {cost}")
        found = {
            peer: (None, f"failed: {their}")
            if isinstance(their, str)
            else (their.seconds, f"mAP {cost.value:.9f} and {their.value:.9f}")
            for peer, their in others.items()
        }
        rows += beside(
            f"{name}, {how}", cost.seconds, "s", found, {} if limit is None else {"fast-reid": limit}
        )
    if isinstance(with_numba, Cost) and with_numba.peak_bytes is not None:
        most = GIGABYTES.get(name)
        rows.append(
            Row(
                name=f"{name}, memory",
                ours=with_numba.peak_bytes / 1e9,
                unit="GB",
                other="its limit" if most else "",
                theirs=most,
                better="lower",
                limit=1 if most else None,
                note="peak above the embeddings",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for peer in RANKERS:
        parser.add_argument(f"--{peer}", metavar="DIR", help=f"checkout of {peer}")
    parser.add_argument("--output", type=Path, help="file for the rows")
    arguments = vars(parser.parse_args())
    about = machine()
    rows = measure({peer: named for peer in RANKERS if (named := arguments[peer.replace("-", "_")])})
    show(rows, "scoring")
    if arguments["output"]:
        write(rows, about, arguments["output"])


if __name__ == "__main__":
    main()
