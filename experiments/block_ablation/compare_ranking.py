"""Score a checkpoint by sharpreid and by torchreid, on the same embeddings.

    python experiments/block_ablation/compare_ranking.py RUN/checkpoints/final.ckpt torchreid/metrics/rank.py

The second argument is a file of a checkout of torchreid (commit f8cd150 was used). torchreid need not be
installed.
The protocol of the run must be that of Market-1501.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking
from sharpreid.module import ReIDModule
from sharpreid.run.arguments import load_config
from sharpreid.run.build import build_data, build_trainer
from sharpreid.run.loading import load_network

RANKS = (1, 5, 10)

Samples = tuple[Tensor, Tensor, Tensor]
"""Embeddings (N, D), identities (N,) and cameras (N,)."""


class KeepEmbeddings(pl.Callback):
    """Keep what the test metric has collected, which the module resets after scoring."""

    samples: Samples
    is_query: Tensor

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the state of the metric; Lightning calls this before the module scores it."""
        assert isinstance(pl_module, ReIDModule)
        metric = pl_module.test_metric
        self.samples = torch.cat(metric.embeddings), torch.cat(metric.pids), torch.cat(metric.camids)
        self.is_query = torch.cat(metric.is_query)

    def select(self, mask: Tensor) -> Samples:
        """Return the samples of a mask (N,), on the CPU."""
        embeddings, pids, camids = (values[mask].cpu() for values in self.samples)
        return embeddings, pids, camids


def embed_test_set(checkpoint: Path) -> tuple[Samples, Samples, Protocol]:
    """Embed the test set of a run; return its queries, its gallery and its protocol."""
    cfg = load_config(checkpoint)
    data, module = build_data(cfg), load_network(checkpoint, cfg)
    trainer = build_trainer(cfg, training=False)
    kept = KeepEmbeddings()
    trainer.callbacks.append(kept)  # type: ignore[attr-defined]  # a plain attribute that Lightning does not declare
    trainer.test(module, data, verbose=False)
    return kept.select(kept.is_query), kept.select(~kept.is_query), module.test_metric.protocol


def score_by_sharpreid(query: Samples, gallery: Samples, protocol: Protocol) -> list[float]:
    """Return mAP and the scores at `RANKS`, in [0, 1]."""
    scores = evaluate_ranking(*query, *gallery, protocol=protocol)
    return [scores.mAP, *(scores.rank(k) for k in RANKS)]


def score_by_torchreid(query: Samples, gallery: Samples, rank_py: Path) -> list[float]:
    """Return mAP and the scores at `RANKS`, in [0, 1], of float64 distances.

    Raises:
        FileNotFoundError: ``rank_py`` does not exist.
    """
    if not rank_py.is_file():
        raise FileNotFoundError(f"{rank_py}: expected torchreid/metrics/rank.py of a checkout of torchreid")
    spec = importlib.util.spec_from_file_location("rank", rank_py)
    assert spec is not None
    assert spec.loader is not None
    torchreid = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torchreid)
    distances = torch.cdist(query[0].double(), gallery[0].double())
    labels = (labels.numpy() for labels in (query[1], gallery[1], query[2], gallery[2]))
    cmc, mean_average_precision = torchreid.eval_market1501(distances.numpy(), *labels, 50)
    return [float(mean_average_precision), *(float(cmc[k - 1]) for k in RANKS)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print mAP, rank-1, rank-5 and rank-10 by both; the mAPs should agree to float64 rounding."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="RUN/checkpoints/final.ckpt")
    parser.add_argument("rank_py", type=Path, help="torchreid/metrics/rank.py of a checkout of torchreid")
    given = parser.parse_args(arguments)
    query, gallery, protocol = embed_test_set(given.checkpoint)
    print("sharpreid", *score_by_sharpreid(query, gallery, protocol))
    print("torchreid", *score_by_torchreid(query, gallery, given.rank_py))


if __name__ == "__main__":
    main()
