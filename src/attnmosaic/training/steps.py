"""Optimizer steps in plain torch. Nothing here knows of Lightning, whose wrappers cost as much as a 2-D step."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attnmosaic.config.schedule import Stage
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training import distributed
from attnmosaic.training.attention_cache import FrozenWhere, rows_per_piece
from attnmosaic.training.workers import add_up, flop_of, gradients, with_gradients

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

    Two things make a step on a CPU faster, and change its result by rounding alone. A minibatch is computed in
    pieces, whose gradients add up: one for each thread (`Workers`), if it is worth that, and none too large for the
    CPU's caches. And where a minibatch holds many more patches than the pool, Where scores each patch of the pool once.
    Both are left out if the networks do not treat every mosaic on its own (`decomposes`).

    Args:
        pair: the networks.
        objective: ``(logits, alpha, label) -> mean loss``.
        frozen: weights and aggregates for the stage in which Where rests; it also holds the mosaics.
        microbatches: pieces of a minibatch; None for as many as are fast.
        clip_norm: largest norm of a network's gradient, None for no clipping.
        decomposes: whether the networks treat every mosaic on its own; see the function of that name.
    """

    def __init__(
        self,
        pair: WhereWhat,
        objective: Objective,
        frozen: FrozenWhere,
        microbatches: int | None = None,
        clip_norm: float | None = None,
        *,
        decomposes: bool,
    ) -> None:
        self.pair = pair
        self.objective = objective
        self.frozen = frozen
        self.microbatches = microbatches
        self.clip_norm = clip_norm
        self.decomposes = decomposes
        self.mosaics = frozen.mosaics["train"]
        self.own = microbatches is None and decomposes
        several = self.own and frozen.workers.count > 1
        self._flop = forward_flop(pair, self.mosaics.pool.patch_shape) if several else (0, 0)
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
        mine, own = distributed.share(rows)
        n, of_pool = self._pieces(mine, stage)
        if n == 1 and of_pool < 2:
            seen = [self._whole(mine, stage, len(rows), own, backward)]
        else:
            seen = self._in_pieces(mine.chunk(n), of_pool, stage, len(rows), own, learning, backward)
        for optimizer, parameters in zip(optimizers, learning, strict=True):
            parameters = list(parameters)
            distributed.sum_gradients(parameters)
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

    def _whole(
        self, rows: Tensor, stage: Stage, size: int, own: int, backward: Callable[[Tensor], object]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the gradients of a minibatch, or of this process's part of one of so many mosaics, at once."""
        logits, alpha = self._forward(rows, stage)
        loss = self._loss(logits, alpha, rows, size, own)
        backward(loss)
        return loss.detach(), logits.detach(), alpha.detach()

    def _loss(self, logits: Tensor, alpha: Tensor, rows: Tensor, size: int, own: int) -> Tensor:
        loss = self.objective(logits, alpha, self.mosaics.label[rows])
        return loss * (min(len(rows), own) / size) if len(rows) < size or own == 0 else loss

    def _in_pieces(
        self,
        pieces: Sequence[Tensor],
        of_pool: int,
        stage: Stage,
        size: int,
        own: int,
        learning: Sequence[Iterable[nn.Parameter]],
        backward: Callable[[Tensor], object],
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Computes the same piece by piece, several at once where there are threads for it."""
        workers = self.frozen.workers
        parameters = [p for network in learning for p in network if p.requires_grad]
        scored: list[Tensor] = []
        scores: Tensor | None = None
        if stage is Stage.WHAT:
            self.frozen.weights(self.mosaics, pieces[0][:1])  # scores the pool, if nobody has: once, not in each piece
        if of_pool:
            # The graph ends at the scores; their gradient is passed on to the pool's parts after all pieces.
            scored = workers.map(self.pair.score, self._pool().chunk(of_pool))
            scores = torch.cat([part.detach() for part in scored]).requires_grad_()

        def compute(piece: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, ...]]:
            logits, alpha = self._forward(piece, stage, scores)
            loss = self._loss(logits, alpha, piece, size, own)
            wanted = parameters if scores is None else [*parameters, scores]
            return (loss.detach(), logits.detach(), alpha.detach()), gradients(loss, wanted)

        seen, parts = zip(*workers.map(compute, pieces), strict=True)
        known = add_up(parts)
        if scores is not None:
            through = known.pop()
            assert through is not None
            of_scores = zip(scored, through.split([len(part) for part in scored]), strict=True)
            known = add_up(
                [known, add_up(workers.map(lambda part: gradients(part[0], parameters, part[1]), of_scores))]
            )
        backward(with_gradients(torch.stack([loss for loss, _, _ in seen]).sum(), parameters, known))
        return list(seen)

    def _pieces(self, rows: Tensor, stage: Stage) -> tuple[int, int]:
        """Returns into how many pieces to split a minibatch, and the pool where Where scores it (else 0)."""
        if self.microbatches is not None:
            return self.microbatches, 0
        if not self.own:
            return 1, 0
        where, what = self._flop
        workers, patches = self.frozen.workers, self.mosaics.index.shape[1]
        if self._scores_pool(rows, stage):
            return workers.pieces(3 * len(rows) * what), workers.pieces(3 * len(self.mosaics.pool) * where)
        seen = 1 if stage is Stage.WHAT else patches
        held = seen * math.prod(self.mosaics.pool.patch_shape) * self.frozen.dtype.itemsize
        fits = math.ceil(len(rows) / rows_per_piece(held, rows.device))
        flop = 3 * len(rows) * (what + (0 if stage is Stage.WHAT else patches * where))
        return min(len(rows), workers.pieces(flop, fits)), 0

    def _scores_pool(self, rows: Tensor, stage: Stage) -> bool:
        # On a GPU steps on so few patches are bound by launches, not by arithmetic.
        few = 3 * len(self.mosaics.pool) <= 2 * len(rows) * self.mosaics.index.shape[1]
        return few and self.own and stage is not Stage.WHAT and rows.device.type == "cpu"

    def _forward(self, rows: Tensor, stage: Stage, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns logits and weights of some mosaics; ``scores`` are the pool's, ``[U]``, if they are known already."""
        if stage is Stage.WHAT:
            alpha, aggregates = self.frozen.attend("train", rows)
            return self.pair.what(aggregates), alpha
        if scores is None and not self._scores_pool(rows, stage):
            return self.pair(self.mosaics.patches(rows, self.frozen.dtype))
        index = self.mosaics.index[rows]
        pool = self._pool()
        if scores is None:
            scores = self.pair.score(pool)
        return self.pair(_rows_of(pool, index), scores[index])

    def _pool(self) -> Tensor:
        if self._pool_patches is None:
            self._pool_patches = self.mosaics.pool.gather(torch.arange(len(self.mosaics.pool)), self.frozen.dtype)
        return self._pool_patches


def _rows_of(patches: Tensor, index: Tensor) -> Tensor:
    """Returns the patches ``[B, P, *patch]`` that an index ``[B, P]`` names, images channels last as they lie."""
    if patches.dim() != 4:
        return patches[index]
    last = patches.movedim(1, -1)
    return last.index_select(0, index.flatten()).view(*index.shape, *last.shape[1:]).movedim(-1, -3)


@torch.no_grad()
def forward_flop(pair: WhereWhat, patch_shape: Sequence[int]) -> tuple[int, int]:
    """Counts the operations of a forward pass: of Where for a patch, 0 without one, and of What for an aggregate."""
    tried = _copy(pair)
    two = torch.zeros(2, *patch_shape, dtype=next(pair.parameters()).dtype)
    where, what = tried.where, tried.what
    return flop_of(lambda: where(two)) // 2 if where is not None else 0, flop_of(lambda: what(two)) // 2


def _copy(pair: WhereWhat) -> WhereWhat:
    """Copies a pair to the CPU, without its hooks: these are for what is trained."""
    copied = copy.deepcopy(pair).cpu()
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copied


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
            tried, measure = _copy(pair).double().train(), copy.deepcopy(objective)
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
