"""Keeps what a pair attends to: in a few mosaics through training, in chosen ones with the final weights."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional as F

from attnmosaic.callbacks.nonfatal import check_count, harmless
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.data.pool import Pool
from attnmosaic.nn.attention import aggregate
from attnmosaic.runs.snapshots import KINDS, RECORD, Plane, PredictedMosaics, Record
from attnmosaic.training.attention_cache import eval_mode
from attnmosaic.training.stagewise import StagewiseModule

FOLLOWED = ("train", "held_out")
LONGEST = 64
"""Pixels of the longer side of a kept patch; larger ones are reduced."""

SIDE = 160
"""Cells along each side of the plane that 2-D networks are evaluated on."""


class MosaicRecord(pl.Callback):
    """Writes ``mosaics.npz`` when a pair's run ends, and nothing in other runs; see `attnmosaic.runs.snapshots.Record`.

    Before training and after every epoch the networks predict the same few mosaics in eval mode. The predictions are
    saved in checkpoints, so a resumed run's record equals an uninterrupted one's; if other mosaics are followed than in
    the checkpoint, they are followed from there. The callback does not change training, bit for bit.

    Args:
        folder: where the file goes.
        followed: how many mosaics of either split of `FOLLOWED` to follow through training.
        chosen: how many mosaics of each of `KINDS` to keep of each split, with the final weights.

    Raises:
        UserError: one of these is no count.
    """

    def __init__(self, folder: str | Path, followed: int = 8, chosen: int = 8) -> None:
        check_count("record.followed", followed)
        check_count("record.chosen", chosen)
        self.folder = Path(folder)
        self.followed = followed
        self.chosen = chosen
        self.epochs: list[int] = []
        self.answers: dict[str, list[Tensor]] = {}
        self.asked: dict[str, Tensor] = {}
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    # ---- through training

    def state_dict(self) -> dict[str, Any]:
        """Returns epochs ``[T]``, each split's weights ``[T, M, P]`` and probabilities ``[T, M, F]``, and of what."""
        # Tensors are copied into a checkpoint at once; lists of a thousand epochs would take longer than an epoch.
        return {
            "epochs": torch.tensor(self.epochs, dtype=torch.int64),
            "answers": {**self.answers},
            "asked": self.asked,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"].tolist()
        self.answers, self.asked = {**state_dict["answers"]}, state_dict["asked"]

    @harmless
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, StagewiseModule):
            return
        now = {split: self._question(pl_module.mosaics[split]) for split in FOLLOWED}
        if self.asked.keys() != now.keys() or not all(torch.equal(self.asked[split], now[split]) for split in now):
            self.asked, self.epochs, self.answers = now, [], {}
        if not self.epochs:
            self._follow(trainer, pl_module, pl_module.current_epoch)

    @harmless
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, StagewiseModule):
            self._follow(trainer, pl_module, pl_module.epochs_done)

    def _question(self, mosaics: Mosaics) -> Tensor:
        """Returns what identifies the mosaics that are followed: their patches, and which is the foreground."""
        rows = self._rows(mosaics)
        return torch.cat([mosaics.index[rows], mosaics.foreground[rows].unsqueeze(1)], dim=1).cpu()

    def _follow(self, trainer: pl.Trainer, module: StagewiseModule, epochs: int) -> None:
        with trainer.precision_plugin.val_step_context():
            seen = {s: predict(module, module.mosaics[s], self._rows(module.mosaics[s])) for s in FOLLOWED}
        self.epochs.append(epochs)
        for split, parts in seen.items():
            latest = [part.float().cpu().unsqueeze(0) for part in parts]
            earlier = self.answers.get(split)
            self.answers[split] = [torch.cat(both) for both in zip(earlier, latest, strict=True)] if earlier else latest

    def _rows(self, mosaics: Mosaics) -> Tensor:
        return torch.arange(min(self.followed, len(mosaics)), device=mosaics.index.device)

    # ---- with the final weights

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = {split: [] for split in SPLITS}

    @harmless
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING or not isinstance(pl_module, StagewiseModule):
            return
        split = list(pl_module.evaluations)[dataloader_idx]
        if split in self._seen:
            probabilities = outputs["logits"].float().softmax(dim=1)
            self._seen[split].append((outputs["alpha"].float().cpu(), probabilities.cpu()))

    @harmless
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING or not isinstance(pl_module, StagewiseModule):
            return
        if trainer.is_global_zero and any(self._seen.values()):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._record(pl_module).save(self.folder / RECORD)
        self._seen = {}

    def _record(self, module: StagewiseModule) -> Record:
        final, counts = {}, {}
        for split, seen in self._seen.items():
            data = module.mosaics[split]
            alpha, probabilities = (torch.cat(part) for part in zip(*seen, strict=True))
            rows, counts[split] = worst_mosaics(
                alpha, probabilities, data.foreground.cpu(), data.label.cpu(), self.chosen
            )
            final[split] = predicted_mosaics(data, rows, alpha[rows], probabilities[rows])
        followed = {}
        for split, (alpha, probabilities) in self.answers.items():
            followed[split] = predicted_mosaics(
                module.mosaics[split], self._rows(module.mosaics[split]), alpha, probabilities
            )
        train = module.mosaics["train"]
        return Record(
            classes=train.foreground_classes,
            all_classes=train.pool.classes,
            epochs=np.array(self.epochs),
            followed=followed,
            final=final,
            counts=counts,
            plane=plane_of(module) if train.pool.patch_shape == (2,) else None,
            scale=module.scale,
        )


