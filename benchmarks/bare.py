"""A plain loop with the arithmetic of 2-D runs: steps, means over an epoch, evaluations. It writes no files."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnmosaic.data.datamodule import SPLITS, MosaicDataModule
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.nn.networks import MLP
from benchmarks.project import timed

BATCH = 250


class BareLoop:
    """Trains a pair on 2-D points in the same steps as the package, without any framework.

    While Where is frozen it keeps attention weights and aggregates, as the package does.

    Args:
        data: the mosaics.
        device: device of the training.
    """

    def __init__(self, data: MosaicDataModule, device: torch.device) -> None:
        self.mosaics = data.mosaics_on(device, torch.float32)
        self.pair = WhereWhat(MLP((2,), 1, (4, 8)), MLP((2,), 3, (4,))).to(device)
        self.optimizers = {
            name: torch.optim.SGD(getattr(self.pair, name).parameters(), lr=0.01, momentum=0.9)
            for name in ("what", "where")
        }
        self.kept: tuple[Tensor, Tensor] | None = None

    def epoch(self, name: str) -> list[float]:
        """Trains the network ``name`` on all mosaics and returns the means of the epoch's metrics."""
        data = self.mosaics["train"]
        pool, index, label = data.pool.patches, data.index, data.label
        if name == "where":
            self.kept = None
        elif self.kept is None:
            self.kept = self.attend(data)
        kept, optimizer = self.kept, self.optimizers[name]
        self.pair.requires_grad_(False)
        getattr(self.pair, name).requires_grad_(True)
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(index))).to(index.device)
        outputs = []
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            if kept is None:
                logits, alpha = self.pair(pool[index[rows]])
            else:
                logits, alpha = self.pair.what(kept[1][rows]), kept[0][rows]
            loss = F.cross_entropy(logits, label[rows])
            loss.backward()
            optimizer.step()
            outputs.append((loss.detach(), logits.detach(), alpha.detach()))
        losses, all_logits, alphas = zip(*outputs, strict=True)
        return means(torch.stack(losses).mean(), torch.cat(all_logits), torch.cat(alphas), data, order)

    @torch.no_grad()
    def attend(self, data: Mosaics) -> tuple[Tensor, Tensor]:
        """Returns the attention weights and the aggregates of all mosaics of a split."""
        alpha = self.pair.weigh(self.pair.score(data.pool.patches)[data.index])
        return alpha, (alpha.unsqueeze(1) @ data.pool.patches[data.index]).squeeze(1)

    @torch.no_grad()
    def evaluate(self) -> list[list[float]]:
        """Returns the means of the metrics of each split."""
        measured = []
        for split in SPLITS:
            data = self.mosaics[split]
            alpha, aggregates = self.attend(data)
            logits, rows = self.pair.what(aggregates), torch.arange(len(data), device=data.index.device)
            measured.append(means(F.cross_entropy(logits, data.label), logits, alpha, data, rows))
        return measured

    def run(self, epochs: int, k: int, every: int) -> None:
        """Trains What and Where in turn for k epochs each, with an evaluation every ``every`` epochs and at the end."""
        for epoch in range(epochs):
            self.epoch("what" if epoch // k % 2 == 0 else "where")
            if (epoch + 1) % every == 0:
                self.evaluate()
        self.evaluate()


def means(loss: Tensor, logits: Tensor, alpha: Tensor, data: Mosaics, rows: Tensor) -> list[float]:
    """Returns the means over mosaics of the metrics that the package reports of an epoch."""
    right, focused = logits.argmax(1) == data.label[rows], alpha.argmax(1) == data.foreground[rows]
    values = [
        loss, right.float().mean(), focused.float().mean(), (right & focused).float().mean(),
        (alpha.amax(1) >= 0.5).float().mean(), alpha.gather(1, data.foreground[rows, None]).mean(),
        torch.special.entr(alpha).sum(1).mean(),
    ]  # fmt: skip
    return torch.stack(values).tolist()


def epoch_seconds(data: MosaicDataModule, device: torch.device, epochs: int) -> dict[str, float]:
    """Returns the median seconds of a what-epoch and of a where-epoch."""
    loop, times = BareLoop(data, device), {}
    for name in ("what", "where"):
        seconds = [timed(device, lambda: loop.epoch(name)) for _ in range(epochs)]  # noqa: B023
        times[f"2-D {name}-epoch"] = float(np.median(seconds))
    return times
