"""The base class of all LightningModules: data, random seeds, the state in checkpoints, metrics."""

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from attnmosaic.config.schedule import Schedule
from attnmosaic.core.errors import RunError
from attnmosaic.training import distributed
from attnmosaic.training.checkpointing import COMPLETE, CONVOLUTIONS, THREADS
from attnmosaic.training.workers import Workers

log = logging.getLogger(__name__)


def step_scheduler(scheduler: LRScheduler, loss: float) -> None:
    """Steps a learning-rate scheduler at the end of an epoch; ``loss`` is the epoch's mean training loss."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


def mean_loss(losses: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Returns the mean objective over all examples of several steps, in float64.

    Args:
        losses: mean objective of each step.
        sizes: number of examples of each step.
    """
    step_losses = torch.stack([*losses]).double()
    examples = step_losses.new_tensor(sizes)
    return (step_losses * examples).sum() / examples.sum()


class RunModule(pl.LightningModule, ABC):
    """Base class of the LightningModule of a run.

    Args:
        config: the run's resolved config as plain containers.
        **saved: other plain values that every checkpoint holds, from which networks are restored without data.

    Attributes:
        metric_names: names of the metrics of each split.
        headline: names of the metrics that progress bars and logs show.
        table_columns: names of the metrics in the table at the end of a run.
        table_caption: explanation of the splits below that table.
        decomposes: whether computing a minibatch in parts gives the same outputs, losses and gradients.
        evaluations: metrics by split or view.
        epoch_metrics: metrics measured in this epoch so far, ``{"<split>/<metric>": value}``; callbacks write them to
            files.
        findings: a line for each thing that the run did not learn; the callback `Diagnosis` sets them at the end of a
            run.
        workers: threads that compute pieces of a minibatch or of an evaluation step.
        convolutions: how convolutions are computed on a CPU, see `attnmosaic.training.convolutions`; None if there are
            none. Before the data are placed, how the loaded checkpoint's run computed them.
    """

    metric_names: tuple[str, ...]
    headline: tuple[str, ...]
    table_columns: tuple[str, ...]
    table_caption: str
    decomposes: bool
    evaluations: Mapping[str, Metric]

    def __init__(self, config: dict[str, Any], **saved: Any) -> None:
        super().__init__()
        self.config = config
        self.schedule = Schedule(**config["schedule"])
        self.clip_norm: float | None = config["optimizer"]["clip_norm"]
        self.save_hyperparameters({"config": config, **saved}, logger=False)
        self.epoch_metrics: dict[str, float] = {}
        self.findings: tuple[str, ...] = ()
        self.workers = Workers(1)
        self.convolutions: str | None = None
        self._stop_requested = False
        self._complete_epochs = 0
        self._monitored: dict[str, float] = {}
        self._data_source: tuple[Any, ...] | None = None
        self._data: dict[str, Any] = {}

    @property
    @abstractmethod
    def training_networks(self) -> tuple[str, ...]:
        """Names of the networks that train in this epoch."""

    @abstractmethod
    def true_classes(self, split: str) -> dict[str, Tensor]:
        """Returns the true classes ``[N]`` of a split's examples, by the name of the accuracy they are used for."""

    @property
    def scale(self) -> str:
        """``full``, or ``smoke`` for a run that only shows that the code works and whose outputs are marked as such."""
        return str(self.config["scale"])

    @property
    def epochs_done(self) -> int:
        """Number of trained epochs; the current epoch counts already, so it is 1 during the first epoch."""
        return self.current_epoch + (self.trainer.state.fn == TrainerFn.FITTING)

    # ---- data

    @abstractmethod
    def place_data(self) -> None:
        """Puts the data on the networks' device. Runs after the trainer has set the networks' device and precision."""

    def placed(self, place: Callable[[torch.device, torch.dtype, str], dict[str, Any]]) -> dict[str, Any]:
        """Returns the data on the module's device. They are copied there once and reused by later calls.

        Args:
            place: copies the data module's data; its arguments are the device, the dtype of points and the memory that
                holds the pool (see `attnmosaic.data.pool.place_pools`).
        """
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        source = weakref.ref(datamodule), self.device, next(self.parameters()).dtype
        if source != self._data_source:
            self._data_source, self._data = source, place(*source[1:], self.config["compute"]["pool"])
        return self._data

    def take_threads(self) -> None:
        """On a CPU, replaces torch's threads by `workers` if minibatches can be computed in pieces."""
        if self.decomposes and self.device.type == "cpu" and self.workers.count == 1:
            self.workers = Workers.instead_of_torch()

    def teardown(self, stage: str) -> None:
        self.workers.close()
        self.workers = Workers(1)

    # ---- training

    def on_fit_start(self) -> None:
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._monitored.items()})
        self.place_data()
        if distributed.count() > 1 and not self.decomposes:
            log.warning(
                "the networks use batch statistics or random numbers (batch normalisation, dropout): the results of %d "
                "processes differ from those of one process",
                distributed.count(),
            )

    def on_train_epoch_start(self) -> None:
        # Seeded in each epoch, so that a resumed run samples the same numbers as an uninterrupted one.
        # Each rank has another seed, as it samples for its own shards.
        seed = [
            self.config["seed"]["order"],
            self.current_epoch,
            2,
            *([self.global_rank] if self.global_rank else []),
        ]
        number = int(np.random.SeedSequence(seed).generate_state(1)[0])
        # `torch.manual_seed` also prepares the seeds of devices that are not used, in two milliseconds.
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)
        self.epoch_metrics = {}
        self._stop_requested = False

    # A callback, for example a timer, can request a stop within an epoch. Metrics, tables and checkpoints are of
    # complete epochs, so the run stops at the end of that epoch.

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop_requested |= self.trainer.should_stop
        self.trainer.should_stop = False

    def on_train_epoch_end(self) -> None:
        """Marks the epoch as complete. Callbacks that add rows run before this hook, those that save run after it."""
        self.trainer.should_stop |= self._stop_requested
        if self.trainer.is_last_batch:  # False if an evaluation within the epoch has ended the epoch
            self._complete_epochs = self.epochs_done

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Marks the checkpoint as `COMPLETE` if it is written between two epochs, by any callback."""
        checkpoint[CONVOLUTIONS] = self.convolutions
        checkpoint[THREADS] = max(self.workers.count, torch.get_num_threads())
        trainer, started_epochs = self.trainer, self.trainer.fit_loop.epoch_progress.current.ready
        if trainer.state.fn != TrainerFn.FITTING or started_epochs != self._complete_epochs:
            return
        checkpoint[COMPLETE] = {
            "epochs": started_epochs,
            "ended": trainer.should_stop and started_epochs >= (trainer.min_epochs or 0),
            # Callbacks monitor the metrics of an evaluation until the next evaluation.
            "monitored": {name: float(value) for name, value in trainer.callback_metrics.items()},
        }
        for logger in trainer.loggers:  # so that a run that resumes from this checkpoint has all earlier points
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._monitored = checkpoint.get(COMPLETE, {}).get("monitored", {})
        self.convolutions = checkpoint.get(CONVOLUTIONS)

    def check_finite(self, losses: Sequence[Tensor], networks: nn.Module) -> None:
        """Checks that the losses of an epoch's steps, and the weights after the epoch, are finite.

        Raises:
            RunError: a loss or a weight is infinite or not a number.
        """
        # The last loss is computed before the last step changes the weights, so the weights are checked, too.
        # In one vector, as each operation on a small network costs more than its arithmetic.
        weights = torch.cat([value.flatten() for value in networks.state_dict().values()]).isfinite().all()
        # The losses are summed over all processes, so that they end together and none waits for another.
        summed = distributed.all_sum(torch.stack([*losses]))
        finite = torch.cat([summed.isfinite(), weights.view(1)]).tolist()
        if not all(finite):
            step = finite.index(False) + 1
            cause = f"the loss became {summed[step - 1].item()}" if step <= len(losses) else "a weight became infinite"
            raise RunError(
                f"{cause} in epoch {self.current_epoch + 1}, step {min(step, len(losses))} of {len(losses)} (training: "
                f"{' and '.join(self.training_networks)}); the last checkpoint is from before this epoch; try a "
                f"smaller lr.{self.training_networks[0]}"
            )

    # ---- evaluation

    def on_validation_start(self) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.place_data()

    def on_validation_epoch_start(self) -> None:
        for metrics in self.evaluations.values():
            metrics.reset()

    def on_validation_epoch_end(self) -> None:
        for split, metrics in self.evaluations.items():
            self.record(split, metrics)

    def record(self, prefix: str, metrics: Metric, **more: float) -> None:
        """Adds computed metrics to `epoch_metrics` and passes them to callbacks and loggers.

        Args:
            prefix: name of a split, or "running" for metrics of the training steps.
            metrics: its `compute` returns scalars by name.
            **more: other values by name, passed to callbacks and loggers without a prefix.
        """
        computed = metrics.compute()
        # Stacked, so that the CPU waits for the device once instead of once for each metric.
        means = torch.stack(list(computed.values())).tolist()
        values = {f"{prefix}/{name}": mean for name, mean in zip(computed, means, strict=True)}
        self.epoch_metrics |= values
        values |= more
        # Without `self.log`, which takes a quarter of a millisecond for each metric. Callbacks read the metrics that
        # they monitor from here. "step" is in the names of checkpoints; Lightning's value would count the steps of
        # every optimizer.
        monitored = dict(zip(values, torch.tensor([*values.values()]).unbind(), strict=True))
        self.trainer.callback_metrics.update(monitored, step=torch.tensor(self.epochs_done))
        # The evaluation after training is not logged here: `finish_run` logs it with the hyperparameters.
        if self.trainer.state.fn == TrainerFn.FITTING:
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.epochs_done)
