"""Checkpoints written by any callback are resumed exactly, skipped or refused, for both kinds of modules."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers.commands import Cli, check_line
from helpers.settings import ALL_CHECKPOINTS, SMALL, SMALL_NUMBERS
from helpers.small_runs import build, train_in
from omegaconf import DictConfig
from torch.utils.tensorboard import SummaryWriter

from attnmosaic.callbacks.checkpoints import LastCheckpoint
from attnmosaic.config.resolution import resolve
from attnmosaic.core.errors import UserError
from attnmosaic.runs.snapshots import RECORD
from attnmosaic.training.base import RunModule
from attnmosaic.training.checkpointing import AtomicCheckpointIO
from attnmosaic.training.resume import check_resume, find_checkpoint
from attnmosaic.training.trainer import build_trainer

pytestmark = pytest.mark.faults

Train = Callable[..., dict[str, float]]

COMMON = (
    "schedule.epochs=5", "trainer.check_val_every_n_epoch=2", "logger=none", "callbacks.pictures=null",
    "callbacks.last.min_seconds=0", "callbacks.cycle=null",
)  # fmt: skip
PAIR = ("data.steps_per_block=1", "schedule.k=2", "lr.what=0.1", "lr.where=0.1", *COMMON)
SUM = ("experiment=mnist_sum", "lr.network=0.01", "data.redraw=true", *COMMON)
FAMILIES = {"pair": PAIR, "two_outputs": SUM}
"""Settings of a pair and of a network with two outputs; both have three steps in an epoch."""

MODEL_CHECKPOINT = "+callbacks.mine._target_=pytorch_lightning.callbacks.ModelCheckpoint"
RUN_FOLDER, OTHER_FOLDER = "+callbacks.mine.dirpath=${run_dir}/checkpoints", "+callbacks.mine.dirpath=${run_dir}/mine"
KEEP_ALL = "+callbacks.mine.save_top_k=-1"


class Stop(BaseException):
    """Ends a run without any clean-up of its own, like a kill."""


class Writer(pl.Callback):
    """Saves a checkpoint in one of its hooks, or without ``file`` ends the run there, from epoch ``epoch`` on."""

    def __init__(self, hook: str, file: str | None = None, epoch: int = 3) -> None:
        def act(trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            if trainer.state.fn != "fit" or trainer.current_epoch < epoch:
                return
            if file is None:
                trainer.should_stop = True
            else:
                trainer.save_checkpoint(file)

        setattr(self, hook, act)


WRITERS_WITHIN_EPOCH = {
    "steps": (MODEL_CHECKPOINT, KEEP_ALL, "+callbacks.mine.every_n_train_steps=1"),
    "validation": (MODEL_CHECKPOINT, KEEP_ALL),
    "monitor": (MODEL_CHECKPOINT, KEEP_ALL, "+callbacks.mine.monitor=held_out/loss"),
    "exception": (MODEL_CHECKPOINT, "+callbacks.mine.save_on_exception=true", "+callbacks.mine.filename=saved"),
    "user": ("+callbacks.mine={_target_: test_checkpoint_writers.Writer, hook: on_train_batch_end, epoch: 2, "
             "file: '${run_dir}/checkpoints/=$.ckpt'}",),
}  # fmt: skip


def stop_at(patch: pytest.MonkeyPatch, hook: str, epoch: int) -> None:
    """Makes a run stop in a hook of its module, which runs after the hooks of its callbacks."""

    def stop(module: RunModule, *_: Any) -> None:
        if module.trainer.state.fn == "fit" and module.trainer.current_epoch == epoch and _[-1:] != (0,):
            raise Stop

    patch.setattr(RunModule, hook, stop, raising=False)


def check_same(reference: Path, other: Path) -> None:
    """Checks that two runs have equal tables, snapshots, results, weights and checkpoint states."""
    tables = sorted(path.name for path in reference.glob("*.csv"))
    assert tables == sorted(path.name for path in other.glob("*.csv"))
    for name in tables:
        assert (reference / name).read_text() == (other / name).read_text(), name
    if (reference / RECORD).exists():
        with np.load(reference / RECORD) as one, np.load(other / RECORD) as two:
            assert all(np.array_equal(one[name], two[name]) for name in one.files)
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (reference, other)]
    assert all(torch.equal(last[0]["state_dict"][name], last[1]["state_dict"][name]) for name in last[0]["state_dict"])
    assert last[0].get("complete") == last[1].get("complete")
    results = [json.loads((run / "result.json").read_text()) for run in (reference, other)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["epochs"] == results[1]["epochs"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two uninterrupted runs, `pair` and `two_outputs`."""
    folder = tmp_path_factory.mktemp("reference")
    train_in(folder / "pair", *SMALL, *PAIR)
    train_in(folder / "two_outputs", *SMALL_NUMBERS, *SUM)
    return folder


def check_refused(settings: DictConfig, path: Path, reason: str) -> None:
    """Checks that a run with these settings refuses a checkpoint as its `ckpt_path` for a reason."""
    resolved = resolve(settings)
    resolved["ckpt_path"] = str(path)
    checkpoint = find_checkpoint(resolved)
    assert checkpoint is not None
    module, _ = build(settings)
    with pytest.raises(UserError, match=rf"ckpt_path: '.*' cannot be resumed exactly \({reason}"):
        check_resume(resolved, checkpoint, module)


