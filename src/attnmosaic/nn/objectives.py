"""Objectives that training minimises."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def attention_entropy(alpha: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
    """Returns the entropy of each row of attention weights, in nats."""
    # torch.special.entr has an infinite gradient at 0, and softmax gives 0 if two scores differ by 104 or more.
    return -(alpha * alpha.clamp_min(torch.finfo(alpha.dtype).tiny).log()).sum(dim=1)


class CrossEntropy(nn.Module):
    """Mean of ``(1 - k) * cross-entropy + k * entropy of alpha`` over mosaics (docs/sources.md).

    Args:
        entropy: k, from 0 to 1; 0 is plain cross-entropy, the loss of the mosaic studies.
    """

    def __init__(self, entropy: float = 0.0) -> None:
        super().__init__()
        self.entropy = entropy

    def forward(
        self, logits: Float[Tensor, "B F"], alpha: Float[Tensor, "B P"], label: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        loss = F.cross_entropy(logits, label)
        if self.entropy:
            loss = (1 - self.entropy) * loss + self.entropy * attention_entropy(alpha).mean()
        return loss


class SumOfCrossEntropies(nn.Module):
    """Mean cross-entropy of the digit plus mean cross-entropy of the result.

    This is the total loss of the digit-and-product exercise, Loss_1 + Loss_2.
    """

    def forward(
        self,
        digit_logits: Float[Tensor, "B 10"],
        result_logits: Float[Tensor, "B results"],
        digit: Int[Tensor, " B"],
        result: Int[Tensor, " B"],
    ) -> Float[Tensor, ""]:
        return F.cross_entropy(digit_logits, digit) + F.cross_entropy(result_logits, result)
