"""Keeps where the pair looked: through training at a few mosaics, with the final weights at the most telling ones."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional as F

from attnmosaic.callbacks.history import Grown
from attnmosaic.callbacks.nonfatal import check_count, harmless
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.data.pool import Pool
from attnmosaic.nn.attention import aggregate
from attnmosaic.runs.snapshots import KINDS, RECORD, Looked, Plane, Record
from attnmosaic.training.stagewise import StagewiseModule

FOLLOWED = ("train", "held_out")
LONGEST = 64
"""Pixels of the longer side of a kept patch; larger ones are reduced."""

SIDE = 160
"""Cells along each side of the plane that 2-D networks are asked about."""


class MosaicRecord(pl.Callback):
    """Writes ``mosaics.npz`` when a pair's run ends, and nothing in other runs; see `attnmosaic.runs.snapshots.Record`.

    Before training and after every epoch it asks the networks, in eval mode, about the same few mosaics; what they
    answered travels in the checkpoint, so a resumed run's record is that of an uninterrupted one. Training stays as
    it is without this callback, bit for bit.

    A run that goes on from a checkpoint with other mosaics than those that were followed begins to follow anew.

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
        self.epochs = Grown()
        self.answers: dict[str, tuple[Grown, Grown]] = {split: (Grown(), Grown()) for split in FOLLOWED}
        self.asked: dict[str, Tensor] = {}
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    # ---- through training

    def state_dict(self) -> dict[str, Any]:
        """Returns epochs, for each split the weights ``[T, M, P]`` and probabilities ``[T, M, F]``, and of what."""
        answers = {split: [part.tensor() for part in seen] for split, seen in self.answers.items() if len(seen[0])}
        return {"epochs": self.epochs.tensor(), "answers": answers, "asked": self.asked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = Grown.of(torch.as_tensor(state_dict["epochs"]))
        for split, (alpha, probabilities) in state_dict["answers"].items():
            self.answers[split] = Grown.of(alpha), Grown.of(probabilities)
        self.asked = state_dict["asked"]

    @harmless
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, StagewiseModule):
            return
        now = {split: self._question(pl_module.mosaics[split]) for split in FOLLOWED}
        if self.asked.keys() != now.keys() or not all(torch.equal(self.asked[split], now[split]) for split in now):
            self.asked, self.epochs = now, Grown()
            self.answers = {split: (Grown(), Grown()) for split in FOLLOWED}
        if not self.epochs:
            self._follow(trainer, pl_module, pl_module.current_epoch)

    @harmless
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, StagewiseModule):
            self._follow(trainer, pl_module, pl_module.epochs_done)

    def _question(self, mosaics: Mosaics) -> Tensor:
        """Returns what tells the mosaics that are followed from others: their patches, and which is the foreground."""
        rows = self._rows(mosaics)
        return torch.cat([mosaics.index[rows], mosaics.foreground[rows].unsqueeze(1)], dim=1).cpu()

    def _follow(self, trainer: pl.Trainer, module: StagewiseModule, epochs: int) -> None:
        with trainer.precision_plugin.val_step_context():
            seen = {s: look(module, module.mosaics[s], self._rows(module.mosaics[s])) for s in FOLLOWED}
        self.epochs.append(np.array(epochs))
        for split, parts in seen.items():
            for answers, part in zip(self.answers[split], parts, strict=True):
                answers.append(part.float().cpu().numpy())

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
            rows, counts[split] = telling(alpha, probabilities, data.foreground.cpu(), data.label.cpu(), self.chosen)
            final[split] = looked(data, rows, alpha[rows], probabilities[rows])
        followed = {}
        for split, (weights, classes) in self.answers.items():
            if len(weights):
                alpha, probabilities = weights.tensor(), classes.tensor()
                followed[split] = looked(module.mosaics[split], self._rows(module.mosaics[split]), alpha, probabilities)
        train = module.mosaics["train"]
        return Record(
            classes=train.foreground_classes,
            all_classes=train.pool.classes,
            epochs=self.epochs.array.copy(),
            followed=followed,
            final=final,
            counts=counts,
            plane=plane_of(module) if train.pool.patch_shape == (2,) else None,
            scale=module.scale,
        )


@torch.no_grad()
def look(module: StagewiseModule, mosaics: Mosaics, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Asks the networks, in eval mode, about a few mosaics.

    Nothing that was computed and kept for training (`FrozenWhere`) is used or touched.

    Returns:
        The attention weights ``[M, P]`` and What's probabilities ``[M, F]``.
    """
    what = module.pair.what
    training = what.training
    what.eval()
    patches = mosaics.patches(rows, module.frozen_where.dtype)
    alpha = module.frozen_where.fresh_weights(mosaics, patches, rows)
    probabilities = what(aggregate(alpha, patches)).float().softmax(dim=1)
    what.train(training)
    return alpha, probabilities


def telling(
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


def looked(mosaics: Mosaics, rows: Tensor, alpha: Tensor, probabilities: Tensor) -> Looked:
    """Puts down what was seen of some mosaics."""
    device = mosaics.index.device
    rows = rows.to(device)
    index = mosaics.index[rows]
    return Looked(
        rows=rows.cpu().numpy(),
        patches=shown_patches(mosaics.pool, index),
        foreground=mosaics.foreground[rows].cpu().numpy(),
        label=mosaics.label[rows].cpu().numpy(),
        alpha=alpha.numpy(),
        probabilities=probabilities.numpy(),
    )


def shown_patches(pool: Pool, index: Tensor) -> np.ndarray:
    """Returns patches of a pool as they are kept: images as uint8 of at most `LONGEST` pixels a side, else floats."""
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
    """Asks What for the class, and Where for the score, of each of side x side cells of the plane.

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
    training = {name: getattr(pair, name).training for name in module.networks}
    for name in module.networks:
        getattr(pair, name).eval()
    regions = pair.what(cells).argmax(dim=1)
    scores = torch.zeros(len(cells)) if pair.where is None else pair.score(cells)
    aggregates = {}
    for split, data in (("train", train), ("held_out", held_out)):
        rows = torch.arange(min(mosaics, len(data)), device=data.index.device)
        alpha, _ = look(module, data, rows)
        aggregates[split] = aggregate(alpha, data.patches(rows, alpha.dtype)), data.label[rows]
    for name, mode in training.items():
        getattr(pair, name).train(mode)

    every_nth = max(1, math.ceil(len(train.pool) / points))
    return Plane(
        extent=np.array([left, right, bottom, top]),
        regions=regions.view(side, side).cpu().numpy().astype(np.uint8),
        scores=scores.float().view(side, side).cpu().numpy(),
        points=train.pool.patches[::every_nth].float().cpu().numpy(),
        point_classes=train.pool.labels[::every_nth].cpu().numpy(),
        aggregates=aggregates["train"][0].float().cpu().numpy(),
        label=aggregates["train"][1].cpu().numpy(),
        held_out_aggregates=aggregates["held_out"][0].float().cpu().numpy(),
        held_out_label=aggregates["held_out"][1].cpu().numpy(),
    )
