"""Ending trials of a search early."""

import logging
from typing import Any

import pytorch_lightning as pl

from attnmosaic.core.errors import Pruned
from attnmosaic.training.base import RunModule

log = logging.getLogger(__name__)


class Pruning(pl.Callback):
    """Reports how a trial does to its study, and ends it if the study's pruner says so.

    Trials are compared only when each has done the same number of epochs and whole cycles of its own stages: between,
    one has just trained What and another Where. So a run is looked at where a cycle has ended and it was evaluated;
    its last epoch is for its result.

    The study is read and written on disk, so it does not matter in which process the trial runs. A study that cannot be
    reached ends no trial.

    Args:
        storage: where the study lies.
        study: its name.
        trial: the trial's number.
        metric: what is reported, ``<split>/<metric>``.
        pruner: its ``_target_`` and arguments.
        longest: epochs of a trial, at most.
        every: epochs from one look to the next; None for a cycle of the trial's own stages.
    """

    def __init__(
        self,
        storage: str,
        study: str,
        trial: int,
        metric: str,
        pruner: dict[str, Any],
        longest: int,
        every: int | None = None,
    ) -> None:
        self.storage = storage
        self.study = study
        self.trial = trial
        self.metric = metric
        self.pruner = pruner
        self.longest = longest
        self.every = every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        schedule, done = pl_module.schedule, pl_module.epochs_done
        value = pl_module.epoch_metrics.get(self.metric)
        compared = done % schedule.cycle == 0 and done % (self.every or schedule.cycle) == 0
        if value is None or not compared or done >= schedule.epochs or not trainer.is_global_zero:
            return
        try:
            prune = self._report(value, done)
        except Exception:
            log.warning("the study '%s' cannot be reached; the run goes on", self.study, exc_info=True)
            return
        if prune:
            raise Pruned(f"after epoch {done} of {schedule.epochs}, at {self.metric} {value:.4f}")

    def _report(self, value: float, done: int) -> bool:
        """Reports a value, unless a process that was killed has done so; returns whether to end the trial."""
        import optuna

        from attnmosaic.search.options import Options
        from attnmosaic.search.study import open_storage

        pruner = Options(n_trials=1, pruner=self.pruner).make_pruner(self.longest, self.every)
        storage = open_storage(self.storage)
        study = optuna.load_study(study_name=self.study, storage=storage, pruner=pruner)
        study_id = storage.get_study_id_from_name(self.study)
        trial = optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, self.trial))
        if done not in study.get_trials(deepcopy=False)[self.trial].intermediate_values:
            trial.report(value, done)
        return trial.should_prune()
