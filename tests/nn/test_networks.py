"""The networks of the mosaic studies: their layers and their outputs."""

import pytest
import torch

from attnmosaic.nn.networks import MLP, ConvNet, max_pool
from benchmarks import reference


def linear(*sizes: int) -> list[tuple[int, ...]]:
    """Returns weight and bias shapes of fully connected layers with these sizes."""
    shapes: list[tuple[int, ...]] = []
    for i in range(1, len(sizes)):
        shapes += [(sizes[i], sizes[i - 1]), (sizes[i],)]
    return shapes


def shapes(network: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in network.parameters()]


@pytest.mark.parametrize(("outputs", "hidden"), [(1, (4, 8)), (3, (4,)), (1, (50, 50)), (3, (50,)), (2, ())], ids=str)
def test_mlp_layers(outputs: int, hidden: tuple[int, ...]) -> None:
    network = MLP((2,), outputs, hidden)
    assert shapes(network) == linear(2, *hidden, outputs)
    assert network(torch.randn(6, 2)).shape == (6, outputs)


def test_mlp_equals_a_calculation_by_hand() -> None:
    """ReLU follows every layer except the last: (1, 3) -> (-2, 1) -> (0, 1) -> (3, -7) -> (3, 0) -> -4."""
    network = MLP((2,), 1, (2, 2))
    values = ([[1, -1], [2, 0]], [0, -1], [[9, 4], [1, -7]], [-1, 0], [[-2, 8]], [2])
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    assert network(torch.tensor([[1.0, 3.0]])).tolist() == [[-4.0]]


def test_mlp_flattens_images() -> None:
    network = MLP((3, 4, 5), 2, (7,))
    assert shapes(network) == linear(60, 7, 2)
    x = torch.randn(6, 3, 4, 5)
    assert torch.equal(network(x), network(x.view(6, 60)))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_conv_net_equals_the_network_of_the_studies(outputs: int, memory: torch.memory_format) -> None:
    expected = reference.Cnn(outputs).double()
    network = ConvNet((3, 32, 32), outputs).double()
    assert shapes(network) == shapes(expected)
    reference.take_weights(expected, network)
    network = network.to(memory_format=memory)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(network(x.contiguous(memory_format=memory)), expected(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("in_shape", "kernel", "features"),
    [
        ((1, 4, 4), 3, 16),
        ((1, 8, 8), 3, 64),
        ((2, 15, 40), 3, 16 * 3 * 10),
        ((3, 16, 16), 5, 16),
        ((3, 20, 24), 5, 16 * 2 * 3),
        ((1, 28, 28), 5, 256),
    ],
)
def test_conv_net_for_patches_of_other_sizes(in_shape: tuple[int, ...], kernel: int, features: int) -> None:
    """Under 16 pixels the convolutions are 3 x 3 with padding. Every weight has a gradient."""
    torch.manual_seed(0)
    network = ConvNet(in_shape, 3)
    assert shapes(network)[:4:2] == [(6, in_shape[0], kernel, kernel), (16, 6, kernel, kernel)]
    assert shapes(network)[4:] == linear(features, 120, 84, 10, 3)
    out = network(torch.randn(5, *in_shape))
    assert out.shape == (5, 3)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_conv_net_with_other_numbers_of_channels() -> None:
    network = ConvNet((1, 8, 8), 2, channels=(3, 5), hidden=())
    assert shapes(network) == [(3, 1, 3, 3), (3,), (5, 3, 3, 3), (5,), *linear(20, 2)]


@pytest.mark.parametrize("in_shape", [(2,), (28, 28), (1, 3, 28), (1, 28, 3), (1, 1, 8, 8)])
def test_conv_net_refuses_points_and_small_images(in_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 4 x 4") as caught:
        ConvNet(in_shape, 3)
    assert str(in_shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 6, 28, 28), (3, 16, 10, 10), (2, 5, 7, 9), (1, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_max_pool_equals_torchs_with_and_without_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
        x[0, 0, 0, 0] = float("nan")
        wanted = torch.nn.functional.max_pool2d(x, 2)
        with torch.no_grad():
            torch.testing.assert_close(max_pool(x), wanted, rtol=0, atol=0, equal_nan=True)
        with_gradients = x.clone().requires_grad_()
        assert max_pool(with_gradients).grad_fn.name().startswith("MaxPool2D")
