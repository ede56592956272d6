"""Compares the time of each case with the minimum time that this machine needs: ``python -m benchmarks.limits``.

For a where-step, a what-step and an evaluation, on images and on 2-D points, it prints

- the number of operations, counted by torch;
- the bytes that must move: patches are read once; tensors saved for the backward pass are written and read once;
- the minimum time for these at the machine's peak rates, which are measured in the same run;
- the measured time;
- the fractions of the time by kind of operation, from torch's profiler.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from attnmosaic.config.schedule import Stage
from attnmosaic.core.text import use_substitutes
from attnmosaic.training.attention_cache import FrozenWhere
from attnmosaic.training.factory import build_module
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.steps import Steps
from benchmarks import machine, project
from benchmarks.project import timed

KINDS = {
    "convolution": ("convolution",),
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
        read: bytes of patches that the work must read.
    """

    name: str
    work: Callable[[], object]
    read: int


def cases(device: torch.device, images: bool) -> list[Case]:
    """Returns the cases on images or on 2-D points."""
    overrides = project.IMAGES if images else project.POINTS
    data = project.make_data(*overrides)
    module = build_module(project.configure(*overrides), data).to(device)
    assert isinstance(module, StagewiseModule)
    mosaics = data.mosaics_on(device, torch.float32)
    frozen = FrozenWhere(module.pair, mosaics, torch.float32, 10**9)
    steps = Steps(module.pair, module.objective, frozen, decomposes=True)
    rows = torch.randperm(30_000, generator=torch.Generator().manual_seed(0))[:250].to(device)
    patch = mosaics["train"].pool.patches[0].nbytes

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
        for piece in torch.arange(30_000, device=device).split(frozen.mosaics_per_piece("train")):
            module.pair.what(frozen.attend("train", piece)[1])

    kind = "" if images else "2-D "
    aggregates = 4 * 250 * patch if images else 250 * patch
    pool = mosaics["train"].pool.patches.nbytes
    return [
        Case(f"{kind}where-step", step(Stage.WHERE), 250 * 9 * patch),
        Case(f"{kind}what-step", step(Stage.WHAT), aggregates),
        Case(f"{kind}evaluate 30,000 mosaics", evaluate, pool + 30_000 * 9 * patch),
    ]


def operations(work: Callable[[], object]) -> int:
    """Returns the number of operations in matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


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
    for images in (True, False):
        for case in cases(device, images):
            # The first call is not measured, because it includes work that a stage does only once.
            case.work()
            needed = operations(case.work)
            moved = case.read + 2 * saved_bytes(case.work)
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
