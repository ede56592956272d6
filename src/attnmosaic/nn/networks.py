"""The networks of the mosaic studies (docs/sources.md).

Each can be used as a where network, with one output, and as a what network, with one output for each class.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from attnmosaic.nn.fused import IndexedPatches, check, computes, features
from attnmosaic.nn.kernels import Kernel, UnavailableError


def max_pool(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """Returns the maximum of each 2 x 2 block; on a CPU without gradients this is six times as fast as torch's own."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.max_pool2d(x, 2)
    height, width = (side // 2 * 2 for side in x.shape[2:])
    rows = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


class MLP(nn.Module):
    """Fully connected network with ReLU between its layers, the network of the 2-D gradient study.

    Args:
        in_shape: shape of a patch.
        outputs: number of outputs.
        hidden: sizes of the hidden layers; in the 2-D gradient study (4, 8) for Where and (4,) for What.
    """

    def __init__(self, in_shape: Sequence[int], outputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [math.prod(in_shape), *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Float[Tensor, "B *patch"]) -> Float[Tensor, "B outputs"]:
        x = x.flatten(1)
        *hidden, last = self.layers  # a slice would be a new module for each call, which costs more than a small layer
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


class ConvNet(nn.Module):
    """Two convolutions with pooling, then fully connected layers.

    For patches of 3 x 32 x 32 this is the network of the weighted-average study and the stage-wise study: 5 x 5
    convolutions with 6 and 16 filters, each followed by ReLU and 2 x 2 max pooling, then fully connected layers of
    sizes 400-120-84-10-outputs. Patches under 16 pixels are too small for two such convolutions; for them the
    convolutions are 3 x 3 with padding.

    Args:
        in_shape: ``(C, H, W)`` of a patch.
        outputs: number of outputs.
        channels: filters of the two convolutions.
        hidden: sizes of the fully connected layers between the convolutions and the output.

    Raises:
        ValueError: the patch is not an image, or is smaller than 4 x 4 pixels.
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
            raise ValueError(f"ConvNet needs images of at least 4 x 4 pixels, got patches of shape {tuple(in_shape)}")
        self.in_shape = depth, height, width = (int(in_shape[0]), int(in_shape[1]), int(in_shape[2]))
        self.kernel: Kernel | None = None
        kernel, padding = (5, 0) if min(height, width) >= 16 else (3, 1)
        self.conv1 = nn.Conv2d(depth, channels[0], kernel, padding=padding)
        self.conv2 = nn.Conv2d(channels[0], channels[1], kernel, padding=padding)
        border = kernel - 1 - 2 * padding  # pixels by which a convolution makes each side smaller
        height, width = (((side - border) // 2 - border) // 2 for side in (height, width))
        self.head = MLP((channels[1], height, width), outputs, hidden)

    def fuse(self, dtype: torch.dtype, vectors: str, folder: str) -> None:
        """Computes the convolutions with a fused kernel from now on, for images of this type on a CPU.

        Args:
            dtype: torch.float32 or torch.float64.
            vectors: key of `attnmosaic.nn.kernels.VECTORS`.
            folder: folder of compiled kernels.

        Raises:
            UnavailableError: the kernel cannot be compiled or loaded, its results are wrong, or a layer was replaced.
        """
        if not (_is_plain(self.conv1) and _is_plain(self.conv2, self.conv1)):
            raise UnavailableError("the convolutions of a network were replaced")
        filters = self.conv1.out_channels, self.conv2.out_channels
        side, padding = self.conv1.kernel_size[0], int(self.conv1.padding[0])
        kernel = Kernel(self.in_shape, filters, side, padding, dtype, vectors, folder)
        check(kernel)
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "B C H W"] | IndexedPatches) -> Float[Tensor, "B outputs"]:
        # The head applies ReLU after each of its layers except the last, as in the mosaic studies.
        return self.head(self.features(x))

    def features(self, x: Float[Tensor, "B C H W"] | IndexedPatches) -> Tensor:
        """Returns the output of the convolutions."""
        if self.kernel is not None and not hooked(self.conv1, self.conv2):
            weights = [getattr(layer, name) for layer in (self.conv1, self.conv2) for name in ("weight", "bias")]
            if computes(self.kernel, x, weights):
                return features(self.kernel, x, weights)
        if isinstance(x, IndexedPatches):
            x = x.gathered
        # ReLU and max pooling commute; with pooling first, ReLU has a quarter of the work.
        x = F.relu(max_pool(self.conv1(x)))
        return F.relu(max_pool(self.conv2(x)))


def kernel_of(network: nn.Module | None) -> Kernel | None:
    """Returns the fused kernel of a network; None if torch's own functions compute it."""
    return network.kernel if isinstance(network, ConvNet) else None


def reads_index(network: nn.Module | None) -> bool:
    """Returns whether a network computes patches from their index in a pool; its hooks need a tensor."""
    return isinstance(network, ConvNet) and network.kernel is not None and not hooked(network)


def hooked(*modules: nn.Module) -> bool:
    """Returns whether modules have hooks. Torch's own fast paths read the same attributes; it has no public ones."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return _has_any_global_hook() or any(getattr(module, name) for module in modules for name in names)


def _is_plain(layer: nn.Module, like: nn.Conv2d | None = None) -> bool:
    """Returns whether a layer is a convolution that kernels compute, with the size and padding of another one."""
    if type(layer) is not nn.Conv2d or layer.bias is None or layer.padding_mode != "zeros":
        return False
    same = like is None or (layer.kernel_size, layer.padding) == (like.kernel_size, like.padding)
    square = len({*layer.kernel_size}) == 1 and len({*layer.padding}) == 1 and not isinstance(layer.padding, str)
    return same and square and (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
