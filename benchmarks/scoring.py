"""Time and memory of scoring, beside the rankers of other toolboxes.

``python -m benchmarks.scoring [--fast-reid DIR] [--torchreid DIR]``: checkouts of the two, in each of which
``python setup.py build_ext --inplace`` was run in its ``rank_cylib`` folder. Without them only ours are run.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks import command
from benchmarks.embeddings import Embeddings, make, of_size
from benchmarks.process import Cost, in_turns
from benchmarks.rows import Row, beside, machine
from sharpreid.evaluation import numba_kernels
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking

RANKERS = {
    "fast-reid": "fastreid/evaluation/rank_cylib",
    "torchreid": "torchreid/metrics/rank_cylib",
}
"""Where a checkout has its compiled ranker."""


SIZES = [("market1501", 128, 5), ("market1501", 2048, 1), ("msmt17", 128, 1), ("market1501+500k", 128, 1)]
"""Name, length of an embedding and repeats of what is measured."""

TOO_LARGE = {"fast-reid": ["market1501+500k"], "torchreid": ["msmt17", "market1501+500k"]}
"""Where theirs want more than 20 GiB."""


def ours(size: str, dim: int, *, way: str) -> Callable[[], float]:
    """Our scoring, ready to be called: its kernels are compiled. The way to a device is part of it.

    Args:
        size: name in `benchmarks.embeddings.SIZES`.
        dim: length of an embedding.
        way: one of `ways`.
    """
    numba_kernels.MIN_PAIRS = 0 if way == "Numba" else 10**15
    device = torch.device("cuda" if way == "CUDA" else "cpu")

    def score(data: Embeddings) -> float:
        given = [torch.from_numpy(x).to(device) for x in data]
        return evaluate_ranking(*given, protocol=Protocol.market1501()).mAP

    score(make(64, 64, 0, 8, 3, dim=16))
    data = of_size(size, dim)
    return lambda: score(data)


def ways() -> tuple[str, ...]:
    """How this machine can score."""
    return ("Numba", "numpy", *(["CUDA"] if torch.cuda.is_available() else []))


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
    built = next(folder.glob("rank_cy.*.so"))  # `checkout_of` has seen it
    spec = importlib.util.spec_from_file_location("rank_cy", built)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{built}: not a module of this Python")
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
            ("benchmarks.scoring:ours", {"size": size, "dim": dim, "way": way}) for way in ways()
        ]
        calls += [
            ("benchmarks.scoring:theirs", {"size": size, "dim": dim, "checkout": checkout, "peer": peer})
            for peer, checkout in peers.items()
        ]
        costs = in_turns(calls, repeats)
        mine = dict(zip(ways(), costs[: len(ways())], strict=True))
        found = dict(zip(peers, costs[len(ways()) :], strict=True))
        left_out = {peer: "wants more than 20 GiB" for peer in checkouts if peer not in peers}
        rows += _rows(f"scoring {size} {dim}-d", mine, found | left_out)
    return rows


LIMITS = {  # times faster than fast-reid
    "scoring market1501 128-d, Numba": 8,
    "scoring market1501 128-d, numpy": 2,
    "scoring msmt17 128-d, Numba": 10,
}
GIGABYTES = {"scoring msmt17 128-d": 1.0, "scoring market1501+500k 128-d": 3.0}


def _rows(name: str, mine: dict[str, Cost | str], others: dict[str, Cost | str]) -> list[Row]:
    """Rows of one size: each of our ways against the other toolboxes, the ways among themselves, memory.

    Raises:
        RuntimeError: one of our ways failed, or they do not have the same score.
    """
    ours = {way: cost for way, cost in mine.items() if isinstance(cost, Cost)}
    if len(ours) < len(mine) or len({cost.value for cost in ours.values()}) > 1:
        scores = {way: cost if isinstance(cost, str) else cost.value for way, cost in mine.items()}
        raise RuntimeError(f"{name}: our ways do not give the same score: {scores}")
    rows: list[Row] = []
    for way, cost in ours.items():
        limit = LIMITS.get(f"{name}, {way}")
        found = {
            peer: (None, their)
            if isinstance(their, str)
            else (their.seconds, f"mAP {cost.value:.9f} and {their.value:.9f}")
            for peer, their in others.items()
        }
        rows += beside(
            f"{name}, {way}", cost.seconds, "s", found, {} if limit is None else {"fast-reid": limit}
        )
    fastest = ours["Numba"]
    rest = {way: (cost.seconds, "ours, the same mAP") for way, cost in ours.items() if way != "Numba"}
    rows += beside(f"{name}, Numba", fastest.seconds, "s", rest, {})
    if fastest.peak_bytes is not None:
        most = GIGABYTES.get(name)
        rows.append(
            Row(
                name=f"{name}, memory",
                ours=fastest.peak_bytes / 1e9,
                unit="GB",
                other="its limit" if most else "",
                theirs=most,
                better="lower",
                limit=1 if most else None,
                note="peak above the embeddings",
            )
        )
    return rows


def checkout_of(peer: str) -> Callable[[str], str]:
    """Type of the option ``--<peer>``: a checkout with its compiled ranker."""
    advice = "run `python setup.py build_ext --inplace` in its rank_cylib folder, with Cython installed"
    return command.checkout_with(f"{RANKERS[peer]}/rank_cy.*.so", advice)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = command.parser("scoring", __doc__)
    parser.add_argument(
        "--size",
        choices=dict.fromkeys(name for name, _, _ in SIZES),
        action="append",
        help="only this test set; may be given several times",
    )
    for peer in RANKERS:
        parser.add_argument(f"--{peer}", type=checkout_of(peer), metavar="DIR", help=f"checkout of {peer}")
    given = vars(parser.parse_args(arguments))
    about = machine()
    checkouts = {peer: named for peer in RANKERS if (named := given[peer.replace("-", "_")])}
    with command.one_line_at_the_end():
        rows = measure(
            checkouts, sizes=[one for one in SIZES if not given["size"] or one[0] in given["size"]]
        )
        command.report(rows, about, "scoring", given["output"])


if __name__ == "__main__":
    main()
