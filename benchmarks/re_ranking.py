"""Measure the CPU time of k-reciprocal re-ranking, compared with other toolboxes.

``python -m benchmarks.re_ranking [--torchreid DIR] [--fast-reid DIR]`` takes checkouts of the two.
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
from benchmarks.embeddings import make_embeddings
from benchmarks.process import median_costs
from benchmarks.rows import Row, describe_machine, rows_against
from sharpreid.evaluation import numba_kernels
from sharpreid.evaluation.re_ranking import k_reciprocal_distances

PROGRAMS = {"fast-reid": "fastreid/evaluation/rerank.py", "torchreid": "torchreid/utils/rerank.py"}
"""File of a checkout that re-ranks given distances."""

PARAMETERS = {"k1": 20, "k2": 6, "lambda_value": 0.3}


def _embeddings(queries: int, items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make embeddings of queries and gallery."""
    data = make_embeddings(queries, items * 4 // 5, items // 5, max(2, queries // 4), 6, dim=128)
    return torch.from_numpy(data.query), torch.from_numpy(data.gallery)


def sharpreid_re_ranking(queries: int, items: int) -> Callable[[], float]:
    """Prepare sharpreid's re-ranking with compiled kernels, which returns the mean distance."""
    query, gallery = _embeddings(queries, items)
    limit, numba_kernels.MIN_PAIRS = numba_kernels.MIN_PAIRS, 0
    k_reciprocal_distances(query[:64], gallery[:256], **PARAMETERS)
    numba_kernels.MIN_PAIRS = limit
    return lambda: float(k_reciprocal_distances(query, gallery, **PARAMETERS).mean())


def peer_re_ranking(queries: int, items: int, *, checkout: str, peer: str) -> Callable[[], float]:
    """Prepare another toolbox's re-ranking, which takes three matrices of distances."""
    file = Path(checkout) / PROGRAMS[peer]
    spec = importlib.util.spec_from_file_location("rerank", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise SystemExit(f"{file} is missing")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    query, gallery = _embeddings(queries, items)

    def re_rank() -> float:
        pairs = ((query, gallery), (query, query), (gallery, gallery))
        distances = [torch.cdist(x, y).numpy() for x, y in pairs]  # the program squares them
        return float(program.re_ranking(*distances, **PARAMETERS).mean())

    return re_rank


def faiss_re_ranking(queries: int, items: int, *, checkout: str) -> Callable[[], float]:
    """Prepare fast-reid's variant with FAISS, whose final distance is defined differently."""
    package = ModuleType("fast_reid_utils")  # the file imports a sibling, but not the rest of the toolbox
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


def _note(peer: str, ours: float, theirs: float) -> str:
    """Describe the mean distances of both programs."""
    other = " (its distance is defined differently)" if peer.endswith("faiss") else ""
    return f"mean distances {ours:.6f} and {theirs:.6f}{other}"


def measure(
    checkouts: dict[str, str], *, size: tuple[int, int] = (1_000, 5_000), repeats: int = 1
) -> list[Row]:
    """Measure re-ranking of one size.

    Args:
        checkouts: available checkouts of the toolboxes in `PROGRAMS`.
        size: numbers of queries and gallery items.
        repeats: number of repeats, whose median is reported.
    """
    keywords: dict[str, Any] = {"queries": size[0], "items": size[1]}
    calls = [("benchmarks.re_ranking:sharpreid_re_ranking", keywords)]
    calls += [
        ("benchmarks.re_ranking:peer_re_ranking", {**keywords, "checkout": checkout, "peer": peer})
        for peer, checkout in checkouts.items()
    ]
    peers = [*checkouts]
    if "fast-reid" in checkouts and importlib.util.find_spec("faiss"):
        peers.append("fast-reid with faiss")
        calls.append(
            ("benchmarks.re_ranking:faiss_re_ranking", {**keywords, "checkout": checkouts["fast-reid"]})
        )
    mine, *others = median_costs(calls, repeats)
    if isinstance(mine, str):
        raise RuntimeError(f"re-ranking failed: {mine}")
    name = f"re-ranking {size[0]} + {size[1]}"
    found = {
        peer: (None, f"failed: {their}")
        if isinstance(their, str)
        else (their.cpu_seconds, _note(peer, mine.value, their.value))
        for peer, their in zip(peers, others, strict=True)
    }
    return rows_against(name, mine.cpu_seconds, "CPU s", found, dict.fromkeys(found, 3))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("re_ranking", __doc__)
    parser.add_argument(
        "--size",
        type=command.integer_at_least(2),
        nargs=2,
        default=(1_000, 5_000),
        metavar=("QUERIES", "ITEMS"),
        help="1000 and 5000 by default",
    )
    for peer, file in PROGRAMS.items():
        checkout = command.checkout_containing(file, "another version, or another project")
        parser.add_argument(f"--{peer}", type=checkout, metavar="DIR", help=f"checkout of {peer}")
    given = vars(parser.parse_args(arguments))
    about = describe_machine()
    checkouts = {peer: named for peer in PROGRAMS if (named := given[peer.replace("-", "_")])}
    with command.errors_in_one_line():
        command.report_rows(measure(checkouts, size=given["size"]), about, "re-ranking", given["output"])


if __name__ == "__main__":
    main()
