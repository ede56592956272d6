"""Published tables as sweeps: planned, stopped, gone on with, collected."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers.commands import Cli
from helpers.settings import ROOT
from helpers.terminal import Screen
from helpers.user_code import TINY_CIFAR10, TINY_MNIST
from hydra import compose, initialize_config_dir

from attnmosaic.collect import main as collect
from attnmosaic.config.schema import conf_dir, register
from attnmosaic.runs.run import LOCK, RESULT, Run, claimed
from attnmosaic.sweeps.callback import PASSED_OVER
from attnmosaic.tables.published import published_tables

pytestmark = pytest.mark.runs

TABLES = sorted(path.stem for path in (ROOT / "conf" / "reproduce").glob("*.yaml"))
TWO_ROWS = (
    "reproduce=gradients",
    "experiment=gradients/joint,gradients/type2",
    "scale=smoke",
    "trainer.accelerator=cpu",
)
FOLDER = Path("outputs") / "smoke" / "gradients"


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("train", [*overrides])


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_its_sweep(table: str) -> None:
    """What is swept are the published rows, each an experiment of its own name, three seeds of each."""
    swept = yaml.safe_load((ROOT / "conf" / "reproduce" / f"{table}.yaml").read_text())["hydra"]["sweeper"]["params"]
    (published,) = (found for found in published_tables() if found.key == table)
    assert swept["experiment"].split(",") == list(published.rows)
    assert swept["seed.all"] == "0,1,2"
    for row in published.rows:
        assert composed(f"experiment={row}").name == row


@pytest.mark.parametrize(
    ("row", "epochs", "k", "what", "where"),
    [
        (1, 180, 5, 0.01, 0.01), (2, 200, 10, 0.01, 0.01), (3, 280, 20, 0.01, 0.001), (4, 320, 20, 0.01, 0.01),
        (5, 360, 30, 0.01, 0.01), (6, 500, 50, 0.01, 0.01), (7, 600, 50, 0.001, 0.01), (8, 800, 100, 0.001, 0.01),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("table", "order"), [("table1", "what_then_where"), ("table2", "where_then_what")])
def test_rows_of_document_002(table: str, order: str, row: int, epochs: int, k: int, what: float, where: float) -> None:
    config = composed(f"experiment={table}/row{row}")
    assert (config.schedule.epochs, config.schedule.k, config.schedule.order) == (epochs, k, order)
    assert (config.lr.what, config.lr.where, config.data.batch_size) == (what, where, 250)
    assert (config.data.train_mosaics, config.data.test_mosaics) == (30_000, 10_000)
    assert config.data.foreground == ["horse", "ship", "truck"]


@pytest.mark.parametrize("i", range(1, 10))
def test_rows_of_document_001(i: int) -> None:
    config = composed(f"experiment=averages/dataset{i}")
    assert config.data.weights.foreground == f"{i}/9"
    assert (config.schedule.order, config.schedule.epochs, config.data.batch_size) == ("what_only", 100, 256)
    assert (config.lr.what, config.optimizer.what.momentum, config.data.train_mosaics) == (0.01, 0.9, 10_000)
    views = config.data.views
    assert [views[f"dataset_{j}"].weights.foreground for j in range(1, 11)] == [f"{min(j, 9)}/9" for j in range(1, 11)]
    assert [views[f"dataset_{j}"].split for j in (1, 9, 10)] == ["train", "train", "test"]
    assert config.data.foreground == ["airplane", "automobile", "bird"]


def test_a_sweep_stopped_and_started_again(
    cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had finished is left, what had begun goes on, what had not is run; collect tells at any time."""
    from attnmosaic.callbacks.csv_tables import RunTables

    original = RunTables.on_train_epoch_start

    def interrupted(self: Any, trainer: Any, module: Any) -> None:
        if "type2" in str(self.folder) and trainer.current_epoch == 1:
            raise KeyboardInterrupt
        original(self, trainer, module)

    monkeypatch.setattr(RunTables, "on_train_epoch_start", interrupted)
    code, out, err = cli("train", *TWO_ROWS, "seed.all=0,1", "progress=quiet", "-m")
    assert code == 130
    done, stopped, interrupted = err.splitlines()
    assert re.fullmatch(r"done  gradients/joint seed 0: accuracy train [.\d]+ test [.\d]+ held_out [.\d]+, \d+ s", done)
    assert stopped == "stopped  gradients/type2 seed 0: after epoch 1 of 2"
    assert interrupted == "stopped by SIGINT; the same command goes on"
    assert re.search(r"^ type2 +1 stopped", out, flags=re.M)
    monkeypatch.setattr(RunTables, "on_train_epoch_start", original)
    states = {run: Run(FOLDER / run).state for run in ("joint/seed0", "type2/seed0", "joint/seed1", "type2/seed1")}
    assert list(states.values()) == ["finished", "stopped", "missing", "missing"]
    collect([str(FOLDER), "--format", "markdown"])
    told = capfd.readouterr().out
    assert "| joint | 1 finished, 1 missing | train/accuracy |" in told
    assert "| type2 | 1 stopped after epoch 1 of 2, 1 missing |" in told
    assert "| type3 | missing |" in told

    first = (FOLDER / "joint/seed0" / RESULT).stat().st_mtime_ns
    code, out, err = cli("train", *TWO_ROWS, "seed.all=0,1", "-m")
    assert code == 0
    told = [line.split(":")[0] for line in err.splitlines()]
    assert told == [
        "done before  gradients/joint seed 0", "done  gradients/type2 seed 0", "done  gradients/joint seed 1",
        "done  gradients/type2 seed 1",
    ]  # fmt: skip
    assert (FOLDER / "joint/seed0" / RESULT).stat().st_mtime_ns == first
    assert out.count("finished before: ") == 1
    assert out.count("resuming after epoch 1 of 2") == 1
    assert {Run(FOLDER / run).state for run in states} == {"finished"}
    assert (
        cli("train", "experiment=gradients/type2", "scale=smoke", "trainer.accelerator=cpu", "hydra.run.dir=whole")[0]
        == 0
    )
    results = [json.loads((path / RESULT).read_text())["metrics"] for path in (FOLDER / "type2/seed0", Path("whole"))]
    assert results[0] == results[1]
    plan = json.loads((FOLDER / "sweep.json").read_text())
    assert list(plan["jobs"]) == ["joint/seed0", "type2/seed0", "joint/seed1", "type2/seed1"]
    again = f"python -m attnmosaic.train {' '.join(TWO_ROWS)} seed.all=0,1"
    assert plan["commands"] == [f"{again} progress=quiet -m", f"{again} -m"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take no time."""

    def train(config: Any) -> dict[str, float]:
        folder = Path(config.run_dir)
        (folder / RESULT).write_text(json.dumps({"name": config.name, "scale": config.scale, "metrics": {}}))
        return {config.optimized_metric: 0.5}

    monkeypatch.setattr("attnmosaic.train.train", train)


TIME = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}"


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["experiment=gaussian,gaussian_type1"], f"outputs/sweeps/{TIME}"),
        (["experiment=gradients/joint,gradients/type2"], f"outputs/sweeps/gradients/{TIME}"),
        (["experiment=gaussian_type1,gaussian_type2", "seed.all=0,1", "scale=smoke"], f"outputs/smoke/sweeps/{TIME}"),
        (["scale=smoke,full"], f"outputs/sweeps/gaussian/{TIME}"),
        (["name=a,b"], f"outputs/sweeps/{TIME}"),
        (["paths.output=out/a,out/b"], f"out/sweeps/gaussian/{TIME}"),
        (["lr.what=0.1,0.2", "hydra.sweep.dir=out/${lr.what}"], "out"),
        (["lr.what=0.1,0.2", "hydra.sweep.dir='out/lr ${lr.what}/${now:%Y}'"], r"out/\d{4}"),
        (["seed.all=0,1", "hydra.sweep.dir=out/${hydra.job.num}"], "out"),
        (["+trainer.foo=1,2", "hydra.sweep.dir=out/${trainer.foo}/x"], "out/x"),
        (["experiment=gaussian,gaussian_type1", 'hydra.sweep.dir="o/a=b, [é] {x} \'$y"'], r"o/a=b, \[é\] \{x\} '\$y"),
        (["seed.all=0,1"], f"outputs/sweeps/gaussian/{TIME}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sweep_has_one_folder(cli: Cli, quick: None, overrides: list[str], folder: str) -> None:
    """Whatever is swept: the plan, Hydra's record, every run and the table are in it; the same command finds it."""
    code, out, err = cli("train", *overrides, "progress=quiet", "-m")
    assert code == 0, err
    (plan,) = Path().rglob("sweep.json")
    jobs = list(json.loads(plan.read_text())["jobs"])
    assert re.fullmatch(folder, str(plan.parent))
    assert {*Path().rglob("multirun.yaml")} == {plan.parent / "multirun.yaml"}
    assert {*Path().rglob(RESULT)} == {plan.parent / job / RESULT for job in jobs}
    assert len(jobs) >= 2
    assert f"runs: {plan.parent}\n" in out
    assert not re.search(r"\d missing", out)
    dirs = [override for override in overrides if not override.startswith("hydra.sweep.dir")]
    again = plan.parent.as_posix().replace("'", r"\'")
    code, _, err = cli("train", *dirs, f"hydra.sweep.dir='{again}'", "progress=quiet", "-m")
    assert code == 0, err
    assert [*Path().rglob("sweep.json")] == [plan]
    assert list(json.loads(plan.read_text())["jobs"]) == jobs


def test_jobs_that_change_into_their_folders(cli: Cli, quick: None) -> None:
    code, _, err = cli("train", "seed.all=0,1", "hydra.sweep.dir=sweep", "hydra.job.chdir=True", "-m")
    assert code == 0, err
    assert [*Path().rglob("sweep.json")] == [Path("sweep/sweep.json")]


@pytest.mark.parametrize("launcher", [pytest.param("joblib", marks=pytest.mark.faults)])
def test_one_folder_in_other_processes(cli: Cli, launcher: str) -> None:
    given = ("experiment=gaussian,gaussian_type1", "scale=smoke", "trainer.accelerator=cpu", "callbacks.pictures=null")
    code, out, err = cli("train", *given, f"hydra/launcher={launcher}", "-m")
    assert code == 0, err
    (plan,) = Path().rglob("sweep.json")
    assert {*Path().rglob(RESULT)} == {plan.parent / job / RESULT for job in ("0", "1")}
    assert "missing" not in out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["paths.output=a,b"], r"hydra\.sweep\.dir: a sweep has one folder, and its jobs would have 'a/sweeps/.*=DIR"),
        (["lr.what=1,2", "hydra.sweep.dir=${lr.what}"], r"hydra\.sweep\.dir: a sweep has one folder, .*'1\.0', '2\.0'"),
        (["paths.output=/a,/b"], r"hydra\.sweep\.dir: a sweep has one folder"),
        (["run_dir=x", "seed.all=0,1"], r"run_dir: a sweep's runs write into the sweep's folder; type hydra\.sweep\.d"),
        (["run_dir=x,y"], r"run_dir: a sweep's runs"),
        (["reproduce=table1,table2"], r"reproduce: got table1,table2, and a table is a sweep; type a command for each"),
        (["reproduce=gradients", "lr.what=1,2"], r"hydra\.sweep\.subdir: got 'joint/seed0' for 2 jobs, needs another"),
        (["reproduce=gradients", "scale=smoke,full"], r"hydra\.sweep\.subdir: got 'joint/seed0' for 2 jobs, needs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sweep_in_several_folders_is_refused(cli: Cli, quick: None, overrides: list[str], said: str) -> None:
    code, _, err = cli("train", *overrides, "-m")
    assert (code, err.count("\n")) == (2, 1), err
    assert re.match(f"error: {said}", err), err
    assert not [*Path().iterdir()]


GRADIENTS = ["joint", "type1", "type2", "type3", "type4", "type5", "what_then_where", "where_then_what"]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["experiment=glob(gradients/*)"], [f"gradients/{name}" for name in GRADIENTS]),
        (["experiment=glob(gradients/j*)"], ["gradients/joint"]),
        (
            ["experiment=glob([gradients/type*,gaussian])"],
            ["gaussian", *(f"gradients/type{i}" for i in range(1, 6))],
        ),
        (["experiment=glob(gaussian*)"], ["gaussian", *(f"gaussian_type{i}" for i in range(1, 6))]),
        (
            ["experiment=glob(gradients/*,exclude=*/type*)"],
            [f"gradients/{name}" for name in GRADIENTS if "type" not in name],
        ),
        (["experiment=glob('*/joint')"], ["gradients/joint"]),
        (
            ["reproduce=gradients", "experiment=glob(gradients/type?)", "seed.all=0"],
            [f"gradients/type{i}" for i in range(1, 6)],
        ),
        (
            ["reproduce=gradients", "hydra.sweeper.params.experiment='glob(gradients/w*)'", "seed.all=0"],
            ["gradients/what_then_where", "gradients/where_then_what"],
        ),
        (
            ["experiment=shuffle(gaussian,gaussian_type1,gaussian_type2,gaussian_type3,gaussian_type4)"],
            ["gaussian", *(f"gaussian_type{i}" for i in range(1, 5))],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_globs(cli: Cli, quick: None, overrides: list[str], names: list[str]) -> None:
    """They find a group's files, and by a folder's name those in its folders; the plan's jobs are those that run."""
    code, _, err = cli("train", *overrides, "hydra.sweep.dir=sweep", "progress=quiet", "-m")
    assert code == 0, err
    jobs = json.loads(Path("sweep/sweep.json").read_text(encoding="utf-8"))["jobs"]
    assert sorted(job["name"] for job in jobs.values()) == sorted(names)
    results = {folder: json.loads(Path("sweep", folder, RESULT).read_text(encoding="utf-8")) for folder in jobs}
    assert {folder: result["name"] for folder, result in results.items()} == {f: job["name"] for f, job in jobs.items()}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["experiment=glob(gradeints/*)"],
            r"experiment: got glob\(gradeints/\*\), which .* did you mean 'experiment=glob\(gradients/\*\)",
        ),
        (
            ["experiment=glob([gradients/*,tabel1/*])"],
            r"experiment: got glob\(tabel1/\*\), which matches none of gaussian",
        ),
        (
            ["experiment=glob(nothing*)"],
            r"experiment: got glob\(nothing\*\), which matches none of gaussian, .*table2/row8\n",
        ),
        (["experiment=glob(*,exclude=*)"], r"experiment: got glob\(\*,exclude=\*\), which has no values; type"),
        (["lr.what=glob(*)"], r"lr\.what: glob\(\) takes the name of a group"),
        (["seed.all=range(3,3)"], r"seed\.all: got range\(3,3\), which has no values; type for example seed\.all="),
        (["seed.all=0,1", "lr.what=range(1,0)"], r"lr\.what: got range\(1,0\), which has no values"),
        (["seed.all=shuffle(range(3,3))"], r"seed\.all: got shuffle\(range\(3,3\)\), which has no values"),
        (
            ["reproduce=table1", "experiment=glob(table9/*)"],
            r"experiment: got glob\(table9/\*\), .*did you mean 'experiment=glob\(table",
        ),
        (
            ["reproduce=table1", "hydra.sweeper.params.experiment='range(0,0)'"],
            r"experiment: got range\(0,0\), which has no",
        ),
        (["lr.what=interval(0.1,1)"], r"lr\.what: an interval is for a search; type lr\.what=A,B, or hydra/sweeper="),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_without_jobs_is_refused(cli: Cli, overrides: list[str], said: str, launcher: str) -> None:
    code, _, err = cli("train", *overrides, f"hydra/launcher={launcher}", "-m")
    assert (code, err.count("\n")) == (2, 1), err
    assert re.match(f"error: {said}", err), err
    assert not [*Path().iterdir()]


