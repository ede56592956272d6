"""A run that resumes from the checkpoint of any epoch is bit-identical to the uninterrupted run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.finished_runs import check_same
from helpers.settings import ALL_CHECKPOINTS

from attnmosaic.core.errors import UserError

pytestmark = pytest.mark.runs

Train = Callable[..., dict[str, float]]

EVERY_EPOCH = "callbacks.cycle._target_=helpers.small_runs.EveryEpoch"


@pytest.mark.parametrize(
    ("order", "scheduler", "epochs"),
    [
        ("what_then_where", "none", (1, 2, 3, 4)),
        ("what_then_where", "cosine", (3,)),
        ("where_then_what", "cosine", (1, 2, 3)),
        ("joint", "cosine", (3,)),
        ("what_only", "none", (2,)),
    ],
)
def test_resumed_run_equals_uninterrupted_run(
    train: Train, tmp_path: Path, order: str, scheduler: str, epochs: tuple[int, ...]
) -> None:
    """Five epochs with k = 2: resumes after the first and last epoch of a stage, with and without an evaluation."""
    settings = (
        f"schedule={order}", f"scheduler={scheduler}", "schedule.k=2", "schedule.epochs=5",
        "trainer.check_val_every_n_epoch=2", "lr.what=0.1", "lr.where=0.1", "logger=none",
    )  # fmt: skip
    train(*settings, EVERY_EPOCH, run_dir="whole")
    for epoch in epochs:
        checkpoint = tmp_path / "whole" / "checkpoints" / f"epoch-{epoch:04}.ckpt"
        train(*settings, f"ckpt_path={checkpoint}", run_dir=f"from{epoch}")
        check_same(tmp_path / "whole", tmp_path / f"from{epoch}")


def test_resumed_run_with_dropout_and_batch_norm_equals_uninterrupted_run(train: Train, tmp_path: Path) -> None:
    """The networks sample random numbers in training and keep running statistics."""
    settings = (
        *(f"~model.{name}.hidden" for name in ("where", "what")),
        *(f"model.{name}._target_=helpers.small_runs.Normed" for name in ("where", "what")),
        "schedule.k=2", "schedule.epochs=5", "logger=none", "lr.what=0.1", "lr.where=0.1",
    )  # fmt: skip
    train(*settings, EVERY_EPOCH, run_dir="whole")
    for epoch in (1, 3):
        checkpoint = tmp_path / "whole" / "checkpoints" / f"epoch-{epoch:04}.ckpt"
        train(*settings, f"ckpt_path={checkpoint}", run_dir=f"from{epoch}")
        check_same(tmp_path / "whole", tmp_path / f"from{epoch}")


def test_resumed_run_on_images_equals_uninterrupted_run(train: Train, tmp_path: Path) -> None:
    """The convolutional pair in float64 resumes from the middle of a What stage and of a Where stage."""
    settings = (
        "precision=float64",
        "experiment=stagewise", "data=digits", "schedule.k=2", "schedule.epochs=5", "logger=none",
        "trainer.check_val_every_n_epoch=2", "lr.what=0.1", "lr.where=0.1",
    )  # fmt: skip
    train(*settings, EVERY_EPOCH, run_dir="whole")
    for epoch in (1, 3):
        checkpoint = tmp_path / "whole" / "checkpoints" / f"epoch-{epoch:04}.ckpt"
        train(*settings, f"ckpt_path={checkpoint}", run_dir=f"from{epoch}")
        check_same(tmp_path / "whole", tmp_path / f"from{epoch}")


def test_only_the_checkpoint_to_resume_from_is_read_and_once(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a given path, and with the newest checkpoint of the run's folder, where ``last.ckpt`` is read first."""
    settings = ("schedule.k=1", "schedule.epochs=4", "logger=none", *ALL_CHECKPOINTS)
    metrics = train(*settings, EVERY_EPOCH)
    folder, read = tmp_path / "run" / "checkpoints", list[str]()
    (tmp_path / "run" / "result.json").unlink()
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda file, **kwargs: (read.append(Path(file.name).name), load(file, **kwargs))[1]
    )
    assert train(*settings, f"ckpt_path={folder}/epoch-0002.ckpt", run_dir="other") == metrics
    assert read == ["epoch-0002.ckpt"]
    read.clear()
    (folder / "before_last.ckpt").replace(folder / "last.ckpt")
    (folder / "epoch-0004.ckpt").unlink()
    assert train(*settings) == metrics
    assert read == ["last.ckpt"]
    read.clear()
    (tmp_path / "run" / "result.json").unlink()
    for name in ("last.ckpt", "before_last.ckpt"):
        (folder / name).write_bytes(b"torn")
    assert train(*settings) == metrics
    assert read == ["epoch-0004.ckpt", "epoch-0003.ckpt"], "epoch-0004.ckpt leaves no epoch to train"


def test_checkpoint_that_does_not_fit_the_run_is_refused(train: Train, tmp_path: Path) -> None:
    short = ("schedule.k=1", "schedule.epochs=2", "logger=none")
    train(*short, run_dir="first")
    last = f"ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(UserError, match=r"ckpt_path: .* 2 epochs .*schedule\.epochs=4"):
        train(*short, last)
    with pytest.raises(UserError, match=r"another architecture: pair\.what\.layers\.0\.\w+ is \(4.*\(9"):
        train(*short, last, "model.what.hidden=[9]", "schedule.epochs=4")
    for change in ("lr.what=0.5", "optimizer=adam", "optimizer.where.momentum=0", "scheduler=cosine"):
        with pytest.raises(UserError, match=r"(lr|optimizer|scheduler)\S*: got .* saved optimizers"):
            train(*short, last, "schedule.epochs=4", change)
    with pytest.raises(UserError, match=r"scale: got smoke, .*type scale=full"):
        train(*short, last, "schedule.epochs=4", "scale=smoke", "at_most.schedule.epochs=4")
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((tmp_path / "first" / "checkpoints" / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"ckpt_path: .*torn\.ckpt' is not .* checkpoint"):
        train(*short, f"ckpt_path={torn}", "schedule.epochs=4")


def test_changed_settings_are_logged(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train("schedule.k=1", "schedule.epochs=2", "logger=none", run_dir="first")
    last = f"ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}"
    train("schedule.k=1", "schedule.epochs=3", "logger=none", "data.test_mosaics=31", last)
    lines = [record.message for record in caplog.records if "resuming with another" in record.message]
    assert lines == [
        "resuming with another data.test_mosaics: 30 before, 31 now",
        "resuming with another schedule.epochs: 2 before, 3 now",
        "resuming with another trainer.max_epochs: 2 before, 3 now",
    ]
