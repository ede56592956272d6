"""Plan of a sweep: its folder, its jobs, and sweeps that are user errors."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.settings import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from attnmosaic.config.schema import conf_dir, register
from attnmosaic.core.errors import UserError
from attnmosaic.sweeps.hydra_callback import SweepPlan
from attnmosaic.sweeps.job_configs import JobConfigs
from attnmosaic.tables.published import published_tables

TABLES = sorted(path.stem for path in (ROOT / "conf" / "reproduce").glob("*.yaml"))
PlanOf = Callable[..., tuple[str, dict[str, Any]]]


def as_id(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


@pytest.fixture
def plan_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PlanOf:
    """Returns a function that gives the folder and the jobs of a sweep, from its overrides, without running it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("attnmosaic.sweeps.hydra_callback.begin_sweep", lambda *_: None)
    register()

    def plan_of(*overrides: str) -> tuple[str, dict[str, Any]]:
        plan = SweepPlan()
        with initialize_config_dir(conf_dir(), version_base="1.3", job_name="train"):
            loader = GlobalHydra.instance().config_loader()
            plan._prepare(loader.load_configuration("train", [*overrides], run_mode=RunMode.MULTIRUN))
        assert plan._plan is not None
        return str(plan._folder.relative_to(tmp_path)), plan._plan["jobs"]

    return plan_of


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("train", [*overrides])


# ---- published tables


@pytest.mark.parametrize("table", TABLES)
def test_sweep_of_a_table_has_the_published_rows(table: str) -> None:
    """Each row is an experiment with the row's name; each has three seeds."""
    swept = yaml.safe_load((ROOT / "conf" / "reproduce" / f"{table}.yaml").read_text())["hydra"]["sweeper"]["params"]
    (published,) = (candidate for candidate in published_tables() if candidate.key == table)
    assert swept["experiment"].split(",") == list(published.rows)
    assert swept["seed.all"] == "0,1,2"
    for row in published.rows if table in ("gradients", "mnist") else []:  # the others are composed below
        assert composed(f"experiment={row}").name == row


@pytest.mark.parametrize(
    ("row", "epochs", "k", "what", "where"),
    [
        (1, 180, 5, 0.01, 0.01), (2, 200, 10, 0.01, 0.01), (3, 280, 20, 0.01, 0.001), (4, 320, 20, 0.01, 0.01),
        (5, 360, 30, 0.01, 0.01), (6, 500, 50, 0.01, 0.01), (7, 600, 50, 0.001, 0.01), (8, 800, 100, 0.001, 0.01),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("table", "order"), [("table1", "what_then_where"), ("table2", "where_then_what")])
def test_rows_of_the_stage_wise_study(
    table: str, order: str, row: int, epochs: int, k: int, what: float, where: float
) -> None:
    config = composed(f"experiment={table}/row{row}")
    assert config.name == f"{table}/row{row}"
    assert (config.schedule.epochs, config.schedule.k, config.schedule.order) == (epochs, k, order)
    assert (config.lr.what, config.lr.where, config.data.batch_size) == (what, where, 250)
    assert (config.data.train_mosaics, config.data.test_mosaics) == (30_000, 10_000)
    assert config.data.foreground == ["horse", "ship", "truck"]


@pytest.mark.parametrize("i", range(1, 10))
def test_rows_of_the_weighted_average_study(i: int) -> None:
    config = composed(f"experiment=averages/dataset{i}")
    assert config.name == f"averages/dataset{i}"
    assert config.data.weights.foreground == f"{i}/9"
    assert (config.schedule.order, config.schedule.epochs, config.data.batch_size) == ("what_only", 100, 256)
    assert (config.lr.what, config.optimizer.what.momentum, config.data.train_mosaics) == (0.01, 0.9, 10_000)
    views = config.data.views
    assert [views[f"dataset_{j}"].weights.foreground for j in range(1, 11)] == [f"{min(j, 9)}/9" for j in range(1, 11)]
    assert [views[f"dataset_{j}"].split for j in (1, 9, 10)] == ["train", "train", "test"]
    assert config.data.foreground == ["airplane", "automobile", "bird"]


@pytest.mark.parametrize("target", ["table1", "averages", "gradients", "mnist"])
def test_make_prints_the_command(target: str) -> None:
    def printed_commands(*arguments: str) -> list[str]:
        make = ["make", "--dry-run", f"reproduce-{target}", *arguments]
        process = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
        lines = process.stdout.replace("\\\n", " ").splitlines()  # make prints more lines when another make runs it
        (line,) = (line for line in lines if "-m attnmosaic." in line)
        sweep, outputs = " ".join(line.split()).split("; status=$?; ")
        assert outputs.endswith("; }; exit $status")  # the table is also built if a job failed
        return [sweep, outputs.removesuffix("; }; exit $status")]

    sweep, outputs = printed_commands()
    assert sweep.endswith(f"python -m attnmosaic.train -m reproduce={target}")
    collect, report = outputs.split("; ")[-2:]
    assert collect.endswith(f"python -m attnmosaic.collect outputs/{target} --plots >/dev/null")
    assert report.endswith(f"python -m attnmosaic.report outputs/{target}")
    prefix = {"table1": "row", "averages": "dataset"}.get(target, "")
    images = " data=image_folder data.root=cifar" if prefix else ""
    sweep, outputs = printed_commands(
        "ROWS=1,3", "SEEDS=0,1", "SCALE=smoke", "CIFAR=cifar", "ARGS=hydra/launcher=joblib"
    )
    rows = f"experiment={target}/{prefix}1,{target}/{prefix}3"
    assert sweep.endswith(f" -m reproduce={target} {rows} seed.all=0,1 scale=smoke{images} hydra/launcher=joblib")
    assert outputs.count(f" outputs/smoke/{target}") == 3


def test_make_lists_every_target() -> None:
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    documented = set(re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"^  make ([\w-]+)  ", listed, flags=re.M)) == documented
    assert {f"reproduce-{table}" for table in TABLES} < documented
    make = ["make", "--dry-run", "reproduce", "SEEDS=0"]
    process = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"-m reproduce=(\w+)", process.stdout)) == set(TABLES)


