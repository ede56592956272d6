"""Optimizer steps in plain torch, without Lightning, whose wrappers cost as much as a 2-D step."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attnmosaic.config.schedule import Stage
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training import distributed
from attnmosaic.training.attention_cache import FrozenWhere, rows_per_piece
from attnmosaic.training.probes import forward_flop

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
Backward = Callable[[Tensor], object]
Computed = tuple[Tensor, Tensor, Tensor]
"""The loss, as its part of the mean over the minibatch, logits ``[B, F]`` and weights ``[B, P]`` of some mosaics."""


class Stepper(Protocol):
    """What a step needs of an optimizer: torch's and Lightning's have it."""

    def zero_grad(self) -> None: ...
    def step(self) -> object: ...


class StepOutputs(NamedTuple):
    """What a step computed before it changed the weights; no gradients. Of several processes each has its own mosaics.

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
        decomposes: whether the networks treat every mosaic on its own, see `attnmosaic.training.probes.decomposes`.
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
        self.mosaics = frozen.mosaics["train"]
        self._free = microbatches is None and decomposes
        several = self._free and frozen.workers.count > 1
        self._flop = forward_flop(pair, self.mosaics.pool.patch_shape) if several else (0, 0)

    def __call__(
        self,
        rows: Tensor,
        stage: Stage,
        optimizers: Sequence[Stepper],
        learning: Sequence[Iterable[nn.Parameter]],
        backward: Backward = torch.Tensor.backward,
    ) -> StepOutputs:
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
        mine, own = distributed.shard(rows)

        def compute(piece: Tensor, scores: Tensor | None = None) -> Computed:
            logits, alpha = self._forward(piece, stage, scores)
            loss = self.objective(logits, alpha, self.mosaics.label[piece])
            if len(piece) < len(rows) or own == 0:
                loss = loss * (min(len(piece), own) / len(rows))
            return loss, logits, alpha

        pieces, of_pool = self._pieces(mine, stage)
        if pieces == 1 and of_pool < 2:
            loss, logits, alpha = compute(mine)
            backward(loss)
            seen = [(loss.detach(), logits.detach(), alpha.detach())]
        else:
            if stage is Stage.WHAT:
                self.frozen.weights(self.mosaics, mine[:1])  # scores the pool once, not in each piece
            seen = self._in_pieces(compute, mine.chunk(pieces), of_pool, learning, backward)
        for optimizer, parameters in zip(optimizers, map(list, learning), strict=True):
            distributed.sum_gradients(parameters)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            optimizer.step()
        if len(seen) == 1 and own == len(rows):
            return StepOutputs(rows, *seen[0])
        losses, all_logits, alphas = zip(*seen, strict=True)
        loss = torch.stack(losses).sum()
        if own < len(rows):  # so far a part of the mean over the minibatch
            loss = loss * (len(rows) / max(own, 1))
        return StepOutputs(mine[:own], loss, torch.cat(all_logits)[:own], torch.cat(alphas)[:own])

    def _in_pieces(
        self,
        compute: Callable[[Tensor, Tensor | None], Computed],
        pieces: Sequence[Tensor],
        of_pool: int,
        learning: Sequence[Iterable[nn.Parameter]],
        backward: Backward,
    ) -> list[Computed]:
        """Computes pieces of a minibatch and their gradients, several at once where there are threads for it.

        Args:
            compute: computes some mosaics; with the scores ``[U]`` of the pool, if they are known already.
            pieces: rows of the mosaics.
            of_pool: pieces of the pool that Where scores; 0 if it scores the minibatch's patches.
            learning: parameters that get gradients.
            backward: computes gradients of a loss.
        """
        workers = self.frozen.workers
        parameters = [p for network in learning for p in network if p.requires_grad]
        scored: list[Tensor] = []
        scores: Tensor | None = None
        if of_pool:
            # The graph ends at the scores; their gradient is passed on to the pool's parts after all pieces.
            scored = workers.map(self.pair.score, self._pool_patches.chunk(of_pool))
            scores = torch.cat([part.detach() for part in scored]).requires_grad_()

        def differentiate(piece: Tensor) -> tuple[Computed, tuple[Tensor | None, ...]]:
            loss, logits, alpha = compute(piece, scores)
            wanted = parameters if scores is None else [*parameters, scores]
            return (loss.detach(), logits.detach(), alpha.detach()), gradients(loss, wanted)

        seen, parts = zip(*workers.map(differentiate, pieces), strict=True)
        known = add_up(parts)
        if scores is not None:
            through = known.pop()
            assert through is not None
            of_scores = zip(scored, through.split([len(part) for part in scored]), strict=True)
            of_where = workers.map(lambda part: gradients(part[0], parameters, part[1]), of_scores)
            known = add_up([known, add_up(of_where)])
        backward(with_gradients(torch.stack([loss for loss, _, _ in seen]).sum(), parameters, known))
        return list(seen)

    def _pieces(self, rows: Tensor, stage: Stage) -> tuple[int, int]:
        """Returns into how many pieces to split a minibatch, and the pool where Where scores it (else 0)."""
        if self.microbatches is not None:
            return self.microbatches, 0
        if not self._free:
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
        return few and self._free and stage is not Stage.WHAT and rows.device.type == "cpu"

    def _forward(self, rows: Tensor, stage: Stage, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns logits and weights of some mosaics; ``scores`` are the pool's, ``[U]``, if they are known already."""
        if stage is Stage.WHAT:
            alpha, aggregates = self.frozen.attend("train", rows)
            return self.pair.what(aggregates), alpha
        if scores is None and not self._scores_pool(rows, stage):
            return self.pair(self.mosaics.patches(rows, self.frozen.dtype))
        index = self.mosaics.index[rows]
        if scores is None:
            scores = self.pair.score(self._pool_patches)
        return self.pair(_rows_of(self._pool_patches, index), scores[index])

    @functools.cached_property
    def _pool_patches(self) -> Tensor:
        return self.mosaics.pool.gather(torch.arange(len(self.mosaics.pool)), self.frozen.dtype)


def _rows_of(patches: Tensor, index: Tensor) -> Tensor:
    """Returns the patches ``[B, P, *patch]`` that an index ``[B, P]`` names, images channels last as they lie."""
    if patches.dim() != 4:
        return patches[index]
    last = patches.movedim(1, -1)
    return last.index_select(0, index.flatten()).view(*index.shape, *last.shape[1:]).movedim(-1, -3)


# ---- gradients of pieces


def gradients(
    loss: Tensor, parameters: Sequence[Tensor], grad_output: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of a loss, None for what it does not depend on; leaves their own ``grad`` unchanged."""
    return torch.autograd.grad(loss, parameters, grad_output, allow_unused=True)


def add_up(parts: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Adds gradients of pieces up, in their order: the sum is the same whichever was computed first."""
    totals: list[Tensor | None] = []
    for of_one in zip(*parts, strict=True):
        known = [part for part in of_one if part is not None]
        totals.append(functools.reduce(torch.add, known) if known else None)
    return totals


def with_gradients(loss: Any, parameters: Sequence[nn.Parameter], known: Sequence[Tensor | None]) -> Tensor:
    """Returns a loss whose backward pass gives parameters the gradients that are known already."""
    differentiable: Tensor = _Known.apply(loss, known, *parameters)
    return differentiable


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, known: Sequence[Tensor | None], *parameters: nn.Parameter) -> Tensor:
        ctx.known = known
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return None, None, *(None if gradient is None else gradient * scale for gradient in ctx.known)
