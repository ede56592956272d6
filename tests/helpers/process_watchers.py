"""Callbacks that observe or end each process of a run."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from attnmosaic.core.errors import Pruned
from attnmosaic.data.pool import Pool


class OneWriter(pl.Callback):
    """Ends every process other than rank 0 that writes, creates, renames or deletes a file in a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.global_rank:
            sys.addaudithook(self._check)

    def _check(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.truncate", "os.rmdir")
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (changes or writes) and str(arguments[0]).startswith(self.folder):
            os._exit(17)


class ScoredPatches(pl.Callback):
    """Writes how many patches this process scored each time a pool was scored, to ``<folder>/<rank>.json``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.counts: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        frozen = pl_module.frozen_where
        scores, score = frozen.scores, pl_module.pair.score

        def counted(pool: Pool) -> Tensor:
            in_cache, sizes = id(pool) in frozen._scores, []
            with mock.patch.object(
                pl_module.pair, "score", lambda patches: sizes.append(len(patches)) or score(patches)
            ):
                result = scores(pool)
            if not in_cache:
                self.counts.append(sum(sizes))
            return result

        frozen.scores = counted

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.counts))


class Ends(pl.Callback):
    """Ends one process of a run in an epoch: by SIGKILL, by an error, or in the way a search prunes a trial."""

    def __init__(self, rank: int, epoch: int, how: str) -> None:
        self.rank, self.epoch, self.how = rank, epoch, how

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.global_rank, trainer.current_epoch) == (self.rank, self.epoch):
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "pruned":
                raise Pruned("pruned by the test")
            raise ValueError("a bug in one process")


class InfiniteElsewhere(nn.Module):
    """An objective that is infinite, with finite gradients, in every process other than rank 0."""

    def forward(self, logits: Tensor, alpha: Tensor, label: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(logits, label)
        infinite = torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
        return loss + (torch.inf if infinite else 0.0)
