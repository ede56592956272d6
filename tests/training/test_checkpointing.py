"""Reading a checkpoint returns its exact contents, or raises a one-line user error."""

import io
import os
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers.settings import SMALL
from helpers.small_runs import AfterEpoch, fit, train_in
from omegaconf import DictConfig

from attnmosaic.callbacks.checkpoints import CycleCheckpoint, LastCheckpoint, keep_as
from attnmosaic.core.errors import UserError
from attnmosaic.training.checkpointing import AtomicCheckpointIO, read_checkpoint
from attnmosaic.training.trainer import build_trainer

Config = Callable[..., DictConfig]
Train = Callable[..., dict[str, float]]
FLIPS = 200
"""Number of files with flipped bits."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint file of a run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    few = ("schedule.k=1", "schedule.epochs=2", "logger=none", "callbacks.record=null", "callbacks.pictures=null")
    train_in(folder, *SMALL, *few)
    return (folder / "checkpoints" / "last.ckpt").read_bytes()


@pytest.fixture
def checkpoint(written: bytes, tmp_path: Path) -> Path:
    """A copy of the checkpoint file, which the test can change."""
    path = tmp_path / "last.ckpt"
    path.write_bytes(written)
    return path


def packed(checkpoint: dict[str, Any]) -> bytes:
    """Returns the contents of a checkpoint as bytes."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with zipfile.ZipFile(content) as parts:
        return b"".join(parts.read(name) for name in sorted(parts.namelist()) if "serialization_id" not in name)


def refused(path: Path, good: bytes) -> bool:
    """Returns whether a checkpoint is refused in one line; if it is not, checks that it has the good contents."""
    try:
        contents = read_checkpoint(path)
    except UserError as error:
        message = str(error)
    else:
        assert packed(contents) == good
        return False
    assert re.fullmatch(r"ckpt_path: [^\n]*checkpoint[^\n]*", message)
    return True


def test_flipped_bits_are_found_or_harmless(checkpoint: Path, tmp_path: Path) -> None:
    """Flips one to three bits anywhere; a fourth of the files are changed only in the zip file's directory."""
    original, good, rng = checkpoint.read_bytes(), packed(read_checkpoint(checkpoint)), random.Random(0)
    path, n_refused = tmp_path / "flipped.ckpt", 0
    directory = original.index(b"PK\x01\x02") * 8
    for trial in range(FLIPS):
        damaged = bytearray(original)
        first = directory if trial % 4 == 0 else 0
        for _ in range(rng.choice([1, 1, 2, 3])):
            bit = rng.randrange(first, 8 * len(original))
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        n_refused += refused(path, good)
    assert n_refused > FLIPS / 2  # the other bits are unused: between entries, in dates


def test_entry_marked_as_folder_is_refused(checkpoint: Path) -> None:
    """One bit of an entry's attributes marks it as a folder: zipfile reads it, torch returns uninitialized memory."""
    original = checkpoint.read_bytes()
    for match in re.finditer(b"PK\x01\x02", original):
        damaged = bytearray(original)
        damaged[match.start() + 38] ^= 0x10
        checkpoint.write_bytes(damaged)
        with pytest.raises(UserError, match=r"it is damaged: \S+ is a folder"):
            read_checkpoint(checkpoint)


def test_flipped_bit_of_a_weight_is_refused(checkpoint: Path) -> None:
    """Torch alone would load another number. Lightning reads checkpoints with the same check."""
    weight = read_checkpoint(checkpoint)["state_dict"]["pair.what.layers.0.weight"]
    content = bytearray(checkpoint.read_bytes())
    content[content.index(weight.numpy().tobytes())] ^= 1
    checkpoint.write_bytes(content)
    loaded_by_torch = torch.load(checkpoint, weights_only=True)["state_dict"]["pair.what.layers.0.weight"]
    assert not torch.equal(loaded_by_torch, weight)
    for load in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match=r"it is damaged: Bad CRC-32 for file"):
            load(checkpoint)


def test_truncated_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Cuts the file to 0 bytes, near its beginning and end, within entries and between entries."""
    original, good = checkpoint.read_bytes(), packed(read_checkpoint(checkpoint))
    with zipfile.ZipFile(checkpoint) as parts:
        begins = [info.header_offset for info in parts.infolist()]
    edges = {begin + by for begin in begins[:: len(begins) // 8] for by in (-1, 0, 1, 64)}
    path = tmp_path / "torn.ckpt"
    for length in sorted({0, 1, 22, *(len(original) - by for by in (98, 23, 22, 21, 1)), *edges} - {-1}):
        path.write_bytes(original[:length])
        assert refused(path, good), length
    path.write_bytes(original)
    assert not refused(path, good)


def _with(part: str, content: bytes) -> Callable[[Path, Path], None]:
    def make(checkpoint: Path, path: Path) -> None:
        with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(path, "w") as new:
            for info in old.infolist():
                new.writestr(info, content if info.filename.endswith(part) else old.read(info))

    return make


def _saved(content: Any) -> Callable[[Path, Path], None]:
    return lambda checkpoint, path: torch.save(content, path)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda checkpoint, path: path.write_bytes(os.urandom(4096)), id="noise"),
        pytest.param(_with("data.pkl", b"cos\nsystem\n(S'echo harm > harm'\ntR."), id="forbidden"),
    ],
)
def test_file_that_is_not_a_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "other.ckpt"
    make(checkpoint, path)
    assert refused(path, b"")
    assert not (tmp_path / "harm").exists()


def test_folder_as_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ckpt_path: "):
        read_checkpoint(tmp_path)


@pytest.mark.faults
def test_checkpoints_are_written_by_time_and_at_the_end(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs take four seconds on this clock; both callbacks count their ten seconds from their own last checkpoint."""
    now = 0.0
    written: list[tuple[str, int]] = []

    def end_of_epoch(epoch: int, module: pl.LightningModule) -> None:
        nonlocal now
        now += 4

    save = pl.Trainer.save_checkpoint

    def record(trainer: pl.Trainer, path: Path, *arguments: Any, **named: Any) -> None:
        written.append((path.name, trainer.current_epoch + 1))
        save(trainer, path, *arguments, **named)

    monkeypatch.setattr("attnmosaic.callbacks.checkpoints.time.monotonic", lambda: now)
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", record)
    fit(config("schedule.k=1", "schedule.epochs=10", "logger=none"), AfterEpoch(end_of_epoch))
    last = [("last.ckpt", epoch) for epoch in (3, 6, 9, 10)]
    cycles = [("epoch-0004.ckpt", 4), ("epoch-0008.ckpt", 8)]
    assert sorted(written) == sorted([*last, *cycles])
    assert epochs_in(tmp_path / "run" / "checkpoints") == {
        "before_last.ckpt": 9, "last.ckpt": 10, "epoch-0004.ckpt": 4, "epoch-0008.ckpt": 8
    }  # fmt: skip


