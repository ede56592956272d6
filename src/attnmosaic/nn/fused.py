"""The convolutions of `ConvNet` and weighted sums of patches, computed on a CPU by `fused.c`, with gradients.

Results differ from those of torch's own functions by rounding. Max pooling of two values that are equal up to rounding
can choose the other position, which moves its gradient there.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from attnmosaic.nn.kernels import SOURCE, Images, Kernel, UnavailableError

SLACK = 16
"""Values that `fused.c` reads after the first layer's output, whatever they are: the lanes of the widest vector."""

ROWS_PER_THREAD = 16
"""Smallest number of images, or mosaics, of a thread: starting a thread takes as long as a few of them."""


@dataclass(frozen=True, eq=False)
class IndexedPatches:
    """Patches of a pool of images by index. Kernels read the pool's pixels, without a scaled copy of the patches.

    Attributes:
        pixels: pixels of the pool, contiguous.
        index: rows of the pool, in any shape.
        factor: factor of each channel; a pixel is scaled to ``pixel * factor - offset``.
        offset: offset of each channel.
        kernel: computes weighted sums of the patches.
        gather: maps an index to scaled patches as a tensor.
    """

    pixels: UInt8[Tensor, "U H W C"]
    index: Int[Tensor, "*n"]
    factor: Float[Tensor, " C"]
    offset: Float[Tensor, " C"]
    kernel: Kernel
    gather: Callable[[Tensor], Tensor]

    @functools.cached_property
    def gathered(self) -> Float[Tensor, "*n C H W"]:
        """The patches as a tensor, for networks without a kernel."""
        return self.gather(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        _, height, width, channels = self.pixels.shape
        return (*self.index.shape, channels, height, width)

    @property
    def dtype(self) -> torch.dtype:
        return self.factor.dtype

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def flatten(self, start: int, stop: int) -> "IndexedPatches":
        """Returns the patches with dimensions of the index flattened, like `torch.flatten`."""
        return replace(self, index=self.index.flatten(start, stop))

    def aggregate(self, alpha: Float[Tensor, "B P"]) -> Float[Tensor, "B C H W"]:
        """Returns the weighted sum of the patches of each mosaic; the index is ``[B, P]``.

        Raises:
            ValueError: the weights have another shape than the index, or another type than the patches.
        """
        if alpha.shape != self.index.shape or alpha.dtype != self.dtype:
            raise ValueError(
                f"attention weights of shape {tuple(alpha.shape)} and type {alpha.dtype} for patches of "
                f"shape {self.shape} and type {self.dtype}"
            )
        aggregates: Tensor = _Aggregate.apply(alpha, self)
        return aggregates.movedim(-1, 1)


def computes(kernel: Kernel, images: Tensor | IndexedPatches, weights: Sequence[Tensor | None]) -> bool:
    """Returns whether a kernel computes these images and weights: of its shapes and type, on the CPU, without autocast.

    Weights are those of `features`; a user can have changed them since the kernel was made.
    """
    if tuple(images.shape[-3:]) != kernel.image or torch.is_autocast_enabled("cpu"):
        return False
    if [None if weight is None else tuple(weight.shape) for weight in weights] != kernel.weight_shapes:
        return False
    return all(
        part.dtype == kernel.dtype and part.device.type == "cpu" for part in (images, *weights) if part is not None
    )


def features(
    kernel: Kernel, images: Float[Tensor, "B C H W"] | IndexedPatches, weights: Sequence[Tensor]
) -> Float[Tensor, "B features"]:
    """Returns the flattened output of the second layer.

    Args:
        kernel: computes the layers.
        images: images, or patches with an index ``[B]``.
        weights: filters ``[F, C, K, K]`` and bias ``[F]`` of the first layer, then of the second.
    """
    inputs = [images, *weights] if isinstance(images, Tensor) else weights
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        computed: Tensor = _Features.apply(kernel, images, *weights)
        return computed
    return _convolve(kernel, _readable(images), weights)[0]


def plain_features(
    images: Float[Tensor, "B C H W"], weights: Sequence[Tensor], padding: int
) -> Float[Tensor, "B features"]:
    """Returns the same as `features`, computed by torch's own functions."""
    for weight, bias in (weights[:2], weights[2:]):
        images = F.relu(F.max_pool2d(F.conv2d(images, weight, bias, padding=padding), 2))
    return images.flatten(1)


@torch.inference_mode(False)
@torch.enable_grad()
def check(kernel: Kernel) -> None:
    """Compares a kernel's outputs and gradients with torch's, on two images, in case a compiler is faulty.

    Raises:
        UnavailableError: the kernel cannot be compiled or loaded, or its results are wrong by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def integers(limit: int, *shape: int) -> Tensor:  # whose sums are exact, so that pooling has the same winners
        return torch.randint(-limit, limit + 1, shape, generator=generator).to(kernel.dtype).requires_grad_()

    images, *weights = integers(8, 2, *kernel.image), *(integers(2, *shape) for shape in kernel.weight_shapes)
    pixels = torch.randint(256, (2, *kernel.image[1:], kernel.image[0]), generator=generator, dtype=torch.uint8)
    factor, offset = (integers(3, kernel.image[0]).detach() for _ in range(2))
    alpha, scaled = integers(3, 1, 2), (pixels * factor - offset).movedim(-1, -3)
    patches = IndexedPatches(pixels, torch.tensor([[1, 0]]), factor, offset, kernel, lambda rows: scaled[rows])
    for own, expected, inputs in (
        (features(kernel, images, weights), plain_features(images, weights, kernel.padding), [images, *weights]),
        (patches.aggregate(alpha), (alpha.view(1, 2, 1, 1, 1) * patches.gathered).sum(dim=1), [alpha]),
    ):
        gradient = integers(2, *own.shape).detach()
        of_kernel, of_torch = ((out, *torch.autograd.grad(out, inputs, gradient)) for out in (own, expected))
        if not all((a - b).abs().max() <= 1e-3 * b.abs().max() for a, b in zip(of_kernel, of_torch, strict=True)):
            with contextlib.suppress(OSError):  # the folder can be read-only
                kernel.path.unlink(missing_ok=True)  # so that another compiler can be tried
            raise UnavailableError(f"{SOURCE.name} was compiled to wrong results")


def _readable(images: Tensor | IndexedPatches) -> Images:
    """Returns images in the form that kernels read.

    Raises:
        IndexError: an index is not a row of the pool.
    """
    if isinstance(images, Tensor):
        return Images(images.detach().movedim(1, -1).contiguous())
    rows = images.index.flatten().to(torch.int64).contiguous()
    if len(rows):
        low, high = (int(limit) for limit in rows.aminmax())
        if low < 0 or high >= len(images.pixels):
            raise IndexError(f"index has rows {low} to {high} of a pool with {len(images.pixels)} patches")
    return Images(images.pixels, rows, images.factor, images.offset)


def _in_threads(n: int, compute: Callable[[slice], None]) -> None:
    """Computes parts of n images, or mosaics, on as many threads as torch has; `Workers` leave torch one."""
    parts = max(1, min(torch.get_num_threads(), n // ROWS_PER_THREAD))
    slices = [slice(n * part // parts, n * (part + 1) // parts) for part in range(parts)]
    if parts == 1:
        compute(slices[0])
        return
    with ThreadPoolExecutor(parts) as threads:
        list(threads.map(compute, slices))


# ---- convolutions


def _convolve(
    kernel: Kernel, images: Images, weights: Sequence[Tensor], *, keep: bool = False
) -> tuple[Float[Tensor, "B features"], list[Tensor]]:
    """Returns the features of images and, if ``keep``, what the backward pass needs: map1, won1, won2 of `fused.c`."""
    n, (map1, map2), (filters1, filters2) = len(images), kernel.maps, kernel.filters
    outputs = torch.empty(n, filters2 * math.prod(map2), dtype=kernel.dtype)
    kept: list[Tensor] = []
    if keep:
        values = filters1 * math.prod(side + 2 * kernel.padding for side in map1)
        with_slack = torch.empty(n * values + SLACK, dtype=kernel.dtype)
        won1 = torch.empty(n, filters1 * math.prod(map1), dtype=torch.int8)
        kept = [with_slack, won1, torch.empty(outputs.shape, dtype=torch.int8)]
    w1, b1, w2, b2 = (_channels_last(weight) for weight in weights)

    def compute(part: slice) -> None:
        rows = images.part(part)
        kernel.call("convolve", rows, len(rows), w1, b1, w2, b2, outputs[part], *_part_of(kept, part, n))

    _in_threads(n, compute)
    return outputs, kept


def _part_of(kept: Sequence[Tensor], part: slice, n: int) -> list[Tensor | None]:
    """Returns the part of kept values that belongs to some of n images."""
    if not kept:
        return [None] * 3
    with_slack, won1, won2 = kept
    return [with_slack[: len(with_slack) - SLACK].view(n, -1)[part] if n else with_slack, won1[part], won2[part]]


def _channels_last(weight: Tensor) -> Tensor:
    """Returns filters as ``[F, K, K, C]``; a bias unchanged."""
    return (weight.detach().movedim(1, -1) if weight.dim() == 4 else weight.detach()).contiguous()


class _Features(torch.autograd.Function):
    """The flattened output of the second layer, ``[B, features]``, with the gradients of images and weights."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, images: Tensor | IndexedPatches, *weights: Tensor) -> Tensor:
        ctx.kernel, ctx.images = kernel, _readable(images)
        ctx.indexed = images if isinstance(images, IndexedPatches) else None
        outputs, kept = _convolve(kernel, ctx.images, weights, keep=True)
        ctx.save_for_backward(*kept, *weights, *([images] if isinstance(images, Tensor) else []))
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (*kept, w1, b1, w2, b2), floats = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        kernel, images = ctx.kernel, ctx.images
        needs_images, needs_weights = ctx.needs_input_grad[1], ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # gradients of gradients, which torch's own functions have
            outputs = plain_features(floats[0] if floats else ctx.indexed.gathered, (w1, b1, w2, b2), kernel.padding)
            tensors = dict(enumerate((floats[0] if floats else None, w1, b1, w2, b2)))
            needed = [i for i, needs in enumerate((needs_images, *needs_weights)) if needs]
            found = torch.autograd.grad(outputs, [tensors[i] for i in needed], gradient, create_graph=True)
            by_input = dict(zip(needed, found, strict=True))
            return None, *(by_input.get(i) for i in tensors)
        w1, b1, w2, b2 = (_channels_last(weight) for weight in (w1, b1, w2, b2))
        gradient = gradient.contiguous()
        dx = torch.empty(images.table.shape, dtype=kernel.dtype) if needs_images else None
        by_part: dict[int, list[Tensor]] = {}

        def compute(part: slice) -> None:
            sums: Sequence[Tensor | None] = (None,) * 4
            if any(needs_weights):
                sums = by_part[part.start] = [torch.zeros_like(weight) for weight in (w1, b1, w2, b2)]
            rows, kept_part = images.part(part), _part_of(kept, part, len(images))
            own_dx = None if dx is None else dx[part]
            kernel.call("convolve_backward", rows, len(rows), w1, w2, gradient[part], *kept_part, *sums, own_dx)

        _in_threads(len(images), compute)
        # Added in the order of the images, so that the result does not depend on the threads' speed.
        parts = [by_part[start] for start in sorted(by_part)]
        summed = [functools.reduce(torch.add, same) for same in zip(*parts, strict=True)] or [None] * 4
        in_torch = (
            tensor if tensor is None or tensor.dim() != 4 else tensor.movedim(-1, 1) for tensor in (dx, *summed)
        )
        return None, *in_torch


# ---- aggregates


class _Aggregate(torch.autograd.Function):
    """Weighted sums of patches, ``[B, H, W, C]``."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, patches: IndexedPatches) -> Tensor:
        ctx.patches, ctx.images = patches, _readable(patches)
        weights = alpha.detach().contiguous()
        summed = torch.empty(len(alpha), *ctx.images.table.shape[1:], dtype=patches.dtype)
        _call_on_mosaics("aggregate", patches, ctx.images, weights, summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        patches: IndexedPatches = ctx.patches
        if torch.is_grad_enabled():  # gradients of gradients, as above
            channels_first = gradient.movedim(-1, 1).flatten(1).unsqueeze(2)
            return (patches.gathered.flatten(2) @ channels_first).squeeze(2), None
        found = torch.empty(patches.index.shape, dtype=patches.dtype)
        _call_on_mosaics("aggregate_backward", patches, ctx.images, gradient.contiguous(), found)
        return found, None


def _call_on_mosaics(function: str, patches: IndexedPatches, images: Images, given: Tensor, result: Tensor) -> None:
    """Calls a function of `fused.c` on mosaics; ``given`` and ``result`` have one row for each."""
    per_mosaic = patches.index.shape[1]

    def compute(part: slice) -> None:
        rows = images.part(slice(part.start * per_mosaic, part.stop * per_mosaic))
        patches.kernel.call(function, rows, part.stop - part.start, per_mosaic, given[part], result[part])

    _in_threads(len(given), compute)
