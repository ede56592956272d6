"""A run of two processes gives the numbers of one, counts nothing twice, and never hangs."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from helpers.commands import Cli
from helpers.settings import SMALL
from omegaconf import DictConfig

from attnmosaic.config.resolution import resolve, scaled
from attnmosaic.config.schedule import ORDERS
from attnmosaic.config.schema import processes_of
from attnmosaic.config.validation import check
from attnmosaic.core.errors import Pruned, RunError, UserError

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
Train = Callable[..., dict[str, float]]

TWO = ("trainer=ddp", "trainer.accelerator=cpu")
UNEVEN = (
    "data.train_mosaics=61", "data.test_mosaics=33", "data.batch_size=20", "schedule.k=2", "schedule.epochs=6",
    "trainer.check_val_every_n_epoch=2", "lr.what=0.1", "lr.where=0.1",
)  # fmt: skip
"""Minibatches of 20, 20, 20 and 1, evaluations of 16, 16 and 1: sometimes a process has no row of its own."""


POOL = 1000
"""Points of each pool, the default."""


def numbers(path: Path) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a CSV file by row and column; words are compared by their hash within this process."""
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


def result(folder: Path) -> dict[str, object]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    "schedule",
    [
        "what_then_where",
        *(pytest.param(order, marks=pytest.mark.faults) for order in ORDERS if order != "what_then_where"),
    ],
)
def test_numbers_of_one_process(train: Train, tmp_path: Path, schedule: str) -> None:
    """In float64 to rounding: weights, metrics, published tables, gradients; rank 0 alone writes; each mosaic once."""
    settings = (*UNEVEN, f"schedule={schedule}", "precision=float64", "optimizer.clip_norm=0.5", "logger=none")
    one = train(*settings, run_dir="one")
    watch = (
        "+callbacks.one_writer._target_=helpers.process_watchers.OneWriter",
        "+callbacks.one_writer.folder=${run_dir}",
        "+callbacks.scored._target_=helpers.process_watchers.ScoredPatches",
        f"+callbacks.scored.folder={tmp_path / 'scored'}",
    )
    two = train(*settings, *TWO, *watch, run_dir="two")
    assert two == pytest.approx(one, rel=1e-10, abs=1e-10)
    check_close(tmp_path / "one", tmp_path / "two", 1e-10)
    assert [result(tmp_path / run)["processes"] for run in ("one", "two")] == [1, 2]
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
    ids=["float32", "sums not kept", "decreed"],
)
def test_images_too(train: Train, tmp_path: Path, experiment: tuple[str, ...], tolerance: float) -> None:
    settings = (*experiment, *UNEVEN[:-2], "lr.what=0.01", "lr.where=0.01", "logger=none")
    one = train(*settings, run_dir="one")
    assert train(*settings, *TWO, run_dir="two") == pytest.approx(one, rel=tolerance, abs=tolerance)
    check_close(tmp_path / "one", tmp_path / "two", tolerance)


@pytest.mark.faults
def test_two_outputs_too(train: Train, tmp_path: Path) -> None:
    """A network without batch normalisation; the last minibatch and the last evaluation have one image."""
    settings = (
        "experiment=mnist_product", "data.train_images=61", "data.held_out_images=33", "data.batch_size=20",
        "schedule.epochs=3", "trainer.check_val_every_n_epoch=1", "precision=float64", "optimizer.clip_norm=0.5",
        "logger=none",
    )  # fmt: skip
    one = train(*settings, run_dir="one")
    assert train(*settings, *TWO, run_dir="two") == pytest.approx(one, rel=1e-9, abs=1e-9)
    check_close(tmp_path / "one", tmp_path / "two", 1e-9)  # confusion matrices among them


