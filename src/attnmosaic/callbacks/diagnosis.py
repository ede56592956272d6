"""Reports that a run does not learn, while it trains and when it ends."""

import logging
from collections.abc import Sequence

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.callbacks.csv_tables import Row, RunTables
from attnmosaic.callbacks.nonfatal import harmless
from attnmosaic.cli.progress import finding_level
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.runs.diagnosis import Chance, findings, is_idle, stalled
from attnmosaic.training.base import RunModule

log = logging.getLogger(__name__)


class Diagnosis(pl.Callback):
    """Logs once that a stage of Where, What or both changed nothing, and sets the module's findings at the end.

    It reads the rows of `RunTables`, so a resumed run ends with the same findings; without that callback they follow
    from the final metrics alone. See `attnmosaic.runs.diagnosis.findings`.
    """

    def __init__(self) -> None:
        self._reported: set[tuple[str, ...]] = set()

    @harmless
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        done, k = pl_module.epochs_done, pl_module.schedule.k
        if done % k or pl_module.training_networks in self._reported or not trainer.is_global_zero:
            return
        config, rows = pl_module.config, _rows(trainer)
        # A long run's rows are read only if there is something to find.
        stage = rows[-k:]
        if stage and is_idle(config, stage) and (line := stalled(config, list(rows))):
            self._reported.add(pl_module.training_networks)
            log.log(finding_level(), "epoch %d: %s", done, line)

    @harmless
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if trainer.state.fn == TrainerFn.FITTING:
            return
        config, final = pl_module.config, pl_module.epoch_metrics
        pl_module.findings = findings(config, list(_rows(trainer)), final, _chances(pl_module))


def _rows(trainer: pl.Trainer) -> Sequence[Row]:
    tables = [callback for callback in trainer.callbacks if isinstance(callback, RunTables)]  # type: ignore[attr-defined]
    return tables[0].tables["metrics"] if tables else ()


def _chances(module: RunModule) -> dict[str, Chance]:
    """Returns what guessing reaches of each accuracy on each split."""
    chances = {}
    for split in SPLITS:
        for metric, classes in module.true_classes(split).items():
            counts = classes.cpu().bincount()
            chances[f"{split}/{metric}"] = Chance(counts.max().item() / len(classes), len(classes))
    return chances
