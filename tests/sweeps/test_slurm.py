"""Sweeps with ``hydra/launcher=submitit_slurm``, and runs that Slurm starts."""

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

Plugins.instance()  # before the import below, because Hydra executes the modules of plugins a second time here
from hydra_plugins.attnmosaic_launcher import slurm as plugin  # noqa: E402

LAUNCHER = "hydra/launcher=submitit_slurm"


def test_missing_packages_are_a_user_error(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    code, _, err = cli("train", LAUNCHER, "seed.all=0,1", "-m")
    assert code == 2
    assert err.startswith(f"error: {LAUNCHER}: needs packages")
    assert f"{sys.executable} -m pip install 'submitit>=1.5'\n" in err
    assert not (tmp_path / "outputs").exists()


def test_missing_slurm_is_a_user_error(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin, "which", lambda name: None)
    code, _, err = cli("train", LAUNCHER, "seed.all=0,1", "-m")
    assert code == 2
    assert re.fullmatch(rf"error: {LAUNCHER}: .*sbatch.*hydra/launcher=joblib .*\n", err)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.launcher.timeout_min=null", r"hydra\.launcher\.timeout_min: got None"),
        ("trainer.devices=auto", r"hydra\.launcher\.gpus_per_node: got auto, .*trainer\.devices=1"),
        ("+hydra.launcher.partitoin=gpu", r"hydra\.launcher: .*'partitoin'.* partition"),
    ],
)
def test_user_errors(cli: Cli, monkeypatch: pytest.MonkeyPatch, override: str, message: str) -> None:
    monkeypatch.setattr(plugin, "which", lambda name: name)
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", classmethod(lambda cls: 1))
    code, _, err = cli("train", LAUNCHER, override, "-m")
    check_line(code, err, message)


@pytest.mark.parametrize(
    ("trainer", "gpus"),
    [
        ({"accelerator": "auto", "devices": 1}, 1),
        ({"accelerator": "gpu", "devices": 4}, 4),
        ({"accelerator": "cpu", "devices": 4}, None),
    ],
)
def test_submit_options_of_the_default_launcher(trainer: dict[str, Any], gpus: int | None) -> None:
    from attnmosaic.sweeps.slurm import submit_options

    defaults = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / "submitit_slurm.yaml")
    assert isinstance(defaults, DictConfig)
    options = submit_options(
        {key: defaults[key] for key in defaults if key != "_target_"}, OmegaConf.create({"trainer": trainer})
    )
    assert options.get("gpus_per_node") == gpus
    assert options["srun_args"] == ["--cpus-per-task=4"]
    assert options["additional_parameters"] == {"requeue": True}
    assert "partition" not in options


def job(tmp_path: Path, name: str, result: object = None) -> Any:
    """Returns a stand-in for submitit's job, with a result file if a result is given."""
    file = tmp_path / f"{name}_result.pkl"
    if result is not None:
        file.write_bytes(cloudpickle.dumps(result))
    return SimpleNamespace(job_id=name, paths=SimpleNamespace(result_pickle=file, stderr=tmp_path / f"{name}.err"))


def test_waiting_ends_with_a_result_or_several_polls_without_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnmosaic.sweeps import slurm

    monkeypatch.setattr(slurm, "POLL_SECONDS", 0)
    completed = JobReturn(status=JobStatus.COMPLETED)
    jobs = {
        0: job(tmp_path, "7_0"),
        1: job(tmp_path, "7_1", ("success", completed)),
        2: job(tmp_path, "7_2", ("error", "Traceback\nModuleNotFoundError: no torch\n  its notes")),
        3: job(tmp_path, "7_3"),
        4: job(tmp_path, "7_4"),
    }
    running = {"7_0": "RUNNING", "7_3": "PENDING", "7_4": "RUNNING"}
    one_ended = {**running, "7_0": "OUT_OF_MEMORY"}
    two_ended = {**one_ended, "7_3": "COMPLETED"}
    answers = iter(
        [running, one_ended, None, one_ended, running, *[one_ended] * 3, two_ended, two_ended, "result", {}, {}, {}, {}]
    )
    polled: list[int] = []

    def queue_states(ids: Any) -> dict[str, str] | None:
        states = next(answers)
        polled.append(len([*ids]))
        if states == "result":
            job(tmp_path, "7_3", ("success", completed))
            return two_ended
        return states  # type: ignore[return-value]

    monkeypatch.setattr(slurm, "queue_states", queue_states)
    without_result: list[tuple[int, str, int]] = []

    def record(number: int, reason: str) -> JobReturn:
        without_result.append((number, reason, len(polled)))
        return completed

    results = slurm.wait_for(jobs, record)
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert without_result == [(2, "ModuleNotFoundError: no torch", 1), (0, "OUT_OF_MEMORY", 9), (4, "ended", 15)]
    assert polled[:2] == [5, 3]


