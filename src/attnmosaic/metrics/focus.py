"""A torchmetric of accuracy and focus, accumulated on the device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from attnmosaic.nn.objectives import attention_entropy

COUNTS = ("ftpt", "ffpt", "ftpf", "ffpf")
"""Numbers of mosaics by focus true or false (FT, FF) and prediction true or false (PT, PF)."""

ENTROPY_ROWS = 2**16
"""Number of mosaics whose entropies are computed at a time; all at once would take twice the memory of the weights."""


def _entropies(alpha: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
    """Returns the entropy of each mosaic's attention weights, computed in pieces to save memory."""
    pieces = [attention_entropy(part) for part in alpha.split(ENTROPY_ROWS)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class FocusMetrics(Metric):
    """Loss, accuracy, focus and attention statistics of mosaics.

    The state holds sums over mosaics, so means are correct for batches of different sizes and over several processes.

    Focus is true if the foreground patch has the largest attention weight. If several patches have the largest weight,
    the first of them counts. `compute` returns means over all mosaics:

    - ``loss``, ``accuracy`` and ``focus``;
    - ``ftpt``, ``ffpt``, ``ftpf``, ``ffpf``: fractions of the mosaics by focus and prediction, which sum to 1;
    - ``confident``: fraction of the mosaics with a largest weight of at least 0.5 (published as "argmax > 0.5");
    - ``foreground_weight``: mean weight of the foreground patch;
    - ``entropy``: entropy of the weights in nats.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        # One vector, so that an update needs few operations: mosaics, loss, 4 counts, confident, weight, entropy.
        self.add_state("sums", torch.zeros(9, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        loss: Float[Tensor, ""],
        logits: Float[Tensor, "B F"],
        alpha: Float[Tensor, "B P"],
        label: Int[Tensor, " B"],
        foreground: Int[Tensor, " B"],
    ) -> None:
        """Adds the predictions and attention weights of a batch of mosaics to the sums.

        Args:
            loss: mean objective of these mosaics.
            logits: outputs of the what network.
            alpha: attention weights.
            label: foreground class of each mosaic.
            foreground: index of the foreground patch in each mosaic.
        """
        largest, attended = alpha.max(dim=1)
        focused = attended == foreground
        correct = logits.argmax(dim=1) == label
        batch = len(label)
        kinds = [focused & correct, correct & ~focused, focused & ~correct, ~(focused | correct), largest >= 0.5]
        means = [alpha.gather(1, foreground.unsqueeze(1)).double().sum(), _entropies(alpha).double().sum()]
        self.sums[0] += batch
        self.sums[1] += loss * batch
        self.sums[2:7] += torch.stack(kinds).sum(dim=1)
        self.sums[7:] += torch.stack(means)

    def counts(self) -> dict[str, int]:
        """Returns the number of mosaics (``mosaics``), of confident ones (``confident``), and those of `COUNTS`."""
        with self.sync_context():  # sums over the processes; torchmetrics does this for `compute` only
            mosaics, _, *cells, confident, _, _ = self.sums.tolist()
        counts = {"mosaics": mosaics, "confident": confident, **dict(zip(COUNTS, cells, strict=True))}
        return {name: round(value) for name, value in counts.items()}

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
