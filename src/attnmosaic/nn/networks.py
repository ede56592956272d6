"""The documents' networks. Each serves as where network (one output) and as what network (one a class)."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def max_pool(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """Pools 2 x 2 by the maximum; on a CPU, where no gradient is wanted, in a sixth of the time of torch's own."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.max_pool2d(x, 2)
    height, width = (side // 2 * 2 for side in x.shape[2:])
    rows = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


class MLP(nn.Module):
    """Fully connected network with ReLU between its layers, for points (document 000).

    Args:
        in_shape: shape of one patch.
        outputs: number of outputs.
        hidden: sizes of the hidden layers; document 000 has (4, 8) for Where and (4,) for What.
    """

    def __init__(self, in_shape: Sequence[int], outputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [math.prod(in_shape), *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Float[Tensor, "B *patch"]) -> Float[Tensor, "B outputs"]:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ConvNet(nn.Module):
    """Two convolutions with pooling, then fully connected layers (documents 001 and 002).

    At 3 x 32 x 32 this is the documents' network layer for layer: 5 x 5 convolutions with 6 and 16 filters,
    each followed by ReLU and 2 x 2 max pooling, then 400-120-84-10-outputs. Patches under 16 pixels do not
    survive two such convolutions; they get padded 3 x 3 ones.

    Args:
        in_shape: ``(C, H, W)`` of one patch.
        outputs: number of outputs.
        channels: filters of the two convolutions.
        hidden: sizes of the fully connected layers between the convolutions and the output.

    Raises:
        ValueError: the patch is no image, or smaller than 4 x 4.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (6, 16),
        hidden: Sequence[int] = (120, 84, 10),
    ) -> None:
        super().__init__()
        if len(in_shape) != 3 or min(in_shape[1:]) < 4:
            raise ValueError(f"ConvNet takes images of at least 4 x 4 pixels, the patches are {tuple(in_shape)}")
        depth, height, width = in_shape
        kernel, padding = (5, 0) if min(height, width) >= 16 else (3, 1)
        self.conv1 = nn.Conv2d(depth, channels[0], kernel, padding=padding)
        self.conv2 = nn.Conv2d(channels[0], channels[1], kernel, padding=padding)
        lost = kernel - 1 - 2 * padding
        height, width = (((side - lost) // 2 - lost) // 2 for side in (height, width))
        self.head = MLP((channels[1], height, width), outputs, hidden)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B outputs"]:
        # ReLU and max pooling commute; pooling first leaves ReLU a quarter of the work.
        x = F.relu(max_pool(self.conv1(x)))
        x = F.relu(max_pool(self.conv2(x)))
        # The head's own ReLUs follow each of its layers but the last, as in the documents.
        return self.head(x)
