"""Findings on small trained runs that do not learn, and the files and outputs that report them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import Cli
from helpers.run_folders import Page
from helpers.settings import SMALL
from torch import Tensor, nn

from attnmosaic.reporting.page import render

pytestmark = pytest.mark.runs

Train = Callable[..., dict[str, float]]

LIGHT = ("logger=none", *(f"callbacks.{name}=null" for name in ("record", "gradients", "dashboards")))


class EqualAfterSixPasses(nn.Module):
    """A where network whose scores are all equal after six training passes."""

    steps: Tensor

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_shape[0], outputs)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += int(self.training)
        return self.linear(x) * (self.steps <= 6)


class FrozenStatistics(nn.Module):
    """A where network with batch normalisation whose evaluation statistics are never updated."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_shape[0], outputs), nn.BatchNorm1d(outputs, momentum=0.0))
        nn.init.constant_(self.layers[0].weight, 1e-3)
        nn.init.constant_(self.layers[1].weight, 5.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def where_network(name: str) -> tuple[str, ...]:
    return "~model.where.hidden", f"model.where._target_=test_diagnosed_runs.{name}"


def warnings_in(folder: Path) -> list[str]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))["warnings"]


def logged_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_weights_that_become_equal_are_reported(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = (*where_network("EqualAfterSixPasses"), "schedule.k=2", "schedule.epochs=12", *LIGHT)
    metrics = train(*settings, "callbacks.cycle._target_=helpers.small_runs.EveryEpoch", run_dir="first")
    during = [line for line in logged_warnings(caplog) if line.startswith("epoch ")]
    assert len(during) == 1  # although three stages had equal weights
    assert during[0].startswith("epoch 8: Where has given all patches the same weight")
    assert "since epoch 7" in during[0]
    assert "epoch-0004.ckpt" in during[0]
    lines = warnings_in(tmp_path / "first")
    assert any("same weight since epoch 7" in line for line in lines)
    assert all(line in logged_warnings(caplog) for line in lines)
    checkpoint = tmp_path / "first" / "checkpoints" / "epoch-0009.ckpt"
    train(*settings, f"ckpt_path={checkpoint}", run_dir="resumed")
    assert warnings_in(tmp_path / "resumed") == lines
    assert train(*settings, "callbacks.diagnosis=null", run_dir="without") == metrics
    assert warnings_in(tmp_path / "without") == []


def test_batch_normalisation_with_other_final_metrics_is_reported(train: Train, tmp_path: Path) -> None:
    train(*where_network("FrozenStatistics"), "schedule.k=2", "schedule.epochs=8", *LIGHT)
    (line,) = warnings_in(tmp_path / "run")
    assert line.startswith("train/entropy was ")
    assert "batch normalisation" in line


def test_run_with_tiny_learning_rates_reports_findings_everywhere(cli: Cli, tmp_path: Path) -> None:
    rates = ("lr.what=1e-9", "lr.where=1e-9", "schedule.k=2", "schedule.epochs=4", "hydra.run.dir=runs/one", *LIGHT)
    code, out, err = cli("train", *SMALL, *rates, "progress=quiet")
    assert code == 0
    lines = warnings_in(tmp_path / "runs" / "one")
    assert "no better than chance (0.367" in lines[0]
    assert [key for line in lines for key in ("larger lr.what", "larger lr.where") if key in line] == [
        "larger lr.what", "larger lr.where",
    ]  # fmt: skip
    for text in (out + err, (tmp_path / "runs" / "one" / "train.log").read_text(encoding="utf-8")):
        assert all(line in text for line in lines)
    page = Page(render(tmp_path / "runs", tmp_path / "report.html"))
    assert all(page.text.count(line) == 2 for line in lines)  # below the table, and in the run's section


def test_run_with_two_outputs_has_a_finding_for_each(train: Train, tmp_path: Path) -> None:
    train("experiment=mnist_sum", "lr.network=1e-9", "schedule.epochs=2", "logger=none")
    lines = warnings_in(tmp_path / "run")
    assert [line.split()[0] for line in lines] == ["train/digit_accuracy", "train/sum_accuracy"]
    assert all("chance" in line and "lr.network" in line for line in lines)


def test_run_without_tables_is_judged_by_its_final_metrics(train: Train, tmp_path: Path) -> None:
    train("lr.what=1e-9", "lr.where=1e-9", "schedule.epochs=2", "callbacks.tables=null", *LIGHT)
    (line,) = warnings_in(tmp_path / "run")
    assert "no better than chance" in line
