"""Many mosaics, many patches, many epochs: what grows, and how fast."""

import gc
import logging
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers.settings import ROOT
from omegaconf import DictConfig

from attnmosaic.callbacks.csv_tables import CsvTable
from attnmosaic.data.mosaics import sample_mosaics
from attnmosaic.data.pool import Pool
from attnmosaic.metrics import focus
from attnmosaic.metrics.focus import FocusMetrics
from attnmosaic.train import train

Config = Callable[..., DictConfig]


def points(n: int = 1000) -> Pool:
    return Pool(torch.randn(n, 2), torch.arange(n) % 10, tuple("abcdefghij"))


def test_drawing_takes_the_memory_of_the_table() -> None:
    pool, n, patches = points(), 20_000, 100
    tracemalloc.start()
    try:
        drawn = sample_mosaics(pool, [0, 1, 2], [*range(3, 10)], n, patches, np.random.default_rng(0))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    table = 8 * n * patches
    assert drawn.index.nbytes == table
    assert table <= most < 1.2 * table


def test_mosaics_are_those_of_numpys_own_choice() -> None:
    """Drawn in place, they are the ones that published runs of earlier versions had."""
    pool, front, back = points(500), [4, 1], [0, 2, 3, 7]
    drawn = sample_mosaics(pool, front, back, 300, 7, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    index = rng.choice(pool.rows_of(back), size=(300, 7))
    position = rng.integers(7, size=300)
    index[np.arange(300), position] = rng.choice(pool.rows_of(front), size=300)
    assert np.array_equal(drawn.index.numpy(), index)
    assert np.array_equal(drawn.foreground.numpy(), position)


def test_entropies_in_pieces_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    label = torch.arange(1000) % 3
    logits, means = torch.nn.functional.one_hot(label, 3).float(), []
    for rows in (10_000, 64):
        monkeypatch.setattr(focus, "ROWS", rows)
        metrics = FocusMetrics()
        metrics.update(torch.tensor(1.0), logits, alpha, label, label)
        means.append(metrics.compute())
    assert means[0] == means[1]


BYTES = 24
"""Of memory for each patch of each training mosaic, at most, everything that is logged and kept included: its row in
the table (8), its weight as kept while What learns, as seen by steps and as kept for the record (4 each), and again
while those of a split are put together (4)."""


def peak(folder: Path, *overrides: str) -> int:
    script = ROOT / "tests" / "helpers" / "peak_memory.py"
    few = ("data.test_mosaics=1000", "data.held_out_mosaics=1000", "trainer.accelerator=cpu", "progress=quiet")
    epochs = (
        "schedule.k=1",
        "schedule.epochs=2",
        "callbacks.pictures=null",
        f"run_dir={folder}",
        f"paths.output={folder}",
    )
    command = [sys.executable, str(script), *few, *epochs, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.findall(r"^peak (\d+)$", done.stdout, flags=re.M)[0])


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_300_000_mosaics_of_100_patches(tmp_path: Path) -> None:
    """Both stages, evaluations and all that a run keeps, beyond what a tenth of the mosaics takes."""
    small, large = (
        peak(tmp_path / str(n), f"data.train_mosaics={n}", "data.patches=100", "trainer.check_val_every_n_epoch=1")
        for n in (30_000, 300_000)
    )
    each = (large - small) / (270_000 * 100)
    print(f"bytes a patch of a mosaic: {each:.1f}, at most {large / 1e9:.2f} GB")
    assert 8 < each < BYTES


# ---- epochs


def leaves(state: Any) -> int:
    """Counts what pickle has to go through one by one."""
    if isinstance(state, dict):
        return sum(map(leaves, state.values()))
    return sum(map(leaves, state)) if isinstance(state, (list, tuple)) else 1


def test_a_checkpoint_has_as_many_parts_after_many_epochs(config: Config, tmp_path: Path) -> None:
    """Only tensors and texts in it grow, so that writing it takes hardly longer."""
    many = []
    for epochs in (10, 60):
        every = ("schedule.k=1", f"schedule.epochs={epochs}", "trainer.check_val_every_n_epoch=5", "progress=quiet")
        train(config(*every, run_dir=str(epochs)))
        last = torch.load(tmp_path / str(epochs) / "checkpoints" / "last.ckpt", weights_only=True)
        many.append(leaves(last["callbacks"]))
        assert last["callbacks"]["RunTables"]["metrics"].count("\n") == 1 + epochs
    assert many[0] == many[1]


def test_a_table_gives_its_rows_back(tmp_path: Path) -> None:
    """With their types, and the file's bytes, also after it went through a checkpoint."""
    rows = [{"epoch": i, "stage": ("what", "where")[i % 2], "loss": 0.1 * i} for i in range(9)]
    rows[3]["test/loss"] = float("nan")
    rows[4]["loss"] = 1e300
    table, again = (CsvTable(tmp_path / name, ["epoch", "stage", "loss", "test/loss"]) for name in ("a.csv", "b.csv"))
    table.rewrite()
    for row in rows:
        table.append(row, write=True)
    assert (tmp_path / "a.csv").read_bytes() == table.text.encode()
    table.fill({"test/loss": 2.5})
    rows[-1]["test/loss"] = 2.5
    again.text = table.text
    again.append({"epoch": 9, "stage": "joint", "loss": None}, write=False)
    for kept, expected in ((table, rows), (again, [*rows, {"epoch": 9, "stage": "joint"}])):
        assert list(map(repr, kept)) == list(map(repr, expected)), "types too"
        assert list(map(repr, kept[-3:])) == list(map(repr, expected[-3:]))
    table.rewrite()
    assert (tmp_path / "a.csv").read_bytes() == table.text.encode()
    assert again.text.startswith(table.text)


EPOCHS = 1010
EARLY, LATE = 200, 1000
RSS = 12_000
"""Bytes of memory an epoch, at most. What it has to keep is 1,300 bytes (rows of tables, answers of the record), in
memory that doubles; the rest is the allocator's."""

CHECKPOINT = 1400
"""Bytes of a checkpoint an epoch, at most."""


class Growth(pl.Callback):
    """Notes memory, Python's objects and the checkpoint's size."""

    def __init__(self, folder: Path) -> None:
        self.last = folder / "checkpoints" / "last.ckpt"
        self.noted: dict[int, tuple[int, int, int]] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for epoch in (EARLY, LATE):
            if epoch - 10 < trainer.current_epoch <= epoch:  # the least of some: an image being drawn comes and goes
                gc.collect()
                status = Path("/proc/self/status").read_text(encoding="utf-8")
                resident = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024
                least = min(resident, self.noted.get(epoch, (resident, 0, 0))[0])
                self.noted[epoch] = least, len(gc.get_objects()), self.last.stat().st_size


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_over_a_thousand_epochs(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All that a run logs and keeps by default is on; both stages take turns."""
    caplog.set_level(logging.WARNING)  # pytest keeps every message
    growth = Growth(tmp_path / "run")
    monkeypatch.setattr("attnmosaic.training.trainer._instances", watched(growth))
    train(config("schedule.k=2", f"schedule.epochs={EPOCHS}", "progress=quiet", "callbacks.cycle=null"))
    (rss, objects, size), (late_rss, late_objects, late_size) = growth.noted[EARLY], growth.noted[LATE]
    epochs = LATE - EARLY
    print(
        f"an epoch: {(late_rss - rss) / epochs:.0f} bytes of memory, {(late_size - size) / epochs:.0f} of a checkpoint"
    )
    assert late_objects - objects < epochs / 10
    assert (late_rss - rss) / epochs < RSS
    assert (late_size - size) / epochs < CHECKPOINT


def watched(growth: Growth) -> Callable[..., list[Any]]:
    """Adds a callback to those of the config."""
    from attnmosaic.training import trainer

    instances = trainer._instances

    def make(group: str, nodes: dict[str, Any] | None) -> list[Any]:
        return [*instances(group, nodes), *([growth] if group == "callbacks" else [])]

    return make
