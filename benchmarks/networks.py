"""Networks of the benchmarks."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from sharpreid.models.network import SharpAttentionNetwork

CONF = Path(__file__).resolve().parents[1] / "conf"


def build_network(*overrides: str) -> SharpAttentionNetwork:
    """Build the paper's network with random weights, in training mode at tau = 0.8.

    Args:
        overrides: config overrides, for example ``model.blocks=[]``.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["data=market1501", "model.trunk.weights=none", *overrides])
    built: SharpAttentionNetwork = instantiate(cfg.model)
    built.set_temperature(0.8)
    return built.train()