@pytest.mark.parametrize(
    ("script", "states"),
    [
        ("echo '7_0|RUNNING'; echo ' 7_1|PENDING'", {"7_0": "RUNNING", "7_1": "PENDING"}),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", {}),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_queue_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, states: dict[str, str] | None
) -> None:
    from attnmosaic.sweeps.slurm import queue_states

    (tmp_path / "squeue").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n{script}\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert queue_states(["7_0", "7_1", "9"]) == states
    assert "--jobs=7,9 " in (tmp_path / "arguments").read_text()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert queue_states(["7_0"]) is None


class Executor:
    """Stand-in for submitit's executor that only keeps the submitted jobs."""

    submitted: ClassVar[list[Any]] = []

    def __init__(self, folder: Path, **_: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.submitted.clear()

    def update_parameters(self, **_: Any) -> None:
        pass

    def batch(self) -> Any:
        return contextlib.nullcontext()

    def submit(self, job: Any) -> Any:
        self.submitted.append(job)
        return SimpleNamespace(job_id=f"9_{job.number}")


@pytest.mark.runs
def test_only_jobs_without_a_result_are_submitted(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs that Slurm still has are not submitted again; a job whose run is finished or locked trains nothing."""
    import submitit

    from attnmosaic.sweeps import slurm

    few = (*SMALL, "schedule.k=1", "schedule.epochs=1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${seed.all}")
    code, _, err = cli("train", *few, "seed.all=0", "-m")
    assert code == 0, err
    waited_for: list[int] = []

    def wait_for(jobs: Mapping[int, Any], without_result: object) -> dict[int, JobReturn]:
        waited_for.extend(jobs)
        completed = JobReturn(status=JobStatus.COMPLETED)
        completed.return_value = 0.5
        return dict.fromkeys(jobs, completed)

    monkeypatch.setattr(plugin, "which", lambda name: name)
    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(slurm, "wait_for", wait_for)
    (tmp_path / "sweep" / "slurm").mkdir()
    (tmp_path / "sweep" / "slurm" / "submitted.json").write_text('{"1": "8_1", "2": "8_2"}')
    monkeypatch.setattr(slurm, "queue_states", lambda jobs: {"8_1": "PENDING", "8_2": "FAILED"})
    code, _, err = cli("train", *few, "seed.all=0,1,2,3", LAUNCHER, "-m")
    assert code == 0, err
    assert [job.number for job in Executor.submitted] == [2, 3]
    assert waited_for == [1, 2, 3]
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
    """Restores Hydra's singletons, which a job replaces in its process."""
    state = Singleton.get_state()
    try:
        yield
    finally:
        Singleton.set_state(state)


SLURM_VARIABLES = {
    "SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip


class Signals(pl.Callback):
    """Sends a signal to this process in the second epoch, and checks that Lightning has not detected Slurm."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        kind = type(trainer._accelerator_connector.cluster_environment).__name__  # type: ignore[attr-defined]
        assert (kind, trainer.world_size) == ("LightningEnvironment", 1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL  # Lightning's handler would requeue the job
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.runs
def test_run_in_a_slurm_job_ignores_sigterm(
    train: Callable[..., dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single run in a job of four tasks: it has no warning, no requeueing, and the results of a run without Slurm."""
    few = ("schedule.k=1", "schedule.epochs=3", "logger=none")
    alone = train(*few, run_dir="alone")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert train(*few, run_dir="beside") == alone  # on a machine with srun, but not started by it
    assert not [str(warning.message) for warning in warned if "srun" in str(warning.message)]
    for name, value in {**SLURM_VARIABLES, "SUBMITIT_EXECUTOR": "slurm"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    signals = (
        "+callbacks.signals._target_=test_slurm.Signals",
        f"+callbacks.signals.number={int(signal.SIGTERM)}",
    )
    assert train(*few, *signals, run_dir="under") == alone
    assert signal.getsignal(signal.SIGTERM) is before


def test_users_slurm_plugin_is_kept(config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM_VARIABLES.items():
        monkeypatch.setenv(name, value)
    plugins = "+trainer.plugins=[{_target_: lightning_fabric.plugins.environments.slurm.SLURMEnvironment}]"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    trainer = build_trainer(config(plugins), "32-true")
    assert type(trainer._accelerator_connector.cluster_environment).__name__ == "SLURMEnvironment"  # type: ignore[attr-defined]