WRITERS = [*(("pair", writer) for writer in WRITERS_WITHIN_EPOCH), ("two_outputs", "steps"), ("two_outputs", "monitor")]


@pytest.mark.parametrize(("family", "writer"), WRITERS)
def test_checkpoints_within_an_epoch_are_skipped_and_refused(
    train: Train, config: Callable[..., DictConfig], tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, family: str, writer: str,
) -> None:  # fmt: skip
    """The same command skips them, also if the folder has no other checkpoints; `ckpt_path` refuses each."""
    at_evaluation = writer in ("validation", "monitor")
    hook, epoch = ("on_validation_end", 3) if at_evaluation else ("on_train_batch_start", 2)
    caplog.set_level("INFO")
    settings = (*FAMILIES[family], *WRITERS_WITHIN_EPOCH[writer], *(() if writer == "user" else (RUN_FOLDER,)))
    with monkeypatch.context() as patch:
        stop_at(patch, hook, epoch)
        with pytest.raises(Stop):
            train(*settings)
    others = tmp_path / "others" / "checkpoints"
    shutil.copytree(tmp_path / "run" / "checkpoints", others)
    for name in ("last.ckpt", "before_last.ckpt"):
        (others / name).unlink()
    caplog.clear()
    train(*settings)
    check_same(reference / family, tmp_path / "run")
    assert "skipped checkpoints" not in caplog.text
    assert f"resuming after epoch {epoch} of 5" in caplog.text
    caplog.clear()
    assert find_checkpoint(resolve(config(*settings, run_dir="others"))) is None
    (line,) = (record.message for record in caplog.records if "skipped checkpoints" in record.message)
    assert re.search(r"\.ckpt \(written before.*; starting", line)
    for path in others.iterdir():
        check_refused(config(*settings), path, "written before its epoch was complete")


def test_resumes_from_checkpoint_of_monitoring_callback(train: Train, tmp_path: Path) -> None:
    """The checkpoint is written at the end of the epoch, also if the monitored metric is of an earlier evaluation."""
    monitor = (
        MODEL_CHECKPOINT, OTHER_FOLDER, KEEP_ALL, "+callbacks.mine.monitor=held_out/loss",
        "+callbacks.mine.filename='{step:.0f}'",
        "+callbacks.mine.save_on_train_epoch_end=true",
    )  # fmt: skip
    train(*PAIR, *monitor, run_dir="reference")
    names = ["step=2.ckpt", "step=3.ckpt", "step=4.ckpt", "step=5.ckpt"]
    assert sorted(path.name for path in (tmp_path / "reference" / "mine").iterdir()) == names
    path = tmp_path / "reference" / "mine" / "step=3.ckpt"
    train(*PAIR, *monitor, f"ckpt_path='{path}'", run_dir="resumed")
    check_same(tmp_path / "reference", tmp_path / "resumed")
    assert sorted(path.name for path in (tmp_path / "resumed" / "mine").iterdir()) == names[2:]


def test_resumes_from_checkpoint_written_at_end_of_training(train: Train, tmp_path: Path, reference: Path) -> None:
    writer = f"{{_target_: test_checkpoint_writers.Writer, hook: on_train_end, file: '{tmp_path}/e.ckpt'}}"
    train(*SUM, "schedule.epochs=4", f"+callbacks.mine={writer}", run_dir="short")
    train(*SUM, f"ckpt_path={tmp_path}/e.ckpt", run_dir="long")
    check_same(reference / "two_outputs", tmp_path / "long")


