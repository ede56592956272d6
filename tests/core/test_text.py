"""Commands work on terminals without all characters and in locales that are not UTF-8."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Cli
from helpers.run_folders import pair_metrics, write_run
from helpers.settings import ROOT, SMALL
from helpers.terminal import Screen
from helpers.user_code import TINY_CIFAR10
from PIL import Image

from attnmosaic.config.schedule import Schedule
from attnmosaic.core import signals
from attnmosaic.core.text import (
    format_duration,
    format_fraction,
    format_measured_duration,
    short_number,
    substituted,
    truncate,
    truncate_middle,
    use_substitutes,
)
from attnmosaic.sweeps import fork_server
from attnmosaic.sweeps.display import Display
from attnmosaic.sweeps.monitor import Job
from hydra_plugins import attnmosaic_launcher

ENCODINGS = ("cp1252", "ascii", "latin-1", "cp437")
NAMES = ("ünï", "猫")
SHORT = ("schedule.k=1", "schedule.epochs=2", "callbacks.pictures=null", "logger=none", "progress=lines")
Terminal = Callable[[str], Callable[[], tuple[str, str]]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Returns a function that opens standard streams with an encoding; it returns a function for the written text."""

    def opened(encoding: str) -> Callable[[], tuple[str, str]]:
        streams = {}
        for name, errors in (("stdout", "strict"), ("stderr", "backslashreplace")):
            streams[name] = io.TextIOWrapper(io.BytesIO(), encoding, errors, newline="", write_through=True)
            monkeypatch.setattr(sys, name, streams[name])

        def written() -> tuple[str, str]:
            out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams.values())  # type: ignore[attr-defined]
            return out, err

        return written

    return opened


def write_runs(folder: Path) -> None:
    """Writes a run for each name in `NAMES`."""
    for name in NAMES:
        write_run(folder / name, "gaussian", 0, pair_metrics(test=0.5), overrides=(f"name='{name}'",))


