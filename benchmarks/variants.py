"""Compares ways to compute a where-step of 248 mosaics of CIFAR's size: ``python -m benchmarks.variants``.

The package uses the first way, and the second one without a C compiler; the others are alternatives.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from attnmosaic.core.text import use_substitutes
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.nn.fused import IndexedPatches
from attnmosaic.nn.networks import ConvNet
from attnmosaic.training.attention_cache import FrozenWhere
from attnmosaic.training.convolutions import choose_convolutions
from benchmarks import project
from benchmarks.project import timed


class ReluFirst(ConvNet):
    """A ConvNet with the order of the stage-wise study: ReLU, then pooling."""

    def features(self, x: Tensor | IndexedPatches) -> Tensor:
        assert isinstance(x, Tensor)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.max_pool2d(F.relu(self.conv2(x)), 2)


def where_step(
    mosaics: Mosaics,
    rows: Tensor,
    *,
    pieces: int = 4,
    channels_last: bool = True,
    network: Callable[..., nn.Module] = ConvNet,
    fused: bool = False,
    bfloat16: bool = False,
    compiled: bool = False,
    onednn: bool = True,
    threads: int | None = None,
) -> Callable[[], None]:
    """Returns a function that computes the gradients of a where-step."""
    torch.manual_seed(0)
    where = network((3, 32, 32), 1)
    pair = WhereWhat(where, network((3, 32, 32), 3))
    if channels_last:
        pair = pair.to(memory_format=torch.channels_last)
    pair.what.requires_grad_(False)
    device, config = torch.device("cpu"), project.configure(*project.IMAGES)
    if fused and choose_convolutions(pair, device, torch.float32, config) == "eager":
        raise RuntimeError("no fused kernels; is a C compiler installed?")
    frozen = FrozenWhere(pair, {}, torch.float32, 0)
    forward = torch.compile(pair, dynamic=False) if compiled else pair

    def work() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        where.zero_grad()
        for piece in rows.chunk(pieces):
            patches = frozen.patches(mosaics.pool, mosaics.index[piece])
            if isinstance(patches, Tensor) and not channels_last:
                patches = patches.contiguous()
            autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
            with autocast, torch.backends.mkldnn.flags(enabled=onednn):
                logits, _ = forward(patches)
                loss = F.cross_entropy(logits, mosaics.label[piece]) / pieces
            loss.backward()
        torch.set_num_threads(before)

    return work


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    use_substitutes()
    mosaics = project.make_data(*project.IMAGES).mosaics["train"]
    rows = torch.arange(248)
    variants = {
        "fused kernels (the package's way)": where_step(mosaics, rows, fused=True, pieces=1),
        "four pieces, channels last, pooling before ReLU": where_step(mosaics, rows),
        "two pieces": where_step(mosaics, rows, pieces=2),
        "eight pieces": where_step(mosaics, rows, pieces=8),
        "the whole minibatch at once": where_step(mosaics, rows, pieces=1),
        "channels first": where_step(mosaics, rows, channels_last=False),
        "channels first, at once, ReLU before pooling": where_step(
            mosaics, rows, pieces=1, channels_last=False, network=ReluFirst
        ),
        "ReLU before pooling": where_step(mosaics, rows, network=ReluFirst),
        "torch.compile": where_step(mosaics, rows, compiled=True),
        "without oneDNN (NNPACK, or a copy of all windows)": where_step(mosaics, rows, onednn=False),
        "bfloat16 autocast": where_step(mosaics, rows, bfloat16=True),
        "one thread": where_step(mosaics, rows, threads=1),
        "fused kernels, one thread": where_step(mosaics, rows, fused=True, pieces=1, threads=1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for work in variants.values():
        work()
    for _ in range(options.rounds):  # in turn, so that noise of the machine affects all variants
        for name, work in variants.items():
            seconds[name].append(timed(torch.device("cpu"), work))
    table = Table(title="a where-step of 248 mosaics, forward and backward", title_justify="left")
    for name in ("variant", "median", "fastest", "relative to the first"):
        table.add_column(name)
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        median = statistics.median(values)
        table.add_row(name, f"{median * 1e3:.0f} ms", f"{min(values) * 1e3:.0f} ms", f"{median / first:.2f} x")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
