"""Attention: the weighted sum of a mosaic's patches, and the pair of networks that use it."""

from jaxtyping import Float
from torch import Tensor, nn

from attnmosaic.nn.fused import IndexedPatches
from attnmosaic.nn.networks import reads_index


def aggregate(
    alpha: Float[Tensor, "B P"], patches: Float[Tensor, "B P *patch"] | IndexedPatches
) -> Float[Tensor, "B *patch"]:
    """Returns the weighted sum of the patches of each mosaic, the sum over p of alpha_p x_p."""
    if isinstance(patches, IndexedPatches):
        return patches.aggregate(alpha)
    if patches.dim() != 5:
        return (alpha.unsqueeze(1) @ patches.flatten(2)).view(-1, *patches.shape[2:])
    # Images are channels last in memory (see `attnmosaic.data.pool.Pool`), so a sum in that order needs no copy.
    channels_last = patches.movedim(2, -1)
    summed = alpha.unsqueeze(1) @ channels_last.flatten(2)
    return summed.view(-1, *channels_last.shape[2:]).movedim(-1, 1)


class WhereWhat(nn.Module):
    """A where network that gives patches attention weights, and a what network that classifies their weighted sum.

    Args:
        where: maps patches ``[M, *patch]`` to scores ``[M, 1]``; None if the data fix the attention weights.
        what: maps aggregates ``[B, *patch]`` to logits ``[B, F]``.
    """

    def __init__(self, where: nn.Module | None, what: nn.Module) -> None:
        super().__init__()
        self.where = where
        self.what = what

    def score(self, patches: Float[Tensor, "M *patch"] | IndexedPatches) -> Float[Tensor, " M"]:
        """Returns the where network's score of each patch; all patches are computed in one batch."""
        assert self.where is not None, "the attention weights are fixed, so no network scores patches"
        if isinstance(patches, IndexedPatches) and not reads_index(self.where):
            patches = patches.gathered
        return self.where(patches).squeeze(1)

    def weigh(self, scores: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
        """Returns the softmax of the scores: attention weights alpha that sum to 1, as in the mosaic studies."""
        return scores.softmax(dim=1)

    def forward(
        self, patches: Float[Tensor, "B P *patch"] | IndexedPatches, scores: Float[Tensor, "B P"] | None = None
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B P"]]:
        """Returns the logits of mosaics and their attention weights alpha.

        Args:
            patches: patches of each mosaic.
            scores: scores of the patches; None to compute them with the where network.
        """
        if scores is None:
            scores = self.score(patches.flatten(0, 1)).view(patches.shape[:2])
        alpha = self.weigh(scores)
        return self.what(aggregate(alpha, patches)), alpha
