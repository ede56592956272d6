"""The gradient with respect to the attention weights equals finite differences and a closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attnmosaic.metrics.gradients import alpha_gradients, foreground_and_background
from attnmosaic.nn.networks import MLP, ConvNet
from attnmosaic.nn.objectives import CrossEntropy

P = 5
SHAPES = {(2,): lambda: MLP((2,), 3, [7]), (1, 8, 8): lambda: ConvNet((1, 8, 8), 3, hidden=[9])}


def mosaics(shape: tuple[int, ...], n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    alpha = torch.randn(n, P, dtype=torch.float64, generator=generator).softmax(dim=1)
    patches = 2 * torch.randn(n, P, *shape, dtype=torch.float64, generator=generator)
    return alpha, patches, torch.randint(3, (n,), generator=generator)


def network(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make().double().eval()


@pytest.mark.parametrize("entropy", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_equals_finite_differences(shape: tuple[int, ...], entropy: float) -> None:
    """Changes one weight of one mosaic by eps and compares the change of that mosaic's loss."""
    alpha, patches, label = mosaics(shape)
    what, objective = network(SHAPES[shape]), CrossEntropy(entropy)

    @torch.no_grad()
    def loss(i: int, weights: Tensor) -> float:
        summed = sum(a * x for a, x in zip(weights, patches[i], strict=True))
        return objective(what(summed[None]), weights[None], label[i : i + 1]).item()

    gradient = alpha_gradients(what, objective, alpha, patches, label)
    eps = 1e-6
    for i in range(len(alpha)):
        for p in range(P):
            step = torch.zeros(P, dtype=torch.float64)
            step[p] = eps
            difference = (loss(i, alpha[i] + step) - loss(i, alpha[i] - step)) / (2 * eps)
            assert gradient[i, p].item() == pytest.approx(difference, rel=1e-6, abs=1e-8), (i, p)


def test_gradient_equals_the_closed_form_for_a_linear_what() -> None:
    """The form is (1 - k) x_p W^T (softmax - one-hot) - k (ln alpha + 1), with k the weight of the entropy."""
    alpha, patches, label = mosaics((2,))
    what, k = network(lambda: MLP((2,), 3, [])), 0.3
    weight, bias = what.layers[0].weight.detach(), what.layers[0].bias.detach()
    gradient = alpha_gradients(what, CrossEntropy(k), alpha, patches, label)
    for i in range(len(alpha)):
        logits = weight @ (alpha[i] @ patches[i]) + bias
        error = logits.softmax(0) - torch.eye(3, dtype=torch.float64)[label[i]]
        expected = (1 - k) * patches[i] @ weight.T @ error - k * (alpha[i].log() + 1)
        torch.testing.assert_close(gradient[i], expected, rtol=0, atol=1e-12)


def test_inputs_parameters_and_random_state_do_not_change() -> None:
    alpha, patches, label = mosaics((2,))
    what, before = network(SHAPES[(2,)]), alpha.clone()
    what.layers[0].weight.grad = kept = torch.ones_like(what.layers[0].weight)
    random_state = torch.get_rng_state()
    with torch.no_grad():
        gradient = alpha_gradients(what, CrossEntropy(), alpha, patches, label)
    assert not gradient.requires_grad
    assert not alpha.requires_grad
    assert torch.equal(alpha, before)
    assert what.layers[0].weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert what.layers[0].bias.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)


def test_foreground_and_background() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [1e20, 1.0, 1.0]])
    foreground, background = foreground_and_background(values, torch.tensor([1, 2, 0]))
    assert foreground.tolist() == [2.0, 32.0, pytest.approx(1e20)]
    assert background.tolist() == [5.0, 24.0, 2.0]
    assert values[0].tolist() == [1.0, 2.0, 4.0]
