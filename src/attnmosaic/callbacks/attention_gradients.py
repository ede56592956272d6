"""Writes the gradient curves of the 2-D gradient study while a run trains."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from attnmosaic.callbacks.csv_tables import CsvTable
from attnmosaic.callbacks.nonfatal import check_count, log_errors
from attnmosaic.metrics.gradients import alpha_gradients, foreground_and_background
from attnmosaic.training import distributed
from attnmosaic.training.attention_cache import eval_mode
from attnmosaic.training.stagewise import StagewiseModule

COLUMNS = ("epoch", "stage", "mosaics", "foreground", "background")
SIDES = COLUMNS[3:]


class AlphaGradients(pl.Callback):
    """Measures the loss's gradient with respect to the attention weights before training and after every epoch.

    The gradient (see `mean_alpha_gradients`) is written to ``gradients.csv`` and to every logger as
    ``gradient/foreground`` and ``gradient/background``. The columns of the file are the number of epochs done, the
    stage that ended (empty before the first epoch), the number of mosaics, ``foreground`` and ``background``.
    Checkpoints hold the rows. The callback does not change the results of training in any bit, and does nothing in runs
    without a pair.

    Args:
        folder: folder of the file.
        mosaics: number of training mosaics to measure, the first ones; None for all, which takes a pass over them.

    Raises:
        UserError: ``mosaics`` is not a whole number of at least 1.
    """

    def __init__(self, folder: str | Path, mosaics: int | None = None) -> None:
        if mosaics is not None:
            check_count("gradients.mosaics", mosaics)
        self.mosaics = mosaics
        self.table = CsvTable(Path(folder) / "gradients.csv", COLUMNS)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(pl_module, StagewiseModule) and not self.table:
            self.table = CsvTable(self.table.path, COLUMNS, pl_module.scale)

    def state_dict(self) -> dict[str, Any]:
        """Returns the text of the table, as part of a checkpoint."""
        return {"gradients": self.table.text}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.table.text = state_dict["gradients"]

    @log_errors
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, StagewiseModule):
            return
        if trainer.is_global_zero:
            self.table.rewrite()
        if not self.table:
            self._measure(trainer, pl_module, pl_module.current_epoch)

    @log_errors
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, StagewiseModule):
            self._measure(trainer, pl_module, pl_module.epochs_done)

    @log_errors
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module)

    @log_errors
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Writes the rows that are not in the file yet."""
        if trainer.is_global_zero and isinstance(module, StagewiseModule):
            self.table.write()

    def _measure(self, trainer: pl.Trainer, module: StagewiseModule, epochs: int) -> None:
        # With the run's precision, because a What stage trains with the scores that this call keeps in `FrozenWhere`.
        with trainer.precision_plugin.val_step_context():
            foreground, background = mean_alpha_gradients(module, self.mosaics).tolist()
        stage = module.schedule.stage(epochs - 1).name.lower() if epochs else ""
        available = len(module.mosaics["train"])
        n = min(self.mosaics or available, available)
        row: dict[str, Any] = dict(zip(COLUMNS, (epochs, stage, n, foreground, background), strict=True))
        self.table.append(row, write=trainer.is_global_zero)
        for logger in trainer.loggers:
            logger.log_metrics({f"gradient/{side}": row[side] for side in SIDES}, step=epochs)


def mean_alpha_gradients(module: StagewiseModule, mosaics: int | None = None) -> Float[Tensor, "2"]:
    """Averages the gradient over training mosaics, for foreground and background, as in the 2-D gradient study.

    ``grad_alpha_fg`` is the sum over the N training mosaics of d(loss of that mosaic) / d(alpha of its foreground
    patch), divided by N. ``grad_alpha_bg`` is the same sum over the P - 1 background patches of each mosaic. The loss
    is the run's objective, both networks are in eval mode, and mosaics are processed in pieces that fit in memory.

    Args:
        module: the module during training. If ``mosaics`` is None, `FrozenWhere` must not hold scores from before the
            last change of the where network.
        mosaics: number of training mosaics, the first ones; None for all.

    Returns:
        ``grad_alpha_fg`` and ``grad_alpha_bg``, in float64.
    """
    data, frozen, what = module.mosaics["train"], module.frozen_where, module.pair.what
    n = min(mosaics or len(data), len(data))
    sums = torch.zeros(2, dtype=torch.float64, device=data.index.device)
    shard, size = distributed.shard(torch.arange(n, device=data.index.device))
    pieces = shard[:size].split(frozen.mosaics_per_piece("train"))

    def measure(rows: Tensor) -> Tensor:
        patches = frozen.patches(data.pool, data.index[rows])
        # For all mosaics, scoring each unique patch of the pool once is faster.
        alpha = frozen.weights(data, rows) if mosaics is None else frozen.fresh_weights(data, patches, rows)
        gradient = alpha_gradients(what, module.objective, alpha, patches, data.label[rows])
        return torch.stack([side.double().sum() for side in foreground_and_background(gradient, data.foreground[rows])])

    with eval_mode(what, module.pair.where):
        # The first piece scores the pool; the other pieces use these scores.
        for part in [measure(rows) for rows in pieces[:1]] + module.workers.map(measure, pieces[1:]):
            sums += part
    return distributed.all_sum(sums) / n
