"""Sweeps with ``hydra/launcher=joblib``: each job has its own process. The jobs here import no heavy packages."""

import re
import sys
from pathlib import Path
from typing import Any

import joblib
import pytest
from helpers.commands import Cli, check_line
from helpers.settings import SMALL
from helpers.terminal import Screen
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn

from attnmosaic.sweeps import fork_server

Plugins.instance()  # before the import below, because Hydra executes the modules of plugins a second time here
from hydra_plugins import attnmosaic_launcher  # noqa: E402

pytestmark = pytest.mark.runs
JOBLIB = "hydra/launcher=joblib"


def launcher() -> Any:
    """Returns the launcher class that Hydra has registered; it changes when Hydra executes the module again."""
    return Plugins.instance().class_name_to_class["hydra_plugins.attnmosaic_launcher.AttnmosaicLauncher"]


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[JobReturn]:
    """Returns a list of the results that the last launch returned."""
    results: list[JobReturn] = []
    launch = launcher().launch

    def keep(*args: Any, **kwargs: Any) -> list[JobReturn]:
        results[:] = launch(*args, **kwargs)
        return results

    monkeypatch.setattr(launcher(), "launch", keep)
    monkeypatch.setattr(fork_server, "PRELOAD", ())
    return results


def test_missing_package_is_a_user_error(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attnmosaic_launcher, "find_spec", lambda name: None)
    code, _, err = cli("train", JOBLIB, "seed.all=0,1", "-m")
    check_line(code, err, rf"{JOBLIB}: .* {re.escape(sys.executable)} -m pip install 'cloudpickle>=3'")
    assert not (tmp_path / "outputs").exists()


def test_user_error_in_a_job_is_one_line(cli: Cli, returned: list[JobReturn], tmp_path: Path) -> None:
    """The line is also in the job's log. A user error in the launcher's options ends the sweep."""
    code, _, err = cli("train", *SMALL, "data.patches=1", JOBLIB, "-m")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: data.patches: got 1, needs")
    assert "Traceback" not in err
    (log,) = tmp_path.glob("outputs/sweeps/gaussian/*/0/train.log")
    assert "data.patches: got 1, needs" in log.read_text()
    code, _, err = cli("train", *SMALL, JOBLIB, "hydra.launcher.n_jobs=0", "-m")
    check_line(code, err, r"hydra\.launcher\.n_jobs: got 0")


def test_jobs_on_several_gpus(cli: Cli, monkeypatch: pytest.MonkeyPatch, returned: list[JobReturn]) -> None:
    """Each job gets ``trainer.devices`` GPUs, and at most as many jobs run in parallel as there are groups of GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,5,6")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launcher(), "_task", lambda self: ("helpers.light_jobs", "gpus"))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 16)
    monkeypatch.setattr("attnmosaic.sweeps.local.free_gb", lambda: None)
    code, _, err = cli("train", "seed.all=0,1,2", JOBLIB, "hydra.launcher.jobs_per_gpu=1", "trainer.devices=2", "-m")
    assert code == 0, err
    assert err.startswith("3 jobs, 2 at once, threads per process: 5\n")
    assert [job.return_value for job in returned] == ["3,4", "5,6", "3,4"]
    code, _, err = cli("train", "trainer.devices=1,4", JOBLIB, "-m")
    assert code == 0, err
    assert [job.return_value for job in returned] == ["3", "3,4,5,6"]


@pytest.mark.parametrize("mode", ["lines", "live"])
def test_results_and_output_of_jobs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, returned: list[JobReturn], mode: str
) -> None:
    """Results are in the order of the jobs, an ended process is reported, and each line of output appears once."""
    monkeypatch.setattr(launcher(), "_task", lambda self: ("helpers.light_jobs", "speak"))
    code, out, err = cli("train", "seed.all=5,2,4", JOBLIB, "hydra.launcher.n_jobs=2", f"progress={mode}", "-m")
    assert code == 1
    assert [job.overrides[0] for job in returned] == [f"seed.all={seed}" for seed in (5, 2, 4)]
    assert [job.status.name for job in returned] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [job.return_value for job in returned[::2]] == [50, 40]
    screen = Screen()
    screen.write(err if mode == "live" else err + out)
    lines = screen.lines()
    for number, seed in enumerate((5, 2, 4)):
        assert lines.count(f"100% of {seed}") == 1
        prefix = f"gaussian seed {seed}" if mode == "live" else number
        assert lines[lines.index(f"{prefix} | warned by {seed},") + 1] == f"{prefix} | in two lines"
    for seed in (5, 4):  # not seed 2: its process ends itself, which can lose its last output
        assert lines.count(f"printed by {seed}") == 1
    ends = [line for line in lines if line.startswith(("done  ", "failed  ", "stopped  "))]
    assert sorted(line[:40].split(":")[0] for line in ends) == [
        "done  gaussian seed 4", "done  gaussian seed 5", "failed  gaussian seed 2",
    ]  # fmt: skip
    assert "exit code 3" in "".join(ends)
    assert ("printed" in out) == (mode == "lines")
    if mode == "live":
        assert any(re.fullmatch(r"2/3 done, 1 failed in \d+ s", line) for line in lines)
        assert out.startswith("\nRuns of gaussian")