@pytest.mark.parametrize("command", ["evaluate", "explain", "predict"])
def test_other_commands_without_jobs(cli: Cli, command: str) -> None:
    code, _, err = cli(command, "ckpt_path=range(0,0)", "-m")
    assert (code, err) == (2, "error: ckpt_path: got range(0,0), which has no values; type for example ckpt_path=A,B\n")
    assert not [*Path().iterdir()]


@pytest.mark.pictures
def test_smoke_is_written_on_everything(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli("train", *TWO_ROWS, "seed.all=0", "-m")
    assert code == 0
    assert out.count("SMOKE: few examples") == 2
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
    told = capfd.readouterr().out
    assert told.startswith("SMOKE RUNS, NO RESULT")
    assert "within" not in told


@pytest.mark.parametrize("table", ["averages", "table1", "table2", "mnist"])
def test_tables_of_images_smoke(cli: Cli, table: str) -> None:
    """Every row, on stand-in images."""
    forty = ("at_most.data.train_images=40", "at_most.data.held_out_images=40")
    images = (*TINY_MNIST, *forty) if table == "mnist" else TINY_CIFAR10
    few = "at_most.schedule.epochs=1" if table.startswith("table") else "at_most.schedule.epochs=2"
    code, _, err = cli("train", f"reproduce={table}", "scale=smoke", "seed.all=0", *images, few, "-m")
    assert code == 0, err
    (published,) = (found for found in published_tables() if found.key == table)
    done = sorted((Path("outputs") / "smoke" / table).glob("*/seed0/result.json"))
    assert [json.loads(path.read_text())["name"] for path in done] == sorted(published.rows)
    metrics = {name for path in done for name in json.loads(path.read_text())["metrics"]}
    assert set(published.shown) <= metrics


def test_absent_data_end_a_sweep_before_it_begins(cli: Cli) -> None:
    code, _, err = cli("train", "reproduce=table1", "data.train_set.download=false", "-m")
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("error: data: CIFAR10 is not in ")
    assert "paths.data=DIR" in line
    assert not Path("outputs").exists()


def test_an_absent_folder_does_so_too(cli: Cli) -> None:
    code, _, err = cli("train", "reproduce=averages", "data=image_folder", "data.root=nowhere", "-m")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: data.root: 'nowhere' does not exist")
    assert not Path("outputs").exists()


def test_each_failed_job_is_told(cli: Cli) -> None:
    """In one line, beside the table of the others."""
    code, out, err = cli(
        *("train", *TWO_ROWS, "seed.all=0", "lr.what=1e30,0.01", "hydra.sweep.subdir=${hydra.job.num}"),
        *("progress=quiet", "-m"),
    )
    assert code == 1
    told = [
        re.sub(r"(accuracy|became).*", r"\1", line) for line in err.splitlines() if not line.startswith("Error exec")
    ]
    assert told == [
        "failed  gradients/joint seed 0 lr.what=1e+30: the loss became",
        "done  gradients/joint seed 0 lr.what=0.01: accuracy",
        "failed  gradients/type2 seed 0 lr.what=1e+30: the loss became",
        "done  gradients/type2 seed 0 lr.what=0.01: accuracy",
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


def test_a_live_sweep(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars on standard error; what jobs print goes above them, what they log into their files alone."""
    from attnmosaic.callbacks.csv_tables import RunTables

    original = RunTables.on_train_epoch_start

    monkeypatch.setattr("attnmosaic.sweeps.display.SECONDS", 0.01)

    def prints(self: Any, trainer: Any, module: Any) -> None:
        time.sleep(0.3)  # so that the bars are drawn while each job is at work
        print("printed by a job", file=sys.stderr)
        logging.getLogger("a.users").warning("warned by a job")
        original(self, trainer, module)

    monkeypatch.setattr(RunTables, "on_train_epoch_start", prints)
    before = sys.stderr
    code, out, err = cli("train", *TWO_ROWS, "seed.all=0", "trainer.check_val_every_n_epoch=2", "progress=live", "-m")
    assert (code, sys.stderr) == (0, before)
    assert "ATTNMOSAIC_SWEEP_PROGRESS" not in os.environ
    screen = Screen()
    screen.write(f"{err}what comes next")
    lines = screen.lines()
    assert lines.count("printed by a job") == 4  # two epochs of two jobs
    told = [line for line in lines if line != "printed by a job"]
    assert [line.split(":")[0] for line in told[:2]] == ["done  joint seed 0", "done  type2 seed 0"]  # as fits
    assert re.fullmatch(r"2/2 done in \d+ s", told[2])
    assert told[3] == "what comes next"
    assert not any(told[4:])
    assert screen.wrapped == 0
    assert "0/2 done, 1 running" in err
    assert "\x1b[" in err
    assert out.count("warned by a job") == 4
    rest = out.replace("warned by a job\n", "")
    assert rest.startswith("\nSMOKE RUNS, NO RESULT")
    assert "epoch 2/2" not in out + err
    assert "epoch 2/2 (what + where): accuracy train" in (FOLDER / "joint" / "seed0" / "train.log").read_text()


def test_evaluations_as_a_sweep(cli: Cli, tmp_path: Path) -> None:
    """They have no plan, and are not watched."""
    code, _, err = cli("evaluate", "ckpt_path=a.ckpt,b.ckpt", "-m")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ckpt_path: 'a.ckpt' does not exist")


@pytest.mark.parametrize("target", ["table1", "table2", "averages", "gradients", "mnist"])
def test_make_prints_the_command(target: str) -> None:
    def made(*arguments: str) -> list[str]:
        make = ["make", "--dry-run", f"reproduce-{target}", *arguments]
        done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
        lines = done.stdout.replace("\\\n", " ").splitlines()  # a make inside a make says more
        (line,) = (line for line in lines if "-m attnmosaic." in line)
        trained, gathered = " ".join(line.split()).split("; status=$?; ")
        assert gathered.endswith("; }; exit $status")  # also if a job failed
        return [trained, gathered.removesuffix("; }; exit $status")]

    sweep, gathered = made()
    assert sweep.endswith(f"python -m attnmosaic.train -m reproduce={target}")
    collect, report = gathered.split("; ")[-2:]
    assert collect.endswith(f"python -m attnmosaic.collect outputs/{target} --plots >/dev/null")
    assert report.endswith(f"python -m attnmosaic.report outputs/{target}")
    prefix = {"table1": "row", "table2": "row", "averages": "dataset"}.get(target, "")
    images = " data=image_folder data.root=cifar" if prefix else ""
    sweep, gathered = made("ROWS=1,3", "SEEDS=0,1", "SCALE=smoke", "CIFAR=cifar", "ARGS=hydra/launcher=joblib")
    rows = f"experiment={target}/{prefix}1,{target}/{prefix}3"
    assert sweep.endswith(f" -m reproduce={target} {rows} seed.all=0,1 scale=smoke{images} hydra/launcher=joblib")
    assert gathered.count(f" outputs/smoke/{target}") == 3


def test_make_lists_every_target() -> None:
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    documented = set(re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"^  make ([\w-]+)  ", shown, flags=re.M)) == documented
    assert {f"reproduce-{table}" for table in TABLES} < documented


def test_make_reproduce_is_all_of_them() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "reproduce", "SEEDS=0"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"-m reproduce=(\w+)", done.stdout)) == set(TABLES)


def test_pace_tells_what_it_does_not_know(tmp_path: Path) -> None:
    """Of other jobs, too; and no sweep takes less than one of its jobs."""
    from attnmosaic.callbacks.eta import Pace
    from attnmosaic.config.schedule import Schedule, Stage

    jobs = {
        name: {"schedule": {"order": order, "k": 5, "epochs": 100}} for name, order in (("a", "joint"), ("b", "joint"))
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"commands": [], "jobs": jobs}))
    pace = Pace(tmp_path / "a")
    pace.seconds[Stage.JOINT] = 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNMOSAIC_JOBS_AT_ONCE", "8")
        told = pace._told(Schedule("joint", 5, 100), 2)
        assert told == "1 h 38 min left for this run, about 1 h 39 min for the sweep (2 jobs to finish)"
        jobs["b"]["schedule"]["order"] = "what_then_where"
        (tmp_path / "sweep.json").write_text(json.dumps({"commands": [], "jobs": jobs}))
        assert "not counted: epochs in which what and where learns" in pace._told(Schedule("joint", 5, 100), 2)


def test_pace(tmp_path: Path, train: Callable[..., dict[str, float]], caplog: pytest.LogCaptureFixture) -> None:
    """Told from the second epoch of each kind of stage; what has not been seen yet is not counted, and said so."""
    from attnmosaic.callbacks import eta

    caplog.set_level("INFO")
    seconds = iter(range(0, 10**6, 50))  # an epoch takes 50 s
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eta, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
        (tmp_path / "run" / "jobs" / "b").mkdir(parents=True)
        plan = {"schedule": {"order": "what_then_where", "k": 3, "epochs": 12}}
        text = json.dumps({"commands": [], "jobs": {"a": plan, "b": plan}})
        (tmp_path / "run" / "jobs" / "sweep.json").write_text(text)
        patch.setenv("ATTNMOSAIC_JOBS_AT_ONCE", "2")
        train("schedule.k=3", "schedule.epochs=12", "callbacks.timer=null", run_dir="run/jobs/a")
    told = [record.message for record in caplog.records if record.name.endswith("callbacks.eta")]
    # After epoch 2 four What epochs are left here and six there; after epoch 5 seven epochs, and all twelve there.
    assert told == [
        "3 min left for this run, about 4 min for the sweep (2 jobs to finish); "
        "not counted: epochs in which where learns, none was seen yet",
        "6 min left for this run, about 8 min for the sweep (2 jobs to finish)",
    ]


HELD = "import sys; from pathlib import Path; from attnmosaic.runs.run import claimed\n"
HELD += "with claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.faults)])
def test_what_another_process_runs_is_passed_over(
    cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str], launcher: str
) -> None:
    """It has neither failed nor finished; when its process was killed, the same command runs it."""
    other = FOLDER / "joint" / "seed0"
    sweep = ("train", *TWO_ROWS, "seed.all=0", f"hydra/launcher={launcher}", "callbacks.pictures=null", "-m")
    with subprocess.Popen(
        [sys.executable, "-c", HELD, str(other)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = {path for path in other.iterdir() if not path.name.startswith(".")}
        code, _, err = cli(*sweep)
        assert code == PASSED_OVER == 75
        told = [line for line in err.splitlines() if line.startswith(("passed over", "done", "failed", "error"))]
        assert told[-1].startswith("passed over: 1 of 2 jobs, which another process is running; ")
        assert sorted(line.split(":")[0] for line in told[:-1]) == [
            "done  gradients/type2 seed 0", "passed over  gradients/joint seed 0",
        ]  # fmt: skip
        assert {path for path in other.iterdir() if not path.name.startswith(".")} - before <= {other / "train.log"}
        assert Run(FOLDER / "type2" / "seed0").state == "finished"
        holder.kill()
    assert (other / LOCK).exists()  # and nobody holds it
    assert cli(*sweep)[0] == 0
    assert {Run(FOLDER / row / "seed0").state for row in ("joint", "type2")} == {"finished"}


def test_what_another_process_finishes_meanwhile(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and the end of the sweep: then all jobs are done, and the exit code says so."""
    other = FOLDER / "joint" / "seed0"

    def tables(folder: Path) -> list[str]:
        (other / RESULT).write_bytes((FOLDER / "type2" / "seed0" / RESULT).read_bytes())
        return []

    monkeypatch.setattr("attnmosaic.sweeps.callback._tables", tables)
    with claimed(other):
        code, _, err = cli("train", *TWO_ROWS, "seed.all=0", "callbacks.pictures=null", "-m")
    assert code == 0, err
    assert "passed over  gradients/joint seed 0: " in err
    assert "passed over: " not in err


@pytest.mark.faults
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_two_processes_in_one_sweep(tmp_path: Path, launcher: str) -> None:
    """Started at once: each row is trained once, by one of them, and together they are all."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    noted = ("+callbacks.noted._target_=helpers.user_code.Noted", f"+callbacks.noted.file={tmp_path / 'noted.txt'}")
    command = [
        sys.executable, "-m", "attnmosaic.train", *TWO_ROWS, "seed.all=0,1", f"hydra/launcher={launcher}", *noted,
        "callbacks.pictures=null", "-m",
    ]  # fmt: skip
    started = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    codes = {process.returncode for process in started}
    assert codes <= {0, PASSED_OVER}, said
    assert 0 in codes or all("passed over: " in text for text in said)
    rows = [tmp_path / FOLDER / row / f"seed{seed}" for row in ("joint", "type2") for seed in (0, 1)]
    assert {Run(row).state for row in rows} == {"finished"}
    begun = [line.split() for line in (tmp_path / "noted.txt").read_text().splitlines()]
    assert sorted(folder for _, folder in begun) == sorted(map(str, rows))
    assert not any("failed" in text for text in said)


def test_a_lock_without_a_holder_is_no_obstacle(cli: Cli, tmp_path: Path) -> None:
    """As a reboot leaves it, of a run, of its sweep and of the data."""
    for folder in (FOLDER / "joint" / "seed0", FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
    for lock in (FOLDER / "joint" / "seed0" / LOCK, FOLDER / ".sweep.lock"):
        lock.write_text("4242\nanother-machine\n")
    (FOLDER / ".sweep.json.4242.tmp").write_text("half a plan")
    code, _, err = cli("train", *TWO_ROWS, "seed.all=0", "callbacks.pictures=null", "-m")
    assert code == 0, err
    assert not [*FOLDER.rglob("*.tmp")]


def test_a_failed_job_is_on_the_disk_and_in_its_table(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    """With its trace, where it is a bug; the others finish, and the exit code tells."""
    bug = (
        "+callbacks.fate._target_=helpers.user_code.Fate",
        "+callbacks.fate.folder=${run_dir}",
        "+callbacks.fate.fate=bug,works",
    )
    with pytest.raises(ZeroDivisionError):  # as a command: with its trace, and exit code 1
        cli(
            "train", *TWO_ROWS[:1], "experiment=gradients/joint", *TWO_ROWS[2:], "seed.all=0", *bug,
            "hydra.sweep.subdir=${hydra.job.num}", "callbacks.pictures=null", "-m",
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
