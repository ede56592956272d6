"""Figures of sweeps: which jobs' figures are plotted, after the last job, at the same time; failures and signals."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Cli
from helpers.run_folders import config_of, pair_metrics, point_record, write_config, write_run
from helpers.settings import SMALL
from helpers.terminal import Screen
from hydra import compose, initialize_config_dir

from attnmosaic.callbacks.csv_tables import RunTables
from attnmosaic.cli.progress import PLOTTED_BY_SWEEP
from attnmosaic.config.schedule import Schedule
from attnmosaic.config.schema import conf_dir, register
from attnmosaic.plotting.style import PlottedFiles
from attnmosaic.sweeps import figures
from attnmosaic.sweeps.figures import Figures, draw_runs, figures_of_job, plot_sweep
from attnmosaic.sweeps.monitor import DONE, DONE_BEFORE, FAILED, PRUNED, SKIPPED, STOPPED, Job
from attnmosaic.sweeps.overrides import uses_local_launcher

pytestmark = pytest.mark.pictures

FEW = ("schedule.k=1", "schedule.epochs=2", "logger=none", "callbacks.gradients=null")
MAIN = {"focus_vs_pred.png", "mosaics.png"}


def job(folder: Path, state: str = DONE) -> Job:
    return Job("gaussian", folder.name, folder, Schedule("what_then_where", 1, 10), state=state)


def finished(folder: Path, *overrides: str) -> Path:
    """Writes the folder of a finished run on 2-D points, without figures."""
    return write_run(folder, "gaussian", metrics=pair_metrics(), record=point_record(), overrides=overrides, epochs=10)


def pictures(folder: Path) -> set[str]:
    return {path.name for pattern in ("*.png", "*.pdf", "*.svg", "*.gif") for path in folder.glob(pattern)}


@pytest.fixture
def few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)


# ---- the choice of jobs


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        ((), [(("png",), "main")]),
        (("callbacks.pictures.formats=[svg,pdf]", "callbacks.pictures.figures=all"), [(("svg", "pdf"), "all")]),
        (("callbacks.pictures.formats=svg",), [(("svg",), "main")]),
        (("~callbacks.pictures.formats",), [(("png",), "main")]),
        (("callbacks.pictures=null",), []),
        (("callbacks.pictures._target_=my_package.Plots",), []),
        (("callbacks=none",), []),
    ],
    ids=["default", "all", "one format", "no formats", "null", "custom", "no callbacks"],
)
def test_figures_of_a_job_have_its_own_settings(tmp_path: Path, overrides: tuple[str, ...], chosen: list[Any]) -> None:
    folder = tmp_path / "run"
    write_config(folder, config_of("gaussian", *(over for over in overrides if over != "callbacks=none")))
    if overrides == ("callbacks=none",):
        write_config(folder, config_of("gaussian") | {"callbacks": None})
    assert figures_of_job(job(folder)) == [Figures(folder, *settings) for settings in chosen]


@pytest.mark.parametrize("state", [FAILED, PRUNED, STOPPED, SKIPPED])
def test_jobs_without_result_have_no_figures(tmp_path: Path, state: str) -> None:
    assert figures_of_job(job(finished(tmp_path / "run"), state)) == []


def test_figures_of_earlier_jobs_are_plotted_if_they_are_missing_or_older(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    assert figures_of_job(job(folder, DONE_BEFORE)) == [Figures(folder, ("png",), "main")]
    plot_sweep(tmp_path, [job(folder, DONE_BEFORE)], "quiet")
    assert pictures(folder) == MAIN
    assert figures_of_job(job(folder, DONE_BEFORE)) == []
    os.utime(folder / "mosaics.png", (0, 0))
    assert figures_of_job(job(folder, DONE_BEFORE)) == [Figures(folder, ("png",), "main")]


# ---- several runs at the same time


@pytest.mark.runs
def test_figures_of_several_runs_equal_those_of_one(
    tmp_path: Path, few_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the folders are relative paths."""
    monkeypatch.chdir(tmp_path)
    folders = [finished(Path(name)) for name in ("0", "1", "2")]
    alone = Path(shutil.copytree(folders[0], "alone"))
    reported: dict[Path, PlottedFiles] = {}
    draw_runs([Figures(folder, ("png",)) for folder in folders], lambda each, drawn: reported.update({each[0]: drawn}))
    draw_runs([Figures(alone, ("png",))], lambda each, drawn: None)
    assert reported.keys() == {*folders}
    assert len(pictures(alone)) > 3
    for folder in folders:
        assert {path.name for path in reported[folder].paths} == pictures(folder) == pictures(alone)
        for name in pictures(alone):
            assert (folder / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.runs
def test_draw_plots_all_runs_in_a_folder(cli: Cli, few_processes: None) -> None:
    """The figure whose file cannot be read is reported, and all other figures are plotted."""
    folders = [finished(Path("runs", name)) for name in ("0", "1", "2")]
    (folders[1] / "mosaics.npz").write_bytes(b"half of a")
    code, out, err = cli("draw", "runs", "--formats", "png")
    assert code == 1
    assert sorted(line.partition(": ")[0] for line in out.splitlines()) == ["runs/0", "runs/1", "runs/2"]
    assert "runs/1: could not plot mosaics" in err
    for folder in folders:
        assert pictures(folder) == {*line_of(out, folder).split(", ")}
    assert MAIN - pictures(folders[1]) == {"mosaics.png"}
    assert MAIN <= pictures(folders[0]) == pictures(folders[2])


@pytest.mark.runs
def test_killed_process_costs_the_figures_of_one_run(
    tmp_path: Path, few_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [finished(tmp_path / name) for name in ("0", "1", "2", "3")]
    start = figures._Workers.start

    def start_and_kill(self: Any, each: Figures) -> None:
        start(self, each)
        if each.folder == folders[1]:
            self._processes[-1].kill()

    monkeypatch.setattr(figures._Workers, "start", start_and_kill)
    failed: dict[Path, list[str]] = {}
    draw_runs(
        [Figures(each, ("png",), "main") for each in folders], lambda each, drawn: failed.update({each[0]: drawn[1]})
    )
    assert failed == {
        folder: ["its figures: the process was killed"] if folder == folders[1] else [] for folder in folders
    }
    assert [pictures(folder) for folder in folders] == [MAIN, set(), MAIN, MAIN]


def test_error_of_one_run_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(figures, "draw_run", lambda *_: 1 / 0)
    plot_sweep(tmp_path, [job(finished(tmp_path / "run"))], "quiet")
    assert capsys.readouterr().err == f"{tmp_path / 'run'}: could not plot its figures\n"


@pytest.mark.parametrize("mode", ["quiet", "lines", "live"])
def test_progress_of_plotting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    jobs = [job(finished(tmp_path / name)) for name in ("0", "1", "2")]

    def each_run(tasks: list[Figures], report: Callable[..., None]) -> None:
        for each in tasks:
            time.sleep(0.2)  # so that the bar is drawn
            report(each, PlottedFiles([], []))

    monkeypatch.setattr(figures, "draw_runs", each_run)
    plot_sweep(tmp_path, jobs, mode)
    out, err = capsys.readouterr()
    assert out == ""
    screen = Screen(200)
    screen.write(err)
    last = rf"plotted the figures of 3 runs in \d s; all figures: python -m attnmosaic\.draw {tmp_path}"
    first = ["plotting the figures of 3 runs"] if mode == "lines" else []
    expected = [] if mode == "quiet" else [*first, last]
    shown = [line for line in screen.lines() if line]
    assert len(shown) == len(expected)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, shown, strict=True))


