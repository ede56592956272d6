"""The LightningModule that trains one network with two outputs."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from attnmosaic.config.digit_operations import Operation
from attnmosaic.config.schema import two_output_metrics
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.data.numbers import Batch, Examples, NumbersDataModule
from attnmosaic.metrics.two_outputs import TwoOutputMetrics
from attnmosaic.training import distributed
from attnmosaic.training.base import RunModule, mean_loss, step_scheduler
from attnmosaic.training.probes import flop_of
from attnmosaic.training.steps import add_up, gradients, with_gradients

MIXING = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Layers that use statistics of a minibatch or random numbers, so that a minibatch cannot be computed in pieces."""


class TwoOutputModule(RunModule):
    """Trains one network to predict a digit and the result of an operation on the digit and a number.

    Uses Lightning's automatic optimization. A batch is a minibatch of row numbers of the training examples, from
    `NumbersDataModule`.

    Args:
        config: the run's resolved config as plain containers.
        network: ``(image, number) -> (digit logits, result logits)``.
        objective: ``(digit logits, result logits, digit, result) -> mean loss``.
        optimizer: a function that builds the optimizer from the network's parameters.
        scheduler: a function that builds a learning-rate scheduler from the optimizer, or None. The scheduler steps
            after every epoch.
        operation: the operation (sum or product) whose result the second output predicts.
        image_shape: ``(C, H, W)`` of the images; saved in every checkpoint.

    Raises:
        RunError: at the end of an epoch in which the loss or a weight became infinite or not a number.
    """

    table_caption = "test: the training images with newly sampled numbers; held_out: unseen images"

    def __init__(
        self,
        config: dict[str, Any],
        network: nn.Module,
        objective: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        *,
        operation: Operation,
        image_shape: Sequence[int],
    ) -> None:
        super().__init__(config, image_shape=[*image_shape])
        self.network = network.to(memory_format=torch.channels_last)
        self.objective = objective
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.operation = operation
        self.metric_names = two_output_metrics(operation.name)
        self.headline = self.metric_names[1:]
        self.table_columns = (*self.headline, "loss")
        self.running = TwoOutputMetrics(operation)
        self.evaluations: dict[str, TwoOutputMetrics] = {}
        # Outputs of an epoch's steps, from before each step changed the weights. Each process has those of its shards.
        self._losses: list[Tensor] = []
        self._classes: list[Tensor] = []

    @property
    def training_networks(self) -> tuple[str, ...]:
        return ("network",)

    @property
    def datamodule(self) -> NumbersDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def place_data(self) -> None:
        self.image_dtype = next(self.parameters()).dtype
        self.examples: dict[str, Examples] = self.placed(self.datamodule.examples_on)
        self.evaluations = {split: TwoOutputMetrics(self.operation).to(self.device) for split in SPLITS}
        self.decomposes = not any(isinstance(module, MIXING) for module in self.network.modules())
        self.take_threads()
        self._flop = self._forward_flop() if self.workers.count > 1 else 0

    @torch.no_grad()
    def _forward_flop(self) -> int:
        """Counts the operations of a forward pass for one example."""
        batch = self.examples["train"].take(torch.arange(2) % len(self.examples["train"]), self.image_dtype)
        network = copy.deepcopy(self.network)  # a copy, so that running statistics do not change
        return flop_of(lambda: network(batch.image, batch.number)) // 2

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.network.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler: LRSchedulerConfigType = {"scheduler": self.make_scheduler(optimizer), "monitor": "running/loss"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Does nothing: `_finish_epoch` steps the scheduler.

        Lightning would step some schedulers only after the checkpoint is written.
        """

    def configure_gradient_clipping(self, optimizer: Optimizer, *trainers: Any, **named: Any) -> None:
        super().configure_gradient_clipping(optimizer, *trainers, **named)  # the clipping set in the trainer
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)

    # ---- training

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.epoch_examples: Examples = self.datamodule.examples_of_epoch(self.examples["train"], self.current_epoch)
        self.running.reset()
        self._losses, self._classes = [], []

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        shard, n_valid = distributed.shard(rows)
        loss, classes = self._in_pieces(shard)
        self._losses.append(loss.detach())
        self._classes.append(classes[:, :n_valid])
        return loss if n_valid == len(rows) else loss * (n_valid / len(rows))

    def _in_pieces(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the result of `_predict` for rows of the epoch's examples, computed in pieces on several threads."""
        pieces = rows.chunk(self.workers.pieces(3 * len(rows) * self._flop))
        if len(pieces) == 1:
            return self._predict(self.epoch_examples.take(rows, self.image_dtype))
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]

        def compute(piece: Tensor) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
            loss, classes = self._predict(self.epoch_examples.take(piece, self.image_dtype))
            loss = loss * (len(piece) / len(rows))
            return loss.detach(), classes, gradients(loss, parameters)

        losses, classes, piece_gradients = zip(*self.workers.map(compute, pieces), strict=True)
        return with_gradients(torch.stack(losses).sum(), parameters, add_up(piece_gradients)), torch.cat(classes, dim=1)

    def on_after_backward(self) -> None:
        distributed.sum_gradients(self.network.parameters())

    def _predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the mean loss of examples, and their classes ``[4, B]``.

        The rows of the classes are predicted digits, predicted results, true digits and true results.
        """
        digit_logits, result_logits = self.network(batch.image, batch.number)
        loss = self.objective(digit_logits, result_logits, batch.digit, batch.result)
        predicted = digit_logits.detach().argmax(dim=1), result_logits.detach().argmax(dim=1)
        return loss, torch.stack([*predicted, batch.digit, batch.result])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.is_last_batch:
            self._finish_epoch()

    def _finish_epoch(self) -> None:
        """Checks the losses and weights of an epoch, logs its metrics and steps the scheduler.

        Runs after the epoch's last step, so that validation and checkpoints only get finite weights.
        """
        self.check_finite(self._losses, self.network)
        distributed.average_buffers(self.network)
        loss = mean_loss(self._losses, [classes.shape[1] for classes in self._classes])
        self.running.update(loss, *torch.cat(self._classes, dim=1))
        self.record("running", self.running)
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            step_scheduler(scheduler, self.epoch_metrics["running/loss"])

    # ---- evaluation

    def true_classes(self, split: str) -> dict[str, Tensor]:
        examples = self.examples[split]
        digit = examples.pool.labels
        result = examples.result[digit, examples.number]
        return {"digit_accuracy": digit, f"{self.operation.name}_accuracy": result}

    def validation_step(self, rows: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        split = SPLITS[dataloader_idx]
        shard, n_valid = distributed.shard(rows)
        pieces = shard.chunk(self.workers.pieces(len(shard) * self._flop))
        predictions = self.workers.map(
            lambda piece: self._predict(self.examples[split].take(piece, self.image_dtype)), pieces
        )
        for loss, classes in predictions if n_valid else ():
            self.evaluations[split].update(loss, *classes)
