"""Cases of small runs: 2-D points, whose epochs take milliseconds, so that all work besides the arithmetic shows."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import project
from benchmarks.bare import BareLoop
from benchmarks.cases import IMPORTS, OURS, PLAIN, TRAIN, command, last_number, seconds_of_training
from benchmarks.project import timed

EPOCHS, K, EVERY = 100, 5, 5
"""Of the default run: epochs, epochs per stage, and epochs between evaluations."""

TINY = ("data.train_mosaics=250", "data.test_mosaics=250", "data.held_out_mosaics=250")
"""Overrides for one step an epoch."""

TINY_EPOCHS = 300

SEEDS, SWEEP_EPOCHS = 100, 500
"""Size of the large sweep."""

RUN_IMPORTS = (
    "from attnmosaic.core.library_internals import import_lightning; import attnmosaic.train; import_lightning(); "
    "from attnmosaic.callbacks import attention_gradients, checkpoints, csv_tables, diagnosis, eta, figures, progress, "
    "snapshots, tensorboard; from attnmosaic.data import gaussian; from attnmosaic.training import fit, results"
)
"""Python code that imports what a default run imports before its first step."""

FIGURES = (
    "import sys, time; from pathlib import Path; from attnmosaic.plotting.run import MAIN, RUN_FORMATS, draw_run; "
    "begin = time.perf_counter(); draw_run(Path(sys.argv[1]), RUN_FORMATS, MAIN); "
    "print('figures', time.perf_counter() - begin)"
)
"""Python code that plots the figures that a run plots at its end, and prints the seconds; it imports matplotlib."""


def run_cases(repeats: int) -> Iterator[tuple[str, str, float]]:
    """Yields (case, contender, seconds) for the parts of a default 2-D run, and for the whole command."""
    cpu = torch.device("cpu")
    full, tiny = project.make_data("experiment=gaussian"), project.make_data("experiment=gaussian", *TINY)
    for _ in range(repeats):
        yield "2-D run: training", PLAIN, timed(cpu, lambda: BareLoop(full, cpu).run(EPOCHS, K, EVERY))
        yield "2-D run: training", OURS, seconds_of_training("experiment=gaussian", f"schedule.epochs={EPOCHS}")
        bare = timed(cpu, lambda: BareLoop(tiny, cpu).run(TINY_EPOCHS, K, EVERY))
        yield "2-D epoch of one step", PLAIN, bare / TINY_EPOCHS
        ours = seconds_of_training("experiment=gaussian", *TINY, f"schedule.epochs={TINY_EPOCHS}")
        yield "2-D epoch of one step", OURS, ours / TINY_EPOCHS
        yield "2-D run: imports", "imports alone", command("-c", IMPORTS)[0]
        yield "2-D run: imports", OURS, (imports := command("-c", RUN_IMPORTS)[0])
        with tempfile.TemporaryDirectory() as folder:
            yield "2-D run: command to prompt", "its imports", imports
            seconds, printed = command(*TRAIN, "experiment=gaussian", f"hydra.run.dir={folder}")
            if not Path(folder, "result.json").exists():
                raise RuntimeError(printed)
            yield "2-D run: command to prompt", OURS, seconds
            printed = command("-c", FIGURES, folder)[1]
            yield "2-D run: closing figures", OURS, last_number(r"figures ([\d.]+)", printed)


def hundred_cases() -> Iterator[tuple[str, str, float]]:
    """Yields (case, contender, seconds) for a sweep of a hundred runs of 500 epochs."""
    sweep = ("-m", f"seed.all=range({SEEDS})", f"schedule.epochs={SWEEP_EPOCHS}", "hydra/launcher=joblib")
    seconds, printed = command(*TRAIN, *sweep, "progress=lines")
    if "rror" in printed:
        raise RuntimeError(printed)
    yield "sweep of a hundred 2-D runs", OURS, seconds
