"""Measures replicas: 2-D runs of several seeds as one program with stacked parameters (`torch.func`).

``python -m benchmarks.replicas`` compares a step of R replicas with R steps of `BareLoop`, one after another, both on
one core. A sweep trains one run on each core; of ten seeds on two cores, each core trains five. The row of R = 5 then
says how much time replicas would save. The largest difference between the losses is printed as well.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from attnmosaic.core.text import use_substitutes
from benchmarks import project
from benchmarks.bare import BATCH, BareLoop

Parameters = dict[str, Tensor]
LR, MOMENTUM = 0.01, 0.9


class Replicas:
    """Trains the pairs of several bare loops together, with the same steps.

    Args:
        loops: the loops. Their data, and their weights at this moment, are stacked.
    """

    def __init__(self, loops: list[BareLoop]) -> None:
        self.pair = loops[0].pair
        self.parameters: dict[str, Parameters] = {}
        for name in ("what", "where"):
            stacked, _ = stack_module_state([getattr(loop.pair, name) for loop in loops])
            self.parameters[name] = {key: value.detach().clone() for key, value in stacked.items()}
        self.momenta = {
            name: {key: torch.zeros_like(value) for key, value in parameters.items()}
            for name, parameters in self.parameters.items()
        }
        data = [loop.mosaics["train"] for loop in loops]
        self.pool = torch.stack([mosaics.pool.patches for mosaics in data])
        self.index = torch.stack([mosaics.index for mosaics in data])
        self.label = torch.stack([mosaics.label for mosaics in data])
        kept = [loop.attend(mosaics) for loop, mosaics in zip(loops, data, strict=True)]
        self.aggregates = torch.stack([aggregates for _, aggregates in kept])
        self._what_step = vmap(grad_and_value(self._what_loss))
        self._where_step = vmap(grad_and_value(self._where_loss))

    def _what_loss(self, what: Parameters, aggregates: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(self.pair.what, what, (aggregates,)), label)

    def _where_loss(self, where: Parameters, what: Parameters, pool: Tensor, index: Tensor, label: Tensor) -> Tensor:
        assert self.pair.where is not None
        alpha = functional_call(self.pair.where, where, (pool,)).squeeze(1)[index].softmax(dim=1)
        return self._what_loss(what, (alpha.unsqueeze(1) @ pool[index]).squeeze(1), label)

    def step(self, name: str, rows: Tensor) -> Tensor:
        """Takes a step of the network ``name`` of each replica on its rows ``[B]``; returns the losses ``[R]``."""
        what, label = self.parameters["what"], self.label[:, rows]
        if name == "what":
            gradients, losses = self._what_step(what, self.aggregates[:, rows], label)
        else:
            where = self.parameters["where"]
            gradients, losses = self._where_step(where, what, self.pool, self.index[:, rows], label)
        momenta = self.momenta[name]
        for key, value in self.parameters[name].items():
            momenta[key].mul_(MOMENTUM).add_(gradients[key])
            value.sub_(momenta[key], alpha=LR)
        return losses


def single_step(loop: BareLoop, name: str, rows: Tensor, kept: tuple[Tensor, Tensor]) -> Tensor:
    """Takes a step of one bare loop; returns the loss."""
    data, optimizer = loop.mosaics["train"], loop.optimizers[name]
    loop.pair.requires_grad_(False)
    getattr(loop.pair, name).requires_grad_(True)
    optimizer.zero_grad()
    if name == "what":
        logits = loop.pair.what(kept[1][rows])
    else:
        index = data.index[rows]
        logits, _ = loop.pair(data.pool.patches[index], loop.pair.score(data.pool.patches)[index])
    loss = F.cross_entropy(logits, data.label[rows])
    loss.backward()
    optimizer.step()
    return loss.detach()


def seconds_of(work: Callable[[], object], repeats: int = 30) -> float:
    """Returns the median seconds of a function call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(count: int) -> dict[str, tuple[float, float, float]]:
    """Returns, by network, the seconds of a step of all replicas together and one by one, and how far losses differ."""
    cpu, rows = torch.device("cpu"), torch.arange(BATCH)
    loops = [BareLoop(project.make_data("experiment=gaussian", f"seed.all={seed}"), cpu) for seed in range(count)]
    kept = [loop.attend(loop.mosaics["train"]) for loop in loops]
    replicas, measured = Replicas(loops), {}
    for name in ("what", "where"):
        together = replicas.step(name, rows)
        singles = [single_step(loop, name, rows, one) for loop, one in zip(loops, kept, strict=True)]
        difference = float((together - torch.stack(singles)).abs().max())
        one_by_one = seconds_of(
            lambda: [single_step(loop, name, rows, one) for loop, one in zip(loops, kept, strict=True)]  # noqa: B023
        )
        measured[name] = seconds_of(lambda: replicas.step(name, rows)), one_by_one, difference  # noqa: B023
    return measured


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[5, 10, 50], help="numbers of replicas")
    options = parser.parse_args()
    use_substitutes()
    torch.set_num_threads(1)
    table = Table(title="2-D steps, one core", title_justify="left")
    for column in ("replicas", "step", "one by one", "together", "times as fast", "largest difference of a loss"):
        table.add_column(column)
    for count in options.replicas:
        for name, (together, one_by_one, difference) in measure(count).items():
            times = f"{one_by_one * 1e3:.3g} ms", f"{together * 1e3:.3g} ms", f"{one_by_one / together:.2f}"
            table.add_row(str(count), f"{name}-step", *times, f"{difference:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
