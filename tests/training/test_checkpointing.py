"""A checkpoint is read as it was written, or refused in one line."""

import io
import os
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.settings import SMALL
from helpers.small_runs import train_in
from omegaconf import DictConfig

from attnmosaic.callbacks.checkpoints import keep_as
from attnmosaic.core.errors import UserError
from attnmosaic.training.checkpointing import AtomicCheckpointIO, read_checkpoint
from attnmosaic.training.trainer import build_trainer

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
    """A file of its own with that checkpoint."""
    path = tmp_path / "last.ckpt"
    path.write_bytes(written)
    return path


def packed(checkpoint: dict[str, Any]) -> bytes:
    """Returns all that a checkpoint holds."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with zipfile.ZipFile(content) as parts:
        return b"".join(parts.read(name) for name in sorted(parts.namelist()) if "serialization_id" not in name)


def refused(path: Path, good: bytes) -> bool:
    """Whether it is refused in one line; if not, it must hold what was written."""
    try:
        got = read_checkpoint(path)
    except UserError as error:
        told = str(error)
    else:
        assert packed(got) == good
        return False
    assert re.fullmatch(r"ckpt_path: '[^\n]*' is no readable attnmosaic checkpoint \([^\n]*\)", told)
    return True


def test_flipped_bits(checkpoint: Path, tmp_path: Path) -> None:
    """One to three bits anywhere, a fourth of them where the file's parts are listed."""
    whole, good, draw = checkpoint.read_bytes(), packed(read_checkpoint(checkpoint)), random.Random(0)
    path, found = tmp_path / "flipped.ckpt", 0
    listed = whole.index(b"PK\x01\x02") * 8
    for trial in range(FLIPS):
        damaged = bytearray(whole)
        first = listed if trial % 4 == 0 else 0
        for _ in range(draw.choice([1, 1, 2, 3])):
            bit = draw.randrange(first, 8 * len(whole))
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found += refused(path, good)
    assert found > FLIPS / 2  # the others fell where nothing is: between parts, in dates


def test_a_part_that_became_a_folder(checkpoint: Path) -> None:
    """By one bit of its attributes: zipfile reads it all the same, torch gives whatever is in the memory."""
    whole = checkpoint.read_bytes()
    for match in re.finditer(b"PK\x01\x02", whole):
        damaged = bytearray(whole)
        damaged[match.start() + 38] ^= 0x10
        checkpoint.write_bytes(damaged)
        with pytest.raises(UserError, match=r"it is damaged: \S+ is a folder"):
            read_checkpoint(checkpoint)


def test_a_flipped_bit_of_a_weight(checkpoint: Path) -> None:
    """What torch alone would load as another number, also where Lightning loads it."""
    weight = read_checkpoint(checkpoint)["state_dict"]["pair.what.layers.0.weight"]
    whole = bytearray(checkpoint.read_bytes())
    whole[whole.index(weight.numpy().tobytes())] ^= 1
    checkpoint.write_bytes(whole)
    alone = torch.load(checkpoint, weights_only=True)["state_dict"]["pair.what.layers.0.weight"]
    assert not torch.equal(alone, weight)
    for load in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match=r"it is damaged: Bad CRC-32 for file"):
            load(checkpoint)


def test_truncated(checkpoint: Path, tmp_path: Path) -> None:
    """To nothing, near its ends, in some parts and between parts."""
    whole, good = checkpoint.read_bytes(), packed(read_checkpoint(checkpoint))
    with zipfile.ZipFile(checkpoint) as parts:
        begins = [info.header_offset for info in parts.infolist()]
    edges = {begin + by for begin in begins[:: len(begins) // 8] for by in (-1, 0, 1, 64)}
    path = tmp_path / "torn.ckpt"
    for length in sorted({0, 1, 22, *(len(whole) - by for by in (98, 23, 22, 21, 1)), *edges} - {-1}):
        path.write_bytes(whole[:length])
        assert refused(path, good), length
    path.write_bytes(whole)
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
def test_what_is_no_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "other.ckpt"
    make(checkpoint, path)
    assert refused(path, b"")
    assert not (tmp_path / "harm").exists()


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ckpt_path: "):
        read_checkpoint(tmp_path)


@pytest.mark.faults
def test_the_newest_but_one(train: Train, tmp_path: Path) -> None:
    """The epoch before the last one; a torn one never takes its place."""
    settings = ("schedule.k=2", "schedule.epochs=5", "logger=none", "callbacks.cycle=null")
    whole = train(*settings)
    folder = tmp_path / "run" / "checkpoints"

    def epochs() -> dict[str, int]:
        return {path.name: torch.load(path, weights_only=True)["epoch"] + 1 for path in sorted(folder.glob("*.ckpt"))}

    assert epochs() == {"before_last.ckpt": 4, "last.ckpt": 5}
    assert not (folder / "last.ckpt").samefile(folder / "before_last.ckpt")
    (folder.parent / "result.json").unlink()
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-500])
    assert train(*settings) == whole
    assert epochs() == {"before_last.ckpt": 4, "last.ckpt": 5}
    (folder.parent / "result.json").unlink()
    (folder / "before_last.ckpt").replace(folder / "last.ckpt")  # as a stop after epoch 4 leaves it
    assert train(*settings) == whole
    assert epochs() == {"before_last.ckpt": 4, "last.ckpt": 5}


def test_keeping_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a second name, also twice, and where the file system has no links."""
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


def test_a_checkpoint_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(
        "attnmosaic.training.checkpointing.write_atomically", lambda path, content: written.append(path)
    )
    AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "run" / "b.ckpt")
    assert written == [tmp_path / "run" / "b.ckpt"]


def test_a_runs_tables_are_synced_before_its_result(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    monkeypatch.setattr("attnmosaic.training.results.sync_files", lambda folder: did.append(f"sync {folder.name}"))
    monkeypatch.setattr("attnmosaic.training.results.write_atomically", lambda path, text: did.append(path.name))
    train("schedule.k=1", "schedule.epochs=1", "logger=none")
    assert did == ["sync run", "result.json"]


def test_what_a_crash_left_goes(train: Train, tmp_path: Path) -> None:
    left = [tmp_path / "run" / ".result.json.1.tmp", tmp_path / "run" / "checkpoints" / ".last.ckpt.1.tmp"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    train("schedule.k=1", "schedule.epochs=1", "logger=none")
    assert not any(path.exists() for path in left)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_a_users_own_checkpoint_io(config: Callable[..., DictConfig]) -> None:
    """`trainer.plugins` goes before ours."""
    assert isinstance(build_trainer(config(), "32-true").strategy.checkpoint_io, AtomicCheckpointIO)
    own = "+trainer.plugins=[{_target_: test_checkpointing.OwnIO}]"
    assert isinstance(build_trainer(config(own), "32-true").strategy.checkpoint_io, OwnIO)


class OwnIO(AtomicCheckpointIO):
    """A user's."""
