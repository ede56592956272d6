"""Networks that predict the digit in an image, and the sum or product of the digit and a number."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnmosaic.nn.networks import MLP, max_pool

DIGITS = 10


def _with_number(features: Float[Tensor, "B N"], number: Int[Tensor, " B"]) -> Float[Tensor, "B M"]:
    """Appends the one-hot encoded number to the features of the image."""
    return torch.cat([features, F.one_hot(number, DIGITS).to(features.dtype)], dim=1)


class SumNet(nn.Module):
    """An image network with ten outputs, and an adder that takes these outputs and the one-hot number.

    The layers are those in the layer table of the digit-and-sum exercise (docs/sources.md). The image network has
    convolutions without bias. All convolutions except the last are followed by batch normalisation, ReLU and dropout;
    the third by max pooling instead of dropout. The adder has fully connected layers of sizes 20-32-64-128-outputs.

    Args:
        in_shape: ``(C, 28, 28)``.
        outputs: number of results, 19 in the digit-and-sum exercise.
        dropout: rate of every dropout layer; the exercise does not state it.

    Raises:
        ValueError: the images have another size.
    """

    def __init__(self, in_shape: Sequence[int], outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        if len(in_shape) != 3 or tuple(in_shape[1:]) != (28, 28):
            raise ValueError(f"SumNet needs images of 28 x 28 pixels, got shape {tuple(in_shape)}")

        def convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        def linear(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(dropout)]

        self.image = nn.Sequential(
            *convolution(in_shape[0], 10, 3), nn.Dropout(dropout),  # 26 x 26
            *convolution(10, 10, 3), nn.Dropout(dropout),  # 24 x 24
            *convolution(10, 15, 3), nn.MaxPool2d(2),  # 11 x 11
            *convolution(15, 10, 1), nn.Dropout(dropout),
            *convolution(10, 10, 3), nn.Dropout(dropout),  # 9 x 9
            *convolution(10, 10, 3), nn.Dropout(dropout),  # 7 x 7
            *convolution(10, 10, 3), nn.Dropout(dropout),  # 5 x 5
            nn.Conv2d(10, DIGITS, 5, bias=False),
            nn.Flatten(),
        )  # fmt: skip
        self.adder = nn.Sequential(
            *linear(2 * DIGITS, 32), *linear(32, 64), *linear(64, 128), nn.Linear(128, outputs)
        )  # fmt: skip

    def forward(
        self, image: Float[Tensor, "B C H W"], number: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B 10"], Float[Tensor, "B outputs"]]:
        """Returns the logits of the digit and of the result."""
        digit = self.image(image)
        return digit, self.adder(_with_number(digit, number))


class ProductNet(nn.Module):
    """Convolutional features with a digit head, and a product head that also takes the one-hot number.

    The architecture follows the digit-and-product exercise (docs/sources.md): three 3 x 3 convolutions with ReLU, the
    first two with 2 x 2 max pooling. The exercise gives no layer sizes; the default sizes are this project's choice.

    Args:
        in_shape: ``(C, H, W)``, at least 18 x 18 pixels.
        outputs: number of results; two digits have 37 different products.
        channels: numbers of filters of the three convolutions.
        hidden: sizes of the layers between the features and the product.

    Raises:
        ValueError: the images are smaller, or ``channels`` has not three numbers.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (8, 16, 32),
        hidden: Sequence[int] = (128,),
    ) -> None:
        super().__init__()
        if len(in_shape) != 3 or min(in_shape[1:]) < 18:
            raise ValueError(f"ProductNet needs images of at least 18 x 18 pixels, got shape {tuple(in_shape)}")
        first, second, third = channels
        self.conv1 = nn.Conv2d(in_shape[0], first, 3)
        self.conv2 = nn.Conv2d(first, second, 3)
        self.conv3 = nn.Conv2d(second, third, 3)
        features = third * math.prod(((side - 2) // 2 - 2) // 2 - 2 for side in in_shape[1:])
        self.digit = nn.Linear(features, DIGITS)
        self.product = MLP((features + DIGITS,), outputs, hidden)

    def forward(
        self, image: Float[Tensor, "B C H W"], number: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B 10"], Float[Tensor, "B outputs"]]:
        """Returns the logits of the digit and of the result."""
        # ReLU and max pooling commute, see `attnmosaic.nn.networks.ConvNet`.
        x = F.relu(max_pool(self.conv1(image)))
        x = F.relu(max_pool(self.conv2(x)))
        features = F.relu(self.conv3(x)).flatten(1)
        return self.digit(features), self.product(_with_number(features, number))
