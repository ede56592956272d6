"""Attention as a weighted sum over the patches of a mosaic."""

from jaxtyping import Float
from torch import Tensor, nn


def aggregate(alpha: Float[Tensor, "B P"], patches: Float[Tensor, "B P *patch"]) -> Float[Tensor, "B *patch"]:
    """Returns the sum over p of alpha_p x_p for each mosaic."""
    if patches.dim() != 5:
        return (alpha.unsqueeze(1) @ patches.flatten(2)).view(-1, *patches.shape[2:])
    # Images lie channels last in memory (see Pool): summing in that order copies nothing.
    last = patches.movedim(2, -1)
    summed = alpha.unsqueeze(1) @ last.flatten(2)
    return summed.view(-1, *last.shape[2:]).movedim(-1, 1)


class WhereWhat(nn.Module):
    """A where network that weighs the patches and a what network that classifies their weighted sum.

    Args:
        where: maps patches ``[M, *patch]`` to scores ``[M, 1]``; None where the data fix the attention weights.
        what: maps aggregates ``[B, *patch]`` to logits ``[B, F]``.
    """

    def __init__(self, where: nn.Module | None, what: nn.Module) -> None:
        super().__init__()
        self.where = where
        self.what = what

    def score(self, patches: Float[Tensor, "M *patch"]) -> Float[Tensor, " M"]:
        """Scores patches one by one, all in one batch."""
        assert self.where is not None, "the attention weights are fixed: there is no network to score patches"
        return self.where(patches).squeeze(1)

    def weigh(self, scores: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
        """Normalises scores to attention weights alpha that sum to 1 (softmax, as in documents 000 and 002)."""
        return scores.softmax(dim=1)

    def forward(
        self, patches: Float[Tensor, "B P *patch"], scores: Float[Tensor, "B P"] | None = None
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B P"]]:
        """Returns the logits of mosaics and their attention weights alpha.

        Args:
            patches: of each mosaic.
            scores: of the where network, ``[B, P]``; None to compute them.
        """
        if scores is None:
            scores = self.score(patches.flatten(0, 1)).view(patches.shape[:2])
        alpha = self.weigh(scores)
        return self.what(aggregate(alpha, patches)), alpha
