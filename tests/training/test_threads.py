"""A run that resumes or is evaluated computes on the number of threads that it started with."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import pytest
import torch
from omegaconf import DictConfig

from attnmosaic.evaluate import evaluate
from attnmosaic.training import results
from attnmosaic.training.runtime import threads_for

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
Train = Callable[..., dict[str, float]]
# Large enough to be computed in pieces, so that gradients are summed in another order than for the complete minibatch.
IMAGES = (
    "experiment=stagewise", "data=digits", "data.train_mosaics=1000", "data.batch_size=1000", "schedule=joint",
    "lr.what=0.5", "lr.where=0.5", "schedule.k=1", "schedule.epochs=3", "logger=none",
    "callbacks.cycle._target_=helpers.small_runs.EveryEpoch",
)  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Returns a function that sets the number of cores that this process can use."""
    original = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def cores(n: int) -> None:
        torch.set_num_threads(n)
        monkeypatch.setattr(joblib, "cpu_count", lambda: n)

    yield cores
    torch.set_num_threads(original)


def threads(folder: Path) -> int:
    return json.loads((folder / "result.json").read_text())["threads"]


def weights(folder: Path) -> list[torch.Tensor]:
    return [*torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"].values()]


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def stop_after(epoch: int, reference: Path, stopped: Path) -> None:
    """Copies a run's folder in the state after an epoch."""
    shutil.copytree(reference, stopped)
    (stopped / "result.json").unlink()
    for checkpoint in (stopped / "checkpoints").glob("*.ckpt"):
        if checkpoint.name != f"epoch-{epoch:04}.ckpt":
            checkpoint.unlink()


def test_resumed_and_evaluated_runs_keep_their_number_of_threads(
    train: Train,
    config: Config,
    tmp_path: Path,
    machine: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = tmp_path / "whole"
    machine(2)
    metrics = train(*IMAGES, run_dir="whole")
    assert threads(reference) == 2
    machine(1)  # as on another machine, or in a job of a sweep
    caplog.set_level(logging.WARNING)

    checkpoint = reference / "checkpoints" / "epoch-0001.ckpt"
    assert train(*IMAGES, f"ckpt_path={checkpoint}", run_dir="from1") == metrics
    assert threads(tmp_path / "from1") == 2
    assert same(reference, tmp_path / "from1")
    (line,) = [record.message for record in caplog.records if "threads" in record.message]
    assert "on 2 threads" in line
    assert "compute.threads=1" in line
    assert torch.get_num_threads() == 1, "restored"

    stop_after(1, reference, tmp_path / "run")
    assert train(*IMAGES, run_dir="run") == metrics
    assert same(reference, tmp_path / "run")

    (tmp_path / "evaluated").mkdir()
    last = f"ckpt_path={reference / 'checkpoints' / 'last.ckpt'}"
    cpu = (last, "trainer.accelerator=cpu")
    used, evaluation_of = [], results.evaluation_of
    monkeypatch.setattr(
        results, "evaluation_of", lambda module: (used.append(torch.get_num_threads()), evaluation_of(module))[1]
    )
    evaluated = evaluate(config(*cpu, name="evaluate", small=False, run_dir="evaluated"))
    assert evaluated == metrics
    assert used == [2], "equal metrics of few mosaics do not prove it"

    train(*IMAGES, f"ckpt_path={checkpoint}", "compute.threads=1", run_dir="one_thread")
    assert threads(tmp_path / "one_thread") == 1, "the config takes precedence"
    assert not same(reference, tmp_path / "one_thread"), "the number of threads must affect the weights in this test"


def test_threads_of_a_new_run_and_with_a_setting() -> None:
    assert threads_for(None, None) is None
    assert threads_for(3, {"threads": 2}) == 3
