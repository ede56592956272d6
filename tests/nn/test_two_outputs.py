"""The networks of the MNIST exercises."""

import pytest
import torch
from torch import Tensor, nn

from attnmosaic.nn.two_outputs import ProductNet, SumNet

# The layer table of the digit-and-sum exercise (docs/sources.md): layer, output shape, number of parameters. Its row
# MNISt-30 is the complete image network and is left out here.
TABLE = [
    ("Conv2d", (10, 26, 26), 90), ("BatchNorm2d", (10, 26, 26), 20), ("ReLU", (10, 26, 26), 0),
    ("Dropout", (10, 26, 26), 0),
    ("Conv2d", (10, 24, 24), 900), ("BatchNorm2d", (10, 24, 24), 20), ("ReLU", (10, 24, 24), 0),
    ("Dropout", (10, 24, 24), 0),
    ("Conv2d", (15, 22, 22), 1350), ("BatchNorm2d", (15, 22, 22), 30), ("ReLU", (15, 22, 22), 0),
    ("MaxPool2d", (15, 11, 11), 0),
    ("Conv2d", (10, 11, 11), 150), ("BatchNorm2d", (10, 11, 11), 20), ("ReLU", (10, 11, 11), 0),
    ("Dropout", (10, 11, 11), 0),
    ("Conv2d", (10, 9, 9), 900), ("BatchNorm2d", (10, 9, 9), 20), ("ReLU", (10, 9, 9), 0), ("Dropout", (10, 9, 9), 0),
    ("Conv2d", (10, 7, 7), 900), ("BatchNorm2d", (10, 7, 7), 20), ("ReLU", (10, 7, 7), 0), ("Dropout", (10, 7, 7), 0),
    ("Conv2d", (10, 5, 5), 900), ("BatchNorm2d", (10, 5, 5), 20), ("ReLU", (10, 5, 5), 0), ("Dropout", (10, 5, 5), 0),
    ("Conv2d", (10, 1, 1), 2500),
    ("Linear", (32,), 672), ("BatchNorm1d", (32,), 64), ("ReLU", (32,), 0), ("Dropout", (32,), 0),
    ("Linear", (64,), 2112), ("BatchNorm1d", (64,), 128), ("ReLU", (64,), 0), ("Dropout", (64,), 0),
    ("Linear", (128,), 8320), ("BatchNorm1d", (128,), 256), ("ReLU", (128,), 0), ("Dropout", (128,), 0),
    ("Linear", (19,), 2451),
]  # fmt: skip


def batch(size: int = 28, n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, size, size, generator=generator), torch.tensor([0, 9, 5, 5])[:n]


def layers(network: nn.Module) -> list[tuple[str, tuple[int, ...], int]]:
    """Runs a network and returns its layers in the order of their calls."""
    called = []

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        parameters = sum(p.numel() for p in layer.parameters())
        called.append((type(layer).__name__, tuple(output.shape[1:]), parameters))

    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(note)
    network(*batch())
    return called


def test_sum_net_has_the_published_layers() -> None:
    called = layers(SumNet((1, 28, 28), 19))
    assert [layer for layer in called if layer[0] != "Flatten"] == TABLE


def test_all_dropout_layers_of_sum_net_have_the_given_rate() -> None:
    rates = {layer.p for layer in SumNet((1, 28, 28), 19, dropout=0.3).modules() if isinstance(layer, nn.Dropout)}
    assert rates == {0.3}


def test_adder_takes_the_ten_digit_logits_and_the_one_hot_number() -> None:
    network = SumNet((1, 28, 28), 19).eval()
    adder_inputs = []
    network.adder.register_forward_pre_hook(lambda _, inputs: adder_inputs.append(inputs[0]))
    image, number = batch()
    digit, result = network(image, number)
    assert digit.shape == (4, 10)
    assert result.shape == (4, 19)
    assert torch.equal(adder_inputs[0][:, :10], digit)
    assert torch.equal(adder_inputs[0][:, 10:], torch.eye(10)[number])
    # Another number therefore changes the logits of the sum and not those of the digit.
    other_digit, other_result = network(image, (number + 1) % 10)
    assert torch.equal(digit, other_digit)
    assert (result != other_result).any(dim=1).all()


def test_product_net_has_the_published_layers() -> None:
    """Three convolutions, the first two pooled; the product head takes flattened features and one-hot number."""
    network = ProductNet((1, 28, 28), 37)
    assert layers(network) == [
        ("Conv2d", (8, 26, 26), 80),
        ("Conv2d", (16, 11, 11), 1168),  # 26 pooled to 13
        ("Conv2d", (32, 3, 3), 4640),  # 11 pooled to 5, not pooled after
        ("Linear", (10,), 2890),  # from 32 * 3 * 3 features
        ("Linear", (128,), 38272),  # from these features and 10 more inputs
        ("Linear", (37,), 4773),
    ]
    digits, products = [], []
    network.digit.register_forward_pre_hook(lambda _, inputs: digits.append(inputs[0]))
    network.product.register_forward_pre_hook(lambda _, inputs: products.append(inputs[0]))
    image, number = batch()
    network(image, number)
    assert torch.equal(products[0], torch.cat([digits[0], torch.eye(10)[number]], dim=1))
    assert (digits[0] >= 0).all()


def test_product_net_takes_other_sizes_and_channels() -> None:
    for shape in ((1, 18, 18), (3, 40, 30)):
        digit, product = ProductNet(shape, 37, channels=(2, 3, 4), hidden=())(
            torch.zeros(2, *shape), torch.tensor([1, 2])
        )
        assert (digit.shape, product.shape) == ((2, 10), (2, 37))


@pytest.mark.parametrize("network", [SumNet, ProductNet])
@pytest.mark.parametrize("grad", [True, False])
def test_float64_outputs_and_gradients(network: type[nn.Module], grad: bool) -> None:
    """Both outputs depend on the first layer's weights; pooling is the same with and without gradients."""
    instance = network((1, 28, 28), 19).double().eval()
    image, number = batch()
    with torch.set_grad_enabled(grad):
        outputs = instance(image.double(), number)
    again = instance(image.double(), number)
    for output, twin in zip(outputs, again, strict=True):
        assert output.dtype == torch.float64
        assert torch.allclose(output, twin, rtol=1e-12)
        first = next(instance.parameters())
        (gradient,) = torch.autograd.grad(twin.logsumexp(dim=1).sum(), first, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("network", "shape"), [(SumNet, (1, 27, 28)), (ProductNet, (1, 28, 17)), (ProductNet, (5,))])
def test_images_of_another_size_are_refused(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs images of .* pixels"):
        network(shape, 19)
