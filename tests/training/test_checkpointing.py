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
from omegaconf import DictConfig

from attnmosaic.callbacks.checkpoints import keep_as
from attnmosaic.core.errors import UserError
from attnmosaic.core.files import disk_trouble, remove_unfinished, sync_files, write_atomically
from attnmosaic.training.checkpointing import WholeCheckpoints, read_checkpoint
from attnmosaic.training.trainer import build_trainer

Train = Callable[..., dict[str, float]]
FLIPS, MANY_FLIPS = 300, 4000
"""Random bits turned over, in a test of seconds and in one of minutes."""


@pytest.fixture
def checkpoint(train: Train, tmp_path: Path) -> Path:
    train("schedule.k=1", "schedule.epochs=2", "logger=none", "callbacks.record=null")
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


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


@pytest.mark.parametrize("flips", [FLIPS, pytest.param(MANY_FLIPS, marks=pytest.mark.faults)])
def test_flipped_bits(checkpoint: Path, tmp_path: Path, flips: int) -> None:
    """One to three bits anywhere, a fourth of them where the file's parts are listed."""
    whole, good, draw = checkpoint.read_bytes(), packed(read_checkpoint(checkpoint)), random.Random(flips)
    path, found = tmp_path / "flipped.ckpt", 0
    listed = whole.index(b"PK\x01\x02") * 8
    for trial in range(flips):
        damaged = bytearray(whole)
        first = listed if trial % 4 == 0 else 0
        for _ in range(draw.choice([1, 1, 2, 3])):
            bit = draw.randrange(first, 8 * len(whole))
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found += refused(path, good)
    assert found > flips / 2  # the others fell where nothing is: between parts, in dates


def test_a_part_that_became_a_folder(checkpoint: Path) -> None:
    """By one bit of its attributes: zipfile reads it all the same, torch gives whatever is in the memory."""
    whole = checkpoint.read_bytes()
    for match in re.finditer(b"PK\x01\x02", whole):
        damaged = bytearray(whole)
        damaged[match.start() + 38] ^= 0x10
        checkpoint.write_bytes(damaged)
        with pytest.raises(UserError, match=r"it is damaged: \S+ is a folder"):
            read_checkpoint(checkpoint)


