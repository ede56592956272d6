"""A good script without this package: vectorized, in float32, in one file.

The scaled pool is in memory and a mosaic is a row of indices into it. One call of Where scores all patches of a
minibatch, and the frozen network gets no gradients.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 250


def sample(labels: np.ndarray, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples mosaics: index ``[n, 9]``, foreground position ``[n]``, label ``[n]``; classes 7 to 9 are foreground."""
    rng = np.random.default_rng(seed)
    index = rng.choice(np.flatnonzero(labels < 7), (n, 9))
    position = rng.integers(9, size=n)
    index[np.arange(n), position] = rng.choice(np.flatnonzero(labels >= 7), n)
    label = labels[index[np.arange(n), position]] - 7
    return torch.from_numpy(index), torch.from_numpy(position), torch.from_numpy(label)


def forward(where: nn.Module, what: nn.Module, mosaics: Tensor, train_where: bool) -> tuple[Tensor, Tensor]:
    """Returns the logits and attention weights of mosaics ``[B, 9, *patch]``."""
    with torch.set_grad_enabled(train_where):
        alpha = where(mosaics.flatten(0, 1)).view(mosaics.shape[:2]).softmax(dim=1)
        average = torch.einsum("bp,bp...->b...", alpha, mosaics)
    return what(average), alpha


def train(
    where: nn.Module,
    what: nn.Module,
    training: str,
    pool: Tensor,
    index: Tensor,
    labels: Tensor,
    optimizer: torch.optim.SGD,
) -> None:
    """Trains one network, "what" or "where", for an epoch on all rows of the index in random order."""
    where.requires_grad_(training == "where")
    what.requires_grad_(training == "what")
    for rows in torch.randperm(len(index), device=index.device).split(BATCH):
        optimizer.zero_grad()
        logits, _ = forward(where, what, pool[index[rows]], training == "where")
        F.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(where: nn.Module, what: nn.Module, pool: Tensor, index: Tensor, position: Tensor, labels: Tensor) -> float:
    """Returns the fraction of mosaics with focus on the foreground and a right prediction."""
    right = torch.zeros((), device=index.device)
    for rows in torch.arange(len(index), device=index.device).split(BATCH):
        logits, alpha = forward(where, what, pool[index[rows]], False)
        right += ((logits.argmax(1) == labels[rows]) & (alpha.argmax(1) == position[rows])).sum()
    return right.item() / len(index)
