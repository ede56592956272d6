"""Accuracy and focus, accumulated on the device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from attnmosaic.nn.objectives import attention_entropy

COUNTS = ("ftpt", "ffpt", "ftpf", "ffpf")
"""Focus true or false (F.) crossed with prediction true or false (P.)."""

ROWS = 2**16
"""Mosaics whose entropies are computed at a time: all at once would take twice the memory of their weights."""


def _entropies(alpha: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
    return torch.cat([attention_entropy(some) for some in alpha.split(ROWS)])


class FocusMetrics(Metric):
    """Sums over mosaics: right for uneven batches, and summed over processes.

    Focus is true when the largest weight sits on the foreground patch (the first one on a tie).
    `compute` gives means over all mosaics seen:

    ``loss``; ``accuracy``; ``focus``; the fractions ``ftpt``, ``ffpt``, ``ftpf``, ``ffpf`` (sum 1);
    ``confident``, the fraction whose largest weight is at least 0.5 (the published "argmax > 0.5");
    ``foreground_weight``, the mean weight on the foreground; ``entropy`` of the weights in nats.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        # One vector, so that an update is one addition: mosaics, loss, 4 counts, confident, weight, entropy.
        self.add_state("sums", torch.zeros(9, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        loss: Float[Tensor, ""],
        logits: Float[Tensor, "B F"],
        alpha: Float[Tensor, "B P"],
        label: Int[Tensor, " B"],
        foreground: Int[Tensor, " B"],
    ) -> None:
        """Adds mosaics.

        Args:
            loss: mean objective over these mosaics.
            logits: the what network's outputs.
            alpha: attention weights.
            label: which foreground class.
            foreground: position of the foreground patch.
        """
        largest, position = alpha.max(dim=1)
        focused = position == foreground
        right = logits.argmax(dim=1) == label
        batch = len(label)
        sums = torch.stack(
            [
                (focused & right).sum(),
                (~focused & right).sum(),
                (focused & ~right).sum(),
                (~focused & ~right).sum(),
                (largest >= 0.5).sum(),
                alpha.gather(1, foreground.unsqueeze(1)).double().sum(),
                _entropies(alpha).double().sum(),
            ]
        )
        self.sums[0] += batch
        self.sums[1] += loss * batch
        self.sums[2:] += sums

    def counts(self) -> dict[str, int]:
        """Returns raw counts: ``mosaics``, ``confident`` and the four focus/prediction cells."""
        with self.sync_context():  # as torchmetrics wraps `compute`
            mosaics, _, *cells, confident, _, _ = self.sums.tolist()
        named = {"mosaics": mosaics, "confident": confident, **dict(zip(COUNTS, cells, strict=True))}
        return {name: round(value) for name, value in named.items()}

    def compute(self) -> dict[str, Tensor]:
        mean = self.sums[1:] / self.sums[0]
        loss, ftpt, ffpt, ftpf, ffpf, confident, weight, entropy = mean.unbind()
        return {
            "loss": loss,
            "accuracy": ftpt + ffpt,
            "focus": ftpt + ftpf,
            "ftpt": ftpt,
            "ffpt": ffpt,
            "ftpf": ftpf,
            "ffpf": ffpf,
            "confident": confident,
            "foreground_weight": weight,
            "entropy": entropy,
        }
