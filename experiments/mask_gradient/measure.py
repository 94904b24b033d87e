"""Measure the variance of the gradient through the mask for each ``model.sampler.gradient``.

    python experiments/mask_gradient/measure.py data=market1501 recipe=miniature model.trunk.weights=...

Two quantities are measured: the mean and standard deviation of dM/dpi over the noise of Eq. 5, for several
pi; and the cosine between the gradients of one batch under two noises, for each stage of a network at the
start of its training.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from sharpreid.attention.mask import Gradient, MaskGradient, MaskSampler
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.run.build import build_data, build_module

HERE = Path(__file__).parent
FIGURE = HERE.parents[1] / "docs" / "attention_gradient.png"
PROBABILITIES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
TEMPERATURES = (1.0, 0.5)
DRAWS = 1_000_000
NOISES = 4
"""Number of noises of the batch; each pair of them gives a cosine."""


def draw_slopes(gradient: MaskGradient, pi: float, tau: float, draws: int) -> Tensor:
    """Draw dM/dpi many times in a channel whose values range from 0 to 1; return (draws,), float64."""
    x = torch.full((1, 1, draws + 2, 1), pi, dtype=torch.float64)
    x[0, 0, 0], x[0, 0, 1] = 0, 1
    x.requires_grad_()
    sampler = MaskSampler(eps=1e-6, gradient=gradient).double().train()
    sampler.set_temperature(tau)
    (found,) = torch.autograd.grad(sampler(x, noise_seed=0).sum(), x)
    return found[0, 0, 2:, 0]


def measure_slopes(draws: int = DRAWS) -> list[dict[str, Any]]:
    """Return mean and standard deviation of dM/dpi, a row for each gradient, tau and pi."""
    rows = []
    for gradient in ("whole", "expected", "clipped", "straight_through_pi"):
        for tau in TEMPERATURES:
            for pi in PROBABILITIES:
                found = draw_slopes(gradient, pi, tau, draws)
                numbers = {"mean": float(found.mean()), "deviation": float(found.std())}
                rows.append({"gradient": gradient, "tau": tau, "pi": pi, **numbers})
    return rows


def measure_cosines(cfg: DictConfig, noises: int = NOISES) -> list[dict[str, Any]]:
    """Return the mean cosine of the loss gradients under two noises, a row for each gradient and stage.

    Batch and weights are the first of the training, and tau is 1.

    Args:
        cfg: config of a training with attention blocks.
        noises: number of noises, at least 2.
    """
    data, module = build_data(cfg), build_module(cfg)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    network = module.network.train()
    images = batch.images.to(memory_format=module.memory_format)
    parts = {f"stage {number}": stage for number, stage in enumerate(network.trunk.stages, start=1)}
    parts["head"] = network.head
    rows = []
    for gradient in get_args(Gradient):
        for sampler in network.modules():
            if isinstance(sampler, MaskSampler):
                sampler.gradient = gradient
        found: dict[str, list[Tensor]] = {part: [] for part in parts}
        for noise in range(noises):
            network.zero_grad()
            seeds = [100 * noise + stage for stage in range(4)]
            output = network.training_forward(images, total_variation=False, noise_seeds=seeds)
            module.objective(output.embedding, batch.labels, (), lambda x: x).total.backward()
            for part, layers in parts.items():
                gradients = [p.grad.flatten() for p in layers.parameters() if p.grad is not None]
                found[part].append(torch.cat(gradients).double())
        for part, vectors in found.items():
            pairs = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in combinations(vectors, 2)]
            cosine = {"cosine": sum(pairs) / len(pairs), "lowest": min(pairs), "highest": max(pairs)}
            rows.append({"gradient": gradient, "part": part, **cosine})
    return rows


def draw_figure(slopes: Sequence[dict[str, Any]], cosines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw dM/dpi by pi (left) and the cosines by stage (right)."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    for gradient, colour in (("whole", "#D55E00"), ("expected", "#0072B2")):
        for tau, line in zip(TEMPERATURES, ("-", "--"), strict=True):
            rows = [row for row in slopes if row["gradient"] == gradient and row["tau"] == tau]
            quantity = "deviation" if gradient == "whole" else "mean"
            shown = "standard deviation" if quantity == "deviation" else "constant over the noise"
            label = f"{gradient}: {shown}, tau {tau}"
            values = [row[quantity] for row in rows]
            left.plot([row["pi"] for row in rows], values, line, marker="o", color=colour, label=label)
    left.axhline(1, color="0.5", lw=1)
    left.text(1e-4, 0.95, "straight_through_pi: always 1", ha="left", va="top", color="0.4", fontsize=8)
    left.set(
        xscale="log", yscale="log", xlabel="keep-probability pi", ylabel="dM/dpi over the noise of Eq. 5"
    )
    left.legend(fontsize=8)
    parts = list(dict.fromkeys(row["part"] for row in cosines))
    gradients = list(dict.fromkeys(row["gradient"] for row in cosines))
    colours = ("#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73")
    width = 0.8 / len(gradients)
    for number, (gradient, colour) in enumerate(zip(gradients, colours, strict=True)):
        values = [row["cosine"] for row in cosines if row["gradient"] == gradient]
        places = [place + (number + 0.5) * width - 0.4 for place in range(len(parts))]
        right.bar(places, values, width, color=colour, label=gradient)
    right.set_xticks(range(len(parts)), parts)
    right.set(ylabel="cosine of the gradients under two noises", ylim=(0, 1))
    right.legend(fontsize=8, ncols=2)
    figure.suptitle(title, fontsize=11)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; write measured.json beside this script and docs/attention_gradient.png."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the training's config")
    overrides = parser.parse_args(arguments).overrides
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", [*overrides, "output_dir=none", "data.num_workers=0"])
    torch.manual_seed(0)
    slopes, cosines = measure_slopes(), measure_cosines(cfg)
    measured = {
        "overrides": overrides,
        "draws": DRAWS,
        "noises": NOISES,
        "spread": slopes,
        "cosines": cosines,
    }
    (HERE / "measured.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    batch = cfg.data.identities_per_batch * cfg.data.images_per_identity
    name = cfg.data.source.name
    title = f"The gradient through the mask (right: one batch of {batch} of {name}, new head, tau 1)"
    draw_figure(slopes, cosines, title).savefig(FIGURE, dpi=110)
    for row in cosines:
        pairs = f"{row['cosine']:.3f} ({row['lowest']:.3f} to {row['highest']:.3f})"
        print(f"{row['gradient']:20} {row['part']:8} {pairs}")
    print(f"written: {HERE / 'measured.json'}, {FIGURE}")


if __name__ == "__main__":
    main()
