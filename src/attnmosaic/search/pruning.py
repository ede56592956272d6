"""Ends trials of a search early (pruning) by a Lightning callback."""

import logging
from typing import Any

import pytorch_lightning as pl

from attnmosaic.core.errors import Pruned
from attnmosaic.search.options import instantiate_node
from attnmosaic.search.study import open_trial
from attnmosaic.training.base import RunModule

log = logging.getLogger(__name__)


class Pruning(pl.Callback):
    """Reports a trial's metric to its study, and ends the run if the study's pruner decides to.

    Trials are compared after equal numbers of epochs, at epochs that end a cycle of the trial and have an evaluation.
    Within a cycle trials are not comparable, as one has just trained What and another Where. A run is not pruned after
    its last epoch, when it has its result, and not if its study cannot be reached.

    Args:
        storage: the study's storage: the file of a journal, or the URL of a database.
        study: the study's name.
        trial: the trial's number.
        metric: the reported metric, ``<split>/<metric>``.
        pruner: the pruner's ``_target_`` and arguments.
        every: number of epochs between comparisons; None for one cycle of the trial's schedule.
    """

    def __init__(
        self, storage: str, study: str, trial: int, metric: str, pruner: dict[str, Any], every: int | None = None
    ) -> None:
        self.storage = storage
        self.study = study
        self.trial = trial
        self.metric = metric
        self.pruner = pruner
        self.every = every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        schedule, epoch = pl_module.schedule, pl_module.epochs_done
        value = pl_module.epoch_metrics.get(self.metric)
        compared = epoch % schedule.cycle == 0 and epoch % (self.every or schedule.cycle) == 0
        if value is None or not compared or epoch >= schedule.epochs or not trainer.is_global_zero:
            return
        try:
            prune = self._report(value, epoch)
        except Exception:
            log.warning("cannot reach the study '%s'; the run continues", self.study, exc_info=True)
            return
        if prune:
            raise Pruned(f"after epoch {epoch} of {schedule.epochs}, at {self.metric} {value:.4f}")

    def _report(self, value: float, epoch: int) -> bool:
        """Reports a value, unless the trial reported it before it was killed; returns whether to end the trial."""
        trial = open_trial(self.storage, self.study, self.trial, instantiate_node("pruner", self.pruner))
        if epoch not in trial.study.get_trials(deepcopy=False)[self.trial].intermediate_values:
            trial.report(value, epoch)
        return trial.should_prune()
