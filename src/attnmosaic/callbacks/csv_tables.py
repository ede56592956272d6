"""The CSV files of a run."""

import csv
import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.callbacks.confusion import write_confusion
from attnmosaic.callbacks.history import History, Row
from attnmosaic.core.files import write_atomically
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.plotting.palette import FOCUS_PREDICTION, LARGEST_WEIGHT
from attnmosaic.training.base import RunModule
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.two_outputs import TwoOutputModule

FOCUS_COLUMNS = ("epochs", *(curve.column for curve in (*LARGEST_WEIGHT.values(), *FOCUS_PREDICTION.values())))
"""The published columns (``protocol.md``, "Focus against prediction"); raw counts."""


class RunTables(pl.Callback):
    """Writes ``metrics.csv``, a row an epoch; of a pair ``focus_vs_pred_<split>.csv``, an evaluation each and the end.

    Of two outputs it writes confusion matrices when the run ends, ``confusion_digit_<split>.csv`` and
    ``confusion_sum_<split>.csv`` (or product), measured with the final weights.

    Epochs are counted from 1. The rows travel in the checkpoint, so a resumed run's files hold the whole
    history, and none of what was written after the checkpoint. (Lightning's CSVLogger begins a new file on
    resuming, and writes one row an epoch for training and another for evaluation.)

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.columns: dict[str, list[str]] = {}
        self.rows: dict[str, History] = {}
        self._evaluated: dict[str, Row] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, RunModule)
        if self.columns:  # the full pass at the end adds to what training left
            return
        measured = [f"{p}/{m}" for p in ("running", *SPLITS) for m in pl_module.metric_names]
        if isinstance(pl_module, StagewiseModule):
            self.columns = {"metrics": ["epoch", "stage", *measured]}
            self.columns |= {f"focus_vs_pred_{s}": list(FOCUS_COLUMNS) for s in SPLITS}
        else:
            self.columns = {"metrics": ["epoch", *measured]}
        if pl_module.scale == "smoke":
            self.columns = {name: [*columns, "scale"] for name, columns in self.columns.items()}
        self.rows = {name: History(columns) for name, columns in self.columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows of every table; see `History`."""
        return {name: rows.state_dict() for name, rows in self.rows.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, state in state_dict.items():
            self.rows.setdefault(name, History(())).load_state_dict(state)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.columns:
                self._rewrite(name)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if trainer.state.fn == TrainerFn.FITTING:
            if isinstance(pl_module, StagewiseModule):
                for split in SPLITS:
                    self._evaluated[split] = focus_row(pl_module.epochs_done, pl_module.evaluation(split).counts())
        elif self.rows["metrics"]:  # the full pass at the end, with the last epoch's weights
            self.rows["metrics"].fill(_known(pl_module))
            if trainer.is_global_zero:
                self._rewrite("metrics")
            if isinstance(pl_module, StagewiseModule):
                self._end_focus(trainer, pl_module)
            if isinstance(pl_module, TwoOutputModule):
                for split in SPLITS:
                    with pl_module.evaluation(split).sync_context():  # counts of all processes, as in `compute`
                        if trainer.is_global_zero:
                            write_confusion(self.folder, split, pl_module.evaluation(split), pl_module.scale)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        head: Row = {"epoch": pl_module.epochs_done}
        if isinstance(pl_module, StagewiseModule):
            head["stage"] = pl_module.stage.name.lower()
        self._add(trainer, "metrics", {**head, **_known(pl_module)})
        for split, row in self._evaluated.items():
            self._add(trainer, f"focus_vs_pred_{split}", row)

    def _end_focus(self, trainer: pl.Trainer, module: StagewiseModule) -> None:
        """Adds the end to the published tables, where it falls between two evaluations."""
        for split in SPLITS:
            name = f"focus_vs_pred_{split}"
            row = focus_row(module.epochs_done, module.evaluation(split).counts())
            if not self.rows[name] or self.rows[name][-1]["epochs"] != row["epochs"]:
                self._add(trainer, name, row)

    def _add(self, trainer: pl.Trainer, name: str, row: Row) -> None:
        if "scale" in self.columns[name]:
            row = {**row, "scale": "smoke"}
        self.rows[name].append(row)
        if trainer.is_global_zero:
            with self._path(name).open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns[name]).writerow(row)

    def _rewrite(self, name: str) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns[name])
        writer.writeheader()
        writer.writerows(self.rows[name])
        write_atomically(self._path(name), text.getvalue().encode())  # whoever watches the run never reads half of it

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.csv"


def _known(module: RunModule) -> Row:
    """Returns what the epoch measured, without the views: those are measured once, and are in ``result.json``."""
    names = (f"{prefix}/{metric}" for prefix in ("running", *SPLITS) for metric in module.metric_names)
    return {name: module.epoch_metrics[name] for name in names if name in module.epoch_metrics}


def focus_row(epoch: int, counts: dict[str, int]) -> Row:
    """Returns a row of the published focus-against-prediction table."""
    confident, n = counts["confident"], counts["mosaics"]
    kinds = (counts[kind] for kind in FOCUS_PREDICTION)
    return dict(zip(FOCUS_COLUMNS, (epoch, confident, n - confident, *kinds), strict=True))
