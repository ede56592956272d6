"""Running sweeps: stopped and resumed, displayed, collected; with failed jobs, and with jobs of other processes."""

import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import Cli, check_line
from helpers.settings import ALL_CHECKPOINTS
from helpers.terminal import Screen
from helpers.user_code import TINY_CIFAR10, TINY_MNIST

from attnmosaic.callbacks.csv_tables import RunTables
from attnmosaic.collect import main as collect
from attnmosaic.runs.run import LOCK, RESULT, Run, lock_run
from attnmosaic.sweeps.hydra_callback import SKIPPED_JOBS
from attnmosaic.tables.published import published_tables

pytestmark = pytest.mark.runs

SMOKE = ("reproduce=gradients", "scale=smoke", "trainer.accelerator=cpu")
ROW = (*SMOKE, "experiment=gradients/joint")
TWO_ROWS = (*SMOKE, "experiment=gradients/joint,gradients/type2", *ALL_CHECKPOINTS)
FOLDER = Path("outputs") / "smoke" / "gradients"


def test_stopped_sweep_resumes(
    cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command skips finished jobs, resumes the stopped one and runs the others; collect works in between."""
    original = RunTables.on_train_epoch_start

    def interrupted(self: Any, trainer: Any, module: Any) -> None:
        if "type2" in str(self.folder) and trainer.current_epoch == 1:
            raise KeyboardInterrupt
        original(self, trainer, module)

    monkeypatch.setattr(RunTables, "on_train_epoch_start", interrupted)
    code, out, err = cli("train", *TWO_ROWS, "seed.all=0,1", "progress=quiet", "-m")
    assert code == 130
    done, stopped, report = err.splitlines()
    assert re.fullmatch(r"done  gradients/joint seed 0: accuracy train [.\d]+ test [.\d]+ held_out [.\d]+, \d+ s", done)
    assert stopped == "stopped  gradients/type2 seed 0: after epoch 1 of 2"
    assert re.match(r"stopped by SIGINT; .*resume", report)
    assert re.search(r"^ type2 +1 stopped", out, flags=re.M)
    monkeypatch.setattr(RunTables, "on_train_epoch_start", original)
    states = {run: Run(FOLDER / run).state for run in ("joint/seed0", "type2/seed0", "joint/seed1", "type2/seed1")}
    assert list(states.values()) == ["finished", "stopped", "missing", "missing"]
    collect([str(FOLDER), "--format", "markdown"])
    table = capfd.readouterr().out
    assert "| joint | 1 finished, 1 missing | train/accuracy |" in table
    assert "| type2 | 1 stopped after epoch 1 of 2, 1 missing |" in table
    assert "| type3 | missing |" in table

    first = (FOLDER / "joint/seed0" / RESULT).stat().st_mtime_ns
    code, out, err = cli("train", *TWO_ROWS, "seed.all=0,1", "-m")
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "done before  gradients/joint seed 0", "done  gradients/type2 seed 0", "done  gradients/joint seed 1",
        "done  gradients/type2 seed 1",
    ]  # fmt: skip
    assert (FOLDER / "joint/seed0" / RESULT).stat().st_mtime_ns == first
    assert out.count("already finished, ") == 1
    assert out.count("resuming after epoch 1 of 2") == 1
    assert {Run(FOLDER / run).state for run in states} == {"finished"}
    single = ("experiment=gradients/type2", "scale=smoke", "trainer.accelerator=cpu", "hydra.run.dir=single")
    assert cli("train", *single)[0] == 0
    results = [json.loads((path / RESULT).read_text())["metrics"] for path in (FOLDER / "type2/seed0", Path("single"))]
    assert results[0] == results[1]
    plan = json.loads((FOLDER / "sweep.json").read_text())
    assert list(plan["jobs"]) == ["joint/seed0", "type2/seed0", "joint/seed1", "type2/seed1"]
    command = f"python -m attnmosaic.train {' '.join(TWO_ROWS)} seed.all=0,1"
    assert plan["commands"] == [f"{command} progress=quiet -m", f"{command} -m"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces training by a function that only writes a result."""

    def train(config: Any) -> dict[str, float]:
        folder = Path(config.run_dir)
        (folder / RESULT).write_text(json.dumps({"name": config.name, "scale": config.scale, "metrics": {}}))
        return {config.optimized_metric: 0.5}

    monkeypatch.setattr("attnmosaic.train.train", train)


def test_sweep_has_one_folder_for_all_its_files(cli: Cli, quick: None) -> None:
    """This holds also if jobs change their working directory."""
    overrides = ("experiment=gaussian,gaussian_type1", "seed.all=0,1", "hydra.job.chdir=True", "progress=quiet")
    code, out, err = cli("train", *overrides, "-m")
    assert code == 0, err
    (plan,) = Path().rglob("sweep.json")
    jobs = json.loads(plan.read_text())["jobs"]
    assert len(jobs) == 4
    assert {*Path().rglob("multirun.yaml")} == {plan.parent / "multirun.yaml"}
    assert {*Path().rglob(RESULT)} == {plan.parent / job / RESULT for job in jobs}
    names = {folder: json.loads((plan.parent / folder / RESULT).read_text())["name"] for folder in jobs}
    assert names == {folder: job["name"] for folder, job in jobs.items()}
    assert f"runs: {plan.parent}\n" in out
    assert "missing" not in out


@pytest.mark.parametrize(
    ("command", "overrides", "key"),
    [
        ("train", [*ROW, "seed.all=0", "lr.what=1,2"], "hydra.sweep.subdir"),
        ("train", ["seed.all=range(3,3)", "hydra/launcher=joblib"], "seed.all"),
        ("train", ["experiment=table1/row1", "data.train_set.download=false"], "data"),
        ("train", ["experiment=averages/dataset1", "data=image_folder", "data.root=nowhere"], "data.root"),
        ("evaluate", ["ckpt_path=range(0,0)"], "ckpt_path"),
        ("explain", ["ckpt_path=range(0,0)"], "ckpt_path"),
    ],
)
def test_user_errors_end_a_sweep_before_its_first_job(cli: Cli, command: str, overrides: list[str], key: str) -> None:
    """A sweep without jobs, with two jobs in one folder, or with missing data writes no file."""
    code, _, err = cli(command, *overrides, "-m")
    check_line(code, err, f"^error: {re.escape(key)}: ")
    assert not [*Path().iterdir()]


@pytest.mark.pictures
def test_every_output_of_a_smoke_run_is_marked(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli("train", *ROW, "seed.all=0", "callbacks.pictures.figures=all", "-m")
    assert code == 0
    assert out.count("SMOKE: few examples") == 1
    assert out.count("SMOKE RUNS, NO RESULT") == 1
    folder = FOLDER / "joint" / "seed0"
    assert json.loads((folder / RESULT).read_text())["scale"] == "smoke"
    assert yaml.safe_load((folder / "config.yaml").read_text())["scale"] == "smoke"
    tables, pictures = sorted(folder.glob("*.csv")), sorted(folder.glob("*.png"))
    assert {path.stem for path in tables} >= {"metrics", "gradients", "focus_vs_pred_held_out"}
    assert {path.stem for path in pictures} >= {"mosaics", "regions", "gradients"}
    for table in tables:
        heading, *rows = (line.split(",") for line in table.read_text().splitlines())
        assert heading[-1] == "scale"
        assert all(row[-1] == "smoke" and len(row) == len(heading) for row in rows)
    from PIL import Image

    for picture in [*pictures, folder / "animation.gif"]:
        assert Image.open(picture).convert("RGB").getpixel((0, 0)) == (0xD5, 0x5E, 0x00)
    collect([str(FOLDER)])
    table = capfd.readouterr().out
    assert table.startswith("SMOKE RUNS, NO RESULT")
    assert "within" not in table


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("averages", ["averages/dataset1", "averages/dataset9"]),
        ("table1", ["table1/row1", "table1/row3"]),
        ("table2", ["table2/row1", "table2/row8"]),
        ("mnist", ["mnist/product", "mnist/sum"]),
    ],
)
def test_rows_of_image_tables_run(cli: Cli, table: str, rows: list[str]) -> None:
    """Two rows of each table run on small random images; ``test_plan.py`` composes all rows."""
    forty = ("at_most.data.train_images=40", "at_most.data.held_out_images=40")
    images = (*TINY_MNIST, *forty) if table == "mnist" else TINY_CIFAR10
    few = ("scale=smoke", "at_most.schedule.epochs=1", "at_most.data.train_mosaics=100")
    code, _, err = cli("train", f"reproduce={table}", f"experiment={','.join(rows)}", "seed.all=0", *images, *few, "-m")
    assert code == 0, err
    (published,) = (candidate for candidate in published_tables() if candidate.key == table)
    files = sorted((Path("outputs") / "smoke" / table).glob("*/seed0/result.json"))
    results = [json.loads(path.read_text()) for path in files]
    assert [result["name"] for result in results] == rows
    assert set(published.shown) <= {name for result in results for name in result["metrics"]}


