"""Runs that are killed, stopped or out of disk space at any moment resume to bit-identical results."""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.forked_commands import Forks
from helpers.settings import ALL_CHECKPOINTS, SMALL

from attnmosaic.runs.run import CONFIG, ERROR, RESULT, Run
from attnmosaic.runs.snapshots import RECORD

pytestmark = pytest.mark.faults

EPOCHS = 7
FEW_CHECKPOINTS = (
    *SMALL, "schedule.k=3", f"schedule.epochs={EPOCHS}", "trainer.check_val_every_n_epoch=3", "lr.what=0.1",
    "lr.where=0.1", "logger=none", "progress=quiet", "hydra.run.dir=run",
)  # fmt: skip
SETTINGS = (*FEW_CHECKPOINTS, *ALL_CHECKPOINTS)
NO_PICTURES = "callbacks.pictures=null"

MOMENTS: tuple[tuple[Any, ...], ...] = (
    ("at_place", "attnmosaic.training.fit.build_module", 1),  # in start-up
    ("at_epoch", 1),
    ("in_writing", "last.ckpt", "half", 1),
    ("at_place", "attnmosaic.training.stagewise.StagewiseModule.training_step", 3),
    ("at_epoch", 3),  # the last of a stage
    ("at_place", "attnmosaic.training.stagewise.StagewiseModule.validation_step", 2),
    ("in_writing", "last.ckpt", "renamed", 1),
    ("at_epoch", 6),
    ("in_writing", "epoch-0006.ckpt", "synced", 1),
    ("at_place", "attnmosaic.training.fit.check_resume", 1),
    ("in_writing", "mosaics.npz", "written", 1),
    ("at_place", "attnmosaic.plotting.run.draw_run", 1),
    ("at_place", "attnmosaic.training.results.finish_run", 1),
    ("in_writing", "result.json", "begun", 1),
)
"""Moments of a run at which it is stopped, in their order within the run. Each is tested once, in one of `RUNS`."""

FEW_MOMENTS: tuple[tuple[Any, ...], ...] = (
    ("at_epoch", 2),
    ("at_place", "attnmosaic.callbacks.csv_tables.CsvTable.write", 2),
    ("at_epoch", 7),
    ("in_writing", "last.ckpt", "half", 1),
    ("in_writing", "last.ckpt", "kept", 1),
    ("in_writing", "mosaics.npz", "written", 1),
    ("in_writing", "result.json", "half", 1),
)
"""Moments at which a run is stopped that writes few checkpoints."""

RUNS = {"what_then_where": "cosine", "joint": "none"}
"""Learning-rate scheduler by schedule; `test_resume.py` resumes from checkpoints in every schedule."""

KILOBYTES = (8, 80, 150)
"""Sizes of a disk that are too small for a run."""

EXIT_CODES = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as started:
        yield started


def check_same(reference: Path, other: Path, checkpoints: Sequence[str] = ("last.ckpt", "epoch-0006.ckpt")) -> None:
    """Checks that the folders of two runs are equal, except for times, paths and pictures."""
    tables = sorted(path.name for path in reference.glob("*.csv"))
    assert tables == sorted(path.name for path in other.glob("*.csv"))
    assert {"metrics.csv", "gradients.csv", "focus_vs_pred_held_out.csv"} <= {*tables}
    for name in tables:
        assert (reference / name).read_bytes() == (other / name).read_bytes(), name
    with np.load(reference / RECORD) as one, np.load(other / RECORD) as two:
        assert one.files == two.files
        assert all(np.array_equal(one[name], two[name]) for name in one.files)
    results = [json.loads((folder / RESULT).read_text()) for folder in (reference, other)]
    for key in ("metrics", "epochs", "config_hash", "seed"):
        assert results[0][key] == results[1][key], key
    for name in checkpoints:
        last = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (reference, other)]
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert same(last[0].get(part), last[1].get(part)), (name, part)
    assert not [*other.rglob("*.tmp")]
    assert not (other / ERROR).exists()


