"""Memory and checkpoint sizes grow within limits with many mosaics, patches and epochs."""

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


def test_sampling_needs_little_more_memory_than_the_index_table() -> None:
    pool, n, patches = points(), 20_000, 100
    tracemalloc.start()
    try:
        sampled = sample_mosaics(pool, [0, 1, 2], [*range(3, 10)], n, patches, np.random.default_rng(0))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    table = 8 * n * patches
    assert sampled.index.nbytes == table
    assert table <= peak_bytes < 1.2 * table


def test_sampled_mosaics_equal_those_of_numpys_choice() -> None:
    """Sampling in place gives the same mosaics as earlier versions, with which runs were published."""
    pool, front, back = points(500), [4, 1], [0, 2, 3, 7]
    sampled = sample_mosaics(pool, front, back, 300, 7, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    index = rng.choice(pool.rows_of(back), size=(300, 7))
    position = rng.integers(7, size=300)
    index[np.arange(300), position] = rng.choice(pool.rows_of(front), size=300)
    assert np.array_equal(sampled.index.numpy(), index)
    assert np.array_equal(sampled.foreground.numpy(), position)


def test_entropies_in_pieces_equal_those_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    label = torch.arange(1000) % 3
    logits, means = torch.nn.functional.one_hot(label, 3).float(), []
    for rows in (10_000, 64):
        monkeypatch.setattr(focus, "ENTROPY_ROWS", rows)
        metrics = FocusMetrics()
        metrics.update(torch.tensor(1.0), logits, alpha, label, label)
        means.append(metrics.compute())
    assert means[0] == means[1]


def test_rows_are_written_at_most_once_a_second_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("attnmosaic.callbacks.csv_tables.time.monotonic", lambda: now)
    table = CsvTable(tmp_path / "a.csv", ["epoch"])
    table.rewrite()
    lines = []
    for epoch in range(6):
        now += 0.4
        table.append({"epoch": epoch}, write=True)
        lines.append((tmp_path / "a.csv").read_text().count("\n"))
    assert lines == [1, 1, 4, 4, 4, 7]
    table.append({"epoch": 6}, write=True)
    table.write()
    table.write()
    assert (tmp_path / "a.csv").read_bytes() == table.text.encode()


BYTES = 24
"""Largest number of bytes of memory for each patch of each training mosaic, with everything that a run logs and keeps.

A patch needs 8 bytes in the index table, 4 bytes each for its attention weight in `FrozenWhere`, in the outputs of
steps and in the snapshots, and 4 bytes more while the weights of a split are concatenated.
"""


def peak_memory(folder: Path, *overrides: str) -> int:
    """Trains in a separate process and returns its peak memory in bytes."""
    script = ROOT / "tests" / "helpers" / "peak_memory.py"
    small = ("data.test_mosaics=1000", "data.held_out_mosaics=1000", "trainer.accelerator=cpu", "progress=quiet")
    epochs = (
        "schedule.k=1",
        "schedule.epochs=2",
        "callbacks.pictures=null",
        f"run_dir={folder}",
        f"paths.output={folder}",
    )
    command = [sys.executable, str(script), *small, *epochs, *overrides]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.findall(r"^peak (\d+)$", completed.stdout, flags=re.M)[0])


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_300_000_mosaics_of_100_patches(tmp_path: Path) -> None:
    """Compares with a tenth of the mosaics; both stages, evaluations and all that a run keeps are on."""
    small, large = (
        peak_memory(
            tmp_path / str(n), f"data.train_mosaics={n}", "data.patches=100", "trainer.check_val_every_n_epoch=1"
        )
        for n in (30_000, 300_000)
    )
    each = (large - small) / (270_000 * 100)
    print(f"bytes a patch of a mosaic: {each:.1f}, at most {large / 1e9:.2f} GB")
    assert 8 < each < BYTES


# ---- epochs


def leaves(state: Any) -> int:
    """Counts the values of a nested state, each of which pickle writes separately."""
    if isinstance(state, dict):
        return sum(map(leaves, state.values()))
    return sum(map(leaves, state)) if isinstance(state, (list, tuple)) else 1


