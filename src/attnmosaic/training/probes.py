"""Tests networks before training: number of operations, and whether every mosaic is computed independently."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnmosaic.nn.attention import WhereWhat
from attnmosaic.nn.networks import ConvNet


def flop_of(work: Callable[[], object]) -> int:
    """Counts the multiplications and additions of matrix products, convolutions and attention in a function call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def forward_flop(pair: WhereWhat, patch_shape: Sequence[int]) -> tuple[int, int]:
    """Counts the floating-point operations of one forward pass of a network.

    Returns:
        Operations of Where for one patch (0 without a where network), and of What for one aggregate.
    """
    pair_copy = copy.deepcopy(pair).cpu()
    for network in pair_copy.modules():
        if isinstance(network, ConvNet):
            network.kernel = None  # torch counts the operations of its own functions only
    where, what = pair_copy.where, pair_copy.what
    patches = torch.zeros(2, *patch_shape, dtype=next(pair.parameters()).dtype)
    return flop_of(lambda: where(patches)) // 2 if where is not None else 0, flop_of(lambda: what(patches)) // 2


@torch.no_grad()
def decomposes(
    pair: WhereWhat, objective: Callable[[Tensor, Tensor, Tensor], Tensor], patch_shape: Sequence[int], patches: int
) -> bool:
    """Returns whether the two halves of a minibatch, computed separately, give the same results as the minibatch.

    Both networks are in training mode. The results differ with batch normalisation, which uses statistics of the
    minibatch, and with dropout, which samples for each patch. The test uses a copy of the networks in float64; if they
    fail in float64, the function returns False.

    Args:
        pair: the networks.
        objective: ``(logits, alpha, label) -> mean loss``.
        patch_shape: ``(C, H, W)`` or ``(D,)``.
        patches: number of patches in a mosaic, P.
    """
    sampled = torch.randn(4, patches, *patch_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = sampled.flatten(2).mean(dim=2) if pair.where is None else None
    label = torch.tensor([0, 1, 1, 0])

    def outcome(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        logits, alpha = pair_copy(sampled[rows], None if scores is None else scores[rows])
        return logits, alpha, objective_copy(logits, alpha, label[rows])

    with torch.random.fork_rng(devices=[]):
        try:
            pair_copy, objective_copy = copy.deepcopy(pair).cpu().double().train(), copy.deepcopy(objective)
            if isinstance(objective_copy, nn.Module):
                objective_copy.cpu().double()
            minibatch, first, second = outcome(slice(4)), outcome(slice(2)), outcome(slice(2, 4))
        except Exception:
            return False
    joined = (torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]), (first[2] + second[2]) / 2)
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(minibatch, joined, strict=True))
