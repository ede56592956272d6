"""Optimizer steps in plain torch. Nothing here knows of Lightning, whose wrappers cost as much as a 2-D step."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training import processes
from attnmosaic.training.frozen import FrozenWhere, rows_per_piece
from attnmosaic.training.schedule import Stage

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


class Stepper(Protocol):
    """What a step needs of an optimizer: torch's own has it, and Lightning's."""

    def zero_grad(self) -> None: ...
    def step(self) -> object: ...


class Seen(NamedTuple):
    """What a step saw before it changed the weights; no gradients. Of several processes each sees its own mosaics.

    Attributes:
        rows: the mosaics, ``[B]``.
        loss: their mean objective.
        logits: ``[B, F]``.
        alpha: ``[B, P]``.
    """

    rows: Tensor
    loss: Tensor
    logits: Tensor
    alpha: Tensor


class Steps:
    """Takes one optimizer step on a minibatch of training mosaics.

    Two things make a step on a CPU faster, and change its result by rounding alone. A minibatch too large for
    the CPU's caches is computed in pieces, whose gradients add up. And where a minibatch holds many more patches
    than the pool, Where scores each patch of the pool once. Both are left out if the networks do not treat every
    mosaic on its own (`decomposes`).

    Args:
        pair: the networks.
        objective: ``(logits, alpha, label) -> mean loss``.
        frozen: weights and aggregates for the stage in which Where rests; it also holds the mosaics.
        microbatches: pieces of a minibatch; None for as many as are fast.
        clip_norm: largest norm of a network's gradient, None for no clipping.
    """

    def __init__(
        self,
        pair: WhereWhat,
        objective: Objective,
        frozen: FrozenWhere,
        microbatches: int | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.pair = pair
        self.objective = objective
        self.frozen = frozen
        self.microbatches = microbatches
        self.clip_norm = clip_norm
        self.mosaics = frozen.mosaics["train"]
        self.decomposes = decomposes(pair, objective, self.mosaics.pool.patch_shape, self.mosaics.index.shape[1])
        self.own = microbatches is None and self.decomposes
        self._pool_patches: Tensor | None = None

    def __call__(
        self,
        rows: Tensor,
        stage: Stage,
        optimizers: Sequence[Stepper],
        learning: Sequence[Iterable[nn.Parameter]],
        backward: Callable[[Tensor], object] = torch.Tensor.backward,
    ) -> Seen:
        """Takes a step.

        Args:
            rows: the mosaics, ``[B]``, on the training device.
            stage: which networks learn; the other's parameters take no gradient already.
            optimizers: theirs.
            learning: parameters of each optimizer, for clipping.
            backward: computes gradients of a loss.
        """
        for optimizer in optimizers:
            optimizer.zero_grad()
        mine, own = processes.share(rows)
        n = self._pieces(mine, stage)
        pieces = mine.chunk(n) if n > 1 else (mine,)
        seen = []
        for piece in pieces:
            logits, alpha = self._forward(piece, stage)
            loss = self.objective(logits, alpha, self.mosaics.label[piece])
            if len(piece) < len(rows) or own == 0:
                loss = loss * (min(len(piece), own) / len(rows))
            backward(loss)
            seen.append((loss.detach(), logits.detach(), alpha.detach()))
        for optimizer, parameters in zip(optimizers, learning, strict=True):
            parameters = list(parameters)
            processes.sum_gradients(parameters)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            optimizer.step()
        if len(seen) == 1 and own == len(rows):
            return Seen(rows, *seen[0])
        losses, all_logits, alphas = zip(*seen, strict=True)
        loss = torch.stack(losses).sum()
        if own < len(rows):  # so far a part of the mean over the minibatch
            loss = loss * (len(rows) / max(own, 1))
        return Seen(mine[:own], loss, torch.cat(all_logits)[:own], torch.cat(alphas)[:own])

    def _pieces(self, rows: Tensor, stage: Stage) -> int:
        if self.microbatches is not None:
            return self.microbatches
        if not self.own or self._scores_pool(rows, stage):
            return 1
        shape = self.mosaics.pool.patch_shape
        patches = 1 if stage is Stage.WHAT else self.mosaics.index.shape[1]
        size = rows_per_piece(patches * math.prod(shape) * self.frozen.dtype.itemsize, rows.device)
        return math.ceil(len(rows) / size)

    def _scores_pool(self, rows: Tensor, stage: Stage) -> bool:
        # On a GPU steps on so few patches are bound by launches, not by arithmetic.
        few = 3 * len(self.mosaics.pool) <= 2 * len(rows) * self.mosaics.index.shape[1]
        return few and self.own and stage is not Stage.WHAT and rows.device.type == "cpu"

    def _forward(self, rows: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        if stage is Stage.WHAT:
            alpha, aggregates = self.frozen.attend("train", rows)
            return self.pair.what(aggregates), alpha
        patches = self.mosaics.patches(rows, self.frozen.dtype)
        if not self._scores_pool(rows, stage):
            return self.pair(patches)
        if self._pool_patches is None:
            self._pool_patches = self.mosaics.pool.gather(torch.arange(len(self.mosaics.pool)), self.frozen.dtype)
        return self.pair(patches, self.pair.score(self._pool_patches)[self.mosaics.index[rows]])


@torch.no_grad()
def decomposes(pair: WhereWhat, objective: Objective, patch_shape: Sequence[int], patches: int) -> bool:
    """Tells whether what a minibatch gives is what its halves give, while both networks train.

    It is not with batch normalisation, which mixes the mosaics of a minibatch, nor with dropout, which draws
    anew for each patch. Tried on a copy of the networks, in float64.

    Args:
        pair: the networks.
        objective: ``(logits, alpha, label) -> mean loss``.
        patch_shape: ``(C, H, W)`` or ``(D,)``.
        patches: patches a mosaic, P.
    """
    drawn = torch.randn(4, patches, *patch_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    decreed = drawn.flatten(2).mean(dim=2)  # any scores will do
    label = torch.tensor([0, 1, 1, 0])

    def outcome(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        logits, alpha = tried(drawn[rows], decreed[rows] if pair.where is None else None)
        return logits, alpha, measure(logits, alpha, label[rows])

    with torch.random.fork_rng(devices=[]):
        try:
            tried, measure = copy.deepcopy(pair).cpu().double().train(), copy.deepcopy(objective)
            for module in tried.modules():  # hooks are for what is trained
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
            if isinstance(measure, nn.Module):
                measure.cpu().double()
            whole, first, second = outcome(slice(4)), outcome(slice(2)), outcome(slice(2, 4))
        except Exception:  # networks that cannot be copied, or take float32 alone: then nothing is known of them
            return False
    joined = (torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]), (first[2] + second[2]) / 2)
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(whole, joined, strict=True))


def mean_loss(seen: Iterable[Seen]) -> Tensor:
    """Returns the mean objective over all mosaics of some steps, in float64."""
    seen = list(seen)
    losses = torch.stack([one.loss for one in seen]).double()
    sizes = losses.new_tensor([len(one.rows) for one in seen])
    return (losses * sizes).sum() / sizes.sum()
