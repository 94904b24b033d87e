"""Write the trained network of a run as a model folder, with a card that describes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError
from torch import Tensor

from sharpreid.config.early_runs import upgrade_config
from sharpreid.distributed import rank_zero_only
from sharpreid.module import ReIDModule
from sharpreid.run.comparability import caveats, dataset_line, method_of, target_name
from sharpreid.run.console import SCORE_TITLES, percent, protocol_line, score_of
from sharpreid.serving.model import Embedder, ModelConfig, save_model

_NOT_SAVED = {"sampler": ("implementation", "train_mask", "gradient"), "context_unit": ("init",)}
"""Arguments that matter in training only."""

_LICENCES = {
    "synthetic": "people drawn by a program; no image of a real person",
    "market1501": "its readme allows research only, without commercial use or redistribution",
    "duke": "released for non-commercial use (CC BY-NC-SA 4.0), and withdrawn since",
    "msmt17": "its authors allow research on their terms",
}
"""Data set -> its licence in words."""


def describe_model(cfg: DictConfig) -> ModelConfig:
    """Return the config.json of a run's network, without the checksum of its weights.

    Raises:
        ValueError: The network has a part that is not of this package.
    """
    cfg = upgrade_config(cfg.copy())
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    size = cfg.data.eval_transform
    for name, known in (("trunk", "ResNetTrunk"), ("head", "EmbeddingHead")):
        if (target := target_name(model[name])) != known:
            raise ValueError(f"the network cannot be saved as a model folder: its {name} is a {target}")
    parts = {
        name: {
            "name": target_name(model[name]),
            "arguments": {
                key: value
                for key, value in model[name].items()
                if not key.startswith("_") and key not in _NOT_SAVED[name]
            },
        }
        for name in _NOT_SAVED
    }
    architecture = {
        "trunk": {key: model["trunk"][key] for key in ("depths", "width", "strides")},
        "head": {key: model["head"][key] for key in ("in_features", "hidden_features", "embedding_dim")},
        **{key: model[key] for key in ("blocks", "context_blocks", "combine")},
        **parts,
    }
    try:
        return ModelConfig.model_validate(
            {
                "format": "sharpreid-model-1",
                "architecture": architecture,
                "preprocessing": {
                    **{key: size[key] for key in ("height", "width", "crops")},
                    "normalise": cfg.data.normalise,
                },
                "channels_last": cfg.channels_last,
                "distance": "euclidean",
                "weights_sha256": "0" * 64,
            }
        )
    except ValidationError as error:
        raise ValueError(
            f"the network cannot be saved as a model folder: {error.errors()[0]['msg']}"
        ) from error


@rank_zero_only
def write_model(
    folder: Path, cfg: DictConfig, module: ReIDModule, *, mean: Tensor | None, record: Mapping[str, Any]
) -> None:
    """Write the trained network of a run as a model folder.

    Args:
        folder: folder to write; files of an earlier model there are replaced.
        cfg: config of the run.
        module: the trained module.
        mean: mean image that the data subtracts; None for ImageNet's mean colour.
        record: content of the run's scores.json.

    Raises:
        ValueError: the network has a part that is not of this package.
    """
    config = describe_model(cfg)
    card = describe_card(cfg, config, record)
    save_model(Embedder(module.network.float(), config, mean=mean, card=card), folder)


def describe_card(cfg: DictConfig, config: ModelConfig, record: Mapping[str, Any]) -> str:
    """Return the README.md of a model folder; its head is metadata that model hubs read."""
    data = str(record["dataset"]["name"])
    scores = ", ".join(
        f"{title} {percent(score_of(record['scores'], metric))}" for metric, title in SCORE_TITLES.items()
    )
    architecture, size = config.architecture, config.preprocessing
    blocks = ", ".join(map(str, architecture.blocks)) or "(none)"
    depths = " ".join(map(str, architecture.trunk.depths))
    reservations = "".join(f"\n{caveat}" for caveat in caveats(record))
    return f"""---
library_name: sharpreid
pipeline_tag: image-feature-extraction
license: other
license_name: see-data-set
tags: [person-re-identification]
datasets: [{data}]
---

# {method_of(cfg)} on {data}

This network embeds the image of a person. The nearer two embeddings are, the more alike the two people look.

```python
import sharpreid

model = sharpreid.load("this folder")
embeddings = model.embed(["photo.jpg", "another.jpg"])  # (2, {architecture.head.embedding_dim}), float32
```

- Architecture: ResNet, {depths} bottlenecks per stage, {architecture.trunk.width} channels in the stem,
  attention after the stages {blocks}, embeddings of {architecture.head.embedding_dim} dimensions.
- Input: RGB, {size.height} x {size.width} pixels. Views of an image: `{size.crops}`, averaged as embeddings.
- Distance: Euclidean.

## Scores

In percent: {scores}.

- Data set: {dataset_line(record["dataset"])}. Protocol: {protocol_line(record["protocol"])}.
- Seed {record["seed"]}, computed in precision {record.get("precision", "unknown")}.

The architecture is that of Shen et al., *Sharp Attention Network via Adaptive Sampling for Person
Re-identification*, 2019.{reservations}

## Data and licence

Trained on {data}: {_LICENCES.get(data, "ask the owner of the images for the terms of use")}.
The terms of the data apply to this model.

## Intended use

- Research on person re-identification: comparing methods, studying attention, ranking images of a data set.
- Search in images that you may process for this purpose, with a person who checks each match.

## Misuse

- Finding or following people without a lawful reason, and without their knowledge.
- Deciding about a person by a match alone. The scores say how often the nearest image shows someone else.

## Limits

- The network compares clothes and shape, not faces. It does not recognise a person in other clothes.
- On other cameras, places or groups of people than those of {data}, scores are clearly lower. Measure them.
- The network embeds any image, also one without a person. Crop the person first, as in the training images.
"""
