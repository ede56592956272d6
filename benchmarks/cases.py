"""The cases: each measures the seconds of one unit of work, several times for every contender."""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from attnmosaic.data.mosaics import Mosaics, sample_mosaics
from benchmarks import bare, machine, plain, project, reference
from benchmarks.project import timed

Times = dict[str, dict[str, list[float]]]
"""Seconds by case and contender, with one value per repeat."""

REFERENCE, PLAIN, SINGLE, OURS, QUIET = "reference", "plain", "S = 1", "attnmosaic", "quiet machine"
PARALLEL = "hydra/launcher=joblib"
MOSAICS, BATCH, K = 30_000, 250, 5
TABLE_1 = {"epochs": 3240, "evaluations": 648, "mosaics": 50_000}
"""One seed of all eight rows of Table 1: epochs, half of each stage; evaluations, and mosaics of each evaluation."""
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""Environment in which torch, its libraries and the fused kernels use a CPU's AVX2 only."""
STEPS = MOSAICS // BATCH
STEPS_OF_REFERENCE = 2
"""Steps per repeat: all steps take the same time, and 30,000 mosaics would take half an hour."""


def materialise(mosaics: Mosaics, n: int) -> list[Tensor]:
    """Returns n mosaics as a list of float64 tensors ``[9, 3, 32, 32]``, as the mosaic studies store them."""
    pixels = mosaics.pool.patches.permute(0, 3, 1, 2)
    return [torch.stack([(pixels[i].double() / 255 - 0.5) / 0.5 for i in row]) for row in mosaics.index[:n]]


def reference_times(data: project.RandomImages, device: torch.device) -> dict[str, float]:
    """Times the loop of the mosaic studies: sampling, a step of either network, an evaluation step."""
    mosaics = data.mosaics["train"]
    n = STEPS_OF_REFERENCE * BATCH
    times = {"sample 30,000 mosaics": timed(device, lambda: materialise(mosaics, BATCH)) * MOSAICS / BATCH}
    where, what = reference.Cnn(1).double().to(device), reference.Cnn(3).double().to(device)
    optimizers = reference.optimizers_of(where, what, {"what": 0.01, "where": 0.01})
    pairs = list(zip(materialise(mosaics, n), mosaics.label[:n], strict=True))
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(pairs, batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]  # a list is a dataset

    def epoch(training: str) -> None:
        for batch, label in loader:
            reference.step(where, what, optimizers, training, batch.to(device), label.to(device))

    @torch.no_grad()
    def evaluate() -> None:
        for batch, _ in loader:
            what(reference.attend(where, batch.to(device))[1]).argmax(dim=1)

    for name in ("what", "where"):
        times[f"{name}-step"] = timed(device, lambda: epoch(name)) / len(loader)  # noqa: B023
    times["evaluate 30,000 mosaics"] = timed(device, evaluate) / len(loader) * STEPS
    times["what/where cycle, k = 5"] = K * STEPS * (times["what-step"] + times["where-step"])
    return times


