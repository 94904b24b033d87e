"""Time and memory of k-reciprocal re-ranking, beside the programs of other toolboxes.

``python -m benchmarks.re_ranking [--torchreid DIR] [--fast-reid DIR]``: checkouts of the two.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks import command
from benchmarks.embeddings import make
from benchmarks.process import in_turns
from benchmarks.rows import Row, beside, machine
from sharpreid.evaluation import numba_kernels
from sharpreid.evaluation.re_ranking import k_reciprocal_distances

PROGRAMS = {"fast-reid": "fastreid/evaluation/rerank.py", "torchreid": "torchreid/utils/rerank.py"}
"""Where a checkout has its re-ranking of given distances."""

PARAMETERS = {"k1": 20, "k2": 6, "lambda_value": 0.3}


def _embeddings(queries: int, items: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = make(queries, items * 4 // 5, items // 5, max(2, queries // 4), 6, dim=128)
    return torch.from_numpy(data.query), torch.from_numpy(data.gallery)


def ours(queries: int, items: int) -> Callable[[], float]:
    """Our re-ranking, ready to be called, its kernels compiled; returns the mean distance."""
    query, gallery = _embeddings(queries, items)
    limit, numba_kernels.MIN_PAIRS = numba_kernels.MIN_PAIRS, 0
    k_reciprocal_distances(query[:64], gallery[:256], **PARAMETERS)
    numba_kernels.MIN_PAIRS = limit
    return lambda: float(k_reciprocal_distances(query, gallery, **PARAMETERS).mean())


def theirs(queries: int, items: int, *, checkout: str, peer: str) -> Callable[[], float]:
    """Another toolbox's, which is given the three matrices of distances and returns one."""
    file = Path(checkout) / PROGRAMS[peer]
    spec = importlib.util.spec_from_file_location("rerank", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise SystemExit(f"{file}: not there")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    query, gallery = _embeddings(queries, items)

    def re_rank() -> float:
        pairs = ((query, gallery), (query, query), (gallery, gallery))
        distances = [torch.cdist(x, y).numpy() for x, y in pairs]  # it squares them
        return float(program.re_ranking(*distances, **PARAMETERS).mean())

    return re_rank


def by_faiss(queries: int, items: int, *, checkout: str) -> Callable[[], float]:
    """fast-reid's own variant, whose neighbours are found by faiss; another quantity than the others'."""
    package = ModuleType("fast_reid_utils")  # the file imports a neighbour, and needs none of the toolbox
    package.__path__ = [str(Path(checkout) / "fastreid/utils")]
    sys.modules[package.__name__] = package
    program = importlib.import_module(f"{package.__name__}.compute_dist")
    embeddings = torch.cat(_embeddings(queries, items))

    def re_rank() -> float:
        k1, k2, weight = PARAMETERS.values()
        jaccard = program.compute_jaccard_distance(embeddings, k1=k1, k2=k2, search_option=3)[
            :queries, queries:
        ]
        euclidean = program.compute_euclidean_distance(embeddings[:queries], embeddings[queries:])
        return float((jaccard * (1 - weight) + euclidean * weight).mean())

    return re_rank


def _of_means(peer: str, ours: float, theirs: float) -> str:
    other = " (it defines its distance otherwise)" if peer.endswith("faiss") else ""
    return f"mean distance {ours:.6f}, {theirs:.6f}{other}"


def measure(
    checkouts: dict[str, str], *, size: tuple[int, int] = (1_000, 5_000), repeats: int = 1
) -> list[Row]:
    """Rows of one size.

    Args:
        checkouts: of the toolboxes in `PROGRAMS` that are there.
        size: queries and gallery items.
        repeats: of which the median is taken.
    """
    keywords: dict[str, Any] = {"queries": size[0], "items": size[1]}
    calls = [("benchmarks.re_ranking:ours", keywords)]
    calls += [
        ("benchmarks.re_ranking:theirs", {**keywords, "checkout": checkout, "peer": peer})
        for peer, checkout in checkouts.items()
    ]
    peers = [*checkouts]
    if "fast-reid" in checkouts and importlib.util.find_spec("faiss"):
        peers.append("fast-reid with faiss")
        calls.append(("benchmarks.re_ranking:by_faiss", {**keywords, "checkout": checkouts["fast-reid"]}))
    mine, *others = in_turns(calls, repeats)
    if isinstance(mine, str):
        raise RuntimeError(f"re-ranking failed: {mine}")
    name = f"re-ranking {size[0]} + {size[1]}"
    found = {
        peer: (None, f"failed: {their}")
        if isinstance(their, str)
        else (their.cpu_seconds, _of_means(peer, mine.value, their.value))
        for peer, their in zip(peers, others, strict=True)
    }
    return beside(name, mine.cpu_seconds, "CPU s", found, dict.fromkeys(found, 3))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = command.parser("re_ranking", __doc__)
    parser.add_argument(
        "--size",
        type=command.at_least(2),
        nargs=2,
        default=(1_000, 5_000),
        metavar=("QUERIES", "ITEMS"),
        help="1000 and 5000 by default",
    )
    for peer, file in PROGRAMS.items():
        checkout = command.checkout_with(file, "another version, or another project")
        parser.add_argument(f"--{peer}", type=checkout, metavar="DIR", help=f"checkout of {peer}")
    given = vars(parser.parse_args(arguments))
    about = machine()
    checkouts = {peer: named for peer in PROGRAMS if (named := given[peer.replace("-", "_")])}
    with command.one_line_at_the_end():
        command.report(measure(checkouts, size=given["size"]), about, "re-ranking", given["output"])


if __name__ == "__main__":
    main()
