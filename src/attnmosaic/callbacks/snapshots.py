"""Records attention weights and predictions: of a few mosaics during training, of chosen ones at its end."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional as F

from attnmosaic.callbacks.nonfatal import check_count, log_errors
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.data.pool import Pool
from attnmosaic.nn.attention import aggregate
from attnmosaic.runs.snapshots import KINDS, RECORD, Plane, PredictedMosaics, Record
from attnmosaic.training.attention_cache import eval_mode
from attnmosaic.training.stagewise import StagewiseModule

FOLLOWED = ("train", "held_out")
"""Splits with mosaics that are followed during training."""

LONGEST = 64
"""Largest side of a recorded patch, in pixels; larger patches are reduced."""

RECENT = 64
"""Largest number of epochs whose predictions are kept one by one, as joining them takes longer than a prediction."""

SIDE = 160
"""Cells along each side of the plane that 2-D networks are evaluated on."""


class MosaicRecord(pl.Callback):
    """Writes ``mosaics.npz`` (`attnmosaic.runs.snapshots.Record`) when the run of a pair ends.

    Before training and after every epoch, the networks predict the same few mosaics in eval mode. Checkpoints hold the
    predictions, so the file of a resumed run equals that of an uninterrupted run. If the config follows other mosaics
    than the checkpoint, the predictions of the new mosaics begin at the checkpoint's epoch. The callback does not
    change the results of training in any bit, and writes nothing in runs without a pair.

    Args:
        folder: folder of the file.
        followed: number of mosaics to follow during training, for each split of `FOLLOWED`.
        chosen: number of mosaics to record with the final weights, for each split and each of `KINDS`.

    Raises:
        UserError: ``followed`` or ``chosen`` is not a whole number of at least 1.
    """

    def __init__(self, folder: str | Path, followed: int = 8, chosen: int = 8) -> None:
        check_count("record.followed", followed)
        check_count("record.chosen", chosen)
        self.folder = Path(folder)
        self.followed = followed
        self.chosen = chosen
        self.epochs: list[int] = []
        self.predictions: dict[str, list[Tensor]] = {}
        self._recent: list[dict[str, tuple[Tensor, Tensor]]] = []
        """Predictions by split of the last epochs, on the device, which `_merge` adds to `predictions`."""
        self.identities: dict[str, Tensor] = {}
        self._inputs: dict[str, tuple[Tensor, Tensor]] = {}
        """Row numbers and patches of the followed mosaics, by split."""
        self._final: dict[str, list[tuple[Tensor, Tensor]]] = {}

    # ---- during training

    def state_dict(self) -> dict[str, Any]:
        """Returns the predictions of the followed mosaics so far, for checkpoints.

        Returns:
            The epochs ``[T]``, the weights ``[T, M, P]`` and probabilities ``[T, M, F]`` of each split, and the
            identity of the followed mosaics.
        """
        self._merge()
        # Tensors are copied quickly; copying lists of a thousand epochs would take longer than an epoch.
        return {
            "epochs": torch.tensor(self.epochs, dtype=torch.int64),
            "answers": {**self.predictions},
            "asked": self.identities,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"].tolist()
        self.predictions, self.identities = {**state_dict["answers"]}, state_dict["asked"]

    @log_errors
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, StagewiseModule):
            return
        mosaics, dtype = pl_module.mosaics, pl_module.frozen_where.dtype
        rows = {split: self._rows(mosaics[split]) for split in FOLLOWED}
        self._inputs = {split: (rows[split], mosaics[split].patches(rows[split], dtype)) for split in FOLLOWED}
        new, old = {split: self._identity(mosaics[split]) for split in FOLLOWED}, self.identities
        if old.keys() != new.keys() or not all(torch.equal(old[split], new[split]) for split in new):
            self.identities, self.epochs, self.predictions = new, [], {}
        if not self.epochs:
            self._follow(trainer, pl_module, pl_module.current_epoch)

    @log_errors
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, StagewiseModule):
            self._follow(trainer, pl_module, pl_module.epochs_done)

    def _identity(self, mosaics: Mosaics) -> Tensor:
        """Returns the identity of the followed mosaics: indices of their patches, and position of the foreground."""
        rows = self._rows(mosaics)
        return torch.cat([mosaics.index[rows], mosaics.foreground[rows].unsqueeze(1)], dim=1).cpu()

    def _follow(self, trainer: pl.Trainer, module: StagewiseModule, epochs: int) -> None:
        """Adds the predictions after `epochs` epochs."""
        with trainer.precision_plugin.val_step_context(), eval_mode(module.pair.where, module.pair.what):
            new = {split: _predict(module, module.mosaics[split], *self._inputs[split]) for split in FOLLOWED}
        self.epochs.append(epochs)
        self._recent.append(new)
        if len(self._recent) == RECENT:
            self._merge()

    def _merge(self) -> None:
        """Adds the recent predictions to `predictions`, in main memory."""
        recent, self._recent = self._recent, []
        for split in FOLLOWED if recent else ():
            alpha, probabilities = zip(*(predicted[split] for predicted in recent), strict=True)
            latest = [torch.stack(parts).float().cpu() for parts in (alpha, probabilities)]
            if earlier := self.predictions.get(split):
                latest = [torch.cat(both) for both in zip(earlier, latest, strict=True)]
            self.predictions[split] = latest

    def _rows(self, mosaics: Mosaics) -> Tensor:
        """Returns the row numbers of the followed mosaics."""
        return torch.arange(min(self.followed, len(mosaics)), device=mosaics.index.device)

    # ---- with the final weights

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._final = {split: [] for split in SPLITS}

    @log_errors
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
        if split in self._final:
            probabilities = outputs["logits"].float().softmax(dim=1)
            self._final[split].append((outputs["alpha"].float().cpu(), probabilities.cpu()))

    @log_errors
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING or not isinstance(pl_module, StagewiseModule):
            return
        if trainer.is_global_zero and any(self._final.values()):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._record(pl_module).save(self.folder / RECORD)
        self._final = {}

    def _record(self, module: StagewiseModule) -> Record:
        final, counts = {}, {}
        for split, batches in self._final.items():
            data = module.mosaics[split]
            alpha, probabilities = (torch.cat(part) for part in zip(*batches, strict=True))
            rows, counts[split] = worst_mosaics(
                alpha, probabilities, data.foreground.cpu(), data.label.cpu(), self.chosen
            )
            final[split] = predicted_mosaics(data, rows, alpha[rows], probabilities[rows])
        followed = {}
        self._merge()
        for split, (alpha, probabilities) in self.predictions.items():
            rows = self._rows(module.mosaics[split])
            followed[split] = predicted_mosaics(module.mosaics[split], rows, alpha, probabilities)
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
    """Predicts a few mosaics in eval mode, without the scores kept for training (`FrozenWhere`).

    Returns:
        The attention weights ``[M, P]`` and What's probabilities ``[M, F]``.
    """
    return _predict(module, mosaics, rows, mosaics.patches(rows, module.frozen_where.dtype))


@torch.no_grad()
def _predict(module: StagewiseModule, mosaics: Mosaics, rows: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    alpha = module.frozen_where.fresh_weights(mosaics, patches, rows)
    with eval_mode(module.pair.what):
        return alpha, module.pair.what(aggregate(alpha, patches)).float().softmax(dim=1)


def worst_mosaics(
    alpha: Tensor, probabilities: Tensor, foreground: Tensor, label: Tensor, chosen: int
) -> tuple[Tensor, dict[str, int]]:
    """Chooses the mosaics with the least weight on the foreground, for each of `KINDS`.

    Returns:
        The row numbers of the chosen mosaics, in the order of `KINDS` and within a kind from the least to the most
        weight; and the number of all mosaics of each kind.
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
    """Returns mosaics with attention weights and probabilities in the form of files and pictures."""
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
    """Returns patches of a pool in the form of files and pictures.

    Images become uint8 with sides of at most `LONGEST` pixels, and points become float32.
    """
    picked = pool.patches[index.to(pool.patches.device)]
    if not pool.is_image:
        return picked.float().cpu().numpy()
    if picked.shape[-1] not in (1, 3):  # cannot be shown; the mean over the channels can
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
    """Evaluates What's class and Where's score in each of S x S cells of the plane.

    Args:
        module: the module of a run on 2-D points.
        side: S, the number of cells along each side.
        points: largest number of base points to return.
        mosaics: largest number of mosaics of each split whose aggregates to return.
    """
    train, held_out = module.mosaics["train"], module.mosaics["held_out"]
    all_points = torch.cat([train.pool.patches, held_out.pool.patches]).double().cpu()
    low, high = all_points.min(dim=0).values, all_points.max(dim=0).values
    margin = 0.05 * (high - low).clamp_min(1e-6)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    centers = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    y, x = torch.meshgrid(bottom + (top - bottom) * centers, left + (right - left) * centers, indexing="ij")
    cells = torch.stack([x, y], dim=-1).view(-1, 2).to(train.pool.device, train.pool.patches.dtype)

    pair = module.pair
    with eval_mode(pair.what, pair.where):
        regions = pair.what(cells).argmax(dim=1)
        scores = torch.zeros(len(cells)) if pair.where is None else pair.score(cells)
    parts: list[np.ndarray] = []
    for data in (train, held_out):
        rows = torch.arange(min(mosaics, len(data)), device=data.index.device)
        alpha, _ = predict(module, data, rows)
        parts.append(aggregate(alpha, data.patches(rows, alpha.dtype)).float().cpu().numpy())
        parts.append(data.label[rows].cpu().numpy())

    every_nth = max(1, math.ceil(len(train.pool) / points))
    return Plane(
        extent=np.array([left, right, bottom, top]),
        regions=regions.view(side, side).cpu().numpy().astype(np.uint8),
        scores=scores.float().view(side, side).cpu().numpy(),
        points=train.pool.patches[::every_nth].float().cpu().numpy(),
        point_classes=train.pool.labels[::every_nth].cpu().numpy(),
        aggregates=parts[0],
        label=parts[1],
        held_out_aggregates=parts[2],
        held_out_label=parts[3],
    )