def test_each_failed_job_is_reported(cli: Cli) -> None:
    """Each failed job has one line, and the table has the results of the others."""
    code, out, err = cli(
        *("train", *ROW, "seed.all=0", "lr.what=1e30,0.01", "hydra.sweep.subdir=${hydra.job.num}"),
        *("progress=quiet", "-m"),
    )
    assert code == 1
    lines = [
        re.sub(r"(accuracy|became).*", r"\1", line) for line in err.splitlines() if not line.startswith("Error exec")
    ]
    assert lines == [
        "failed  gradients/joint seed 0 lr.what=1e+30: the loss became",
        "done  gradients/joint seed 0 lr.what=0.01: accuracy",
        "error: the loss became",
    ]
    assert out.startswith("\nSMOKE RUNS, NO RESULT")
    assert re.search(r"^ joint +0\.01 +1 finished ", out, flags=re.M)
    assert re.search(r"^ joint +1e\+30 +1 failed \(the", out, flags=re.M)
    assert out.splitlines()[-3:] == [
        "runs: outputs/smoke/gradients",
        "report: python -m attnmosaic.report outputs/smoke/gradients",
        "TensorBoard: tensorboard --logdir outputs/smoke/gradients",
    ]


def test_live_display_of_a_sweep(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are on standard error; output of jobs appears above them; progress of jobs is only in their log files."""
    original = RunTables.on_train_epoch_start

    monkeypatch.setattr("attnmosaic.sweeps.display.SECONDS", 0.01)

    def prints(self: Any, trainer: Any, module: Any) -> None:
        time.sleep(0.1)  # so that the bars are drawn while each job is running
        print("printed by a job", file=sys.stderr)
        logging.getLogger("a.users").warning("warned by a job")
        original(self, trainer, module)

    monkeypatch.setattr(RunTables, "on_train_epoch_start", prints)
    before = sys.stderr
    code, out, err = cli("train", *TWO_ROWS, "seed.all=0", "trainer.check_val_every_n_epoch=2", "progress=live", "-m")
    assert (code, sys.stderr) == (0, before)
    assert "ATTNMOSAIC_SWEEP_PROGRESS" not in os.environ
    screen = Screen()
    screen.write(f"{err}next output")
    lines = screen.lines()
    assert lines.count("printed by a job") == 4  # two epochs of two jobs
    others = [line for line in lines if line != "printed by a job"]
    assert [line.split(":")[0] for line in others[:2]] == ["done  joint seed 0", "done  type2 seed 0"]
    assert re.fullmatch(r"2/2 done in \d+ s", others[2])
    assert others[3] == "next output"
    assert not any(others[4:])
    assert screen.wrapped == 0
    assert "0/2 done, 1 running" in err
    assert "\x1b[" in err
    assert out.count("warned by a job") == 4
    rest = out.replace("warned by a job\n", "")
    assert rest.startswith("\nSMOKE RUNS, NO RESULT")
    assert "epoch 2/2" not in out + err
    assert "epoch 2/2 (what + where): accuracy train" in (FOLDER / "joint" / "seed0" / "train.log").read_text()


def test_sweep_of_evaluations_has_no_display(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("evaluate", "ckpt_path=a.ckpt,b.ckpt", "-m")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ckpt_path: 'a.ckpt' does not exist")


def test_jobs_of_another_process_are_skipped(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 75 while another process runs a job, and 0 once that job has finished."""
    other = FOLDER / "joint" / "seed0"
    sweep = ("train", *TWO_ROWS, "seed.all=0", "-m")
    with lock_run(other):
        before = {path for path in other.iterdir() if not path.name.startswith(".")}
        code, _, err = cli(*sweep)
    assert code == SKIPPED_JOBS == 75
    lines = [line.split(":")[0] for line in err.splitlines()]
    assert lines[:2] == ["skipped  gradients/joint seed 0", "done  gradients/type2 seed 0"]
    assert lines[2].startswith("skipped 1 of 2 jobs ")
    assert {path for path in other.iterdir() if not path.name.startswith(".")} - before <= {other / "train.log"}

    def tables(folder: Path) -> list[str]:
        (other / RESULT).write_bytes((FOLDER / "type2" / "seed0" / RESULT).read_bytes())
        return []

    monkeypatch.setattr("attnmosaic.sweeps.hydra_callback._tables", tables)
    with lock_run(other):  # the other process finishes the job while this one prints its table
        assert cli(*sweep)[0] == 0


def test_lock_files_of_ended_processes_are_ignored(cli: Cli, tmp_path: Path) -> None:
    """A kill or a reboot can leave lock files of a run and of its sweep, and an incomplete plan."""
    for folder in (FOLDER / "joint" / "seed0", FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
    for lock in (FOLDER / "joint" / "seed0" / LOCK, FOLDER / ".sweep.lock"):
        lock.write_text("4242\nanother-machine\n")
    (FOLDER / ".sweep.json.4242.tmp").write_text("half a plan")
    code, _, err = cli("train", *ROW, "seed.all=0", "-m")
    assert code == 0, err
    assert not [*FOLDER.rglob("*.tmp")]


def test_failed_job_is_in_its_folder_and_in_the_table(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    """The error of a bug includes its traceback; the other jobs finish."""
    bug = (
        "+callbacks.fate._target_=helpers.user_code.Fate",
        "+callbacks.fate.folder=${run_dir}",
        "+callbacks.fate.fate=bug,works",
    )
    with pytest.raises(ZeroDivisionError):  # the command itself prints the traceback and ends with exit code 1
        cli(
            "train", *ROW, "seed.all=0", *bug, "hydra.sweep.subdir=${hydra.job.num}", "-m",
        )  # fmt: skip
    err = capfd.readouterr().err
    failed, works = Run(FOLDER / "0"), Run(FOLDER / "1")
    assert (failed.state, works.state) == ("failed", "finished")
    assert failed.error is not None
    for text in (failed.error, (failed.folder / "train.log").read_text()):
        assert "Traceback" in text
        assert "ZeroDivisionError: a bug of the user's" in text
    assert "ZeroDivisionError: a bug of the user's" in err
    collect([str(FOLDER)])
    assert re.search(r"1 finished, 1 failed .*\n *\(ZeroDivisionError: a", capfd.readouterr().out)
