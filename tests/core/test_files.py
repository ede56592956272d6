"""Files are written atomically, locks exclude other processes, and disk errors are described in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.forked_commands import STEPS
from helpers.settings import ROOT

from attnmosaic.core.errors import BusyError, UserError
from attnmosaic.core.files import disk_message, locked, remove_unfinished, sync_files, write_atomically

WRITES = """
import sys
from pathlib import Path
from helpers.forked_commands import in_writing
in_writing("a.json", sys.argv[1], 1, "SIGKILL")
from attnmosaic.core.files import write_atomically
write_atomically(Path("a.json"), "new content")
"""


@pytest.mark.parametrize("step", STEPS)
def test_process_killed_while_writing_leaves_old_or_new_content(tmp_path: Path, step: str) -> None:
    """The next run removes the temporary file."""
    path = tmp_path / "a.json"
    write_atomically(path, "old content")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])}
    assert subprocess.run([sys.executable, "-c", WRITES, step], cwd=tmp_path, env=environ).returncode == -9
    renamed = step in ("renamed", "kept")
    assert path.read_text() == ("new content\n" if renamed else "old content\n")
    assert len([*tmp_path.iterdir()]) == (1 if renamed else 2)
    remove_unfinished(tmp_path)
    assert [*tmp_path.iterdir()] == [path]


def test_disk_error_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is removed, and the error names the file."""
    path = tmp_path / "a.json"
    write_atomically(path, "old content")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, "new content")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old content\n"
    assert [*tmp_path.iterdir()] == [path]


def test_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is synced last."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(number: int) -> None:
        calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{number}")).name))
        fsync(number)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr("os.fsync", recorded_fsync)
    monkeypatch.setattr("os.replace", recorded_replace)
    folder = tmp_path / "run"
    folder.mkdir()
    write_atomically(folder / "a.json", "a")
    assert calls == [("sync", f".a.json.{os.getpid()}.tmp"), ("rename", "a.json"), ("sync", "run")]
    calls.clear()
    (folder / "deeper").mkdir()
    sync_files(folder)
    assert calls == [("sync", "a.json"), ("sync", "run")]


def test_only_temporary_files_are_removed(tmp_path: Path) -> None:
    for name in (".result.json.1.tmp", "mine.tmp", ".hidden"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.tmp", ".hidden"}
    remove_unfinished(tmp_path / "nowhere")


HOLDS = """
import sys
from pathlib import Path
from attnmosaic.core.files import locked
with locked(Path(sys.argv[1]), "paths.cache"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.lock"
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT / "src") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(BusyError, match=r"^paths\.cache: .*running in '.*/deep'; .*paths\.cache=DIR"),
            locked(path, "paths.cache", timeout=0.1),
        ):
            pass
        other.kill()
        with locked(path, "paths.cache", timeout=60):
            pass
    path.write_text("4242\nanother-machine\n")  # a lock file that remains after a reboot
    with locked(path, "paths.cache", timeout=0):
        pass


def test_lock_in_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"^run_dir: cannot write to '.*/file' \(.*\); type run_dir=DIR"),
        locked(tmp_path / "file" / "a.lock", "run_dir"),
    ):
        pass


def test_disk_errors_have_a_line() -> None:
    assert disk_message(ValueError()) is None
    assert disk_message(FileNotFoundError(2, "No such file")) is None
    full = disk_message(OSError(28, "No space left on device", "a.csv"))
    assert str(full).startswith("disk full while writing 'a.csv' (No space left on device); ")
    broken = disk_message(OSError(5, "Input/output error"))
    assert str(broken).startswith("cannot read or write a file (Input/output error); ")
