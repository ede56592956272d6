"""Training and evaluation from a notebook or a script, without a command line."""

import asyncio
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.configs import composed
from helpers.settings import SMALL
from hydra.core.hydra_config import HydraConfig

from attnmosaic.core.errors import UserError
from attnmosaic.evaluate import evaluate
from attnmosaic.train import train

pytestmark = pytest.mark.runs

SHORT = (*SMALL, "schedule.k=1", "schedule.epochs=5", "compute.threads=1")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sets up the state of a new process: an empty working directory, and logging at its default level."""
    monkeypatch.chdir(tmp_path)
    assert not HydraConfig.initialized()
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    yield
    root.setLevel(level)


def remove_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes pytest's log handlers, as in a new process."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_each_call_has_its_own_folder(tmp_path: Path) -> None:
    """Calls with a config that is changed in between, with the same config again, and with another composition."""
    config = composed("train", *SHORT)
    folders, losses = [], []
    for seed in (0, 1, 1):
        config.seed.all = seed
        losses.append(train(config)["test/loss"])
        folders.append(Path(config.run_dir))
    other = composed("train", *SHORT)
    losses.append(train(other)["test/loss"])
    folders.append(Path(other.run_dir))
    assert len({*folders}) == 4
    assert losses[0] == losses[3] != losses[1] == losses[2]
    for folder in folders:
        assert folder.parent == Path("outputs/gaussian")
        assert {"result.json", "config.yaml", "train.log", "checkpoints"} <= {path.name for path in folder.iterdir()}


def test_finished_run_in_a_named_folder_is_not_repeated(tmp_path: Path) -> None:
    """A run with other settings is refused there."""
    config = composed("train", *SHORT, "run_dir=mine")
    first = train(config)
    written_at = (tmp_path / "mine" / "result.json").stat().st_mtime_ns
    assert train(config) == first
    assert (tmp_path / "mine" / "result.json").stat().st_mtime_ns == written_at
    config.lr.what = 0.5
    with pytest.raises(UserError, match="run_dir"):
        train(config)


def test_training_in_a_running_event_loop() -> None:
    """Cells of a notebook run in an event loop."""

    async def cell() -> dict[str, float]:
        return train(composed("train", *SHORT))

    assert 0 <= asyncio.run(cell())["held_out/focus"] <= 1


USER_ERRORS: dict[str, tuple[str, ...]] = {
    "lr.what": ("lr.what=-1",),
    "data.root": ("experiment=stagewise", "data=image_folder", "data.root=missing", "data.foreground=[a,b]"),
    "name": ("name=../x",),
    "nowhere": ("paths.output=${nowhere}",),
    "ckpt_path": ("ckpt_path=missing.ckpt",),
    "nonsense": ("+nonsense=1",),
    "run_dir": ("run_dir=???",),
}


@pytest.mark.parametrize("key", USER_ERRORS)
def test_user_errors_name_the_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=re.escape(key)):
        train(composed("train", *SMALL, *USER_ERRORS[key]))
    assert not (tmp_path / "outputs").exists()


def test_evaluation_equals_the_result() -> None:
    config = composed("train", *SHORT)
    final = train(config)
    checkpoint = f"ckpt_path={config.run_dir}/checkpoints/last.ckpt"
    evaluation = composed("evaluate", checkpoint)
    assert evaluate(evaluation) == final
    assert (Path(evaluation.run_dir) / "evaluation.json").is_file()
    with pytest.raises(UserError, match="ckpt_path"):
        evaluate(composed("evaluate", "ckpt_path=missing.ckpt"))


def process_state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "precision": torch.get_float32_matmul_precision(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)],
        "logging": [(logger.level, [*logger.handlers]) for logger in map(logging.getLogger, ("", "attnmosaic"))],
    }


def test_training_does_not_change_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    remove_log_handlers(monkeypatch)
    train(composed("train", *SHORT))  # imports torch and Lightning, which change the process
    before = process_state()
    train(composed("train", *SHORT, "compute.threads=2", "seed.all=3", "compute.matmul_precision=high"))
    with pytest.raises(UserError):
        train(composed("train", *SHORT, "lr.what=-1"))
    assert process_state() == before


@pytest.mark.parametrize(("mode", "has_lines"), [("auto", True), ("quiet", False)])
def test_training_prints_and_logs_its_progress(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str, has_lines: bool
) -> None:
    """Prints the same lines as the command without a terminal, and writes them into the log of the run's folder."""
    remove_log_handlers(monkeypatch)
    config = composed("train", *SHORT, f"progress={mode}")
    metrics = train(config)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{metrics['held_out/focus']:.4f}" in err
    assert ("epoch 5/5" in err) == has_lines
    log = (Path(config.run_dir) / "train.log").read_text(encoding="utf-8")
    assert "epoch 5/5" in log
    assert f"{metrics['held_out/focus']:.4f}" in log


def test_configured_logging_is_not_changed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = [logging.StreamHandler()]
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    train(composed("train", *SHORT))
    assert logging.getLogger().handlers is handlers
    assert len(handlers) == 1
    assert capfd.readouterr() == ("", "")
