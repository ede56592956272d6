"""Objectives: cross-entropy, its mean with the entropy of attention weights, and the sum of two cross-entropies."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnmosaic.nn.objectives import CrossEntropy, SumOfCrossEntropies, attention_entropy


def batch(n: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    alpha = torch.randn(n, 9, dtype=torch.float64, generator=generator).softmax(dim=1)
    return logits, alpha, torch.randint(3, (n,), generator=generator)


def test_objective_without_entropy_is_cross_entropy() -> None:
    logits, alpha, label = batch()
    assert torch.equal(CrossEntropy()(logits, alpha, label), F.cross_entropy(logits, label))
    assert torch.equal(CrossEntropy(0.0)(logits, alpha, label), F.cross_entropy(logits, label))


@pytest.mark.parametrize("k", [0.3, 0.5, 1.0])
def test_objective_equals_its_formula(k: float) -> None:
    logits, alpha, label = batch()
    terms = []
    for row, weights, y in zip(logits.tolist(), alpha.tolist(), label.tolist(), strict=True):
        cross = math.log(sum(math.exp(z) for z in row)) - row[y]
        entropy = -sum(a * math.log(a) for a in weights)
        terms.append((1 - k) * cross + k * entropy)
    assert CrossEntropy(k)(logits, alpha, label).item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


@pytest.mark.parametrize("patches", [2, 9, 16])
def test_entropy_of_equal_and_of_one_hot_weights(patches: int) -> None:
    equal = torch.full((patches,), 1 / patches, dtype=torch.float64)
    one_hot = F.one_hot(torch.tensor(patches - 1), patches).double()
    half = torch.zeros(patches, dtype=torch.float64)
    half[:2] = 0.5
    entropies = attention_entropy(torch.stack([equal, one_hot, half]))
    torch.testing.assert_close(entropies, torch.tensor([math.log(patches), 0, math.log(2)], dtype=torch.float64))


def test_gradient_equals_finite_differences() -> None:
    logits, alpha, label = batch()
    objective = CrossEntropy(0.3)
    assert torch.autograd.gradcheck(
        lambda z, s: objective(z, s.softmax(dim=1), label), (logits.requires_grad_(), alpha.log().requires_grad_())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_where_a_weight_is_exactly_zero(dtype: torch.dtype) -> None:
    """Softmax underflows to 0 if scores are far apart; training must not fail then."""
    scores = torch.tensor([[0.0, 1000.0, 999.0], [0.0, 1.0, 2.0]], dtype=dtype, requires_grad=True)
    alpha = scores.softmax(dim=1)
    assert alpha[0, 0] == 0
    CrossEntropy(0.3)(torch.zeros(2, 3, dtype=dtype), alpha, torch.tensor([0, 1])).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all(), scores.grad
    assert scores.grad[0, 0] == 0
    assert (scores.grad[0, 1:] != 0).all()
    assert (scores.grad[1] != 0).any()


def test_no_nan_with_fixed_weights_of_zero() -> None:
    alpha = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    loss = CrossEntropy(0.3)(torch.zeros(1, 3), alpha, torch.tensor([0]))
    assert loss.item() == pytest.approx(0.7 * math.log(3))
    loss.backward()
    assert alpha.grad is not None
    assert not alpha.grad.isnan().any()


def test_sum_of_cross_entropies() -> None:
    """The loss is the sum of both terms, and both outputs get gradients."""
    generator = torch.Generator().manual_seed(0)
    digit_logits = torch.randn(6, 10, dtype=torch.float64, generator=generator, requires_grad=True)
    result_logits = torch.randn(6, 19, dtype=torch.float64, generator=generator, requires_grad=True)
    digit, result = torch.tensor([0, 1, 2, 3, 4, 9]), torch.tensor([18, 0, 4, 4, 11, 12])
    loss = SumOfCrossEntropies()(digit_logits, result_logits, digit, result)
    rows = torch.arange(6)
    by_hand = sum(
        -(logits.softmax(dim=1)[rows, true].log()).sum() / 6
        for logits, true in ((digit_logits, digit), (result_logits, result))
    )
    assert loss.item() == pytest.approx(by_hand.item())
    loss.backward()
    for logits, true in ((digit_logits, digit), (result_logits, result)):
        expected = (logits.detach().softmax(dim=1) - torch.eye(logits.shape[1])[true]) / 6
        assert torch.allclose(logits.grad, expected)
