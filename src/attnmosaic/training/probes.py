"""Tries networks before training: how many operations they take, and whether they treat every mosaic on its own."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnmosaic.nn.attention import WhereWhat


def flop_of(work: Callable[[], object]) -> int:
    """Counts the multiplications and additions of matrix products, convolutions and attention in some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def forward_flop(pair: WhereWhat, patch_shape: Sequence[int]) -> tuple[int, int]:
    """Counts the operations of a forward pass: of Where for a patch, 0 without one, and of What for an aggregate."""
    tried = copy.deepcopy(pair).cpu()
    where, what = tried.where, tried.what
    two = torch.zeros(2, *patch_shape, dtype=next(pair.parameters()).dtype)
    return flop_of(lambda: where(two)) // 2 if where is not None else 0, flop_of(lambda: what(two)) // 2


@torch.no_grad()
def decomposes(
    pair: WhereWhat, objective: Callable[[Tensor, Tensor, Tensor], Tensor], patch_shape: Sequence[int], patches: int
) -> bool:
    """Returns whether the halves of a minibatch give what the minibatch gives, while both networks train.

    Batch normalisation mixes the mosaics of a minibatch, and dropout draws for each patch anew: both give something
    else. Tried on a copy of the networks, in float64; False if they fail in it.

    Args:
        pair: the networks.
        objective: ``(logits, alpha, label) -> mean loss``.
        patch_shape: ``(C, H, W)`` or ``(D,)``.
        patches: patches a mosaic, P.
    """
    drawn = torch.randn(4, patches, *patch_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = drawn.flatten(2).mean(dim=2) if pair.where is None else None
    label = torch.tensor([0, 1, 1, 0])

    def outcome(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        logits, alpha = tried(drawn[rows], None if scores is None else scores[rows])
        return logits, alpha, measure(logits, alpha, label[rows])

    with torch.random.fork_rng(devices=[]):
        try:
            tried, measure = copy.deepcopy(pair).cpu().double().train(), copy.deepcopy(objective)
            if isinstance(measure, nn.Module):
                measure.cpu().double()
            whole, first, second = outcome(slice(4)), outcome(slice(2)), outcome(slice(2, 4))
        except Exception:
            return False
    joined = (torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]), (first[2] + second[2]) / 2)
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(whole, joined, strict=True))