@pytest.mark.faults
def test_networks_that_mix(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Batch normalisation and dropout: said to differ, the same again when repeated, and when resumed."""
    settings = (
        *(f"~model.{name}.hidden" for name in ("where", "what")),
        *(f"model.{name}._target_=helpers.small_runs.Normed" for name in ("where", "what")),
        *TWO, "schedule.k=2", "schedule.epochs=5", "logger=none",
    )  # fmt: skip
    whole = train(*settings, "callbacks.cycle._target_=helpers.small_runs.EveryEpoch", run_dir="whole")
    assert "with 2 processes the numbers are not those of one" in caplog.text
    checkpoint = tmp_path / "whole" / "checkpoints" / "epoch-0003.ckpt"
    assert train(*settings, f"ckpt_path={checkpoint}", run_dir="resumed") == whole
    csvs = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "resumed")]
    assert csvs[0] == csvs[1]


@pytest.mark.faults
@pytest.mark.parametrize("how", ["killed", "error"])
def test_another_process_ends(train: Train, tmp_path: Path, how: str) -> None:
    """The run ends in one line that says why, keeps its last checkpoint, and goes on by the same command."""
    settings = (*UNEVEN, *TWO, "logger=none")
    whole = train(*settings, run_dir="whole")
    ends = (
        "+callbacks.ends._target_=helpers.process_watchers.Ends", "+callbacks.ends.rank=1", "+callbacks.ends.epoch=3",
        f"+callbacks.ends.how={how}",
    )  # fmt: skip
    said = "process 1 of 2 of this run ended with exit code -9" if how == "killed" else "a bug in one process"
    with pytest.raises(RunError, match=said):
        train(*settings, *ends, run_dir="ended")
    assert said in (tmp_path / "ended" / "error.txt").read_text()
    assert not (tmp_path / "ended" / "result.json").exists()
    assert train(*settings, run_dir="ended") == whole


@pytest.mark.faults
def test_a_search_ends_a_run(train: Train, tmp_path: Path) -> None:
    """The first process is told to; that the others then find nobody is no failure."""
    ends = (
        "+callbacks.ends._target_=helpers.process_watchers.Ends", "+callbacks.ends.rank=0", "+callbacks.ends.epoch=3",
        "+callbacks.ends.how=pruned",
    )  # fmt: skip
    with pytest.raises(Pruned, match="it was enough"):
        train(*UNEVEN, *TWO, *ends, "logger=none", run_dir="ended")
    assert not (tmp_path / "ended" / "error.txt").exists()


@pytest.mark.faults
def test_a_loss_that_is_no_number_ends_all(train: Train) -> None:
    """Of part of a minibatch, the other process's: both find it in the same epoch, none waits for the other."""
    objective = ("objective._target_=helpers.process_watchers.InfiniteElsewhere", "~objective.entropy")
    with pytest.raises(RunError, match=r"the loss became inf in epoch 1, step 1 of 4") as error:
        train(*UNEVEN, *TWO, *objective, "logger=none")
    assert error.value.__cause__ is None, "rank 0 was only told"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("who", "signum", "code", "said"),
    [
        ("first", signal.SIGKILL, -signal.SIGKILL, ""),
        ("first", signal.SIGTERM, 143, "stopped by SIGTERM; the same command goes on"),
        ("first", signal.SIGINT, 130, "stopped by SIGINT; the same command goes on"),
        ("other", signal.SIGTERM, 1, "error: process 1 of 2 of this run ended with exit code -15"),
    ],
    ids=["first-KILL", "first-TERM", "first-INT", "other-TERM"],
)
def test_none_outlives_another(tmp_path: Path, who: str, signum: int, code: int, said: str) -> None:
    """Whichever process is told to end while it trains: both do, and nothing of how they met is left."""
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "attnmosaic.train", *SMALL, *TWO, "schedule.epochs=100000", "logger=none"]
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={run}", "progress=quiet"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    others = children(process.pid)
    assert len(others) == 1
    os.kill(process.pid if who == "first" else others[0], signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    if signum != signal.SIGKILL:  # of which only the other process could say anything
        assert err.strip().rpartition("\n")[2] == said
    while (any(map(alive, others)) or [*temporary.glob("attnmosaic-*")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, others))
    assert not [*temporary.glob("attnmosaic-*")]


@pytest.mark.faults
def test_none_waits_for_one_that_never_comes(config: Config, tmp_path: Path) -> None:
    """The process that was started is gone before they met."""
    place = {"rank": 1, "count": 2, "meeting": str(tmp_path / "meeting")}
    plain = resolve(scaled(config(*TWO)))
    process = subprocess.Popen([sys.executable, "-m", "attnmosaic.training.rank"], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"config": plain, "place": place}) + "\n")
    process.stdin.flush()
    deadline = time.monotonic() + 120
    while not (tmp_path / "meeting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=60) == 1


@pytest.mark.faults
def test_an_error_that_nobody_reads(config: Config, tmp_path: Path) -> None:
    """A process whose first process has ended: its own end leaves no trace on the terminal that both share."""
    place = {"rank": 1, "count": 2, "meeting": str(tmp_path / "meeting")}
    plain = resolve(scaled(config(*TWO, "objective._target_=nowhere.Objective", "~objective.entropy")))
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as unread:
        process = subprocess.Popen(
            [sys.executable, "-m", "attnmosaic.training.rank"],
            stdin=subprocess.PIPE, stdout=unread, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(json.dumps({"config": plain, "place": place}) + "\n")
    process.stdin.flush()  # and stays open: the error ends it
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
    process.stdin.close()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.mark.faults
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_rows_of_a_sweep(cli: Cli, tmp_path: Path, train: Train, launcher: str) -> None:
    """Each row is trained by two processes, and there are no rows but those of the command."""
    given = (*SMALL, *TWO, "schedule.epochs=3", "logger=none", "callbacks.pictures=null")
    code, _, err = cli(
        "train", "-m", f"hydra/launcher={launcher}", "seed.all=0,1", *given, f"hydra.sweep.dir={tmp_path / 'sweep'}"
    )
    assert code == 0, err
    assert sorted(file.parent.name for file in (tmp_path / "sweep").rglob("result.json")) == ["0", "1"]
    for seed in (0, 1):
        found = result(tmp_path / "sweep" / str(seed))
        assert found["processes"] == 2
        assert found["metrics"] == train(*given, f"seed.all={seed}", run_dir=f"alone{seed}")


def test_what_cannot_be(config: Config) -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises(UserError) as slip:
            check(config(*overrides))
        return str(slip.value)

    assert "type trainer=ddp trainer.devices=3" in refused("trainer.devices=3")
    assert "type trainer=ddp trainer.devices=2" in refused("trainer.devices=[0,1]")
    assert "trainer.num_nodes: got 2" in refused("+trainer.num_nodes=2", *TWO)
    assert "got auto, needs with trainer=ddp a number" in refused(*TWO, "trainer.devices=auto")
    assert "got -1, needs with trainer=ddp a number" in refused(*TWO, "trainer.devices=-1")
    assert "share out minibatches of 25" in refused(*TWO, "trainer.devices=26")
    check(config(*TWO))
    assert processes_of(config(*TWO, "trainer.devices=3")) == 3
    assert processes_of(config(*TWO, "trainer.devices=[0,2]")) == 2
    assert processes_of(config("trainer.devices=1")) == 1


def test_one_process_by_the_same_name(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    """``trainer=ddp trainer.devices=1`` is the ordinary run."""
    with caplog.at_level(logging.WARNING):
        one = train("schedule.epochs=2", "logger=none", run_dir="one")
        assert train("schedule.epochs=2", "logger=none", *TWO, "trainer.devices=1", run_dir="two") == one


def test_nothing_is_left_in_the_environment(train: Train) -> None:
    before = dict(os.environ)
    train("schedule.epochs=1", "logger=none", *TWO)
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()
