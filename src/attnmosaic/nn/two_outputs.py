"""Networks that predict the digit of an image and its result with a number."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnmosaic.nn.networks import MLP, max_pool

DIGITS = 10


def _with_number(features: Float[Tensor, "B N"], number: Int[Tensor, " B"]) -> Float[Tensor, "B M"]:
    """Appends the one-hot number to features of the image."""
    return torch.cat([features, F.one_hot(number, DIGITS).to(features.dtype)], dim=1)


class SumNet(nn.Module):
    """An image network whose ten outputs, with the one-hot number, feed an adder (document 003, its layer table).

    Image: 1 x 28 x 28; convolutions without bias, all but the last followed by batch normalisation, ReLU and (but
    for the third, which is pooled) dropout. Adder: 20-32-64-128-outputs.

    Args:
        in_shape: ``(C, 28, 28)``.
        outputs: number of results; document 003 has 19.
        dropout: rate of every dropout; the document does not state it.

    Raises:
        ValueError: the images are of another size.
    """

    def __init__(self, in_shape: Sequence[int], outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        if len(in_shape) != 3 or tuple(in_shape[1:]) != (28, 28):
            raise ValueError(f"SumNet takes images of 28 x 28 pixels, these are {tuple(in_shape)}")

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
    """Convolutional features that feed a digit head and, with the one-hot number, a product head (document 004).

    Three 3 x 3 convolutions with ReLU, the first two with 2 x 2 max pooling. The document gives no sizes: those
    here are ours.

    Args:
        in_shape: ``(C, H, W)``, at least 18 x 18.
        outputs: number of results; 37 products of two digits occur.
        channels: filters of the three convolutions.
        hidden: sizes of the layers between features and product.

    Raises:
        ValueError: the images are smaller, or there are not three convolutions.
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
            raise ValueError(f"ProductNet takes images of at least 18 x 18 pixels, these are {tuple(in_shape)}")
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
        # ReLU and max pooling commute, see ConvNet.
        x = F.relu(max_pool(self.conv1(image)))
        x = F.relu(max_pool(self.conv2(x)))
        features = F.relu(self.conv3(x)).flatten(1)
        return self.digit(features), self.product(_with_number(features, number))
