"""Attention is a weighted sum of patches, and each patch is scored independently."""

import pytest
import torch
from torch import Tensor, nn

from attnmosaic.nn.attention import WhereWhat, aggregate
from attnmosaic.nn.networks import MLP, ConvNet

SHAPES = [(2,), (7,), (1, 4, 4), (3, 5, 6)]


def mosaics(shape: tuple[int, ...], layout: str = "contiguous", n: int = 4, patches: int = 9) -> Tensor:
    """Random float64 patches ``[n, patches, *shape]``; ``channels_last`` is the memory layout of a pool's patches."""
    x = torch.randn(n, patches, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if layout == "channels_last" else x


def weights(n: int = 4, patches: int = 9) -> Tensor:
    return torch.rand(n, patches, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pair(shape: tuple[int, ...]) -> WhereWhat:
    torch.manual_seed(0)
    if len(shape) == 3:
        return WhereWhat(ConvNet(shape, 1), ConvNet(shape, 3)).double()
    return WhereWhat(MLP(shape, 1, (4, 8)), MLP(shape, 3, (4,))).double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("n", "patches"), [(4, 9), (1, 9), (3, 2), (2, 1)])
def test_aggregate_is_the_weighted_sum(shape: tuple[int, ...], layout: str, n: int, patches: int) -> None:
    x, alpha = mosaics(shape, layout, n, patches), weights(n, patches)
    aggregates = aggregate(alpha, x)
    assert aggregates.shape == (n, *shape)
    torch.testing.assert_close(aggregates, torch.einsum("bp,bp...->b...", alpha, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (3, 2, 2)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_of_aggregate(shape: tuple[int, ...], layout: str) -> None:
    alpha, x = weights().requires_grad_(), mosaics(shape, layout).requires_grad_()
    assert torch.autograd.gradcheck(aggregate, (alpha, x))


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_gradient_of_logits_with_respect_to_scores(shape: tuple[int, ...]) -> None:
    """The gradient goes through What, the weighted sum and softmax."""
    network, x = pair(shape), mosaics(shape)

    def logits(scores: Tensor) -> Tensor:
        return network.what(aggregate(network.weigh(scores), x))

    assert torch.autograd.gradcheck(logits, weights().requires_grad_())


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_weights_sum_to_one_and_follow_the_scores(shape: tuple[int, ...]) -> None:
    network, x = pair(shape), mosaics(shape) * 10
    logits, alpha = network(x)
    assert logits.shape == (4, 3)
    assert alpha.shape == (4, 9)
    assert (alpha >= 0).all()
    torch.testing.assert_close(alpha.sum(dim=1), torch.ones(4, dtype=torch.float64))
    scores = network.score(x.flatten(0, 1)).view(4, 9)
    assert torch.equal(alpha.argsort(dim=1), scores.argsort(dim=1))
    torch.testing.assert_close(alpha.log() - scores, (alpha.log() - scores)[:, :1].expand(4, 9))


@pytest.mark.parametrize("shape", [(2,), (3, 5, 6)])
def test_equal_scores_give_the_plain_mean(shape: tuple[int, ...]) -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_full((len(x), 1), 3.0)

    x = mosaics(shape)
    average, alpha = WhereWhat(Same(), nn.Flatten())(x)
    torch.testing.assert_close(alpha, torch.full_like(alpha, 1 / 9))
    torch.testing.assert_close(average, x.mean(dim=1).flatten(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 16, 16)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batch_of_patches_equals_patches_one_by_one(shape: tuple[int, ...], layout: str) -> None:
    network, x = pair(shape), mosaics(shape, layout)
    logits, alpha = network(x)
    for b in range(4):
        scores = torch.stack([network.where(x[b, p : p + 1])[0, 0] for p in range(9)])
        single = (scores - scores.max()).exp()
        single = single / single.sum()
        average = sum(single[p] * x[b, p] for p in range(9))
        torch.testing.assert_close(alpha[b], single, rtol=0, atol=1e-12)
        torch.testing.assert_close(logits[b], network.what(average[None])[0], rtol=0, atol=1e-12)


def test_permuted_patches_give_permuted_weights() -> None:
    network, x = pair((1, 8, 8)), mosaics((1, 8, 8))
    order = torch.tensor([3, 1, 4, 0, 5, 8, 2, 6, 7])
    (logits, alpha), (permuted_logits, permuted_alpha) = network(x), network(x[:, order])
    assert alpha.std() > 0
    torch.testing.assert_close(permuted_alpha, alpha[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(permuted_logits, logits, rtol=0, atol=1e-12)
