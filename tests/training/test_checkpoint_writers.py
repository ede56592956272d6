"""A checkpoint that anything writes is resumed exactly, skipped or refused, of a pair and of two outputs."""

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
from helpers.settings import SMALL, SMALL_NUMBERS
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
    "callbacks.cycle=null",
)  # fmt: skip
PAIR = ("data.steps_per_block=1", "schedule.k=2", "lr.what=0.1", "lr.where=0.1", *COMMON)
SUM = ("experiment=mnist_sum", "lr.network=0.01", "data.redraw=true", *COMMON)
FAMILIES = {"pair": PAIR, "two_outputs": SUM}
"""Three steps an epoch in either."""

LIGHTNINGS = "+callbacks.mine._target_=pytorch_lightning.callbacks.ModelCheckpoint"
HERE, ELSEWHERE = "+callbacks.mine.dirpath=${run_dir}/checkpoints", "+callbacks.mine.dirpath=${run_dir}/mine"
ALL = "+callbacks.mine.save_top_k=-1"


class Stop(BaseException):
    """As a kill does it."""


class Writer(pl.Callback):
    """Has the trainer save a checkpoint in one of its hooks, or end there, whenever an epoch from 0 is reached."""

    def __init__(self, hook: str, file: str | None = None, epoch: int = 3) -> None:
        def act(trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            if trainer.state.fn != "fit" or trainer.current_epoch < epoch:
                return
            if file is None:
                trainer.should_stop = True
            else:
                trainer.save_checkpoint(file)

        setattr(self, hook, act)


WITHIN = {
    "steps": (LIGHTNINGS, ALL, "+callbacks.mine.every_n_train_steps=1"),
    "validation": (LIGHTNINGS, ALL),
    "monitor": (LIGHTNINGS, ALL, "+callbacks.mine.monitor=held_out/loss"),
    "exception": (LIGHTNINGS, "+callbacks.mine.save_on_exception=true", "+callbacks.mine.filename=saved"),
    "user": ("+callbacks.mine={_target_: test_checkpoint_writers.Writer, hook: on_train_batch_end, epoch: 2, "
             "file: '${run_dir}/checkpoints/=$.ckpt'}",),
}  # fmt: skip


def stop_at(patch: pytest.MonkeyPatch, hook: str, epoch: int) -> None:
    """Has a run stop in a hook of its module, which comes after those of its callbacks."""

    def stopping(module: RunModule, *_: Any) -> None:
        if module.trainer.state.fn == "fit" and module.trainer.current_epoch == epoch and _[-1:] != (0,):
            raise Stop

    patch.setattr(RunModule, hook, stopping, raising=False)


def check_same(whole: Path, other: Path) -> None:
    """Compares tables, record, result and all states that training has."""
    tables = sorted(path.name for path in whole.glob("*.csv"))
    assert tables == sorted(path.name for path in other.glob("*.csv"))
    for name in tables:
        assert (whole / name).read_text() == (other / name).read_text(), name
    if (whole / RECORD).exists():
        with np.load(whole / RECORD) as one, np.load(other / RECORD) as two:
            assert all(np.array_equal(one[name], two[name]) for name in one.files)
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, other)]
    assert all(torch.equal(last[0]["state_dict"][name], last[1]["state_dict"][name]) for name in last[0]["state_dict"])
    assert last[0].get("complete") == last[1].get("complete")
    results = [json.loads((run / "result.json").read_text()) for run in (whole, other)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["epochs"] == results[1]["epochs"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with runs of either family that nothing stopped, `pair` and `two_outputs`."""
    folder = tmp_path_factory.mktemp("whole")
    train_in(folder / "pair", *SMALL, *PAIR)
    train_in(folder / "two_outputs", *SMALL_NUMBERS, *SUM)
    return folder


def check_refused(settings: DictConfig, path: Path, why: str) -> None:
    """Checks that a run with these settings does not resume from a checkpoint, given as its `ckpt_path`."""
    resolved = resolve(settings)
    resolved["ckpt_path"] = str(path)
    checkpoint = find_checkpoint(resolved)
    assert checkpoint is not None
    module, _ = build(settings)
    with pytest.raises(UserError, match=rf"ckpt_path: '.*' cannot be resumed exactly \({why}"):
        check_resume(resolved, checkpoint, module)


WRITERS = [*(("pair", writer) for writer in WITHIN), ("two_outputs", "steps"), ("two_outputs", "monitor")]


@pytest.mark.parametrize(("family", "writer"), WRITERS)
def test_checkpoints_within_an_epoch(
    train: Train, config: Callable[..., DictConfig], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, family: str, writer: str,
) -> None:  # fmt: skip
    """The same command skips them, as the newest ones and as the only ones; `ckpt_path` refuses each."""
    at_evaluation = writer in ("validation", "monitor")
    hook, epoch = ("on_validation_end", 3) if at_evaluation else ("on_train_batch_start", 2)
    caplog.set_level("INFO")
    given = (*FAMILIES[family], *WITHIN[writer], *(() if writer == "user" else (HERE,)))
    with monkeypatch.context() as patch:
        stop_at(patch, hook, epoch)
        with pytest.raises(Stop):
            train(*given)
    others = tmp_path / "others" / "checkpoints"
    shutil.copytree(tmp_path / "run" / "checkpoints", others)
    for name in ("last.ckpt", "before_last.ckpt"):
        (others / name).unlink()
    caplog.clear()
    train(*given)
    check_same(whole / family, tmp_path / "run")
    assert "skipped checkpoints" not in caplog.text
    assert f"resuming after epoch {epoch} of 5" in caplog.text
    caplog.clear()
    assert find_checkpoint(resolve(config(*given, run_dir="others"))) is None
    (said,) = (record.message for record in caplog.records if "skipped checkpoints" in record.message)
    assert re.search(r"\.ckpt \(written before.*; beginning anew$", said)
    for path in others.iterdir():
        check_refused(config(*given), path, "written before its epoch was complete")


def test_a_monitoring_one_is_resumed(train: Train, tmp_path: Path) -> None:
    """Written when the epoch ends, also where what it monitors is of an earlier evaluation."""
    monitor = (
        LIGHTNINGS, ELSEWHERE, ALL, "+callbacks.mine.monitor=held_out/loss", "+callbacks.mine.filename='{step:.0f}'",
        "+callbacks.mine.save_on_train_epoch_end=true",
    )  # fmt: skip
    train(*PAIR, *monitor, run_dir="whole")
    names = ["step=2.ckpt", "step=3.ckpt", "step=4.ckpt", "step=5.ckpt"]
    assert sorted(path.name for path in (tmp_path / "whole" / "mine").iterdir()) == names
    path = tmp_path / "whole" / "mine" / "step=3.ckpt"
    train(*PAIR, *monitor, f"ckpt_path='{path}'", run_dir="resumed")
    check_same(tmp_path / "whole", tmp_path / "resumed")
    assert sorted(path.name for path in (tmp_path / "resumed" / "mine").iterdir()) == names[2:]


def test_one_written_when_training_ends_is_resumed(train: Train, tmp_path: Path, whole: Path) -> None:
    writer = f"{{_target_: test_checkpoint_writers.Writer, hook: on_train_end, file: '{tmp_path}/e.ckpt'}}"
    train(*SUM, "schedule.epochs=4", f"+callbacks.mine={writer}", run_dir="short")
    train(*SUM, f"ckpt_path={tmp_path}/e.ckpt", run_dir="long")
    check_same(whole / "two_outputs", tmp_path / "long")


def test_a_run_that_ended_within_an_epoch(
    train: Train, config: Callable[..., DictConfig], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """As by a signal's handler just after the module's hook, which has a run end with its epoch."""
    caplog.set_level("INFO")
    ends = "+callbacks.ends={_target_: test_checkpoint_writers.Writer, hook: on_train_batch_end, epoch: 3}"
    with monkeypatch.context() as patch:
        patch.setattr(RunModule, "on_train_batch_end", lambda *_: None)
        train(*PAIR, ends)
    check_refused(config(*PAIR), tmp_path / "run" / "checkpoints" / "last.ckpt", "written before")
    (tmp_path / "run" / "result.json").unlink()
    train(*PAIR)
    check_same(whole / "pair", tmp_path / "run")
    assert "cannot be resumed exactly: last.ckpt (written before" in caplog.text


def test_a_run_that_a_callback_ended(train: Train, tmp_path: Path) -> None:
    """To train on, what ended it has to go."""
    stop = ("callbacks=stop_at_loss", "callbacks.stop.stopping_threshold=1000")
    train(*PAIR, *stop, run_dir="ended")
    last = f"ckpt_path={tmp_path}/ended/checkpoints/last.ckpt"
    with pytest.raises(UserError, match=r"ckpt_path: .*ended.*after epoch 1, and would again"):
        train(*PAIR, *stop, last, "schedule.epochs=6")
    train(*PAIR, last)


def test_weights_alone(
    train: Train, config: Callable[..., DictConfig], tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    weights = (
        LIGHTNINGS,
        HERE,
        "+callbacks.mine.save_weights_only=true",
        "+callbacks.mine.save_on_train_epoch_end=true",
    )
    train(*PAIR, *weights)
    (path,) = (tmp_path / "run" / "checkpoints").glob("epoch=*.ckpt")
    check_refused(config(*PAIR), path, "the weights alone")
    (tmp_path / "run" / "result.json").unlink()
    for name in ("last.ckpt", "before_last.ckpt"):
        (path.parent / name).unlink()
    train(*PAIR, *weights)
    check_same(whole / "pair", tmp_path / "run")
    assert f"cannot be resumed exactly: {path.name} (the weights alone)" in caplog.text


def test_measured_all_the_same(cli: Cli, train: Train, tmp_path: Path) -> None:
    """A checkpoint within an epoch has weights to evaluate, but ends `train` in one line."""
    train(*PAIR, "schedule.epochs=2", LIGHTNINGS, ELSEWHERE, "+callbacks.mine.filename=best")
    path = tmp_path / "run" / "mine" / "best.ckpt"
    assert cli("evaluate", f"ckpt_path={path}", "hydra.run.dir=evaluation")[0] == 0
    code, _, err = cli("train", *SMALL, *PAIR, f"ckpt_path={path}", "hydra.run.dir=other")
    check_line(code, err, "ckpt_path: .* cannot be resumed exactly")


@pytest.mark.parametrize(
    "given", [("+callbacks.mine.save_last=true",), ("+callbacks.mine.filename=before_last",)], ids=["save_last", "name"]
)
def test_the_runs_own_are_not_overwritten(config: Callable[..., DictConfig], given: tuple[str, ...]) -> None:
    """Else a kill within an epoch would leave none to resume from."""
    trainer = build_trainer(config(LIGHTNINGS, HERE, *given), "32-true")
    with pytest.raises(UserError, match=r"callbacks: .*last\.ckpt' in .*save_last=false"):
        trainer.callbacks[-1].setup(trainer, None, "fit")  # type: ignore[attr-defined]
    trainer = build_trainer(config(LIGHTNINGS, ELSEWHERE, *given), "32-true")
    trainer.callbacks[-1].setup(trainer, None, "fit")  # type: ignore[attr-defined]


def test_the_last_one_is_written_last(config: Callable[..., DictConfig]) -> None:
    """A run that resumes from it never writes another callback's of the same epoch."""
    trainer = build_trainer(config(LIGHTNINGS, HERE), "32-true")
    assert isinstance(trainer.callbacks[-1], LastCheckpoint)  # type: ignore[attr-defined]


def test_tensorboard_has_an_epoch_before_its_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever callback's it is: a run may resume from any."""
    did: list[str] = []
    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(SummaryWriter, "flush", lambda writer: did.append("flush"))

    def noted(io: AtomicCheckpointIO, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        did.append(Path(path).name)
        save(io, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    logged = [setting for setting in PAIR if setting not in ("logger=none", "callbacks.cycle=null")]
    train(*logged)
    written = [i for i, what in enumerate(did) if what.endswith(".ckpt")]
    assert {did[i] for i in written} == {"last.ckpt", "epoch-0004.ckpt"}
    assert all(did[i - 1] == "flush" for i in written)


def test_lightning_resumes_from_nothing_by_itself(config: Callable[..., DictConfig]) -> None:
    """`OnExceptionCheckpoint` would have it load whatever an exception left, or the newest ``last.ckpt``."""
    kept = "+callbacks.kept={_target_: pytorch_lightning.callbacks.OnExceptionCheckpoint, dirpath: '${run_dir}'}"
    with pytest.raises(UserError, match=r"callbacks\.kept: .*save_on_exception"):
        build_trainer(config(kept), "32-true")


def test_the_time_left_after_resuming(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a machine that has been up for eleven days: from epochs of this start alone."""
    caplog.set_level("INFO")
    given = (*PAIR, *WITHIN["steps"], HERE, "schedule.k=1", "callbacks.timer=null")
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_batch_start", 1)
        with pytest.raises(Stop):
            train(*given)
    caplog.clear()
    seconds = iter(range(10**6, 10**7, 50))
    monkeypatch.setattr("attnmosaic.callbacks.eta.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    train(*given)
    told = [record.message for record in caplog.records if record.name.endswith("eta")]
    assert told
    assert all(re.match(r"(100|150) s left for this run|[23] min left for this run", text) for text in told), told