def in_c_locale(command: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in the C locale, and checks that no file is opened without an encoding."""
    environ = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONWARNDEFAULTENCODING": "1",
    }
    environ.pop("PYTHONIOENCODING", None)
    done = subprocess.run(
        [sys.executable, "-m", f"attnmosaic.{command}", *arguments], cwd=folder, env=environ, capture_output=True
    )
    warnings = [line for line in done.stderr.splitlines() if b"EncodingWarning" in line and b"/attnmosaic/" in line]
    assert warnings == []
    return done


# ---- characters


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_missing_characters_are_substituted(terminal: Terminal, encoding: str) -> None:
    """Different characters have different substitutes; an ellipsis keeps its width."""
    written = terminal(encoding)
    use_substitutes()
    for text in ("a…b", "\N{REPLACEMENT CHARACTER}", *NAMES):
        print(text)
        print(text, file=sys.stderr)
    for text in written():
        assert text.splitlines() == [substituted(name) for name in ("a…b", "\N{REPLACEMENT CHARACTER}", *NAMES)]
        assert text.splitlines()[0] == ("a…b" if encoding == "cp1252" else "a~b")
        assert text.splitlines()[1:] == ["?", "\\xfcn\\xef" if encoding == "ascii" else "ünï", "\\u732b"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_file_names_that_are_not_text_are_written_as_bytes(terminal: Terminal, encoding: str) -> None:
    terminal(encoding)
    use_substitutes()
    print(os.fsdecode(b"a\xff"))
    assert sys.stdout.buffer.getvalue() == b"a\xff\n"  # type: ignore[attr-defined]


def test_streams_that_are_not_files_need_no_substitutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of a notebook accepts all characters; a program without a terminal can have no stream."""
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        use_substitutes()
        assert substituted("ünï") == "ünï"


def test_signal_is_reported_with_substitutes(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    """The signal handler writes the line itself, and the line can contain the path of the run."""
    terminal("ascii")
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, data: written.append(data))
    monkeypatch.setattr(os, "_exit", sys.exit)
    signals.end_in_order(False, lambda: "; 猫 \udcff")
    try:
        with pytest.raises(SystemExit) as end:
            signals._end(15)
    finally:
        signals.end_in_order(False)
    assert end.value.code == 143
    assert written == [b"stopped by SIGTERM; \\u732b \xff\n"]


# ---- commands


@pytest.mark.runs
@pytest.mark.parametrize(("encoding", "table_format"), [("cp437", "terminal"), ("ascii", "terminal"), ("ascii", "csv")])
def test_collect_prints_substitutes(
    cli: Cli, terminal: Terminal, tmp_path: Path, encoding: str, table_format: str
) -> None:
    write_runs(tmp_path / "runs")
    written = terminal(encoding)
    code, _, _ = cli("collect", "runs", "--format", table_format)
    out, err = written()
    assert (code, err) == (0, "")
    for name in NAMES:
        assert substituted(name) in out
    assert "0.5" in out
    if table_format == "terminal":
        frame = [line for line in out.splitlines() if line.startswith(("|", "+"))]
        assert len(frame) > 5
        assert len({len(line) for line in frame}) == 1, "columns are aligned"


@pytest.mark.runs
def test_table_on_a_utf_8_terminal_has_no_substitutes(cli: Cli, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", "gaussian", 0, pair_metrics(test=0.5), overrides=("name='猫'",))
    _, out, _ = cli("collect", "runs")
    assert "猫" in out
    assert "\u2500" in out
    assert "+-" not in out


@pytest.mark.runs
def test_train_and_evaluate_print_substitutes_and_write_utf_8(cli: Cli, terminal: Terminal) -> None:
    encoding, name = "cp1252", "猫"
    written = terminal(encoding)
    code, _, _ = cli("train", *SMALL, *SHORT, f"name='{name}'", "hydra.run.dir='r/${name}'")
    out, err = written()
    assert code == 0, err
    table = out[out.index("split") :]
    assert re.findall(r"^\|(train|test|held_out) *\|", table, flags=re.M) == ["train", "test", "held_out"]
    assert f"r/{substituted(name)}" in table
    for file in ("train.log", "config.yaml", ".hydra/overrides.yaml", ".hydra/config.yaml"):
        assert name in Path("r", name, file).read_text(encoding="utf-8")

    written = terminal(encoding)
    code, _, _ = cli("evaluate", f"ckpt_path='r/{name}/checkpoints/last.ckpt'")
    out, err = written()
    assert code == 0, err
    assert re.findall(r"^\|(train|test|held_out) *\|", out, flags=re.M) == ["train", "test", "held_out"]


@pytest.mark.runs
@pytest.mark.pictures
@pytest.mark.parametrize(("command", "arguments"), [("report", ()), ("draw", ("--formats", "png"))])
def test_report_and_draw_print_substitutes(
    cli: Cli, terminal: Terminal, tmp_path: Path, command: str, arguments: tuple[str, ...]
) -> None:
    write_runs(tmp_path / "runs")
    written = terminal("ascii")
    code, _, _ = cli(command, "runs/猫", *arguments)
    assert (code, written()[1]) == (0, "")
    assert f"runs/{substituted('猫')}" in written()[0]


@pytest.mark.runs
def test_sweep_prints_substitutes_and_writes_utf_8(cli: Cli, terminal: Terminal) -> None:
    written = terminal("cp437")
    code, _, _ = cli("train", "-m", *SMALL, *SHORT, "progress=live", "name='猫','ünï'", "hydra.sweep.dir='s 猫'")
    out, err = written()
    assert code == 0, err
    assert "Traceback" not in out + err
    for name in NAMES:
        assert len(re.findall(rf"^\|{re.escape(substituted(name))} +\|", out, flags=re.M)) == 1
    assert f"runs: s {substituted('猫')}\n" in out
    jobs = json.loads(Path("s 猫/sweep.json").read_text(encoding="utf-8"))["jobs"]
    assert {job["name"] for job in jobs.values()} == {*NAMES}


@pytest.mark.runs
def test_explain_prints_substitutes_and_writes_utf_8(cli: Cli, terminal: Terminal) -> None:
    arguments = ("experiment=stagewise", *TINY_CIFAR10, "hydra.run.dir=r", "data.classes=null")
    code, _, err = cli("train", *SMALL, *SHORT, *arguments)
    assert code == 0, err
    for name in NAMES:
        Path("猫").mkdir(exist_ok=True)
        Image.new("RGB", (96, 96), 7).save(f"猫/{name}.png")
    written = terminal("ascii")
    code, _, _ = cli("explain", "ckpt_path=r/checkpoints/last.ckpt", "images='猫'", "hydra.run.dir='e 猫'")
    out, err = written()
    assert code == 0, err
    frame = [line for line in out.splitlines() if line.startswith(("|", "+"))]
    assert len({len(line) for line in frame}) == 1
    assert all(any(substituted(f"{name}.png") in line for line in frame) for name in NAMES)
    assert "猫.png" in Path("e 猫/explained.csv").read_text(encoding="utf-8")
    assert "e 猫" in Path("e 猫/explain.log").read_text(encoding="utf-8")


def test_progress_bars_fit_the_width_of_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also with long names, which are shortened in the middle."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("attnmosaic.sweeps.display.SECONDS", 1e6)
    written = terminal("ascii")
    use_substitutes()
    schedule = Schedule("what_then_where", 5, 180)
    jobs = [Job(name, name, tmp_path / str(n), schedule) for n, name in enumerate((*NAMES, "猫" * 30, "x" * 99))]
    display = Display("live", jobs)
    try:
        for number in range(len(jobs)):
            display.monitor.began(number)
        display.draw()
    finally:
        display.close()
    screen = Screen(80)
    screen.write(written()[1])
    assert screen.wrapped == 0
    assert "Traceback" not in written()[1]


# ---- output of other processes


@pytest.mark.runs
def test_jobs_in_other_processes_print_substitutes(
    cli: Cli, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs write in the encoding of the sweep's terminal, and their lines are complete."""
    fork_server.stop_server()  # one that a fixture of other tests has started has their encoding
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setattr(fork_server, "PRELOAD", ())
    monkeypatch.setattr(
        attnmosaic_launcher.AttnmosaicLauncher, "_task", lambda self: ("helpers.light_jobs", "speak_of_names")
    )
    written = terminal("cp1252")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "progress=live")
    code, _, _ = cli("train", "seed.all=5", "name='ünï 猫'", *launcher, "-m")
    screen = Screen()
    screen.write(written()[1])
    assert code == 0, screen.lines()
    assert "printed ünï \\u732b" in screen.lines()


# ---- locales


@pytest.mark.runs
def test_collect_and_report_work_in_the_c_locale(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    done = in_c_locale("collect", "runs", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rb"|\u732b " in done.stdout
    done = in_c_locale("report", "runs", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "猫" in (tmp_path / "runs" / "report.html").read_text(encoding="utf-8")


@pytest.mark.runs
def test_log_is_utf_8_in_the_c_locale(tmp_path: Path) -> None:
    """Also with an argument whose characters the locale lacks."""
    done = in_c_locale("evaluate", "ckpt_path='猫'", "hydra.run.dir=here", folder=tmp_path)
    assert done.returncode == 2
    assert re.match(rb"error: ckpt_path: .*\n$", done.stderr)
    assert "ckpt_path: " in (tmp_path / "here" / "evaluate.log").read_text(encoding="utf-8")


def test_files_are_opened_with_an_encoding() -> None:
    """Ruff finds only calls on objects of known types; this test finds the others."""
    pattern = re.compile(r"(\.(read|write)_text\((?![^()]*encoding)|\.open\((?![^()]*(encoding|\"[rwa]b|os\.)))")
    calls = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for folder in ("src", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if pattern.search(line) and not re.search(r"(Image|archive)\.open", line)
    ]
    assert calls == []


def test_long_texts_are_shortened() -> None:
    assert [truncate("abcdef", most) for most in (7, 6, 5)] == ["abcdef", "abcdef", "abcd…"]
    assert [truncate_middle("abcdefgh", most) for most in (8, 7, 6)] == ["abcdefgh", "abc…fgh", "abc…gh"]


def test_numbers_are_formatted() -> None:
    assert [short_number(value) for value in ("0.012345", 0.0123456, "0.0123456", 5, "not a number", True)] == [
        "0.012345", "0.01235", "0.01235", "5", "not a number", "True",
    ]  # fmt: skip
    assert [format_fraction(value) for value in (0, 0.0004, 0.8349, 0.9994, 0.9996, 1, 2.5)] == [
        ".000", ".000", ".835", ".999", "1.00", "1.00", "2.500",
    ]  # fmt: skip


def test_durations_are_formatted() -> None:
    assert [format_duration(s) for s in (0.4, 89, 90, 3600, 5399, 12_000)] == [
        "0 s", "89 s", "2 min", "60 min", "1 h 30 min", "3 h 20 min",
    ]  # fmt: skip
    assert [format_measured_duration(s) for s in (2.84, 245, 12_000)] == ["2.8 s", "4 min 05 s", "3 h 20 min"]