def test_number_of_values_in_a_checkpoint_does_not_grow(config: Config, tmp_path: Path) -> None:
    """Only tensors and texts in it grow, so that writing a checkpoint takes hardly longer after many epochs."""
    counts = []
    for epochs in (10, 60):
        every = ("schedule.k=1", f"schedule.epochs={epochs}", "trainer.check_val_every_n_epoch=5", "progress=quiet")
        train(config(*every, run_dir=str(epochs)))
        last = torch.load(tmp_path / str(epochs) / "checkpoints" / "last.ckpt", weights_only=True)
        counts.append(leaves(last["callbacks"]))
        assert last["callbacks"]["RunTables"]["metrics"].count("\n") == 1 + epochs
    assert counts[0] == counts[1]


def test_csv_table_returns_its_rows_with_their_types(tmp_path: Path) -> None:
    """Also after its text was restored from a checkpoint; the file has the same bytes."""
    rows = [{"epoch": i, "stage": ("what", "where")[i % 2], "loss": 0.1 * i} for i in range(9)]
    rows[3]["test/loss"] = float("nan")
    rows[4]["loss"] = 1e300
    table, restored = (
        CsvTable(tmp_path / name, ["epoch", "stage", "loss", "test/loss"]) for name in ("a.csv", "b.csv")
    )
    table.rewrite()
    for row in rows:
        table.append(row, write=True)
    table.write()
    assert (tmp_path / "a.csv").read_bytes() == table.text.encode()
    table.fill({"test/loss": 2.5})
    rows[-1]["test/loss"] = 2.5
    restored.text = table.text
    restored.append({"epoch": 9, "stage": "joint", "loss": None}, write=False)
    for kept, expected in ((table, rows), (restored, [*rows, {"epoch": 9, "stage": "joint"}])):
        assert list(map(repr, kept)) == list(map(repr, expected)), "types too"
        assert list(map(repr, kept[-3:])) == list(map(repr, expected[-3:]))
    table.rewrite()
    assert (tmp_path / "a.csv").read_bytes() == table.text.encode()
    assert restored.text.startswith(table.text)


EPOCHS = 1010
EARLY, LATE = 200, 1000
RSS = 12_000
"""Largest number of bytes of memory for each epoch.

A run keeps 1,300 bytes (rows of tables, predictions of snapshots) in buffers that double; the allocator takes the rest.
"""

CHECKPOINT = 1400
"""Largest number of bytes in a checkpoint for each epoch."""


class Growth(pl.Callback):
    """Measures memory, the number of Python objects and the size of the checkpoint in early and late epochs."""

    def __init__(self, folder: Path) -> None:
        self.last = folder / "checkpoints" / "last.ckpt"
        self.measured: dict[int, tuple[int, int, int]] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for epoch in (EARLY, LATE):
            if epoch - 10 < trainer.current_epoch <= epoch:  # smallest of several, as pictures need memory for a time
                gc.collect()
                status = Path("/proc/self/status").read_text(encoding="utf-8")
                resident = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024
                smallest = min(resident, self.measured.get(epoch, (resident, 0, 0))[0])
                self.measured[epoch] = smallest, len(gc.get_objects()), self.last.stat().st_size


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_little_over_a_thousand_epochs(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All default logs and callbacks are on, and both stages alternate."""
    caplog.set_level(logging.WARNING)  # pytest keeps every message
    growth = Growth(tmp_path / "run")
    monkeypatch.setattr("attnmosaic.training.trainer._instances", instances_and(growth))
    train(
        config(
            "schedule.k=2",
            f"schedule.epochs={EPOCHS}",
            "progress=quiet",
            "callbacks.cycle=null",
            "callbacks.last.min_seconds=0",
        )
    )
    (rss, objects, size), (late_rss, late_objects, late_size) = growth.measured[EARLY], growth.measured[LATE]
    epochs = LATE - EARLY
    print(
        f"an epoch: {(late_rss - rss) / epochs:.0f} bytes of memory, {(late_size - size) / epochs:.0f} of a checkpoint"
    )
    assert late_objects - objects < epochs / 10
    assert (late_rss - rss) / epochs < RSS
    assert (late_size - size) / epochs < CHECKPOINT


def instances_and(growth: Growth) -> Callable[..., list[Any]]:
    """Returns a replacement of `_instances` that adds a callback to those of the config."""
    from attnmosaic.training import trainer

    instances = trainer._instances

    def make(group: str, nodes: dict[str, Any] | None) -> list[Any]:
        return [*instances(group, nodes), *([growth] if group == "callbacks" else [])]

    return make
