"""Networks of the benchmarks."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from sharpreid.models.network import SharpAttentionNetwork

CONF = Path(__file__).resolve().parents[1] / "conf"


def build_network(*overrides: str) -> SharpAttentionNetwork:
    """Build the paper's network with random weights, in training mode at tau = 0.8.

    Args:
        overrides: config overrides, for example ``model.blocks=[]``.
    """
    built: SharpAttentionNetwork = instantiate(compose_config(*overrides).model)
    built.set_temperature(0.8)
    return built.train()


def compose_config(*overrides: str) -> DictConfig:
    """Compose the config of the paper's network with random weights; see `build_network`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["data=market1501", "model.trunk.weights=none", *overrides])
