"""Optimizer steps in plain torch. Lightning's wrappers around a step cost as much as a step on 2-D points."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attnmosaic.config.schedule import Stage
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.nn.fused import IndexedPatches
from attnmosaic.nn.networks import reads_index
from attnmosaic.training import distributed
from attnmosaic.training.attention_cache import FrozenWhere, rows_per_piece
from attnmosaic.training.probes import forward_flop

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
Backward = Callable[[Tensor], object]
Computed = tuple[Tensor, Tensor, Tensor]
"""Loss, logits ``[B, F]`` and attention weights ``[B, P]`` of a piece of a minibatch.

The losses of all pieces add up to the mean over the minibatch.
"""


class Stepper(Protocol):
    """The optimizer methods that a step uses; torch's and Lightning's optimizers have them."""

    def zero_grad(self) -> None: ...
    def step(self) -> object: ...


class StepOutputs(NamedTuple):
    """Outputs of a step from before it changed the weights, without gradients. Each process has those of its shard.

    Attributes:
        rows: rows of the mosaics, ``[B]``.
        loss: mean objective of these mosaics.
        logits: outputs of the what network, ``[B, F]``.
        alpha: attention weights, ``[B, P]``.
    """

    rows: Tensor
    loss: Tensor
    logits: Tensor
    alpha: Tensor


class Steps:
    """Takes optimizer steps on minibatches of training mosaics.

    Two optimizations make a step on a CPU faster and change its result by rounding only:

    - A minibatch is computed in pieces, whose gradients are summed: one piece for each thread (`Workers`) if a piece
      has enough work for that, and no piece larger than the CPU's caches.
    - If a minibatch holds many more patches than the pool, Where scores each patch of the pool once.

    Neither is used if the networks do not compute every mosaic independently (`decomposes`).

    Args:
        pair: the networks.
        objective: ``(logits, alpha, label) -> mean loss``.
        frozen: holds the mosaics, and gives attention weights and aggregates in stages in which Where is frozen.
        microbatches: number of pieces of a minibatch; None for the number that is expected to be fastest.
        clip_norm: largest norm of a network's gradient, None for no clipping.
        decomposes: whether the networks compute every mosaic independently, see
            `attnmosaic.training.probes.decomposes`.
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
        self._chooses_pieces = microbatches is None and decomposes
        threaded = self._chooses_pieces and frozen.workers.count > 1
        self._flop = forward_flop(pair, self.mosaics.pool.patch_shape) if threaded else (0, 0)

    def __call__(
        self,
        rows: Tensor,
        stage: Stage,
        optimizers: Sequence[Stepper],
        trained: Sequence[Iterable[nn.Parameter]],
        backward: Backward = torch.Tensor.backward,
    ) -> StepOutputs:
        """Takes an optimizer step on one minibatch.

        Args:
            rows: rows of the mosaics, ``[B]``, on the training device.
            stage: stage of the step. The caller has set ``requires_grad=False`` for the parameters of a frozen network.
            optimizers: optimizers of the training networks.
            trained: parameters of each optimizer.
            backward: runs the backward pass of a loss.
        """
        for optimizer in optimizers:
            optimizer.zero_grad()
        shard, n_valid = distributed.shard(rows)

        def compute(piece: Tensor, scores: Tensor | None = None) -> Computed:
            logits, alpha = self._forward(piece, stage, scores)
            loss = self.objective(logits, alpha, self.mosaics.label[piece])
            if len(piece) < len(rows) or n_valid == 0:
                loss = loss * (min(len(piece), n_valid) / len(rows))
            return loss, logits, alpha

        pieces, pool_pieces = self._pieces(shard, stage)
        if pieces == 1 and pool_pieces < 2:
            loss, logits, alpha = compute(shard)
            backward(loss)
            computed = [(loss.detach(), logits.detach(), alpha.detach())]
        else:
            if stage is Stage.WHAT:
                self.frozen.weights(self.mosaics, shard[:1])  # scores the pool once, not in each piece
            computed = self._in_pieces(compute, shard.chunk(pieces), pool_pieces, trained, backward)
        for optimizer, parameters in zip(optimizers, map(list, trained), strict=True):
            distributed.sum_gradients(parameters)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            optimizer.step()
        if len(computed) == 1 and n_valid == len(rows):
            return StepOutputs(rows, *computed[0])
        losses, all_logits, alphas = zip(*computed, strict=True)
        loss = torch.stack(losses).sum()
        if n_valid < len(rows):  # the losses are parts of the mean over the minibatch; the result is that of the shard
            loss = loss * (len(rows) / max(n_valid, 1))
        return StepOutputs(shard[:n_valid], loss, torch.cat(all_logits)[:n_valid], torch.cat(alphas)[:n_valid])

    def _in_pieces(
        self,
        compute: Callable[[Tensor, Tensor | None], Computed],
        pieces: Sequence[Tensor],
        pool_pieces: int,
        trained: Sequence[Iterable[nn.Parameter]],
        backward: Backward,
    ) -> list[Computed]:
        """Computes the pieces of a minibatch and their gradients on the threads of the workers.

        Args:
            compute: computes a piece, from the pool's scores ``[U]`` if these are passed.
            pieces: rows of the mosaics of each piece.
            pool_pieces: number of pieces in which Where scores the pool; 0 if Where scores the minibatch's patches.
            trained: parameters of each optimizer, which get the gradients.
            backward: runs the backward pass of a loss.
        """
        workers = self.frozen.workers
        parameters = [p for network in trained for p in network if p.requires_grad]
        pool_scores: list[Tensor] = []
        scores: Tensor | None = None
        if pool_pieces:
            # The graph of a minibatch's piece ends at the scores. The scores' gradient, summed over these pieces, is
            # then passed through the graphs of the pool's pieces.
            pool_scores = workers.map(self.pair.score, self._pool_in(pool_pieces))
            scores = torch.cat([part.detach() for part in pool_scores]).requires_grad_()

        def differentiate(piece: Tensor) -> tuple[Computed, tuple[Tensor | None, ...]]:
            loss, logits, alpha = compute(piece, scores)
            inputs = parameters if scores is None else [*parameters, scores]
            return (loss.detach(), logits.detach(), alpha.detach()), gradients(loss, inputs)

        computed, piece_gradients = zip(*workers.map(differentiate, pieces), strict=True)
        summed = add_up(piece_gradients)
        if scores is not None:
            scores_gradient = summed.pop()
            assert scores_gradient is not None
            split_gradient = scores_gradient.split([len(part) for part in pool_scores])
            where_gradients = workers.map(
                lambda part: gradients(part[0], parameters, part[1]), zip(pool_scores, split_gradient, strict=True)
            )
            summed = add_up([summed, add_up(where_gradients)])
        backward(with_gradients(torch.stack([loss for loss, _, _ in computed]).sum(), parameters, summed))
        return list(computed)

    def _pieces(self, rows: Tensor, stage: Stage) -> tuple[int, int]:
        """Returns the number of pieces of a minibatch, and of the pool if Where scores the pool (otherwise 0)."""
        if self.microbatches is not None:
            return self.microbatches, 0
        if not self._chooses_pieces:
            return 1, 0
        where, what = self._flop
        workers, patches = self.frozen.workers, self.mosaics.index.shape[1]
        if self._scores_pool(rows, stage):
            return workers.pieces(3 * len(rows) * what), workers.pieces(3 * len(self.mosaics.pool) * where)
        patches_in_memory = 1 if stage is Stage.WHAT or reads_index(self.pair.where) else patches
        mosaic_bytes = patches_in_memory * math.prod(self.mosaics.pool.patch_shape) * self.frozen.dtype.itemsize
        at_least = math.ceil(len(rows) / rows_per_piece(mosaic_bytes, rows.device))
        flop = 3 * len(rows) * (what + (0 if stage is Stage.WHAT else patches * where))
        return min(len(rows), workers.pieces(flop, at_least)), 0

    def _scores_pool(self, rows: Tensor, stage: Stage) -> bool:
        """Returns whether scoring the complete pool is faster than scoring the patches of a minibatch."""
        # Only on a CPU: on a GPU the time of steps on so few patches is that of kernel launches, not of arithmetic.
        small_pool = 3 * len(self.mosaics.pool) <= 2 * len(rows) * self.mosaics.index.shape[1]
        return small_pool and self._chooses_pieces and stage is not Stage.WHAT and rows.device.type == "cpu"

    def _forward(self, rows: Tensor, stage: Stage, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns logits and attention weights of mosaics; ``scores`` are the pool's, ``[U]``, None to compute them."""
        if stage is Stage.WHAT:
            alpha, aggregates = self.frozen.attend("train", rows)
            return self.pair.what(aggregates), alpha
        if scores is None and not self._scores_pool(rows, stage):
            return self.pair(self.frozen.patches(self.mosaics.pool, self.mosaics.index[rows]))
        index = self.mosaics.index[rows]
        if scores is None:
            scores = self.pair.score(self._pool_in(1)[0])
        patches = self._pool_patches
        of_mosaics = _rows_of(patches, index) if isinstance(patches, Tensor) else replace(patches, index=index)
        return self.pair(of_mosaics, scores[index])

    def _pool_in(self, pieces: int) -> Sequence[Tensor | IndexedPatches]:
        """Returns all patches of the pool in pieces."""
        patches = self._pool_patches
        if isinstance(patches, Tensor):
            return patches.chunk(pieces)
        return [replace(patches, index=index) for index in patches.index.chunk(pieces)]

    @functools.cached_property
    def _pool_patches(self) -> Tensor | IndexedPatches:
        return self.frozen.patches(self.mosaics.pool, torch.arange(len(self.mosaics.pool)))


def _rows_of(patches: Tensor, index: Tensor) -> Tensor:
    """Returns the patches ``[*n, *patch]`` at an index ``[*n]``; images keep their channels-last memory layout."""
    if patches.dim() != 4:
        return patches[index]
    channels_last = patches.movedim(1, -1)
    picked = channels_last.index_select(0, index.flatten()).view(*index.shape, *channels_last.shape[1:])
    return picked.movedim(-1, -3)


# ---- gradients of pieces


def gradients(
    loss: Tensor, parameters: Sequence[Tensor], grad_output: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Returns a loss's gradients, None for parameters it does not depend on; does not change their ``grad``."""
    return torch.autograd.grad(loss, parameters, grad_output, allow_unused=True)


def add_up(parts: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Sums the gradients of pieces in the pieces' order, so that the result does not depend on threads' speed."""
    totals: list[Tensor | None] = []
    for parameter_parts in zip(*parts, strict=True):
        present = [part for part in parameter_parts if part is not None]
        totals.append(functools.reduce(torch.add, present) if present else None)
    return totals


def with_gradients(loss: Any, parameters: Sequence[nn.Parameter], computed: Sequence[Tensor | None]) -> Tensor:
    """Returns a loss whose backward pass gives the parameters gradients that are already computed."""
    differentiable: Tensor = _ComputedGradients.apply(loss, computed, *parameters)
    return differentiable


class _ComputedGradients(torch.autograd.Function):
    """Returns the loss unchanged; its backward pass returns stored gradients of the parameters."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, computed: Sequence[Tensor | None], *parameters: nn.Parameter) -> Tensor:
        ctx.computed = computed
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return None, None, *(None if gradient is None else gradient * scale for gradient in ctx.computed)