def test_resumes_after_stop_within_an_epoch(
    train: Train, config: Callable[..., DictConfig], tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The module's hook that delays the stop to the end of the epoch is off, as if a signal had come after it."""
    caplog.set_level("INFO")
    ends = "+callbacks.ends={_target_: test_checkpoint_writers.Writer, hook: on_train_batch_end, epoch: 3}"
    with monkeypatch.context() as patch:
        patch.setattr(RunModule, "on_train_batch_end", lambda *_: None)
        train(*PAIR, ends)
    check_refused(config(*PAIR), tmp_path / "run" / "checkpoints" / "last.ckpt", "written before")
    (tmp_path / "run" / "result.json").unlink()
    train(*PAIR)
    check_same(reference / "pair", tmp_path / "run")
    assert "cannot be resumed exactly: last.ckpt (written before" in caplog.text


def test_run_ended_by_a_callback_resumes_only_without_it(train: Train, tmp_path: Path) -> None:
    stop = ("callbacks=stop_at_loss", "callbacks.stop.stopping_threshold=1000")
    train(*PAIR, *stop, run_dir="ended")
    last = f"ckpt_path={tmp_path}/ended/checkpoints/last.ckpt"
    with pytest.raises(UserError, match=r"ckpt_path: .*ended.*after epoch 1"):
        train(*PAIR, *stop, last, "schedule.epochs=6")
    train(*PAIR, last)


def test_checkpoint_with_only_weights_is_skipped_and_refused(
    train: Train, config: Callable[..., DictConfig], tmp_path: Path, reference: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    weights = (
        MODEL_CHECKPOINT,
        RUN_FOLDER,
        "+callbacks.mine.save_weights_only=true",
        "+callbacks.mine.save_on_train_epoch_end=true",
    )
    train(*PAIR, *weights)
    (path,) = (tmp_path / "run" / "checkpoints").glob("epoch=*.ckpt")
    check_refused(config(*PAIR), path, "it holds only weights")
    (tmp_path / "run" / "result.json").unlink()
    for name in ("last.ckpt", "before_last.ckpt"):
        (path.parent / name).unlink()
    train(*PAIR, *weights)
    check_same(reference / "pair", tmp_path / "run")
    assert f"cannot be resumed exactly: {path.name} (it holds only weights)" in caplog.text


def test_checkpoint_within_an_epoch_can_be_evaluated(cli: Cli, train: Train, tmp_path: Path) -> None:
    """The command `train` refuses the same checkpoint in one line."""
    train(*PAIR, "schedule.epochs=2", MODEL_CHECKPOINT, OTHER_FOLDER, "+callbacks.mine.filename=best")
    path = tmp_path / "run" / "mine" / "best.ckpt"
    assert cli("evaluate", f"ckpt_path={path}", "hydra.run.dir=evaluation")[0] == 0
    code, _, err = cli("train", *SMALL, *PAIR, f"ckpt_path={path}", "hydra.run.dir=other")
    check_line(code, err, "ckpt_path: .* cannot be resumed exactly")


@pytest.mark.parametrize(
    "overrides",
    [("+callbacks.mine.save_last=true",), ("+callbacks.mine.filename=before_last",)],
    ids=["save_last", "name"],
)
def test_checkpoints_of_the_run_are_not_overwritten(
    config: Callable[..., DictConfig], overrides: tuple[str, ...]
) -> None:
    """Otherwise a kill within an epoch could leave no checkpoint to resume from."""
    trainer = build_trainer(config(MODEL_CHECKPOINT, RUN_FOLDER, *overrides), "32-true")
    with pytest.raises(UserError, match=r"callbacks: .*last\.ckpt' in .*save_last=false"):
        trainer.callbacks[-1].setup(trainer, None, "fit")  # type: ignore[attr-defined]
    trainer = build_trainer(config(MODEL_CHECKPOINT, OTHER_FOLDER, *overrides), "32-true")
    trainer.callbacks[-1].setup(trainer, None, "fit")  # type: ignore[attr-defined]


def test_last_checkpoint_is_written_after_all_others(config: Callable[..., DictConfig]) -> None:
    """A run that resumes from it does not write the other checkpoints of the same epoch again."""
    trainer = build_trainer(config(MODEL_CHECKPOINT, RUN_FOLDER), "32-true")
    assert isinstance(trainer.callbacks[-1], LastCheckpoint)  # type: ignore[attr-defined]


def test_tensorboard_is_flushed_before_each_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before checkpoints of all callbacks, because a run can resume from any of them."""
    actions: list[str] = []
    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(SummaryWriter, "flush", lambda writer: actions.append("flush"))

    def save_and_log(
        io: AtomicCheckpointIO, checkpoint: dict[str, Any], path: str, storage_options: Any = None
    ) -> None:
        actions.append(Path(path).name)
        save(io, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_log)
    logged = [setting for setting in PAIR if setting not in ("logger=none", "callbacks.cycle=null")]
    train(*logged, *ALL_CHECKPOINTS)
    written = [i for i, action in enumerate(actions) if action.endswith(".ckpt")]
    assert {actions[i] for i in written} == {"last.ckpt", "epoch-0004.ckpt"}
    assert all(actions[i - 1] == "flush" for i in written)


def test_on_exception_checkpoint_is_refused(config: Callable[..., DictConfig]) -> None:
    """With it, Lightning itself would load the checkpoint of an exception, or the newest ``last.ckpt``."""
    kept = "+callbacks.kept={_target_: pytorch_lightning.callbacks.OnExceptionCheckpoint, dirpath: '${run_dir}'}"
    with pytest.raises(UserError, match=r"callbacks\.kept: .*save_on_exception"):
        build_trainer(config(kept), "32-true")


def test_time_left_after_resuming_uses_epochs_since_the_start(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The monotonic clock starts at eleven days, as on a machine that has been up for that time."""
    caplog.set_level("INFO")
    settings = (*PAIR, *WRITERS_WITHIN_EPOCH["steps"], RUN_FOLDER, "schedule.k=1", "callbacks.timer=null")
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_batch_start", 1)
        with pytest.raises(Stop):
            train(*settings)
    caplog.clear()
    seconds = iter(range(10**6, 10**7, 50))
    monkeypatch.setattr("attnmosaic.callbacks.eta.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    train(*settings)
    lines = [record.message for record in caplog.records if record.name.endswith("eta")]
    assert lines
    assert all(re.match(r"(100|150) s left for this run|[23] min left for this run", text) for text in lines), lines
