"""Measure time and memory of scoring, compared with the rankers of other toolboxes.

``python -m benchmarks.scoring [--fast-reid DIR] [--torchreid DIR]`` takes checkouts of the two, whose rankers
were built by ``python setup.py build_ext --inplace`` in the folder ``rank_cylib``.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks import command
from benchmarks.embeddings import Embeddings, make_embeddings, make_test_set
from benchmarks.process import Cost, median_costs
from benchmarks.rows import Row, describe_machine, rows_against
from sharpreid.evaluation import numba_kernels
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking

RANKERS = {
    "fast-reid": "fastreid/evaluation/rank_cylib",
    "torchreid": "torchreid/metrics/rank_cylib",
}
"""Folder of a checkout that contains its compiled ranker."""

SIZES = [("market1501", 128, 5), ("market1501", 2048, 1), ("msmt17", 128, 1), ("market1501+500k", 128, 1)]
"""Test set (key of `benchmarks.embeddings.SIZES`), length of an embedding, and number of repeats."""

TOO_LARGE = {"fast-reid": ["market1501+500k"], "torchreid": ["msmt17", "market1501+500k"]}
"""Test sets for which a toolbox needs more than 20 GiB."""


def sharpreid_scoring(size: str, dim: int, *, backend: str) -> Callable[[], float]:
    """Prepare sharpreid's scoring with compiled kernels; copies to a GPU are measured too.

    Args:
        size: key of `benchmarks.embeddings.SIZES`.
        dim: length of an embedding.
        backend: one of `backends`.
    """
    numba_kernels.MIN_PAIRS = 0 if backend == "Numba" else 10**15
    device = torch.device("cuda" if backend == "CUDA" else "cpu")

    def score(data: Embeddings) -> float:
        given = [torch.from_numpy(x).to(device) for x in data]
        return evaluate_ranking(*given, protocol=Protocol.market1501()).mAP

    score(make_embeddings(64, 64, 0, 8, 3, dim=16))
    data = make_test_set(size, dim)
    return lambda: score(data)


def backends() -> tuple[str, ...]:
    """Return the backends of this machine."""
    return ("Numba", "numpy", *(["CUDA"] if torch.cuda.is_available() else []))


def peer_scoring(size: str, dim: int, *, checkout: str, peer: str) -> Callable[[], float]:
    """Prepare another toolbox's scoring: squared distances by a matrix product, then its compiled ranker."""
    ranker = _load_ranker(Path(checkout) / RANKERS[peer])
    data = make_test_set(size, dim)

    def score() -> float:
        query, gallery = torch.from_numpy(data.query), torch.from_numpy(data.gallery)
        squares = query.square().sum(1, keepdim=True) + gallery.square().sum(1)
        distances = squares.addmm_(query, gallery.T, alpha=-2).numpy()
        labels = data.query_pids, data.gallery_pids, data.query_camids, data.gallery_camids
        result = ranker.evaluate_cy(distances, *labels, 50)
        return float(np.mean(result[1]))

    return score


def _load_ranker(folder: Path) -> ModuleType:
    """Import a compiled ranker from its folder."""
    built = next(folder.glob("rank_cy.*.so"))  # `ranker_checkout` has checked that it exists
    spec = importlib.util.spec_from_file_location("rank_cy", built)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{built} is not a module of this Python version")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(checkouts: dict[str, str], *, sizes: Sequence[tuple[str, int, int]] | None = None) -> list[Row]:
    """Measure the scoring of every size.

    Args:
        checkouts: available checkouts of the toolboxes in `RANKERS`.
        sizes: entries of `SIZES`; None for all.
    """
    rows = []
    for size, dim, repeats in sizes or SIZES:
        peers = {peer: named for peer, named in checkouts.items() if size not in TOO_LARGE[peer]}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("benchmarks.scoring:sharpreid_scoring", {"size": size, "dim": dim, "backend": backend})
            for backend in backends()
        ]
        calls += [
            (
                "benchmarks.scoring:peer_scoring",
                {"size": size, "dim": dim, "checkout": checkout, "peer": peer},
            )
            for peer, checkout in peers.items()
        ]
        costs = median_costs(calls, repeats)
        mine = dict(zip(backends(), costs[: len(backends())], strict=True))
        found = dict(zip(peers, costs[len(backends()) :], strict=True))
        left_out = {peer: "needs more than 20 GiB" for peer in checkouts if peer not in peers}
        rows += rows_of_size(f"scoring {size} {dim}-d", mine, found | left_out)
    return rows


LIMITS = {  # smallest speed-up over fast-reid
    "scoring market1501 128-d, Numba": 8,
    "scoring market1501 128-d, numpy": 2,
    "scoring msmt17 128-d, Numba": 10,
}
MEMORY_LIMITS = {"scoring msmt17 128-d": 1.0, "scoring market1501+500k 128-d": 3.0}  # GB


def rows_of_size(name: str, mine: dict[str, Cost | str], others: dict[str, Cost | str]) -> list[Row]:
    """Return the rows of one size: sharpreid's backends against other toolboxes and each other, and memory.

    Args:
        name: test set and length of an embedding.
        mine: cost or error message of each of sharpreid's backends.
        others: cost or error message of each other toolbox.

    Raises:
        RuntimeError: a backend failed, or the backends disagree about the score.
    """
    ours = {backend: cost for backend, cost in mine.items() if isinstance(cost, Cost)}
    if len(ours) < len(mine) or len({cost.value for cost in ours.values()}) > 1:
        scores = {backend: cost if isinstance(cost, str) else cost.value for backend, cost in mine.items()}
        raise RuntimeError(f"{name}: the backends do not give the same score: {scores}")
    rows: list[Row] = []
    for backend, cost in ours.items():
        limit = LIMITS.get(f"{name}, {backend}")
        found = {
            peer: (None, their)
            if isinstance(their, str)
            else (their.seconds, f"mAP {cost.value:.9f} and {their.value:.9f}")
            for peer, their in others.items()
        }
        rows += rows_against(
            f"{name}, {backend}", cost.seconds, "s", found, {} if limit is None else {"fast-reid": limit}
        )
    fastest = ours["Numba"]
    rest = {
        backend: (cost.seconds, "ours, the same mAP") for backend, cost in ours.items() if backend != "Numba"
    }
    rows += rows_against(f"{name}, Numba", fastest.seconds, "s", rest, {})
    if fastest.peak_bytes is not None:
        most = MEMORY_LIMITS.get(name)
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


def ranker_checkout(peer: str) -> Callable[[str], str]:
    """Return the argument type of ``--<peer>``, a checkout with a compiled ranker."""
    advice = "run `python setup.py build_ext --inplace` in its rank_cylib folder, with Cython installed"
    return command.checkout_containing(f"{RANKERS[peer]}/rank_cy.*.so", advice)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("scoring", __doc__)
    parser.add_argument(
        "--size",
        choices=dict.fromkeys(name for name, _, _ in SIZES),
        action="append",
        help="measure only this test set; may be repeated",
    )
    for peer in RANKERS:
        parser.add_argument(
            f"--{peer}", type=ranker_checkout(peer), metavar="DIR", help=f"checkout of {peer}"
        )
    given = vars(parser.parse_args(arguments))
    about = describe_machine()
    checkouts = {peer: named for peer in RANKERS if (named := given[peer.replace("-", "_")])}
    with command.errors_in_one_line():
        rows = measure(
            checkouts, sizes=[one for one in SIZES if not given["size"] or one[0] in given["size"]]
        )
        command.report_rows(rows, about, "scoring", given["output"])


if __name__ == "__main__":
    main()