@torch.no_grad()
def predict(module: StagewiseModule, mosaics: Mosaics, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Predicts a few mosaics in eval mode, without what is kept for training (`FrozenWhere`).

    Returns:
        The attention weights ``[M, P]`` and What's probabilities ``[M, F]``.
    """
    patches = mosaics.patches(rows, module.frozen_where.dtype)
    alpha = module.frozen_where.fresh_weights(mosaics, patches, rows)
    with eval_mode(module.pair.what):
        return alpha, module.pair.what(aggregate(alpha, patches)).float().softmax(dim=1)


def worst_mosaics(
    alpha: Tensor, probabilities: Tensor, foreground: Tensor, label: Tensor, chosen: int
) -> tuple[Tensor, dict[str, int]]:
    """Chooses the worst mosaics of each of `KINDS`: those with the least weight on the foreground.

    Returns:
        Their rows, in the order of `KINDS`, from the least to the most weight; and how many of each kind there are.
    """
    focused = alpha.argmax(dim=1) == foreground
    right = probabilities.argmax(dim=1) == label
    on_foreground = alpha.gather(1, foreground.unsqueeze(1)).squeeze(1)
    rows, counts = [], {}
    for kind in KINDS:
        (of_kind,) = torch.where((focused == (kind[1] == "t")) & (right == (kind[3] == "t")))
        counts[kind] = len(of_kind)
        rows.append(of_kind[on_foreground[of_kind].argsort(stable=True)[:chosen]])
    return torch.cat(rows), counts


def predicted_mosaics(mosaics: Mosaics, rows: Tensor, alpha: Tensor, probabilities: Tensor) -> PredictedMosaics:
    """Returns mosaics as files and pictures hold them, with their attention weights and probabilities."""
    rows = rows.to(mosaics.index.device)
    return PredictedMosaics(
        rows=rows.cpu().numpy(),
        patches=shown_patches(mosaics.pool, mosaics.index[rows]),
        foreground=mosaics.foreground[rows].cpu().numpy(),
        label=mosaics.label[rows].cpu().numpy(),
        alpha=alpha.numpy(),
        probabilities=probabilities.numpy(),
    )


def shown_patches(pool: Pool, index: Tensor) -> np.ndarray:
    """Returns patches of a pool as files hold them: images as uint8 of at most `LONGEST` pixels a side, else floats."""
    picked = pool.patches[index.to(pool.patches.device)]
    if not pool.is_image:
        return picked.float().cpu().numpy()
    if picked.shape[-1] not in (1, 3):  # no picture as it is: its mean over the channels
        picked = picked.float().mean(dim=-1, keepdim=True).to(torch.uint8)
    *lead, height, width, channels = picked.shape
    if max(height, width) > LONGEST:
        scale = LONGEST / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = picked.reshape(-1, height, width, channels).movedim(-1, 1).float()
        reduced = F.interpolate(pixels, size=size, mode="area").round().to(torch.uint8).movedim(1, -1)
        picked = reduced.reshape(*lead, *size, channels)
    return picked.contiguous().cpu().numpy()


@torch.no_grad()
def plane_of(module: StagewiseModule, side: int = SIDE, points: int = 2000, mosaics: int = 1000) -> Plane:
    """Evaluates What's class and Where's score in each of side x side cells of the plane.

    Args:
        module: of a run on 2-D points.
        side: S.
        points: base points to show, at most.
        mosaics: of either split, whose aggregates to show, at most.
    """
    train, held_out = module.mosaics["train"], module.mosaics["held_out"]
    every = torch.cat([train.pool.patches, held_out.pool.patches]).double().cpu()
    low, high = every.min(dim=0).values, every.max(dim=0).values
    margin = 0.05 * (high - low).clamp_min(1e-6)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    middle = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    y, x = torch.meshgrid(bottom + (top - bottom) * middle, left + (right - left) * middle, indexing="ij")
    cells = torch.stack([x, y], dim=-1).view(-1, 2).to(train.pool.device, train.pool.patches.dtype)

    pair = module.pair
    with eval_mode(pair.what, pair.where):
        regions = pair.what(cells).argmax(dim=1)
        scores = torch.zeros(len(cells)) if pair.where is None else pair.score(cells)
    seen: list[np.ndarray] = []
    for data in (train, held_out):
        rows = torch.arange(min(mosaics, len(data)), device=data.index.device)
        alpha, _ = predict(module, data, rows)
        seen.append(aggregate(alpha, data.patches(rows, alpha.dtype)).float().cpu().numpy())
        seen.append(data.label[rows].cpu().numpy())

    every_nth = max(1, math.ceil(len(train.pool) / points))
    return Plane(
        extent=np.array([left, right, bottom, top]),
        regions=regions.view(side, side).cpu().numpy().astype(np.uint8),
        scores=scores.float().view(side, side).cpu().numpy(),
        points=train.pool.patches[::every_nth].float().cpu().numpy(),
        point_classes=train.pool.labels[::every_nth].cpu().numpy(),
        aggregates=seen[0],
        label=seen[1],
        held_out_aggregates=seen[2],
        held_out_label=seen[3],
    )