# ---- complete sweeps


def line_of(printed: str, folder: Path) -> str:
    (line,) = (line for line in printed.splitlines() if line.startswith(f"{folder}: "))
    return line.partition(": ")[2]


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def session(leader: int) -> list[str]:
    """Returns the processes of a session that still run."""
    listed = subprocess.run(["ps", "-eo", "sid=,stat="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [state for sid, state in map(str.split, listed) if sid == str(leader) and state[0] != "Z"]


def written(folder: Path) -> dict[str, float]:
    return {str(file.relative_to(folder)): file.stat().st_mtime for file in folder.glob("*/*.png")}


@pytest.mark.runs
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_sweep_plots_once_after_its_last_job(cli: Cli, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    """Given again, the command plots only the figures that are missing."""
    sweep = ("train", "-m", *SMALL, *FEW, "seed.all=0,1", f"hydra/launcher={launcher}", "hydra.sweep.dir=s")
    monkeypatch.setattr("attnmosaic.plotting.run.draw_run", lambda *_: 1 / 0)  # in the jobs of the basic launcher
    code, out, err = cli(*sweep, "progress=lines")
    assert code == 0, err
    assert "could not" not in err
    assert "all figures" not in out  # of a single run
    assert [pictures(Path("s", name)) for name in ("0", "1")] == [MAIN, MAIN]
    start, end = err.splitlines()[-2:]
    assert start == "plotting the figures of 2 runs"
    assert re.fullmatch(r"plotted the figures of 2 runs in \d+ s; all figures: python -m attnmosaic\.draw s", end)
    files = written(Path("s"))
    assert min(files.values()) >= max(file.stat().st_mtime for file in Path("s").glob("*/result.json"))
    assert PLOTTED_BY_SWEEP not in os.environ

    _, _, err = cli(*sweep, "progress=lines")
    assert "plot" not in err
    assert written(Path("s")) == files
    Path("s/1/mosaics.png").unlink()
    _, out, err = cli(*sweep, "progress=quiet")
    assert "plot" not in out + err
    again = written(Path("s"))
    assert {name for name in again if again[name] != files[name]} == {"1/focus_vs_pred.png", "1/mosaics.png"}


@pytest.mark.runs
def test_search_plots_the_figures_of_its_trials(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnmosaic.plotting.run.draw_run", lambda *_: 1 / 0)  # in the trials
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=s", "progress=lines")
    code, out, err = cli("train", "-m", *SMALL, *FEW, *search)
    assert code == 0, err
    assert "2 of 2 trials" in out
    assert [pictures(Path("s", name)) for name in ("0", "1")] == [MAIN, MAIN]
    assert err.splitlines()[-2] == "plotting the figures of 2 runs"


@pytest.mark.runs
def test_sweep_plots_the_figures_of_its_finished_jobs_if_one_fails(cli: Cli) -> None:
    code, _, err = cli("train", *SMALL, *FEW, "lr.what=1e30,0.01", "hydra.sweep.dir=s", "progress=quiet", "-m")
    assert code == 1
    assert pictures(Path("s/0")) == set()
    assert pictures(Path("s/1")) == MAIN
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.runs
def test_stopped_sweep_plots_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RunTables.on_train_epoch_start

    def interrupted(self: Any, trainer: Any, module: Any) -> None:
        if self.folder.name == "1":
            raise KeyboardInterrupt
        original(self, trainer, module)

    monkeypatch.setattr(RunTables, "on_train_epoch_start", interrupted)
    sweep = ("train", *SMALL, *FEW, "seed.all=0,1", "hydra.sweep.dir=s", "progress=quiet", "-m")
    assert cli(*sweep)[0] == 130
    assert [pictures(Path("s", name)) for name in ("0", "1")] == [set(), set()]
    monkeypatch.setattr(RunTables, "on_train_epoch_start", original)
    assert cli(*sweep)[0] == 0
    assert [pictures(Path("s", name)) for name in ("0", "1")] == [MAIN, MAIN]


@pytest.mark.runs
def test_signal_during_plotting_ends_the_sweep_and_its_processes(tmp_path: Path) -> None:
    """Many figures are left: the sweep's jobs had finished before."""
    for number in range(40):
        finished(tmp_path / "s" / str(number), "callbacks.pictures.figures=all")
    code = """
from pathlib import Path
from attnmosaic.core.signals import end_in_order, listen
from attnmosaic.cli.command import run
from attnmosaic.config.schedule import Schedule
from attnmosaic.sweeps.figures import plot_sweep
from attnmosaic.sweeps.monitor import DONE, Job

def plot():
    end_in_order(True)
    folders = sorted(Path("s").iterdir())
    plot_sweep(Path("s"), [Job("g", "g", f, Schedule("what_then_where", 1, 10), state=DONE) for f in folders], "lines")

run(plot)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_until(lambda: any(tmp_path.glob("s/*/*.png")))
        assert len(session(process.pid)) > 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read().splitlines() == ["plotting the figures of 40 runs", "stopped by SIGINT"]
    wait_until(lambda: not session(process.pid))


@pytest.mark.parametrize(("launcher", "local"), [("basic", True), ("joblib", True), ("submitit_slurm", False)])
def test_only_jobs_on_this_machine_leave_their_figures_to_the_sweep(launcher: str, local: bool) -> None:
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    assert uses_local_launcher(config.hydra) == local