def same(one: Any, other: Any) -> bool:
    """Returns whether two nested states of tensors and plain values are equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def check_stopped(code: int, printed: str, action: str, run: Path) -> None:
    """Checks that a stopped command printed one line, returned the signal's exit code, and recorded no failure."""
    assert code == EXIT_CODES[action]
    assert "Traceback" not in printed
    assert "Exception ignored" not in printed
    assert not (run / ERROR).exists()
    if action != "SIGKILL":
        has_config = (run / CONFIG).exists()
        advice = "; to resume, run the same command again" if has_config else ""
        assert printed.splitlines()[-1] == f"stopped by {action}{advice}"
        assert Run(run).state == ("stopped" if has_config else "missing")


@pytest.mark.parametrize("order", RUNS)
def test_run_stopped_at_any_moment_equals_uninterrupted_run(forks: Forks, tmp_path: Path, order: str) -> None:
    """The run is stopped several times by different signals, and resumed each time by the same command."""
    settings = (*SETTINGS, f"schedule={order}", f"scheduler={RUNS[order]}")
    code, printed = forks.run(tmp_path / "whole", *settings, NO_PICTURES)
    assert code == 0, printed
    run = tmp_path / "run"
    for nth in range([*RUNS].index(order), len(MOMENTS), len(RUNS)):
        moment, action = MOMENTS[nth], [*EXIT_CODES][nth % len(EXIT_CODES)]
        # Pictures take longer than the rest of the run, so they are on only if the run is stopped while it draws them.
        pictures = "callbacks.pictures.formats=[png]" if "draw_run" in str(moment) else NO_PICTURES
        code, printed = forks.run(tmp_path, *settings, pictures, moment=(*moment, action))
        check_stopped(code, printed, action, run)
    code, printed = forks.run(tmp_path, *settings, NO_PICTURES)
    assert code == 0, printed
    check_same(tmp_path / "whole" / "run", run)