# ---- folders and jobs

TIME = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}"


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["experiment=gradients/joint,gradients/type2"], f"outputs/sweeps/gradients/{TIME}"),
        (["experiment=gaussian_type1,gaussian_type2", "seed.all=0,1", "scale=smoke"], f"outputs/smoke/sweeps/{TIME}"),
        (["scale=smoke,full"], f"outputs/sweeps/gaussian/{TIME}"),
        (["paths.output=out/a,out/b"], f"out/sweeps/gaussian/{TIME}"),
        (["lr.what=0.1,0.2", "hydra.sweep.dir='out/lr ${lr.what}/${now:%Y}'"], r"out/\d{4}"),
        (["seed.all=0,1", "hydra.sweep.dir=out/${hydra.job.num}"], "out"),
        (["seed.all=0,1", 'hydra.sweep.dir="o/a=b, [é] {x} \'$y"'], r"o/a=b, \[é\] \{x\} '\$y"),
    ],
    ids=as_id,
)
def test_sweep_over_any_key_has_one_folder(plan_of: PlanOf, overrides: list[str], folder: str) -> None:
    sweep_folder, jobs = plan_of(*overrides)
    assert re.fullmatch(folder, sweep_folder)
    assert len(jobs) >= 2


def test_same_command_with_the_sweep_folder_has_the_same_jobs(plan_of: PlanOf) -> None:
    folder, jobs = plan_of("experiment=gradients/joint,gradients/type2")
    assert plan_of("experiment=gradients/joint,gradients/type2", f"hydra.sweep.dir={folder}") == (folder, jobs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["paths.output=a,b"], r"hydra\.sweep\.dir: .*'a/sweeps/.*=DIR"),
        (["lr.what=1,2", "hydra.sweep.dir=${lr.what}"], r"hydra\.sweep\.dir: .*'1\.0' and '2\.0'"),
        (["paths.output=/a,/b"], r"hydra\.sweep\.dir: "),
        (["run_dir=x,y"], r"run_dir: .*hydra\.sweep\.dir=DIR"),
        (["reproduce=table1,table2"], r"reproduce: got table1,table2"),
        (
            ["reproduce=gradients", "experiment=gradients/joint", "seed.all=0", "lr.what=1,2"],
            r"hydra\.sweep\.subdir: got 'joint/seed0' for 2 jobs",
        ),
        (["experiment=glob(gradeints/*)"], r"experiment: .* did you mean 'experiment=glob\(gradients/\*\)"),
        (["experiment=glob([gradients/*,tabel1/*])"], r"experiment: got glob\(tabel1/\*\)"),
        (["experiment=glob(*,exclude=*)"], r"experiment: got glob\(\*,exclude=\*\)"),
        (["lr.what=glob(*)"], r"lr\.what: glob\(\) .*lr\.what=A,B"),
        (["seed.all=0,1", "lr.what=range(1,0)"], r"lr\.what: got range\(1,0\)"),
        (["seed.all=shuffle(range(3,3))"], r"seed\.all: got shuffle\(range\(3,3\)\)"),
        (["reproduce=table1", "experiment=glob(table9/*)"], r"experiment: got glob\(table9/\*\), .*did you mean"),
        (["reproduce=table1", "hydra.sweeper.params.experiment='range(0,0)'"], r"experiment: got range\(0,0\)"),
        (["lr.what=interval(0.1,1)"], r"lr\.what: .*hydra/sweeper=optuna"),
    ],
    ids=as_id,
)
def test_sweeps_without_a_common_folder_or_without_jobs_are_user_errors(
    plan_of: PlanOf, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(*overrides)


GRADIENTS = ["joint", "type1", "type2", "type3", "type4", "type5", "what_then_where", "where_then_what"]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["experiment=glob([gradients/j*,gaussian])"], ["gaussian", "gradients/joint"]),
        (
            ["experiment=glob(gradients/*,exclude=*/type*)"],
            [f"gradients/{name}" for name in GRADIENTS if "type" not in name],
        ),
        (
            ["reproduce=gradients", "hydra.sweeper.params.experiment='glob(gradients/w*)'", "seed.all=0"],
            ["gradients/what_then_where", "gradients/where_then_what"],
        ),
    ],
    ids=as_id,
)
def test_globs_match_files_of_a_group_and_of_its_subfolders(
    plan_of: PlanOf, overrides: list[str], names: list[str]
) -> None:
    _, jobs = plan_of(*overrides)
    assert sorted(job["name"] for job in jobs.values()) == sorted(names)


