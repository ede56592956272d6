"""Sweeps with ``hydra/launcher=submitit_slurm``, and runs that Slurm has started."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import pytorch_lightning as pl
from helpers.commands import Cli
from helpers.settings import ROOT
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.schedule import Schedule
from attnmosaic.core.errors import RunError, UserError
from attnmosaic.sweeps.monitor import FAILED, Job, Watch
from attnmosaic.training.trainer import build_trainer

Plugins.instance()  # executes the modules of plugins again, so first of all
from hydra_plugins.attnmosaic_launcher import slurm as plugin  # noqa: E402

LAUNCHER = "hydra/launcher=submitit_slurm"


def test_without_the_packages(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    code, _, err = cli("train", LAUNCHER, "seed.all=0,1", "-m")
    assert code == 2
    assert err.startswith(f"error: {LAUNCHER}: needs packages")
    assert f"{sys.executable} -m pip install 'submitit>=1.5'\n" in err
    assert not (tmp_path / "outputs").exists()


def test_without_slurm(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin, "which", lambda name: None)
    code, _, err = cli("train", LAUNCHER, "seed.all=0,1", "-m")
    assert code == 2
    assert re.fullmatch(rf"error: {LAUNCHER}: there is no sbatch here; .*hydra/launcher=joblib .*\n", err)
    assert not (tmp_path / "outputs").exists()


def test_submitit_local_is_not_offered(cli: Cli) -> None:
    """It would start all jobs at once."""
    code, _, err = cli("train", "hydra/launcher=submitit_local", "-m")
    assert code == 2
    assert re.fullmatch(r"error: hydra/launcher: got 'submitit_local', allowed: .*joblib, .*submitit_slurm.*\n", err)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hydra.launcher.timeout_min=0", r"hydra\.launcher\.timeout_min: got 0, needs a whole number of at least 1"),
        ("hydra.launcher.timeout_min=null", r"hydra\.launcher\.timeout_min: got None, needs"),
        ("hydra.launcher.mem_gb=-1", r"hydra\.launcher\.mem_gb: got -1, needs a number above 0"),
        ("hydra.launcher.gpus_per_node=two", r"hydra\.launcher\.gpus_per_node: got two, needs a whole number"),
        ("trainer.devices=auto", r"hydra\.launcher\.gpus_per_node: got auto, but .*type trainer\.devices=1"),
        ("+hydra.launcher.partitoin=gpu", r"hydra\.launcher: got 'partitoin', allowed: .*did you mean .*partition\?"),
        ("hydra.launcher.partitoin=gpu", r"hydra\.launcher\.partitoin: there is no such config key"),
    ],
)
def test_slips(cli: Cli, monkeypatch: pytest.MonkeyPatch, override: str, said: str) -> None:
    monkeypatch.setattr(plugin, "which", lambda name: name)
    code, _, err = cli("train", LAUNCHER, override, "-m")
    assert (code, err.count("\n")) == (2, 1), err
    assert re.match(f"error: {said}", err), err


@pytest.mark.parametrize(
    ("trainer", "gpus"),
    [
        ({"accelerator": "auto", "devices": 1}, 1),
        ({"accelerator": "gpu", "devices": 4}, 4),
        ({"accelerator": "cpu", "devices": 4}, None),
    ],
)
def test_what_is_asked_for(trainer: dict[str, Any], gpus: int | None) -> None:
    from attnmosaic.sweeps.slurm import parameters

    asked = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / "submitit_slurm.yaml")
    assert isinstance(asked, DictConfig)
    given = parameters({key: asked[key] for key in asked if key != "_target_"}, OmegaConf.create({"trainer": trainer}))
    assert given.get("gpus_per_node") == gpus
    assert given["srun_args"] == ["--cpus-per-task=4"]
    assert given["additional_parameters"] == {"requeue": True}
    assert "partition" not in given


def job(tmp_path: Path, name: str, said: object = None) -> Any:
    """Stands in for submitit's; with what its result says, if it has one."""
    result = tmp_path / f"{name}_result.pkl"
    if said is not None:
        result.write_bytes(cloudpickle.dumps(said))
    return SimpleNamespace(job_id=name, paths=SimpleNamespace(result_pickle=result, stderr=tmp_path / f"{name}.err"))