@pytest.fixture(scope="module")
def reference(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run with `SETTINGS`."""
    folder = tmp_path_factory.mktemp("whole")
    code, printed = forks.run(folder, *SETTINGS, NO_PICTURES)
    assert code == 0, printed
    return folder / "run"


@pytest.mark.parametrize("seconds", [10, 0.1])
def test_run_with_few_checkpoints_stopped_at_any_moment(
    forks: Forks, tmp_path: Path, reference: Path, seconds: float
) -> None:
    """With the default the run has no checkpoint before its end, with 0.1 s some; it starts again or resumes."""
    settings, run = (*FEW_CHECKPOINTS, f"callbacks.last.min_seconds={seconds}", NO_PICTURES), tmp_path / "run"
    for nth, moment in enumerate(FEW_MOMENTS):
        action = [*EXIT_CODES][nth % len(EXIT_CODES)]
        code, printed = forks.run(tmp_path, *settings, moment=(*moment, action))
        check_stopped(code, printed, action, run)
        assert (run / "checkpoints" / "last.ckpt").exists() or seconds < 1 or nth < 4
    code, printed = forks.run(tmp_path, *settings)
    assert code == 0, printed
    check_same(reference, run, ["last.ckpt"])


def test_kill_while_a_checkpoint_is_written_keeps_the_old_one(forks: Forks, tmp_path: Path, reference: Path) -> None:
    """The run loses one epoch. `tests/core/test_files.py` tests every step of writing a file."""
    checkpoints = tmp_path / "run" / "checkpoints"
    code, printed = forks.run(
        tmp_path, *SETTINGS, NO_PICTURES, moment=("in_writing", "last.ckpt", "half", 3, "SIGKILL")
    )
    assert code == -9, printed
    assert len([*checkpoints.glob(".*.tmp")]) == 1
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] + 1 == 2
    code, printed = forks.run(tmp_path, *SETTINGS, NO_PICTURES)
    assert code == 0, printed
    assert "resuming after epoch 2" in (tmp_path / "run" / "train.log").read_text()
    check_same(reference, tmp_path / "run")


def test_disk_errors_end_the_run_in_one_line(forks: Forks, tmp_path: Path, reference: Path) -> None:
    """At any write: no result, the earlier checkpoint is unchanged, and the same command resumes the run."""
    settings = (*(word for word in SETTINGS if word != "logger=none"), NO_PICTURES)
    run = tmp_path / "run"
    for moment in (
        ("in_writing", "config.yaml", "half", 1, "EROFS"),
        ("at_place", "attnmosaic.callbacks.csv_tables.RunTables._add", 4, "ENOSPC"),
        ("in_writing", "last.ckpt", "half", 1, "EIO"),
        ("at_place", "tensorboard.summary.writer.record_writer.RecordWriter.write", 8, "ENOSPC"),
        ("in_writing", "mosaics.npz", "half", 1, "EIO"),
        ("in_writing", "result.json", "half", 1, "ENOSPC"),
    ):
        code, printed = forks.run(tmp_path, *settings, moment=moment)
        assert code == 1, (moment, printed)
        (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
        assert re.search("disk full while writing" if "ENOSPC" in moment else "cannot read or write", line), line
        assert "Traceback" not in printed, (moment, printed)
        assert "Exception ignored" not in printed, (moment, printed)
        assert not (run / RESULT).exists()
        assert Run(run).state == "failed"
        assert not [*run.rglob("*.tmp")]
        for checkpoint in run.glob("checkpoints/*.ckpt"):
            torch.load(checkpoint, weights_only=True)
    code, printed = forks.run(tmp_path, *settings)
    assert code == 0, printed
    check_same(reference, run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 1 MB in memory, which only root can mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("no permission to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_run_on_a_full_disk_resumes_when_there_is_space(
    forks: Forks, tmp_path: Path, small_disk: Path, reference: Path
) -> None:
    """On a real file system, with sizes at which the disk is full while log, checkpoints or snapshots are written."""
    settings = (*SETTINGS, NO_PICTURES, f"hydra.run.dir={small_disk}/run")
    epochs_done = set()
    for kilobytes in KILOBYTES:
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(small_disk)], check=True)
        code, printed = forks.run(tmp_path, *settings)
        assert code == 1, printed
        assert "Traceback" not in printed, printed
        assert "Logging error" not in printed
        (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
        assert "No space left on device" in line
        assert not (small_disk / "run" / RESULT).exists()
        epochs_done.add(Run(small_disk / "run").epochs_done)
    assert len(epochs_done) > 1, epochs_done
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, printed = forks.run(tmp_path, *settings)
    assert code == 0, printed
    check_same(reference, small_disk / "run")


def test_run_on_a_read_only_disk_resumes_when_it_is_writable(forks: Forks, tmp_path: Path, small_disk: Path) -> None:
    settings = (*SETTINGS, NO_PICTURES)
    run_dir = f"hydra.run.dir={small_disk}/run"
    assert forks.run(tmp_path, *settings, run_dir, moment=("at_epoch", 3, "SIGKILL"))[0] == -9
    before = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for folder in ("run", "another"):
        code, printed = forks.run(tmp_path, *settings, f"hydra.run.dir={small_disk}/{folder}")
        assert code in (1, 2)
        assert re.fullmatch(r"error: [^\n]*Read-only file system[^\n]*\n", printed), printed
    assert before == {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert forks.run(tmp_path, *settings, run_dir)[0] == 0


def test_run_with_deleted_data_resumes_when_they_are_back(forks: Forks, tmp_path: Path) -> None:
    """Without its data the restarted run ends in one line."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "bird"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    settings = (
        "experiment=stagewise", "data=image_folder", f"data.root={tmp_path / 'photos'}", "data.foreground=[cat,dog]",
        *SETTINGS, NO_PICTURES,
    )  # fmt: skip
    assert forks.run(tmp_path, *settings, moment=("at_epoch", 3, "SIGTERM"))[0] == 143
    (tmp_path / "photos").rename(tmp_path / "away")
    code, printed = forks.run(tmp_path, *settings)
    assert code == 2
    assert re.fullmatch(r"error: data\.root: '.*photos' does not exist[^\n]*\n", printed), printed
    (tmp_path / "away").rename(tmp_path / "photos")
    assert forks.run(tmp_path, *settings)[0] == 0
    assert Run(tmp_path / "run").epochs_done == EPOCHS


def test_deleted_run_folder_ends_the_run_in_one_line(forks: Forks, tmp_path: Path) -> None:
    code, printed = forks.run(tmp_path, *SETTINGS, NO_PICTURES, moment=("folder_deleted", 3, "run"))
    assert code == 1
    assert re.search(r"^error: run_dir: '.*run' was deleted; [^\n]*$", printed, flags=re.M), printed
    assert "Traceback" not in printed