# ---- configs of jobs


SWEEPS: dict[str, list[tuple[str, ...]]] = {
    "seeds": [(f"seed.all={seed}",) for seed in range(3)],
    "values of other types": [("lr.what=0.01", "data.points=1"), ("lr.what=1e-3", "data.points=1e3")],
    "quoted text": [("name=a",), ("name='b c'",), ('name="it\'s"',)],
    "a list": [("model.what.hidden=[4]",), ("model.what.hidden=[5,6]",)],
    "a key that was null": [("compute.threads=1",), ("compute.threads=2",)],
    "an added key": [("+trainer.max_time=00:00:00:10",), ("+trainer.max_time=00:00:00:20",)],
    "a group": [("experiment=gaussian", "seed.all=1"), ("experiment=stagewise", "seed.all=2")],
    "a group that is also a key": [("scale=full",), ("scale=smoke",)],
    "groups and seeds": [(f"optimizer={name}", f"seed.all={n}") for name in ("sgd", "adam") for n in range(2)],
    "a key that a later one contains": [("schedule.k=1", "schedule.epochs=2"), ("schedule.k=2", "schedule.epochs=9")],
    "a section": [("lr={what:0.1,where:0.2,network:0.3}",), ("lr={what:0.2,where:0.2,network:0.3}",)],
    "a folder of Hydra": [("seed.all=0", "hydra.sweep.subdir=a"), ("seed.all=1", "hydra.sweep.subdir=b")],
    "another number of overrides": [("seed.all=0",), ("seed.all=0", "lr.what=1")],
    "in another order": [("seed.all=0", "lr.what=1"), ("lr.what=2", "seed.all=1")],
    "a deleted key": [("~callbacks.gradients", "seed.all=0"), ("~callbacks.gradients", "seed.all=1")],
    "null": [("logger=none", "ckpt_path=a"), ("logger=none", "ckpt_path=null")],
    "a value with an interpolation": [("lr.what=0.1",), ("lr.what=${lr.where}",)],
}


@pytest.mark.parametrize("name", SWEEPS)
def test_config_of_a_job_is_the_one_that_hydra_composes(name: str) -> None:
    """With Hydra's own section, and with the folder that Hydra names by the overrides."""
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name="train"):
        loader = GlobalHydra.instance().config_loader()
        fixed = ["hydra.job.config.override_dirname.exclude_keys=[seed.all]", "hydra/launcher=joblib"]
        sweep = loader.load_configuration("train", fixed, run_mode=RunMode.MULTIRUN)
        configs = JobConfigs(loader, sweep)
        for overrides in SWEEPS[name]:
            job = configs(overrides)
            composed_by_hydra = loader.load_sweep_config(sweep, [*overrides])
            assert OmegaConf.to_yaml(job) == OmegaConf.to_yaml(composed_by_hydra)
            assert job.hydra.job.override_dirname == composed_by_hydra.hydra.job.override_dirname
            assert OmegaConf.get_cache(job) == OmegaConf.get_cache(composed_by_hydra)
            assert OmegaConf.is_struct(job) == OmegaConf.is_struct(composed_by_hydra)


def test_jobs_that_differ_in_seeds_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And their configs do not share any part that can be changed."""
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name="train"):
        loader = GlobalHydra.instance().config_loader()
        sweep = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
        calls = []
        compose_job = loader.load_sweep_config
        monkeypatch.setattr(loader, "load_sweep_config", lambda *given: calls.append(given) or compose_job(*given))
        configs = JobConfigs(loader, sweep)
        first, second = configs(["seed.all=1"]), configs(["seed.all=2"])
        first.lr.what = 0.5
        third = configs(["seed.all=3"])
    assert len(calls) == 1
    assert (second.lr.what, third.lr.what) == (0.01, 0.01)
    assert [job.seed.init for job in (first, second, third)] == [1, 2, 3]


@pytest.mark.parametrize("override", ["lr.what=much", "no.such.key=2"])
def test_invalid_override_of_a_later_job_raises_hydras_error(override: str) -> None:
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name="train"):
        loader = GlobalHydra.instance().config_loader()
        sweep = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
        configs = JobConfigs(loader, sweep)
        configs(["lr.what=0.1"])
        with pytest.raises(ConfigCompositionException):
            configs([override])
