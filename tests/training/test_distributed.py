"""A run of two processes gives the numbers of one, and counts nothing twice."""

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
"""Minibatches of 20, 20, 20 and 1, evaluations of 16, 16 and 1: sometimes a process has no row of its own."""

POOL = 1000
"""Points of each pool, the default."""


def numbers(path: Path) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a CSV file by row and column; of a word, row, column and word."""
    with path.open(encoding="utf-8") as file:
        for i, row in enumerate(csv.DictReader(file)):
            for column, value in row.items():
                try:
                    yield f"{i}.{column}", float(value or "nan")
                except ValueError:
                    yield f"{i}.{column}={value}", 0.0


def check_close(one: Path, two: Path, tolerance: float) -> None:
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


def check_one_and_two(train: Train, folder: Path, settings: tuple[str, ...], tolerance: float) -> None:
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
def test_numbers_of_one_process(train: Train, tmp_path: Path, schedule: str) -> None:
    """In float64 to rounding: weights, metrics, published tables, gradients; rank 0 alone writes; each mosaic once."""
    settings = (*UNEVEN, f"schedule={schedule}", "precision=float64", "optimizer.clip_norm=0.5")
    one = train(*settings, run_dir="one")
    watch = (
        "+callbacks.one_writer._target_=helpers.process_watchers.OneWriter",
        "+callbacks.one_writer.folder=${run_dir}",
        "+callbacks.scored._target_=helpers.process_watchers.ScoredPatches",
        f"+callbacks.scored.folder={tmp_path / 'scored'}",
    )
    before = dict(os.environ)
    two = train(*settings, *TWO, *watch, run_dir="two")
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()
    assert two == pytest.approx(one, rel=1e-10, abs=1e-10)
    check_close(tmp_path / "one", tmp_path / "two", 1e-10)
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("one", "two")]
    assert [result["processes"] for result in results] == [1, 2]
    with (tmp_path / "two" / "focus_vs_pred_test.csv").open() as file:
        for row in csv.DictReader(file):
            assert sum(int(value) for name, value in row.items() if name.startswith("focus_")) == 33
    # Whenever Where has changed: both pools for an evaluation, the training pool for a What stage.
    seen = [json.loads((tmp_path / "scored" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert len(seen[0]) >= 2
    assert seen[0] == seen[1] == [POOL // 2] * len(seen[0]), "each process scores its half of a pool"


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
def test_images_too(train: Train, tmp_path: Path, experiment: tuple[str, ...], tolerance: float) -> None:
    short = ("schedule.epochs=4", "lr.what=0.01", "lr.where=0.01")
    check_one_and_two(train, tmp_path, (*experiment, *UNEVEN, *short), tolerance)


@pytest.mark.faults
def test_two_outputs_too(train: Train, tmp_path: Path) -> None:
    """A network without batch normalisation; the last minibatch and the last evaluation have one image."""
    settings = (
        "experiment=mnist_product", "data.train_images=61", "data.held_out_images=33", "data.batch_size=20",
        "schedule.epochs=3", "trainer.check_val_every_n_epoch=1", "precision=float64", "optimizer.clip_norm=0.5",
        "logger=none",
    )  # fmt: skip
    check_one_and_two(train, tmp_path, settings, 1e-9)  # confusion matrices among them


@pytest.mark.faults
def test_networks_that_mix(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch normalisation and dropout: logged to differ, the same when resumed; on as many threads as asked for."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = (
        *(f"~model.{name}.hidden" for name in ("where", "what")),
        *(f"model.{name}._target_=helpers.small_runs.Normed" for name in ("where", "what")),
        *TWO, "schedule.k=2", "schedule.epochs=5", "logger=none", "compute.threads=2",
    )  # fmt: skip
    whole = train(*settings, "callbacks.cycle._target_=helpers.small_runs.EveryEpoch", run_dir="whole")
    assert "with 2 processes the numbers are not those of one" in caplog.text
    checkpoint = tmp_path / "whole" / "checkpoints" / "epoch-0003.ckpt"
    assert train(*settings, f"ckpt_path={checkpoint}", run_dir="resumed") == whole
    csvs = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "resumed")]
    assert csvs[0] == csvs[1]
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["threads"] == 2
    assert "OMP_NUM_THREADS" not in os.environ


def test_one_process_by_the_same_name(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    """``trainer=ddp trainer.devices=1`` is the ordinary run."""
    with caplog.at_level(logging.WARNING):
        one = train("schedule.epochs=2", "logger=none", run_dir="one")
        assert train("schedule.epochs=2", "logger=none", *TWO, "trainer.devices=1", run_dir="two") == one
