"""What the LightningModules of all runs share: data, chance, the state of checkpoints, metrics."""

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
from attnmosaic.training.checkpointing import COMPLETE, THREADS
from attnmosaic.training.workers import Workers

log = logging.getLogger(__name__)


def step_scheduler(scheduler: LRScheduler, loss: float) -> None:
    """Steps a learning-rate scheduler at the end of an epoch with this mean training loss."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


def mean_loss(losses: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Returns the mean objective over all examples of some steps, of so many examples each, in float64."""
    each = torch.stack([*losses]).double()
    examples = each.new_tensor(sizes)
    return (each * examples).sum() / examples.sum()


class RunModule(pl.LightningModule, ABC):
    """The LightningModule of a run.

    Args:
        config: the run's resolved config as plain containers.
        **saved: what else every checkpoint holds to restore the networks, plain as well.

    Attributes:
        metric_names: what is measured on each split.
        headline: the metrics of progress bars and logs.
        table_columns: the metrics of the table at the end of a run.
        table_caption: what the splits are, below that table.
        decomposes: whether the parts of a minibatch give what the minibatch gives.
        evaluations: metrics by split or view.
        epoch_metrics: what this epoch measured so far, ``{"<split>/<metric>": value}``; callbacks write it.
        findings: what the run did not learn, a line each; the callback `Diagnosis` sets them at the end of a run.
        workers: compute pieces of a minibatch, or of an evaluation step, at once.
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
        self._stop_asked = False
        self._complete = 0
        self._monitored: dict[str, float] = {}
        self._data_source: tuple[Any, ...] | None = None
        self._data: dict[str, Any] = {}

    @property
    @abstractmethod
    def learners(self) -> tuple[str, ...]:
        """Names of the networks that learn in this epoch."""

    @abstractmethod
    def true_classes(self, split: str) -> dict[str, Tensor]:
        """Returns the true classes of a split's examples, ``[N]``, by the accuracy that is measured with them."""

    @property
    def scale(self) -> str:
        """``full``, or ``smoke`` for a run that only shows that it works; whatever it writes says so."""
        return str(self.config["scale"])

    @property
    def epochs_done(self) -> int:
        """Epochs trained, counted from 1 while the first one is still being evaluated."""
        return self.current_epoch + (self.trainer.state.fn == TrainerFn.FITTING)

    # ---- data

    @abstractmethod
    def place_data(self) -> None:
        """Puts the data where the networks are; only now has the trainer given these device and precision."""

    def placed(self, place: Callable[[torch.device, torch.dtype, str], dict[str, Any]]) -> dict[str, Any]:
        """Returns the data on the module's device: after training the same ones, as they are placed once.

        Args:
            place: places the data module's data, given device, dtype of points and where to keep the pool
                (see `attnmosaic.data.pool.place_pools`).
        """
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        source = weakref.ref(datamodule), self.device, next(self.parameters()).dtype
        if source != self._data_source:
            self._data_source, self._data = source, place(*source[1:], self.config["compute"]["pool"])
        return self._data

    def take_threads(self) -> None:
        """Gives torch's threads to `workers`, on a CPU, if a minibatch may be computed in pieces."""
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
                "the networks mix the examples of a minibatch, or draw for them (batch normalisation, dropout): "
                "with %d processes the numbers are not those of one",
                distributed.count(),
            )

    def on_train_epoch_start(self) -> None:
        # Anew each epoch: a resumed run then draws what the uninterrupted one would have.
        # Each process draws for its own part of the minibatches.
        stream = [
            self.config["seed"]["order"],
            self.current_epoch,
            2,
            *([self.global_rank] if self.global_rank else []),
        ]
        torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1)[0]))
        self.epoch_metrics = {}
        self._stop_asked = False

    # A callback may stop a run within an epoch (a timer, say). Metrics, tables and checkpoints are of complete epochs:
    # the run ends with this one.

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop_asked |= self.trainer.should_stop
        self.trainer.should_stop = False

    def on_train_epoch_end(self) -> None:
        """Marks the epoch as complete: callbacks that write rows come before the module, those that save after it."""
        self.trainer.should_stop |= self._stop_asked
        if self.trainer.is_last_batch:  # not of an epoch that an evaluation within it has ended
            self._complete = self.epochs_done

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Marks the checkpoint as `COMPLETE` if it is, whoever writes it."""
        checkpoint[THREADS] = max(self.workers.count, torch.get_num_threads())
        trainer, begun = self.trainer, self.trainer.fit_loop.epoch_progress.current.ready
        if trainer.state.fn != TrainerFn.FITTING or begun != self._complete:
            return
        checkpoint[COMPLETE] = {
            "epochs": begun,
            "ended": trainer.should_stop and begun >= (trainer.min_epochs or 0),
            # What an evaluation measured is monitored until the next one.
            "monitored": {name: float(value) for name, value in trainer.callback_metrics.items()},
        }
        for logger in trainer.loggers:  # a run that resumes from here lacks none of its points
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._monitored = checkpoint.get(COMPLETE, {}).get("monitored", {})

    def check_finite(self, losses: Sequence[Tensor], networks: nn.Module) -> None:
        """Checks an epoch's losses, one a step, and the weights after it.

        Raises:
            RunError: one of them, or a weight, is infinite or not a number.
        """
        # The last step's loss is from before that step, so the weights after it are checked, too.
        weights = torch.stack([value.isfinite().all() for value in networks.state_dict().values()]).all()
        # All processes must find the same, or one would wait for another that has ended.
        of_all = distributed.all_sum(torch.stack([*losses]))
        finite = torch.cat([of_all.isfinite(), weights.view(1)]).tolist()
        if not all(finite):
            step = finite.index(False) + 1
            what = f"the loss became {of_all[step - 1].item()}" if step <= len(losses) else "a weight became infinite"
            raise RunError(
                f"{what} in epoch {self.current_epoch + 1}, step {min(step, len(losses))} of {len(losses)}, while "
                f"{' and '.join(self.learners)} learned; the last checkpoint is from before this epoch. "
                f"Try a smaller lr.{self.learners[0]}"
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

    def record(self, prefix: str, metrics: Metric, **beside: float) -> None:
        """Keeps and logs what was measured.

        Args:
            prefix: a split, or "running" for what training itself saw.
            metrics: its `compute` gives scalars by name.
            **beside: logged as they are.
        """
        computed = metrics.compute()
        # One wait for the device, not one a metric.
        means = torch.stack(list(computed.values())).tolist()
        values = {f"{prefix}/{name}": mean for name, mean in zip(computed, means, strict=True)}
        self.epoch_metrics |= values
        values |= beside
        # Not by `self.log`, which takes a quarter of a millisecond for each. Callbacks find what they monitor here;
        # checkpoints are named by "step", as Lightning's own counts every optimizer's steps.
        now = {**values, "step": self.epochs_done}
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in now.items()})
        # The full pass after training is logged with the hyperparameters (`finish_run`), not twice.
        if self.trainer.state.fn == TrainerFn.FITTING:
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.epochs_done)
