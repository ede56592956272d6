"""The gradient of the loss with respect to the attention weights (document 000, "Gradient Definition")."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnmosaic.nn.attention import aggregate


def alpha_gradients(
    what: Callable[[Tensor], Tensor],
    objective: Callable[[Tensor, Tensor, Tensor], Tensor],
    alpha: Float[Tensor, "B P"],
    patches: Float[Tensor, "B P *patch"],
    label: Int[Tensor, " B"],
) -> Float[Tensor, "B P"]:
    """Returns, for each mosaic, the gradient of its own loss with respect to each of its attention weights.

    The weights count as free: that they sum to 1, and the where network behind them, play no part. Parameters get
    no gradient.

    Args:
        what: maps aggregates ``[B, *patch]`` to logits ``[B, F]``, each aggregate on its own (in eval mode).
        objective: ``(logits, alpha, label) -> mean loss``, a mean over mosaics.
        alpha: attention weights.
        patches: of each mosaic.
        label: which foreground class.
    """
    alpha = alpha.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = objective(what(aggregate(alpha, patches)), alpha, label)
        # The mean times B is the sum of the mosaics' losses, of which an alpha moves its own mosaic's alone.
        (gradient,) = torch.autograd.grad(loss * len(label), alpha)
    return gradient


def foreground_and_background(
    values: Float[Tensor, "B P"], foreground: Int[Tensor, " B"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Returns each mosaic's value at its foreground patch, and the sum of those at its background patches.

    Args:
        values: one for each patch.
        foreground: position of the foreground patch, 0 to P - 1.
    """
    position = foreground.unsqueeze(1)
    return values.gather(1, position).squeeze(1), values.scatter(1, position, 0).sum(dim=1)
