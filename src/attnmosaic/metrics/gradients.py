"""The gradient of the loss with respect to the attention weights, as the 2-D gradient study defines it.

Source: docs/sources.md, "2-D gradient study".
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnmosaic.nn.attention import aggregate
from attnmosaic.nn.fused import IndexedPatches


def alpha_gradients(
    what: Callable[[Tensor], Tensor],
    objective: Callable[[Tensor, Tensor, Tensor], Tensor],
    alpha: Float[Tensor, "B P"],
    patches: Float[Tensor, "B P *patch"] | IndexedPatches,
    label: Int[Tensor, " B"],
) -> Float[Tensor, "B P"]:
    """Returns, for each mosaic, the gradient of its loss with respect to each of its attention weights.

    The weights are treated as independent variables: the gradient ignores that they sum to 1 and that they depend on
    the where network. Parameters get no gradient.

    Args:
        what: maps aggregates ``[B, *patch]`` to logits ``[B, F]``. It must compute every aggregate independently, as
            networks in eval mode do.
        objective: ``(logits, alpha, label) -> mean loss``, a mean over mosaics.
        alpha: attention weights.
        patches: patches of each mosaic.
        label: foreground class of each mosaic.
    """
    alpha = alpha.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = objective(what(aggregate(alpha, patches)), alpha, label)
        # The mean times B is the sum of the mosaics' losses, and each alpha changes only the loss of its mosaic.
        (gradient,) = torch.autograd.grad(loss * len(label), alpha)
    return gradient


def foreground_and_background(
    values: Float[Tensor, "B P"], foreground: Int[Tensor, " B"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Returns, for each mosaic, the value of the foreground patch and the sum of the values of the background patches.

    Args:
        values: a value for each patch.
        foreground: index of the foreground patch, 0 to P - 1.
    """
    index = foreground.unsqueeze(1)
    return values.gather(1, index).squeeze(1), values.scatter(1, index, 0).sum(dim=1)
