"""Writes the CSV files of a run."""

import csv
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.core.files import write_atomically
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.metrics.two_outputs import TwoOutputMetrics
from attnmosaic.plotting.palette import FOCUS_PREDICTION, LARGEST_WEIGHT
from attnmosaic.training.base import RunModule
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.two_outputs import TwoOutputModule

Row = dict[str, Any]

FOCUS_COLUMNS = ("epochs", *(curve.column for curve in (*LARGEST_WEIGHT.values(), *FOCUS_PREDICTION.values())))
"""The published columns of raw counts (docs/sources.md)."""


WRITE_SECONDS = 1.0
"""Least time between two writes to a CSV file while a run trains; the epochs of small runs take milliseconds."""


class CsvTable(Sequence[Row]):
    """The rows of a CSV file, stored as the text of the file, so that a resumed run writes the same bytes.

    A row read from the table is a dict of integers, floats and strings by column, without empty columns. Rows that are
    added within `WRITE_SECONDS` of the last write to the file wait for a later row, or for `write`.

    Args:
        path: the file.
        columns: names of the columns.
        scale: ``full`` or ``smoke``. With ``smoke``, a last column ``scale`` marks every row.
    """

    def __init__(self, path: Path, columns: Sequence[str], scale: str = "full") -> None:
        self.path = path
        self._stamp = {"scale": scale} if scale == "smoke" else {}
        self.columns = [*columns, *self._stamp]
        self._lines = [_line(self.columns)]
        self._written, self._written_at = 0, 0.0

    def __len__(self) -> int:
        return len(self._lines) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[n] for n in range(len(self))[i]]
        (cells,) = csv.reader([self._lines[range(1, len(self._lines))[i]]])
        return {name: _value(cell) for name, cell in zip(self.columns, cells, strict=True) if cell}

    @property
    def text(self) -> str:
        """The text of the CSV file: the heading and all rows."""
        return "".join(self._lines)

    @text.setter
    def text(self, text: str) -> None:
        self._lines = text.splitlines(keepends=True)
        (self.columns,) = csv.reader(self._lines[:1])

    def append(self, row: Mapping[str, Any], *, write: bool) -> None:
        """Adds a row to the table and, if ``write``, to the file, at once or later; missing values stay empty."""
        stamped = {**row, **self._stamp}
        self._lines.append(_line(stamped.get(column) for column in self.columns))
        if write and time.monotonic() - self._written_at >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Adds the new rows to the file, if `rewrite` has begun it."""
        if 0 < self._written < len(self._lines):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.writelines(self._lines[self._written :])
            self._written, self._written_at = len(self._lines), time.monotonic()

    def fill(self, row: Mapping[str, Any]) -> None:
        """Adds values to the last row."""
        filled = {**self[-1], **row}
        self._lines[-1] = _line(filled.get(column) for column in self.columns)

    def rewrite(self) -> None:
        """Writes the complete file atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, self.text.encode())
        self._written, self._written_at = len(self._lines), time.monotonic()