def test_checkpoint_is_written_when_a_callback_ends_the_run(config: Config, tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    fit(config("schedule.k=1", "schedule.epochs=10", "logger=none"), Stop())
    assert epochs_in(tmp_path / "run" / "checkpoints") == {"last.ckpt": 3}


@pytest.mark.parametrize("callback", [LastCheckpoint, CycleCheckpoint])
@pytest.mark.parametrize("value", [-1, "soon", True, float("nan"), None])
def test_invalid_time_between_checkpoints_is_a_user_error(callback: Any, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^callbacks\.{callback.name}\.min_seconds: got {value}, .* type "):
        callback(tmp_path, value)


def epochs_in(folder: Path) -> dict[str, int]:
    """Returns the number of trained epochs of each checkpoint in a folder."""
    return {path.name: torch.load(path, weights_only=True)["epoch"] + 1 for path in folder.glob("*.ckpt")}


def test_before_last_checkpoint_is_from_the_epoch_before(train: Train, tmp_path: Path) -> None:
    """A truncated last checkpoint never replaces it."""
    settings = ("schedule.k=2", "schedule.epochs=5", "logger=none", "callbacks.last.min_seconds=0")
    metrics = train(*settings)
    folder = tmp_path / "run" / "checkpoints"
    assert epochs_in(folder) == {"before_last.ckpt": 4, "last.ckpt": 5}
    assert not (folder / "last.ckpt").samefile(folder / "before_last.ckpt")
    (folder.parent / "result.json").unlink()
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-500])
    assert train(*settings) == metrics
    assert epochs_in(folder) == {"before_last.ckpt": 4, "last.ckpt": 5}
    (folder.parent / "result.json").unlink()
    (folder / "before_last.ckpt").replace(folder / "last.ckpt")  # the state after a stop after epoch 4
    assert train(*settings) == metrics
    assert epochs_in(folder) == {"before_last.ckpt": 4, "last.ckpt": 5}


def test_keep_as_keeps_a_file_under_a_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it is called twice, and on a file system without links."""
    path, kept = tmp_path / "a", tmp_path / "before_a"
    for content in ("one", "two"):
        path.write_text(content)
        keep_as(kept, path)
        keep_as(kept, path)
        assert (path.read_text(), kept.read_text()) == (content, content)
        path.unlink()
    path.write_text("three")
    monkeypatch.setattr("os.link", _no_links)
    keep_as(kept, path)
    assert kept.read_text() == "three"
    assert [*tmp_path.iterdir()] == [kept]


def _no_links(*_: Any) -> None:
    raise OSError(95, "Operation not supported")


def test_checkpoint_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(
        "attnmosaic.training.checkpointing.write_atomically", lambda path, content: written.append(path)
    )
    AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "run" / "b.ckpt")
    assert written == [tmp_path / "run" / "b.ckpt"]


def test_tables_are_synced_before_the_result_is_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions: list[str] = []
    monkeypatch.setattr("attnmosaic.training.results.sync_files", lambda folder: actions.append(f"sync {folder.name}"))
    monkeypatch.setattr("attnmosaic.training.results.write_atomically", lambda path, text: actions.append(path.name))
    train("schedule.k=1", "schedule.epochs=1", "logger=none")
    assert actions == ["sync run", "result.json"]


def test_temporary_files_of_a_crash_are_deleted(train: Train, tmp_path: Path) -> None:
    leftovers = [tmp_path / "run" / ".result.json.1.tmp", tmp_path / "run" / "checkpoints" / ".last.ckpt.1.tmp"]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    train("schedule.k=1", "schedule.epochs=1", "logger=none")
    assert not any(path.exists() for path in leftovers)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_custom_checkpoint_io_in_trainer_plugins_is_used(config: Callable[..., DictConfig]) -> None:
    assert isinstance(build_trainer(config(), "32-true").strategy.checkpoint_io, AtomicCheckpointIO)
    plugins = "+trainer.plugins=[{_target_: test_checkpointing.CustomIO}]"
    assert isinstance(build_trainer(config(plugins), "32-true").strategy.checkpoint_io, CustomIO)


class CustomIO(AtomicCheckpointIO):
    """A checkpoint plugin of the user."""
