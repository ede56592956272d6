"""The study on disk: trials sampled in one write, several writers, and a journal after a kill."""

import importlib
import multiprocessing
import pkgutil
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from test_options import options

import attnmosaic.search
from attnmosaic.core.errors import UserError
from attnmosaic.search.study import open_storage, open_study, open_trial, sample_trial

WRITERS, REPORTS = 4, 25
FORK = multiprocessing.get_context("fork")


def study_at(path: Path) -> optuna.Study:
    return open_study(str(path), "search", "maximize", None)


def test_journal_of_a_killed_writer_is_repaired(tmp_path: Path) -> None:
    """The incomplete line is removed, and the next writer does not wait for the lock of a killed process."""
    path = tmp_path / "study.journal"
    study_at(path).add_trial(optuna.create_trial(value=1.0))
    with path.open("ab") as journal:
        journal.write(b'{"op_code":4,"study')
    (tmp_path / "study.journal.lock").touch()  # the lock file of Optuna's own lock
    study_at(path).add_trial(optuna.create_trial(value=2.0))
    assert [trial.value for trial in study_at(path).trials] == [1.0, 2.0]


def test_trial_is_sampled_in_one_write(tmp_path: Path) -> None:
    """Its parameters follow from the search's seed, the trial's number and the earlier trials."""
    space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    params = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        study = study_at(tmp_path / name)
        for number in range(2):
            lines = (tmp_path / name).read_text().count("\n")
            sample_trial(study, options(seed=seed).sampler_for(number), space)
            assert (tmp_path / name).read_text().count("\n") == lines + 1
        params.append([trial.params for trial in study.trials])
        assert {trial.state.name for trial in study.trials} == {"RUNNING"}
    assert params[0] == params[1] != params[2]
    assert params[0][0].keys() == space.keys()
    assert params[0][0] != params[0][1]


def report(path: Path, number: int) -> None:
    """Reports values of a trial to a study, as the trial's run does."""
    for step in range(REPORTS):
        open_trial(str(path), "search", number, None).report(number + step / 100, step)


def test_no_report_of_several_processes_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    for _ in range(WRITERS):
        study_at(path).add_trial(optuna.create_trial(state=optuna.trial.TrialState.RUNNING))
    processes = [FORK.Process(target=report, args=(path, number)) for number in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WRITERS
    for trial in study_at(path).trials:
        assert trial.intermediate_values == {step: trial.number + step / 100 for step in range(REPORTS)}


def test_storage_that_cannot_be_opened_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"hydra\.sweeper\.storage: .*'nosuch://x'"):
        open_storage("nosuch://x")


def import_without_optuna() -> None:
    sys.modules["optuna"] = None  # type: ignore[assignment]
    for name in [name for name in sys.modules if name.startswith("attnmosaic.search.")]:
        del sys.modules[name]
    for module in pkgutil.iter_modules(attnmosaic.search.__path__, "attnmosaic.search."):
        importlib.import_module(module.name)


def test_modules_import_without_optuna() -> None:
    process = FORK.Process(target=import_without_optuna)
    process.start()
    process.join()
    assert process.exitcode == 0