@pytest.mark.faults
def test_every_bit_of_some_headers(checkpoint: Path, tmp_path: Path) -> None:
    """Where zipfile, which checks, and torch, which loads, might take the same file for different ones."""
    whole, good = checkpoint.read_bytes(), packed(read_checkpoint(checkpoint))
    places = [match.start() for kind in (b"PK\x01\x02", b"PK\x03\x04") for match in re.finditer(kind, whole)]
    chosen = [places[n] for n in (0, 3, len(places) // 2, len(places) // 2 + 3)]
    spans = [*(range(place, place + 64) for place in chosen), range(len(whole) - 98, len(whole))]
    path = tmp_path / "flipped.ckpt"
    for byte in (byte for span in spans for byte in span):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[byte] ^= 1 << bit
            path.write_bytes(damaged)
            refused(path, good)


def test_a_flipped_bit_of_a_weight(checkpoint: Path) -> None:
    """What torch alone would load as another number, also where Lightning loads it."""
    weight = read_checkpoint(checkpoint)["state_dict"]["pair.what.layers.0.weight"]
    whole = bytearray(checkpoint.read_bytes())
    whole[whole.index(weight.numpy().tobytes())] ^= 1
    checkpoint.write_bytes(whole)
    alone = torch.load(checkpoint, weights_only=True)["state_dict"]["pair.what.layers.0.weight"]
    assert not torch.equal(alone, weight)
    for load in (read_checkpoint, WholeCheckpoints().load_checkpoint):
        with pytest.raises(UserError, match=r"it is damaged: Bad CRC-32 for file"):
            load(checkpoint)


def test_truncated(checkpoint: Path, tmp_path: Path) -> None:
    """To nothing, to every length near its ends, in each part and between parts."""
    whole, good = checkpoint.read_bytes(), packed(read_checkpoint(checkpoint))
    with zipfile.ZipFile(checkpoint) as parts:
        begins = [info.header_offset for info in parts.infolist()]
    edges = {begin + by for begin in begins for by in (-1, 0, 1, 30, 64)}
    lengths = {*range(64), *range(len(whole) - 128, len(whole)), *edges, *range(0, len(whole), 997)}
    path = tmp_path / "torn.ckpt"
    for length in sorted(length for length in lengths if 0 <= length < len(whole)):
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


def _bomb(checkpoint: Path, path: Path) -> None:
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            big = info.filename.endswith("data/0")
            new.writestr(info.filename, b"\0" * (1 << 26) if big else old.read(info))


def _saved(content: Any) -> Callable[[Path, Path], None]:
    return lambda checkpoint, path: torch.save(content, path)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda checkpoint, path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda checkpoint, path: path.write_bytes(os.urandom(4096)), id="noise"),
        pytest.param(_with("data.pkl", b"cos\nsystem\n(S'echo harm > harm'\ntR."), id="forbidden"),
        pytest.param(_with("data.pkl", b"\x80\x02" + b"(" * 100_000 + b"."), id="nonsense"),
        pytest.param(_saved({"state_dict": {}}), id="weights"),
        pytest.param(_saved([1, 2]), id="list"),
        pytest.param(
            _saved({"hyper_parameters": {"config": {"model": {}}}, "state_dict": {"a": 1}, "epoch": 1}), id="numbers"
        ),
        pytest.param(
            _saved({"hyper_parameters": {"config": {"model": {}}}, "state_dict": {}, "epoch": "one"}), id="epoch"
        ),
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


def test_a_bomb_is_not_unpacked(checkpoint: Path, tmp_path: Path) -> None:
    """A file of some kilobytes whose parts would fill the memory."""
    path = tmp_path / "bomb.ckpt"
    _bomb(checkpoint, path)
    with pytest.raises(UserError, match=r"it is damaged: its parts are larger than the file"):
        read_checkpoint(path)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ckpt_path: "):
        read_checkpoint(tmp_path)


def test_the_newest_but_one(train: Train, tmp_path: Path) -> None:
    """The epoch before the last one; a torn one never takes its place."""
    settings = ("schedule.k=2", "schedule.epochs=5", "logger=none", "callbacks.cycle=null")
    whole = train(*settings, run_dir="whole")
    folder = tmp_path / "run" / "checkpoints"

    def epochs() -> dict[str, int]:
        return {path.name: torch.load(path, weights_only=True)["epoch"] + 1 for path in sorted(folder.glob("*.ckpt"))}

    train(*settings)
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


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content, then its name, then its folder; and a run's other files before its mark."""
    did: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(number: int) -> None:
        did.append(("sync", Path(os.readlink(f"/proc/self/fd/{number}")).name))
        fsync(number)

    def noted_replace(one: Path, other: Path) -> None:
        did.append(("rename", Path(other).name))
        replace(one, other)

    monkeypatch.setattr("os.fsync", noted_fsync)
    monkeypatch.setattr("os.replace", noted_replace)
    folder = tmp_path / "run"
    folder.mkdir()
    write_atomically(folder / "a.json", "a")
    assert (folder / "a.json").read_text() == "a\n"
    assert did == [("sync", f".a.json.{os.getpid()}.tmp"), ("rename", "a.json"), ("sync", "run")]
    did.clear()
    WholeCheckpoints().save_checkpoint({"a": 1}, folder / "b.ckpt")
    assert did == [("sync", f".b.ckpt.{os.getpid()}.tmp"), ("rename", "b.ckpt"), ("sync", "run")]
    did.clear()
    (folder / "deeper").mkdir()
    sync_files(folder)
    assert sorted(did) == [("sync", "a.json"), ("sync", "b.ckpt"), ("sync", "run")]


def test_a_runs_tables_are_synced_before_its_result(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    monkeypatch.setattr("attnmosaic.training.results.sync_files", lambda folder: did.append(f"sync {folder.name}"))
    monkeypatch.setattr("attnmosaic.training.results.write_atomically", lambda path, text: did.append(path.name))
    train("schedule.k=1", "schedule.epochs=1", "logger=none")
    assert did == ["sync run", "result.json"]


def test_what_a_crash_left_goes(train: Train, tmp_path: Path) -> None:
    train("schedule.k=1", "schedule.epochs=1", "logger=none")
    left = [tmp_path / "run" / ".result.json.1.tmp", tmp_path / "run" / "checkpoints" / ".last.ckpt.1.tmp"]
    for path in left:
        path.touch()
    remove_unfinished(tmp_path / "nowhere")
    train("schedule.k=1", "schedule.epochs=1", "logger=none")
    assert not any(path.exists() for path in left)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_only_the_disk_is_to_blame_for_some_errors() -> None:
    assert disk_trouble(FileNotFoundError(2, "No such file")) is None
    assert disk_trouble(ValueError()) is None
    told = disk_trouble(OSError(28, "No space left on device", "a.csv"))
    assert told is not None
    assert told.startswith("no room on the disk for 'a.csv' (No space left on device); ")


def test_a_users_own_checkpoint_io(config: Callable[..., DictConfig]) -> None:
    """`trainer.plugins` goes before ours."""
    assert isinstance(build_trainer(config(), "32-true").strategy.checkpoint_io, WholeCheckpoints)
    own = "+trainer.plugins=[{_target_: test_checkpoint_files.OwnIO}]"
    assert isinstance(build_trainer(config(own), "32-true").strategy.checkpoint_io, OwnIO)


class OwnIO(WholeCheckpoints):
    """A user's."""