def _line(cells: Iterable[Any]) -> str:
    """Returns a line of a CSV file, with its line ending."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _value(cell: str) -> Any:
    """Returns the text of a cell as an integer or a float if possible."""
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


class RunTables(pl.Callback):
    """Writes ``metrics.csv``, with a row per epoch, and further tables that depend on the kind of run.

    For a pair, ``focus_vs_pred_<split>.csv`` has a row per evaluation. For two outputs, the confusion matrices
    ``confusion_digit_<split>.csv`` and ``confusion_sum_<split>.csv`` (or ``product``) are measured with the final
    weights when the run ends.

    Epochs count from 1. Checkpoints hold the rows, so the files of a resumed run equal those of an uninterrupted run.
    (Lightning's CSVLogger starts a new file when a run resumes, and writes separate rows for training and evaluation.)

    Args:
        folder: folder of the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tables: dict[str, CsvTable] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, RunModule)
        if self.tables:  # the final pass adds to the tables of training
            return
        measured = [f"{p}/{m}" for p in ("running", *SPLITS) for m in pl_module.metric_names]
        if isinstance(pl_module, StagewiseModule):
            columns = {"metrics": ["epoch", "stage", *measured]}
            columns |= {f"focus_vs_pred_{s}": list(FOCUS_COLUMNS) for s in SPLITS}
        else:
            columns = {"metrics": ["epoch", *measured]}
        self.tables = {
            name: CsvTable(self.folder / f"{name}.csv", names, pl_module.scale) for name, names in columns.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the text of every table, as part of a checkpoint."""
        return {name: table.text for name, table in self.tables.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, text in state_dict.items():
            self.tables[name].text = text

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            for table in self.tables.values():
                table.rewrite()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._write(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the metrics of the final pass, which evaluates the final weights."""
        assert isinstance(pl_module, RunModule)
        if trainer.state.fn == TrainerFn.FITTING:
            return
        self.tables["metrics"].fill(_epoch_metrics(pl_module))
        if trainer.is_global_zero:
            self.tables["metrics"].rewrite()
        self._add_focus(trainer, pl_module)
        self._write(trainer)
        if isinstance(pl_module, TwoOutputModule):
            for split in SPLITS:
                with pl_module.evaluations[split].sync_context():  # sums the counts of all processes, as `compute` does
                    if trainer.is_global_zero:
                        write_confusion(self.folder, split, pl_module.evaluations[split], pl_module.scale)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        head: Row = {"epoch": pl_module.epochs_done}
        if isinstance(pl_module, StagewiseModule):
            head["stage"] = pl_module.stage.name.lower()
        self._add(trainer, "metrics", head | _epoch_metrics(pl_module))
        if f"{SPLITS[0]}/loss" in pl_module.epoch_metrics:  # the epoch had an evaluation
            self._add_focus(trainer, pl_module)

    def _add_focus(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Adds the last evaluation of a pair to ``focus_vs_pred_<split>.csv``, unless the epoch is already there."""
        if not isinstance(module, StagewiseModule):
            return
        for split in SPLITS:
            name = f"focus_vs_pred_{split}"
            row = focus_row(module.epochs_done, module.evaluations[split].counts())
            if not self.tables[name] or self.tables[name][-1]["epochs"] != row["epochs"]:
                self._add(trainer, name, row)

    def _add(self, trainer: pl.Trainer, name: str, row: Row) -> None:
        self.tables[name].append(row, write=trainer.is_global_zero)

    def _write(self, trainer: pl.Trainer) -> None:
        """Writes the rows that are not in the files yet."""
        if trainer.is_global_zero:
            for table in self.tables.values():
                table.write()


def write_confusion(folder: Path, split: str, metrics: TwoOutputMetrics, scale: str) -> None:
    """Writes ``confusion_<output>_<split>.csv``: counts with true classes in rows and predicted classes in columns."""
    operation, stamp = metrics.operation, ["smoke"] if scale == "smoke" else []
    outputs = {"digit": (range(10), metrics.digit), operation.name: (operation.values, metrics.result)}
    for name, (values, counts) in outputs.items():
        rows: list[list[Any]] = [[f"true {name}", *values, *(["scale"] if stamp else [])]]
        rows += [[value, *row, *stamp] for value, row in zip(values, counts.tolist(), strict=True)]
        write_atomically(folder / f"confusion_{name}_{split}.csv", "".join(map(_line, rows)).encode())


def _epoch_metrics(module: RunModule) -> Row:
    """Returns the metrics of the epoch, without those of views, which are measured once and are in ``result.json``."""
    names = (f"{prefix}/{metric}" for prefix in ("running", *SPLITS) for metric in module.metric_names)
    return {name: module.epoch_metrics[name] for name in names if name in module.epoch_metrics}


def focus_row(epoch: int, counts: dict[str, int]) -> Row:
    """Returns a row of ``focus_vs_pred_<split>.csv``."""
    confident, n = counts["confident"], counts["mosaics"]
    kinds = (counts[kind] for kind in FOCUS_PREDICTION)
    return dict(zip(FOCUS_COLUMNS, (epoch, confident, n - confident, *kinds), strict=True))