def test_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For results; not for jobs that have ended without, which Slurm must have said several times in a row."""
    from attnmosaic.sweeps import slurm_queue

    monkeypatch.setattr(slurm_queue, "LOOK_S", 0)
    done = JobReturn(status=JobStatus.COMPLETED)
    jobs = {
        0: job(tmp_path, "7_0"),
        1: job(tmp_path, "7_1", ("success", done)),
        2: job(tmp_path, "7_2", ("error", "Traceback\nModuleNotFoundError: no torch\n  its notes")),
        3: job(tmp_path, "7_3"),
        4: job(tmp_path, "7_4"),
    }
    alive = {"7_0": "RUNNING", "7_3": "PENDING", "7_4": "RUNNING"}
    over = {**alive, "7_0": "OUT_OF_MEMORY"}
    late = {**over, "7_3": "COMPLETED"}
    told = iter([alive, over, None, over, alive, *[over] * 3, late, late, "result", {}, {}, {}, {}])
    asked: list[int] = []

    def queue(ids: Any) -> dict[str, str] | None:
        states = next(told)
        asked.append(len([*ids]))
        if states == "result":
            job(tmp_path, "7_3", ("success", done))
            return late
        return states  # type: ignore[return-value]

    monkeypatch.setattr(slurm_queue, "queue", queue)
    lost: list[tuple[int, str, int]] = []

    def lose(number: int, state: str) -> JobReturn:
        lost.append((number, state, len(asked)))
        return done

    returned = slurm_queue.wait_for(jobs, lose)
    assert sorted(returned) == [0, 1, 2, 3, 4]
    assert lost == [(2, "ModuleNotFoundError: no torch", 1), (0, "OUT_OF_MEMORY", 9), (4, "ended", 15)]
    assert asked[:2] == [5, 3]


@pytest.mark.parametrize(
    ("script", "states"),
    [
        ("echo '7_0|RUNNING'; echo ' 7_1|PENDING'", {"7_0": "RUNNING", "7_1": "PENDING"}),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", {}),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, states: dict[str, str] | None) -> None:
    from attnmosaic.sweeps.slurm_queue import queue

    (tmp_path / "squeue").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{script}\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert queue(["7_0", "7_1", "9"]) == states
    assert "--jobs=7,9 " in (tmp_path / "asked").read_text()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert queue(["7_0"]) is None


def test_the_last_time_limit() -> None:
    """Submitit's signal handler raises it wherever the run is."""
    from submitit.core.utils import UncompletedJobError

    from attnmosaic.sweeps.slurm_node import translated

    error = translated(UncompletedJobError("Job not requeued because: timed-out too many times."))
    assert isinstance(error, RunError)
    assert "hydra.launcher.max_num_timeout" in str(error)
    assert str(translated(UserError("lr.what: got x"))) == "lr.what: got x"


def test_jobs_that_go_on(tmp_path: Path) -> None:
    """When who waits for them ends, those at work are not told as stopped."""
    told: list[tuple[str, str, str]] = []
    jobs = [Job(name, name, tmp_path / name, Schedule("joint", 1, 9)) for name in ("a", "b", "c")]
    watch = Watch(jobs, lambda job, text: told.append((job.state, job.name, text)))
    watch.began(0)
    watch.began(1)
    watch.ended(1, "it broke")
    watch.leave()
    watch.close()
    assert told == [("failed", "b", "it broke"), ("left at work", "a", "after epoch 0 of 9")]


def test_a_job_that_failed_elsewhere(tmp_path: Path) -> None:
    """As one that an earlier command submitted, while this one was about to: it is at work again."""
    told: list[str] = []
    watch = Watch(
        [Job("a", "a", tmp_path, Schedule("joint", 1, 9), state=FAILED)], lambda job, _: told.append(job.state)
    )
    watch.began(0)
    watch.ended(0, None)
    assert told == ["done"]


ONE = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


class Signals(pl.Callback):
    """Sends this process a signal in the second epoch, and notes what Lightning made of Slurm."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        kind = type(trainer._accelerator_connector.cluster_environment).__name__  # type: ignore[attr-defined]
        assert (kind, trainer.world_size) == ("LightningEnvironment", 1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL  # Lightning's would requeue the job
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), self.number)


def test_a_run_under_slurm(
    train: Callable[..., dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone in a job of four tasks, as in its script: no complaint, no requeueing, and deaf to SIGTERM."""
    few = ("schedule.k=1", "schedule.epochs=3", "logger=none")
    alone = train(*few, run_dir="alone")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert train(*few, run_dir="beside") == alone  # on a machine that has srun, but not by it
    assert not [str(one.message) for one in said if "srun" in str(one.message)]
    for name, value in {**ONE, "SUBMITIT_EXECUTOR": "slurm"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    signals = (
        "+callbacks.signals._target_=test_slurm.Signals",
        f"+callbacks.signals.number={int(signal.SIGTERM)}",
    )
    assert train(*few, *signals, run_dir="under") == alone
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_trainer_under_slurm_of_ones_own(config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ONE.items():
        monkeypatch.setenv(name, value)
    own = "+trainer.plugins=[{_target_: lightning_fabric.plugins.environments.slurm.SLURMEnvironment}]"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    trainer = build_trainer(config(own), "32-true")
    assert type(trainer._accelerator_connector.cluster_environment).__name__ == "SLURMEnvironment"  # type: ignore[attr-defined]
