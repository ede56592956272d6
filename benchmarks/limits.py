"""Compares the time of each case with the minimum time that this machine needs: ``python -m benchmarks.limits``.

For a where-step, its convolutions alone, a what-step and an evaluation, on images and on 2-D points, it prints

- the number of operations: torch's count, with a quarter of the backward passes of convolutions, because 2 x 2 max
  pooling passes the gradient on to one position in four;
- the bytes that must move: patches are read once; tensors saved for the backward pass are written and read once;
- the minimum time for these at the machine's peak rates, which are measured in the same run;
- the measured time;
- the fractions of the time by kind of operation, from torch's profiler.
"""

import argparse
import functools
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from attnmosaic.config.schedule import Stage
from attnmosaic.core.text import use_substitutes
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.nn.networks import ConvNet
from attnmosaic.training.attention_cache import FrozenWhere
from attnmosaic.training.convolutions import choose_convolutions
from attnmosaic.training.factory import build_module
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.steps import Steps
from attnmosaic.training.workers import Workers
from benchmarks import machine, project
from benchmarks.project import timed

KINDS = {
    "convolution": ("convolution", "fused::convolve"),
    "aggregate": ("fused::aggregate",),
    "pooling": ("max_pool",),
    "matrix product": ("mm", "bmm", "addmm", "linear"),
    "gather": ("index",),
    "memory": ("copy_", "fill_", "cat", "empty", "zero_", "resize"),
}


class Case(NamedTuple):
    """A unit of work to measure.

    Attributes:
        name: name of the case in the benchmarks.
        work: function that does the work once.
        single: the same work on one thread, whose saved tensors are counted.
        counted: the same work on one thread by torch's functions, whose operations torch counts.
        read: bytes of patches that the work must read.
    """

    name: str
    work: Callable[[], object]
    single: Callable[[], object]
    counted: Callable[[], object]
    read: int


def cases(device: torch.device, images: bool, workers: Workers) -> list[Case]:
    """Returns the cases on images or on 2-D points, computed by the threads of workers as in a run."""
    overrides = project.IMAGES if images else project.POINTS
    data = project.make_data(*overrides)
    ours, single = (works(device, data, overrides, "auto", threads) for threads in (workers, Workers(1)))
    counted = works(device, data, overrides, "eager", Workers(1))
    pool = data.mosaics["train"].pool.patches
    patch = pool[0].nbytes
    kind = "" if images else "2-D "
    read = {
        "where-step": 250 * 9 * patch,
        **dict.fromkeys([name for name in ours if "convolutions" in name], 250 * 9 * patch),
        "what-step": 4 * 250 * patch if images else 250 * patch,  # aggregates of images are floats
        "evaluate 30,000 mosaics": pool.nbytes + 30_000 * 9 * patch,
    }
    return [Case(f"{kind}{name}", ours[name], single[name], counted[name], read[name]) for name in read]


def works(
    device: torch.device, data: MosaicDataModule, overrides: tuple[str, ...], engine: str, workers: Workers
) -> dict[str, Callable[[], object]]:
    """Returns the work of each case as a function, computed with an engine (``compute.engine``)."""
    config = project.configure(*overrides, f"compute.engine={engine}")
    module = build_module(config, data).to(device)
    assert isinstance(module, StagewiseModule)
    choose_convolutions(module.pair, device, torch.float32, config)
    mosaics = data.mosaics_on(device, torch.float32)
    frozen = FrozenWhere(module.pair, mosaics, torch.float32, 10**9, workers)
    steps = Steps(module.pair, module.objective, frozen, decomposes=True)
    rows = torch.randperm(30_000, generator=torch.Generator().manual_seed(0))[:250].to(device)

    def step(stage: Stage) -> Callable[[], object]:
        network = getattr(module.pair, stage.training_networks[0])
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, fused=True)

        def work() -> object:
            frozen.keep("train") if stage is Stage.WHAT else frozen.clear()
            module.pair.requires_grad_(False)
            network.requires_grad_(True)
            return steps(rows, stage, [optimizer], [list(network.parameters())])

        return work

    @torch.no_grad()
    def evaluate() -> None:
        frozen.clear()
        frozen.scores(mosaics["train"].pool)
        pieces = torch.arange(30_000, device=device).split(frozen.mosaics_per_piece("train"))
        workers.map(lambda piece: module.pair.what(frozen.attend("train", piece)[1]), pieces)

    def convolve(network: Any, backward: bool) -> None:
        weights = [*network.conv1.parameters(), *network.conv2.parameters()]

        def compute(index: Tensor) -> None:
            with torch.set_grad_enabled(backward):
                features = network.features(frozen.patches(mosaics["train"].pool, index))
            if backward:
                torch.autograd.grad(features, weights, torch.ones_like(features))

        network.requires_grad_(True)
        workers.map(compute, mosaics["train"].index[rows].flatten().chunk(workers.count))

    where = module.pair.where
    of_network = (
        {
            "convolutions of a where-step, forward": False,
            "convolutions of a where-step, forward and backward": True,
        }
        if isinstance(where, ConvNet)
        else {}
    )
    return {
        "where-step": step(Stage.WHERE),
        **{name: functools.partial(convolve, where, backward) for name, backward in of_network.items()},
        "what-step": step(Stage.WHAT),
        "evaluate 30,000 mosaics": evaluate,
    }


def operations(work: Callable[[], object]) -> int:
    """Returns the number of operations that matrix products and convolutions need, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    backward = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution_backward, 0)
    return counter.get_total_flops() - backward * 3 // 4


def saved_bytes(work: Callable[[], object]) -> int:
    """Returns the number of bytes saved for the backward pass; each tensor counts once."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(saved.values())


def time_fractions(work: Callable[[], object]) -> dict[str, float]:
    """Returns the fraction of the operators' self time by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            work()
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        kinds = [kind for kind, parts in KINDS.items() if any(part in name for part in parts)]
        times[kinds[0] if kinds else "other"] += event.self_cpu_time_total
    return {kind: time / sum(times.values()) for kind, time in sorted(times.items(), key=lambda item: -item[1])}


def main() -> None:
    """Runs the command line."""
    argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__).parse_args()
    use_substitutes()
    device = torch.device("cpu")
    ceilings = machine.ceilings(device)
    product, copy = (ceilings[name] for name in ("matrix product, float32, operations/s", "copy in memory, bytes/s"))
    table = Table(title=f"at {product / 1e9:.0f} GFLOP/s and {copy / 1e9:.0f} GB/s", title_justify="left")
    for name in ("case", "GFLOP", "GB", "minimum", "measured", "minimum / measured", "time by kind of operation"):
        table.add_column(name)
    workers = Workers.instead_of_torch()
    for images in (True, False):
        for case in cases(device, images, workers):
            # The first call is not measured, because it includes work that a stage does only once.
            case.work()
            case.counted()
            needed = operations(case.counted)
            case.single()
            moved = case.read + 2 * saved_bytes(case.single)
            minimum = max(needed / product, moved / copy)
            measured = statistics.median(timed(device, case.work) for _ in range(3 if "evaluate" in case.name else 15))
            fractions = time_fractions(case.work)
            kinds = ", ".join(f"{kind} {fraction:.0%}" for kind, fraction in fractions.items() if fraction >= 0.03)
            row: list[Any] = [case.name, f"{needed / 1e9:.3g}", f"{moved / 1e9:.3g}", _ms(minimum), _ms(measured)]
            table.add_row(*row, f"{minimum / measured:.0%}", kinds)
    Console(width=170).print(table)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    main()
