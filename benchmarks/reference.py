"""The loop of the stage-wise study: every mosaic is stored as pixels, and Where scores one patch at a time.

It shares no code with the package. Tests compare the package's results with it, benchmarks compare the speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cnn(nn.Module):
    """Network of the stage-wise study, for Where and for What, which differ only in the last layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        self.fc4 = nn.Linear(10, outputs)

    def forward(self, image: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.conv1(image)), 2, 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2, 2)
        hidden = hidden.reshape(len(hidden), 400)
        for layer in (self.fc1, self.fc2, self.fc3):
            hidden = F.relu(layer(hidden))
        return self.fc4(hidden)


def take_weights(reference: Cnn, network: nn.Module) -> Cnn:
    """Copies the parameters of a ConvNet, which are in the same order, to a reference network."""
    with torch.no_grad():
        for target, source in zip(reference.parameters(), network.parameters(), strict=True):
            target.copy_(source)
    return reference


def attend(where: nn.Module, mosaics: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the attention weights ``[B, 9]`` and the weighted averages of mosaics ``[B, 9, 3, 32, 32]``."""
    n, patches = mosaics.shape[:2]
    scores = torch.zeros(n, patches, dtype=mosaics.dtype, device=mosaics.device)
    for p in range(patches):
        scores[:, p] = where(mosaics[:, p])[:, 0]
    alpha = F.softmax(scores, dim=1)
    average = torch.zeros_like(mosaics[:, 0])
    for p in range(patches):
        average = average + alpha[:, p, None, None, None] * mosaics[:, p]
    return alpha, average


def optimizers_of(where: nn.Module, what: nn.Module, lr: dict[str, float]) -> dict[str, torch.optim.SGD]:
    """Builds the two optimizers of the stage-wise study, SGD with momentum 0.9."""
    return {
        "what": torch.optim.SGD(what.parameters(), lr=lr["what"], momentum=0.9),
        "where": torch.optim.SGD(where.parameters(), lr=lr["where"], momentum=0.9),
    }


def step(
    where: nn.Module,
    what: nn.Module,
    optimizers: dict[str, torch.optim.SGD],
    training: str,
    mosaics: Tensor,
    labels: Tensor,
) -> None:
    """Takes one step of the training network, "what" or "where", on mosaics ``[B, 9, 3, 32, 32]``."""
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    _, average = attend(where, mosaics)
    F.cross_entropy(what(average), labels).backward()
    optimizers[training].step()


def train(
    where: nn.Module,
    what: nn.Module,
    mosaics: Tensor,
    labels: Tensor,
    orders: list[list[int]],
    k: int,
    batch: int,
    lr: dict[str, float],
) -> None:
    """Trains What for k epochs, then Where for k epochs, and so on, as in the stage-wise study."""
    optimizers = optimizers_of(where, what, lr)
    for epoch, order in enumerate(orders):
        training = "what" if epoch % (2 * k) < k else "where"
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            step(where, what, optimizers, training, mosaics[rows], labels[rows])
