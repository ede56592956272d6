"""Reports a run that does not learn, during training and at its end."""

import logging
from collections.abc import Sequence

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.callbacks.csv_tables import Row, RunTables
from attnmosaic.callbacks.nonfatal import log_errors
from attnmosaic.cli.progress import finding_level
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.runs.diagnosis import Chance, findings, is_idle, stalled
from attnmosaic.training.base import RunModule

log = logging.getLogger(__name__)


class Diagnosis(pl.Callback):
    """Logs once per kind of stage that a stage changed nothing, and sets the module's findings at the end.

    The findings (see `attnmosaic.runs.diagnosis.findings`) follow from the rows of `RunTables`, so a resumed run ends
    with the same findings. Without `RunTables`, they follow from the final metrics only.
    """

    def __init__(self) -> None:
        self._reported: set[tuple[str, ...]] = set()

    @log_errors
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        done, k = pl_module.epochs_done, pl_module.schedule.k
        if done % k or pl_module.training_networks in self._reported or not trainer.is_global_zero:
            return
        config, rows = pl_module.config, _rows(trainer)
        # All rows of a long run are read only if the last stage changed nothing.
        stage = rows[-k:]
        if stage and is_idle(config, stage) and (line := stalled(config, list(rows))):
            self._reported.add(pl_module.training_networks)
            log.log(finding_level(), "epoch %d: %s", done, line)

    @log_errors
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if trainer.state.fn == TrainerFn.FITTING:
            return
        config, final = pl_module.config, pl_module.epoch_metrics
        pl_module.findings = findings(config, list(_rows(trainer)), final, _chances(pl_module))


def _rows(trainer: pl.Trainer) -> Sequence[Row]:
    """Returns the rows of ``metrics.csv``; none without `RunTables`."""
    tables = [callback for callback in trainer.callbacks if isinstance(callback, RunTables)]  # type: ignore[attr-defined]
    return tables[0].tables["metrics"] if tables else ()


def _chances(module: RunModule) -> dict[str, Chance]:
    """Returns the accuracy of guessing, for each accuracy on each split."""
    chances = {}
    for split in SPLITS:
        for metric, classes in module.true_classes(split).items():
            counts = classes.cpu().bincount()
            chances[f"{split}/{metric}"] = Chance(counts.max().item() / len(classes), len(classes))
    return chances