def plain_times(data: project.RandomImages, device: torch.device) -> dict[str, float]:
    """Times the plain script: ten steps of either network, an evaluation of these mosaics, and sampling."""
    pool = ((data.mosaics["train"].pool.patches.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).to(device)
    labels = data.mosaics["train"].pool.labels.numpy()
    times = {"sample 30,000 mosaics": timed(device, lambda: plain.sample(labels, MOSAICS, 0))}
    index, position, label = (part.to(device) for part in plain.sample(labels, MOSAICS, 0))
    where, what = reference.Cnn(1).to(device), reference.Cnn(3).to(device)
    n = 10 * BATCH
    for name, network in (("what", what), ("where", where)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        plain.train(where, what, name, pool, index[:BATCH], label[:BATCH], optimizer)  # warm-up

        def epoch(name: str = name, optimizer: torch.optim.SGD = optimizer) -> None:
            plain.train(where, what, name, pool, index[:n], label[:n], optimizer)

        times[f"{name}-step"] = timed(device, epoch) / 10
    seconds = timed(device, lambda: plain.evaluate(where, what, pool, index[:n], position[:n], label[:n]))
    times["evaluate 30,000 mosaics"] = seconds * MOSAICS / n
    times["what/where cycle, k = 5"] = K * STEPS * (times["what-step"] + times["where-step"])
    return times


def our_times(data: project.RandomImages, steps: int | None, accelerator: str) -> dict[str, float]:
    """Times the package: a complete cycle of stages with Lightning, an evaluation, and sampling."""
    data.steps_per_block = steps
    epochs, trainer = project.train(
        *project.IMAGES, f"schedule.k={K}", f"schedule.epochs={2 * K}", f"trainer.accelerator={accelerator}", data=data
    )
    pool = data.mosaics["train"].pool
    front, back = [7, 8, 9], list(range(7))
    what, where = (float(np.median(epochs.others[stage])) for stage in ("what", "where"))
    evaluation = project.validate(trainer)
    evaluations = TABLE_1["evaluations"] * TABLE_1["mosaics"] / MOSAICS * evaluation
    return {
        "what-step": what / STEPS,
        "where-step": where / STEPS,
        "what/where cycle, k = 5": float(epochs.cycle(K)),
        "evaluate 30,000 mosaics": evaluation,
        "Table 1, one seed of eight rows (computed)": TABLE_1["epochs"] / 2 * (what + where) + evaluations,
        "sample 30,000 mosaics": timed(
            torch.device("cpu"), lambda: sample_mosaics(pool, front, back, MOSAICS, 9, data.rng(0))
        ),
    }


def image_cases(
    repeats: int, device: torch.device, contenders: Collection[str] = (REFERENCE, PLAIN, SINGLE, OURS)
) -> Iterator[tuple[str, str, float]]:
    """Yields (case, contender, seconds) for images of CIFAR's size."""
    data = project.make_data(*project.IMAGES)
    assert isinstance(data, project.RandomImages)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    measured: dict[str, Callable[[], dict[str, float]]] = {
        REFERENCE: lambda: reference_times(data, device),
        PLAIN: lambda: plain_times(data, device),
        SINGLE: lambda: our_times(data, 1, accelerator),
        OURS: lambda: our_times(data, None, accelerator),
    }
    for _ in range(repeats):
        for contender in contenders:
            yield from ((case, contender, seconds) for case, seconds in measured[contender]().items())


def avx2_cases(repeats: int) -> Iterator[tuple[str, str, float]]:
    """Yields (case, contender, seconds) for images, computed with AVX2 only by the plain script and the package."""
    program = (
        "import torch; from attnmosaic.training.runtime import job_globals; from benchmarks import cases\n"
        "with job_globals(0, None, 'highest'):\n"
        "    for case in cases.image_cases(1, torch.device('cpu'), (cases.PLAIN, cases.OURS)): print('case', case)"
    )
    for _ in range(repeats):
        _, printed = command("-c", program, **AVX2)
        measured = [ast.literal_eval(line) for line in re.findall(r"^case (.*)$", printed, re.M)]
        if not measured:
            raise RuntimeError(printed)
        yield from ((f"AVX2: {case}", contender, seconds) for case, contender, seconds in measured)


def point_cases(repeats: int, device: torch.device) -> Iterator[tuple[str, str, float]]:
    """Yields (case, contender, seconds) for epochs of 30,000 2-D mosaics."""
    data = project.make_data(*project.POINTS)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    for _ in range(repeats):
        for case, seconds in bare.epoch_seconds(data, device, 6).items():
            yield case, PLAIN, seconds
        for contender, steps in ((SINGLE, 1), (OURS, None)):
            data.steps_per_block = steps
            settings = ("schedule.k=6", "schedule.epochs=12", f"trainer.accelerator={accelerator}")
            epochs, _ = project.train(*project.POINTS, *settings, data=data)
            for name in ("what", "where"):
                yield f"2-D {name}-epoch", contender, float(np.median(epochs.others[name]))


# ---- commands


def command(*arguments: str, **environment: str) -> tuple[float, str]:
    """Runs Python in an empty folder; returns the seconds that it took and its output."""
    with tempfile.TemporaryDirectory() as folder:
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        begin = time.perf_counter()
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths, "BENCHMARK_START": str(time.time())} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        return time.perf_counter() - begin, process.stdout


TRAIN = ("-m", "attnmosaic.train")
IMPORTS = "import torch, torchvision, pytorch_lightning"


def last_number(pattern: str, printed: str) -> float:
    """Returns the last number that matches a pattern in a command's output.

    Raises:
        RuntimeError: no number matches; its message has the output.
    """
    numbers = re.findall(pattern, printed)
    if not numbers:
        raise RuntimeError(f"'{pattern}' matches nothing in the output of the command:\n{printed}")
    return float(numbers[-1])


def command_cases(repeats: int) -> Iterator[tuple[str, str, float]]:
    """Yields (case, contender, seconds) for the start of a run, and for commands that end before heavy imports."""
    for _ in range(repeats):
        yield "start-up to the first step", "imports alone", command("-c", IMPORTS)[0]
        _, printed = command(*TRAIN, "experiment=gaussian", "+callbacks.first._target_=benchmarks.first_step.FirstStep")
        yield "start-up to the first step", OURS, last_number(r"first step ([\d.]+)", printed)
        yield "--help", OURS, command(*TRAIN, "--help")[0]
        yield "--cfg job", OURS, command(*TRAIN, "--cfg", "job")[0]
        yield "user error", OURS, command(*TRAIN, "schedule.k=0")[0]


RUNS = {
    "gaussian": (),
    "digits": ("experiment=stagewise", "data=digits", "schedule.epochs=10"),
    "mnist_sum": ("experiment=mnist_sum", "schedule.epochs=5"),
    "mnist_product": ("experiment=mnist_product",),
}
"""Default runs that need no download."""


def busy_cases(repeats: int) -> Iterator[tuple[str, str, float]]:
    """Yields (case, contender, seconds of training) on a quiet machine, and while another process uses a core."""
    for _ in range(repeats):
        for name, settings in RUNS.items():
            yield f"one core busy: {name}", QUIET, seconds_of_training(*settings)
            with machine.busy_core():
                yield f"one core busy: {name}", OURS, seconds_of_training(*settings)


def seconds_of_training(*settings: str) -> float:
    """Returns the training time of a run, without imports, figures and the final evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        _, printed = command(*TRAIN, *settings, "callbacks.pictures=null", "progress=quiet", f"hydra.run.dir={folder}")
        result = Path(folder, "result.json")
        if not result.exists():
            raise RuntimeError(printed)
        return float(json.loads(result.read_text(encoding="utf-8"))["seconds"])


def memory_cases() -> Iterator[tuple[str, str, float]]:
    """Yields ("peak memory", contender, bytes) for runs with 30,000 image mosaics on the CPU."""
    peak = "from benchmarks.first_step import peak_memory; print('peak memory', peak_memory())"
    yield "peak memory", "imports alone", last_number(r"peak memory (\d+)", command("-c", f"{IMPORTS}; {peak}")[1])
    yield "peak memory", "reference", float(MOSAICS * 9 * 3 * 32 * 32 * 8)
    run = (
        "import torch; from benchmarks import cases, project;"
        "cases.plain_times(project.make_data(*project.IMAGES), torch.device('cpu'))"
    )
    yield "peak memory", PLAIN, last_number(r"peak memory (\d+)", command("-c", f"{run}; {peak}")[1])
    settings = ("schedule.k=1", "schedule.epochs=2", "trainer.accelerator=cpu", "logger=none")
    callback = "+callbacks.memory._target_=benchmarks.first_step.PeakMemory"
    yield (
        "peak memory",
        OURS,
        last_number(r"peak memory (\d+)", command(*TRAIN, *project.IMAGES, *settings, callback)[1]),
    )


def sweep_cases(repeats: int) -> Iterator[tuple[str, str, float]]:
    """Yields ("sweep of ten 2-D runs", contender, seconds)."""
    sweep = (*TRAIN, "-m", "seed.all=0,1,2,3,4,5,6,7,8,9")
    for _ in range(repeats):
        for contender, launcher in (("one after another", "basic"), (PARALLEL, "joblib")):
            seconds, printed = command(*sweep, f"hydra/launcher={launcher}")
            if "rror" in printed:
                raise RuntimeError(printed)
            yield "sweep of ten 2-D runs", contender, seconds


def logging_cases(repeats: int) -> Iterator[tuple[str, str, float]]:
    """Yields ("logging of a CIFAR run", contender, seconds)."""
    for _ in range(repeats):
        run, logging = project.logging_of_a_run()
        yield "logging of a CIFAR run", "the whole run", run
        yield "logging of a CIFAR run", OURS, logging


def gather(measurements: Iterator[tuple[str, str, float]], into: Times) -> None:
    """Adds measurements to a table, and prints each measurement on standard error."""
    for case, contender, value in measurements:
        into.setdefault(case, defaultdict(list))[contender].append(value)
        print(f"  {case}, {contender}: {value:.6g}", file=sys.stderr, flush=True)
