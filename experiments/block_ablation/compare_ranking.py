"""Score a checkpoint twice, by sharpreid and by torchreid's ranking, on the same embeddings.

python experiments/block_ablation/compare_ranking.py RUN/checkpoints/final.ckpt torchreid/metrics/rank.py

The second argument is that file of a checkout of torchreid (f8cd150 was used), which need not be installed.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from sharpreid.evaluate import build_empty_module, load_config
from sharpreid.evaluation.ranking import evaluate_ranking
from sharpreid.models.weights import read_tensors
from sharpreid.run.build import build_data, build_trainer


def main(checkpoint: Path, rank_py: Path) -> None:
    """Print both scores; they should agree in every digit of mAP."""
    cfg = load_config(checkpoint)
    data, module = build_data(cfg), build_empty_module(cfg)
    module.load_state_dict(read_tensors(checkpoint)["state_dict"])
    fed: list[tuple[torch.Tensor, ...]] = []
    update = module.test_metric.update

    def kept(*batch: Any) -> None:
        fed.append(batch)
        update(*batch)

    module.test_metric.update = kept
    build_trainer(cfg, training=False).test(module, data, verbose=False)
    embeddings, pids, camids, is_query, _ = (torch.cat(part) for part in zip(*fed, strict=True))
    query = (embeddings[is_query], pids[is_query], camids[is_query])
    gallery = (embeddings[~is_query], pids[~is_query], camids[~is_query])
    ours = evaluate_ranking(*query, *gallery, protocol=module.test_metric.protocol)
    print("sharpreid", ours.mAP, *(ours.rank(k) for k in (1, 5, 10)))

    spec = importlib.util.spec_from_file_location("rank", rank_py)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{rank_py}: expected torchreid/metrics/rank.py of a checkout of torchreid")
    torchreid = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torchreid)
    distances = torch.cdist(query[0].double(), gallery[0].double())
    labels = (labels.numpy() for labels in (query[1], gallery[1], query[2], gallery[2]))
    cmc, mean_average_precision = torchreid.eval_market1501(distances.numpy(), *labels, 50)
    print("torchreid", mean_average_precision, *(float(cmc[k - 1]) for k in (1, 5, 10)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
