"""A run of two processes gives the results of a run of one process, and counts nothing twice."""

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from helpers.forked_ranks import forked  # noqa: F401

from attnmosaic.config.schedule import ORDERS

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("forked")]

Train = Callable[..., dict[str, float]]

TWO = ("trainer=ddp", "trainer.accelerator=cpu")
UNEVEN = (
    "data.train_mosaics=61", "data.test_mosaics=33", "data.batch_size=20", "schedule.k=2", "schedule.epochs=6",
    "trainer.check_val_every_n_epoch=2", "lr.what=0.1", "lr.where=0.1", "logger=none",
)  # fmt: skip
"""Minibatches of 20, 20, 20 and 1, evaluation steps of 16, 16 and 1: the last shards of a process are empty."""

POOL = 1000
"""Number of points in each pool, the default."""


def numbers(path: Path) -> Iterator[tuple[str, float]]:
    """Yields a name and a number for each cell of a CSV file; for a cell with text, the text is in the name."""
    with path.open(encoding="utf-8") as file:
        for i, row in enumerate(csv.DictReader(file)):
            for column, value in row.items():
                try:
                    yield f"{i}.{column}", float(value or "nan")
                except ValueError:
                    yield f"{i}.{column}={value}", 0.0


def check_close(one: Path, two: Path, tolerance: float) -> None:
    """Checks that the tables and weights of two runs are equal up to a tolerance."""
    files = sorted(file.name for file in one.glob("*.csv"))
    assert files == sorted(file.name for file in two.glob("*.csv"))
    assert "metrics.csv" in files
    for file in files:
        for (name, a), (other, b) in zip_longest(numbers(one / file), numbers(two / file)):
            assert name == other
            assert a == pytest.approx(b, abs=tolerance, rel=tolerance, nan_ok=True), f"{file} {name}"
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (one, two)]
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], rtol=tolerance, atol=tolerance)


def check_one_and_two_processes(train: Train, folder: Path, settings: tuple[str, ...], tolerance: float) -> None:
    """Checks that runs of one and of two processes with the same settings give close results."""
    one = train(*settings, run_dir="one")
    assert train(*settings, *TWO, run_dir="two") == pytest.approx(one, rel=tolerance, abs=tolerance)
    check_close(folder / "one", folder / "two", tolerance)


@pytest.mark.parametrize(
    "schedule",
    [
        "what_then_where",
        *(pytest.param(order, marks=pytest.mark.faults) for order in ORDERS if order != "what_then_where"),
    ],
)
def test_two_processes_equal_one_process(train: Train, tmp_path: Path, schedule: str) -> None:
    """In float64 up to rounding: weights, metrics, tables, gradients. Only rank 0 writes; each mosaic counts once."""
    settings = (*UNEVEN, f"schedule={schedule}", "precision=float64", "optimizer.clip_norm=0.5")
    one = train(*settings, run_dir="one")
    watchers = (
        "+callbacks.one_writer._target_=helpers.process_watchers.OneWriter",
        "+callbacks.one_writer.folder=${run_dir}",
        "+callbacks.scored._target_=helpers.process_watchers.ScoredPatches",
        f"+callbacks.scored.folder={tmp_path / 'scored'}",
    )
    before = dict(os.environ)
    two = train(*settings, *TWO, *watchers, run_dir="two")
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()
    assert two == pytest.approx(one, rel=1e-10, abs=1e-10)
    check_close(tmp_path / "one", tmp_path / "two", 1e-10)
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("one", "two")]
    assert [result["processes"] for result in results] == [1, 2]
    with (tmp_path / "two" / "focus_vs_pred_test.csv").open() as file:
        for row in csv.DictReader(file):
            assert sum(int(value) for name, value in row.items() if name.startswith("focus_")) == 33
    # After each change of Where: both pools for an evaluation, the training pool for a What stage.
    scored = [json.loads((tmp_path / "scored" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert len(scored[0]) >= 2
    assert scored[0] == scored[1] == [POOL // 2] * len(scored[0]), "each process scores its half of a pool"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("experiment", "tolerance"),
    [
        (("experiment=stagewise", "data=digits"), 1e-4),  # float32
        (("experiment=stagewise", "data=digits", "precision=float64", "compute.cache_gb=0"), 1e-9),
        (("experiment=weighted_average", "data=digits", "data.foreground=[0,1,2]", "precision=float64"), 1e-9),
    ],
    ids=["float32", "aggregates not kept", "fixed attention"],
)
def test_two_processes_equal_one_on_images(
    train: Train, tmp_path: Path, experiment: tuple[str, ...], tolerance: float
) -> None:
    short = ("schedule.epochs=4", "lr.what=0.01", "lr.where=0.01")
    check_one_and_two_processes(train, tmp_path, (*experiment, *UNEVEN, *short), tolerance)


@pytest.mark.faults
def test_two_processes_equal_one_with_two_outputs(train: Train, tmp_path: Path) -> None:
    """The network has no batch normalisation; the last minibatch and the last evaluation step have one image."""
    settings = (
        "experiment=mnist_product", "data.train_images=61", "data.held_out_images=33", "data.batch_size=20",
        "schedule.epochs=3", "trainer.check_val_every_n_epoch=1", "precision=float64", "optimizer.clip_norm=0.5",
        "logger=none",
    )  # fmt: skip
    check_one_and_two_processes(train, tmp_path, settings, 1e-9)  # includes the confusion matrices


@pytest.mark.faults
def test_networks_with_batch_norm_and_dropout_are_reported(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log warns that results differ from those of one process. Resumed runs are equal, on the requested threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = (
        *(f"~model.{name}.hidden" for name in ("where", "what")),
        *(f"model.{name}._target_=helpers.small_runs.Normed" for name in ("where", "what")),
        *TWO, "schedule.k=2", "schedule.epochs=5", "logger=none", "compute.threads=2",
    )  # fmt: skip
    reference = train(*settings, "callbacks.cycle._target_=helpers.small_runs.EveryEpoch", run_dir="whole")
    assert "results of 2 processes differ" in caplog.text
    checkpoint = tmp_path / "whole" / "checkpoints" / "epoch-0003.ckpt"
    assert train(*settings, f"ckpt_path={checkpoint}", run_dir="resumed") == reference
    csvs = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "resumed")]
    assert csvs[0] == csvs[1]
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["threads"] == 2
    assert "OMP_NUM_THREADS" not in os.environ


def test_ddp_with_one_device_is_an_ordinary_run(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        one = train("schedule.epochs=2", "logger=none", run_dir="one")
        assert train("schedule.epochs=2", "logger=none", *TWO, "trainer.devices=1", run_dir="two") == one
