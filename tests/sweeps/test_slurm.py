"""Sweeps with ``hydra/launcher=submitit_slurm``, and runs that Slurm has started."""

import contextlib
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import cloudpickle
import pytest
import pytorch_lightning as pl
from helpers.commands import Cli, check_line
from helpers.settings import ROOT, SMALL
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from attnmosaic.runs.run import lock_run
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
    assert re.fullmatch(rf"error: {LAUNCHER}: .*sbatch.*hydra/launcher=joblib .*\n", err)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("hydra.launcher.timeout_min=null", r"hydra\.launcher\.timeout_min: got None"),
        ("trainer.devices=auto", r"hydra\.launcher\.gpus_per_node: got auto, .*trainer\.devices=1"),
        ("+hydra.launcher.partitoin=gpu", r"hydra\.launcher: .*'partitoin'.* partition"),
    ],
)
def test_user_errors(cli: Cli, monkeypatch: pytest.MonkeyPatch, override: str, wanted: str) -> None:
    monkeypatch.setattr(plugin, "which", lambda name: name)
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", classmethod(lambda cls: 1))
    code, _, err = cli("train", LAUNCHER, override, "-m")
    check_line(code, err, wanted)


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
    from attnmosaic.sweeps import slurm

    monkeypatch.setattr(slurm, "POLL_SECONDS", 0)
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

    monkeypatch.setattr(slurm, "queue", queue)
    lost: list[tuple[int, str, int]] = []

    def lose(number: int, state: str) -> JobReturn:
        lost.append((number, state, len(asked)))
        return done

    returned = slurm.wait_for(jobs, lose)
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
    from attnmosaic.sweeps.slurm import queue

    (tmp_path / "squeue").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{script}\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert queue(["7_0", "7_1", "9"]) == states
    assert "--jobs=7,9 " in (tmp_path / "asked").read_text()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert queue(["7_0"]) is None


class Executor:
    """Stands in for submitit's: keeps what is submitted."""

    submitted: ClassVar[list[Any]] = []

    def __init__(self, folder: Path, **_: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.submitted.clear()

    def update_parameters(self, **_: Any) -> None:
        pass

    def batch(self) -> Any:
        return contextlib.nullcontext()

    def submit(self, node: Any) -> Any:
        self.submitted.append(node)
        return SimpleNamespace(job_id=f"9_{node.number}")


@pytest.mark.runs
def test_rows_that_are_submitted(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those without a result that Slurm does not have; a job whose row is finished or locked ends at once."""
    import submitit

    from attnmosaic.sweeps import slurm

    few = (*SMALL, "schedule.k=1", "schedule.epochs=1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${seed.all}")
    code, _, err = cli("train", *few, "seed.all=0", "-m")
    assert code == 0, err
    waited: list[int] = []

    def wait_for(jobs: Mapping[int, Any], lost: object) -> dict[int, JobReturn]:
        waited.extend(jobs)
        done = JobReturn(status=JobStatus.COMPLETED)
        done.return_value = 0.5
        return dict.fromkeys(jobs, done)

    monkeypatch.setattr(plugin, "which", lambda name: name)
    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(slurm, "wait_for", wait_for)
    (tmp_path / "sweep" / "slurm").mkdir()
    (tmp_path / "sweep" / "slurm" / "submitted.json").write_text('{"1": "8_1", "2": "8_2"}')
    monkeypatch.setattr(slurm, "queue", lambda jobs: {"8_1": "PENDING", "8_2": "FAILED"})
    code, _, err = cli("train", *few, "seed.all=0,1,2,3", LAUNCHER, "-m")
    assert code == 0, err
    assert [node.number for node in Executor.submitted] == [2, 3]
    assert waited == [1, 2, 3]
    assert json.loads((tmp_path / "sweep/slurm/submitted.json").read_text()) == {"1": "8_1", "2": "9_2", "3": "9_3"}

    locked, finished = Executor.submitted.copy()
    code, _, err = cli("train", *few, "seed.all=3", "-m")
    assert code == 0, err
    paths = SimpleNamespace(result_pickle=tmp_path / "result.pkl", submitted_pickle=tmp_path / "submitted.pkl")
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: SimpleNamespace(paths=paths, job_id="9_2"))
    monkeypatch.setattr("attnmosaic.train._train", None)  # nothing is trained
    with singletons_restored():
        with lock_run(tmp_path / "sweep" / "2"):
            assert locked().return_value is None
        assert isinstance(finished().return_value, float)


@contextlib.contextmanager
def singletons_restored() -> Iterator[None]:
    """Restores the state of Hydra, which a job replaces in its own process."""
    state = Singleton.get_state()
    try:
        yield
    finally:
        Singleton.set_state(state)


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


@pytest.mark.runs
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
