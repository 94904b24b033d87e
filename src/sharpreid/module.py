"""The LightningModule: connects network, objective, schedules and scores."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.datasets import EvalBatch, TrainBatch
from sharpreid.data.reid_data import random_stream
from sharpreid.evaluation.metric import ReIDMetric
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import ReRanking
from sharpreid.evaluation.scores import RankingScores
from sharpreid.losses.objective import Objective, ObjectiveValue
from sharpreid.losses.total_variation import TotalVariation, reduce_total_variation
from sharpreid.models.network import SharpAttentionNetwork
from sharpreid.models.trunk import NUM_STAGES
from sharpreid.models.weights import check_fits, take_dtype

Schedule = Callable[[int], float]
"""A pure function of the 0-based epoch."""

Stage = Literal["val", "test"]


class NonFiniteLossError(RuntimeError):
    """Error of a NaN or infinite loss or gradient; the batch has not changed the parameters."""


class ReIDModule(pl.LightningModule):
    """Module that trains a network by Eq. 8 and scores it under a protocol.

    Args:
        network: network to train.
        objective: Eq. 8.
        optimizer: builds the optimizer from the parameters.
        temperature: tau of Eq. 9 by epoch.
        learning_rate_factor: factor on the learning rate by epoch.
        beta1: Adam's first beta by epoch; None keeps the optimizer's.
        noise_scale: factor on the noise of Eq. 5 by epoch, >= 0; None is the paper's constant 1.
        protocol: rules of the scores.
        re_ranking: re-ranking of the test set; None ranks by distance alone. Held-out identities, by which a
            checkpoint may be chosen, are never re-ranked.
        channels_last: whether images and weights are stored with channels last, which is faster on most
            devices and equal up to rounding.
        seed: seed of the masks' noise. The noise is a function of seed, epoch, batch, block and position in
            the global batch.
    """

    def __init__(
        self,
        *,
        network: SharpAttentionNetwork,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        temperature: Schedule,
        learning_rate_factor: Schedule,
        beta1: Schedule | None,
        noise_scale: Schedule | None,
        protocol: Protocol,
        re_ranking: ReRanking | None,
        channels_last: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        movable: Any = network  # torch's types do not know to(memory_format=...) of a module
        self.network: SharpAttentionNetwork = movable.to(memory_format=self.memory_format)
        self.objective = objective
        self.optimizer_builder = optimizer
        self.temperature = temperature
        self.learning_rate_factor = learning_rate_factor
        self.beta1 = beta1
        self.noise_scale = noise_scale
        self.seed = seed
        self.validation_metric = ReIDMetric(protocol=protocol)
        self.test_metric = ReIDMetric(protocol=protocol, re_ranking=re_ranking)
        self._scores: dict[Stage, RankingScores] = {}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer and the learning-rate schedule, which steps once per epoch."""
        optimizer = self.optimizer_builder(self.network.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject a checkpoint of another network, and convert the module to the checkpoint's dtype.

        Lightning converts the module to float64 (``trainer.precision=64-true``) only after loading, so a
        float64 checkpoint would be rounded.
        """
        check_fits(checkpoint["state_dict"], self, "the checkpoint")
        take_dtype(checkpoint["state_dict"], self)

    def on_train_start(self) -> None:
        """Call `on_train_epoch_start`, which Lightning skips when a run resumes within an epoch."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Set tau (Eq. 9), the factor on the noise and beta1 for this epoch."""
        self.network.set_temperature(self.temperature(self.current_epoch))
        if self.noise_scale is not None:
            self.network.set_noise_scale(self.noise_scale(self.current_epoch))
        if self.beta1 is not None:
            for group in self.trainer.optimizers[0].param_groups:
                group["betas"] = (self.beta1(self.current_epoch), group["betas"][1])

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """Return Eq. 8 of the global batch, with gradients to the embeddings of all processes."""
        seeds = random_stream("noise", self.seed, self.current_epoch, batch_idx).integers(
            2**63, size=NUM_STAGES
        )
        output = self.network.training_forward(
            batch.images.to(memory_format=self.memory_format),
            total_variation=self.objective.mu > 0 or batch_idx == 0,
            noise_seeds=seeds.tolist(),
            first_image=self.global_rank * len(batch.images),
        )
        embeddings, labels = self._gather(output.embedding), self._gather(batch.labels)
        value = self.objective(embeddings, labels, output.total_variation, self._gather)
        self._require_finite(value.total, "loss", batch.indices)
        self._indices = batch.indices
        self._log_training(value, embeddings, len(batch.images))
        if batch_idx == 0 and not value.total_variation:
            self._log_total_variation(output.total_variation, len(batch.images))
        return value.total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient, and raise NonFiniteLossError if it is not finite."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.trainer.precision != "16-mixed":  # whose gradient scaler skips such a step
            self._require_finite(norm, "gradient", self._indices)
        self.log("train/grad_norm", norm)

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        """Embed held-out images."""
        self._embed(batch, self.validation_metric)

    def on_validation_epoch_end(self) -> None:
        """Score the held-out identities."""
        self._score(self.validation_metric, "val")

    def on_test_epoch_start(self) -> None:
        """Give the metric the size, query groups and hard pairs of the test set."""
        self.test_metric.reset()
        if self._data is not None:
            self.test_metric.expected = len(self._data.test)
            self.test_metric.query_group = self._data.test.query_group
            self.test_metric.hard_pairs = self._data.data.hard_pairs

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        """Embed query and gallery images."""
        self._embed(batch, self.test_metric)

    def on_test_epoch_end(self) -> None:
        """Score the test set."""
        self._score(self.test_metric, "test")

    def last_scores(self, stage: Stage) -> RankingScores:
        """Return the scores of the last validation or test, in [0, 1].

        Lightning's ``trainer.test`` returns only logged numbers, so callers fetch the rest here.

        Raises:
            RuntimeError: no such pass has finished.
        """
        if stage not in self._scores:
            raise RuntimeError(f"no pass of stage {stage!r} has finished; run one first")
        return self._scores[stage]

    def embed_views(self, views: Tensor) -> Tensor:
        """Return the mean embedding over the views of each image.

        Args:
            views: normalised views, float, (B, V, 3, H, W).

        Returns:
            Embeddings, float32, (B, D).
        """
        images = views.flatten(0, 1).to(memory_format=self.memory_format)
        embeddings: Tensor = self.network(images, views=views.shape[1]).embedding.float()
        return embeddings.view(*views.shape[:2], -1).mean(1)

    @property
    def _data(self) -> ReIDDataModule | None:
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, ReIDDataModule) else None

    def _gather(self, x: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return x
        return cast(Tensor, self.all_gather(x, sync_grads=x.requires_grad)).flatten(0, 1)

    def _require_finite(self, value: Tensor, what: str, indices: Tensor) -> None:
        if torch.isfinite(value):
            return
        numbers = indices.tolist()
        names = [self._data.train.samples[n].path.name for n in numbers] if self._data else map(str, numbers)
        raise NonFiniteLossError(
            f"the {what} is {value.item()} in epoch {self.current_epoch}, step {self.global_step}; the "
            "weights were not updated. Lower optimizer.lr, set trainer.gradient_clip_val, or look at the "
            f"batch's images: {', '.join(names)}"
        )

    def _log_training(self, value: ObjectiveValue, embeddings: Tensor, batch_size: int) -> None:
        logged = {
            "train/loss": value.total,
            "train/triplet": value.triplet.loss,
            "train/active_triplets": value.triplet.active,
            "train/positive_distance": value.triplet.hardest_positive.mean(),
            "train/negative_distance": value.triplet.hardest_negative.mean(),
            "train/embedding_norm": embeddings.detach().float().norm(dim=1).mean(),
            "train/tau": self.temperature(self.current_epoch),
            "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        for block, variation in zip(self.network.blocks, value.total_variation, strict=False):
            logged[f"train/tv_block{block}"] = variation
        self.log_dict(logged, batch_size=batch_size)

    def _log_total_variation(self, variations: Sequence[TotalVariation], batch_size: int) -> None:
        """Log Eq. 6 of an epoch's first batch if it is not part of the loss, for comparison."""
        for block, variation in zip(self.network.blocks, variations, strict=True):
            value = reduce_total_variation(variation, self.objective.reduction).detach()
            self.log(f"train/tv_block{block}", value, batch_size=batch_size)

    def _embed(self, batch: EvalBatch, metric: ReIDMetric) -> None:
        metric.update(self.embed_views(batch.views), batch.pids, batch.camids, batch.is_query, batch.indices)

    def _score(self, metric: ReIDMetric, stage: Stage) -> None:
        scores: RankingScores = metric.compute()
        metric.reset()
        plain = scores.plain or scores
        self.log_dict({f"{stage}/{name}": value for name, value in plain.as_dict().items()})
        if scores.plain is not None:
            self.log_dict({f"{stage}/re_ranked/{name}": value for name, value in scores.as_dict().items()})
        if scores.hard_pairs is not None:
            self.log(f"{stage}/hard_pair_rank1", scores.hard_pairs.rank1)
        self._scores[stage] = scores
