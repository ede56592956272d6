"""The logic of searches with a launcher that trains nothing: rounds, outcomes, kills, and user errors."""

import errno
import re
import shlex
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from filelock import FileLock
from helpers.instant_searches import (
    SPACE,
    Runs,
    Searches,
    instantiate_callback,
    outcomes,
    recorded,
    states_of,
    study_of,
)
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from optuna.storages.journal import JournalFileBackend

from attnmosaic.config.resolution import resolve
from attnmosaic.core.errors import BusyError, RunError, UserError
from attnmosaic.runs.run import CONFIG, PRUNED
from attnmosaic.search import search
from attnmosaic.search.space import parse_space
from attnmosaic.search.study import open_storage
from attnmosaic.sweeps.job_configs import JobConfigs
from attnmosaic.sweeps.plan import job_config

ONE_K = (*SPACE[:2], "schedule.k=2")
TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3}


def runs(before: Any = lambda number, folder: None) -> Runs:
    return Runs(Path("search"), before)


# ---- sampling and rounds


def test_same_seed_samples_the_same_trials(searches: Searches) -> None:
    """A search that was stopped and resumed samples the same trials, also those that TPE samples by earlier results."""
    first_search = searches.run(*SPACE, folder="a", n_trials=8, launcher=Runs(Path("a")), sampler=TPE)
    for n in (3, 5, 8):
        searches.again(first_search, "b", Runs(Path("b")), n_trials=n)
    assert outcomes("a") == outcomes("b")
    assert len({tuple(params.items()) for _, params, *_ in outcomes("a")}) == 8
    searches.again(first_search, "c", Runs(Path("c")), seed=1)
    assert not [params for _, params, *_ in outcomes("c") if params in [params for _, params, *_ in outcomes("a")]]
    later, first = (max(value for *_, value in part) for part in (outcomes("a")[3:], outcomes("a")[:3]))
    assert later > first


def test_round_is_sampled_before_its_trials_run(searches: Searches) -> None:
    """The next round is sampled after the last trial of a round has ended."""

    def check(number: int, folder: Path) -> None:
        running = [trial.number for trial in study_of("search").trials if trial.state.name == "RUNNING"]
        assert running == launcher.batches[-1]

    launcher = runs(check)
    searches.run(*SPACE, launcher=launcher, n_jobs=3, n_trials=7)
    assert launcher.batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert recorded("search") == [*range(7)]


def test_remaining_trials_of_a_round_are_launched_in_consecutive_groups(searches: Searches) -> None:
    """A launcher numbers its jobs consecutively, so trials 0, 1 and 3 need two launches."""

    def stopped(number: int, folder: Path) -> None:
        (folder / CONFIG).touch()
        if number != 2:
            raise RuntimeError("stopped by SIGTERM")

    with pytest.raises(RunError, match="trial 0"):
        searches.run(*SPACE, launcher=runs(stopped), n_jobs=4, n_trials=5)
    launcher = runs()
    searches.run(*SPACE, launcher=launcher, n_jobs=4, n_trials=5)
    assert launcher.batches == [[0, 1], [3], [4]]


@pytest.mark.parametrize("metric", ["test/loss", "test/accuracy"])
def test_summary_of_a_search(searches: Searches, capfd: pytest.CaptureFixture[str], metric: str) -> None:
    """The best trial and the order of the table follow from the metric's direction."""
    searches.run(*ONE_K, f"optimized_metric={metric}", n_trials=4)
    out, less = capfd.readouterr().out, metric == "test/loss"
    trials = sorted(study_of("search").trials, key=lambda trial: trial.value, reverse=not less)
    assert study_of("search").best_trial.number == trials[0].number
    assert out.startswith(f"\n{metric}, {'minimized' if less else 'maximized'}; 4 of 4 trials, 4 finished")
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ +\d\.\d{4} ", line)]
    assert [(int(row[0]), row[1]) for row in rows] == [(trial.number, f"{trial.value:.4f}") for trial in trials]
    assert f"best: trial {trials[0].number}, " in out
    (again,) = (line.partition("again: ")[2] for line in out.splitlines() if "again: " in line)
    assert {f"{key}={value}" for key, value in trials[0].params.items()} < {*shlex.split(again)}


def test_study_in_a_database(searches: Searches) -> None:
    for n in (1, 3):
        searches.run(*SPACE, n_trials=n, storage="sqlite:///study.db")
    study = optuna.load_study(study_name="search", storage=open_storage("sqlite:///study.db"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert not Path("search/study.journal").exists()


# ---- outcomes


def test_search_continues_after_a_failed_trial(searches: Searches) -> None:
    """The trial is recorded as failed; only a search without any result is an error."""

    def fail(number: int, folder: Path) -> None:
        if number != 1:
            raise RunError("the loss became infinite")

    searches.run(*SPACE, n_trials=3, launcher=runs(fail))
    assert states_of("search") == ["FAIL", "COMPLETE", "FAIL"]
    with pytest.raises(RunError, match="none of 1 trials"):
        searches.run(*SPACE, n_trials=1, folder="worse", launcher=Runs(Path("worse"), fail))


@pytest.mark.parametrize(
    ("error", "raised"),
    [(UserError("objective: got foo"), UserError), (OSError(errno.ENOSPC, "No space left", "last.ckpt"), RunError)],
)
def test_user_error_and_full_disk_end_the_search(searches: Searches, error: Exception, raised: type[Exception]) -> None:
    """They are not failures of the trial: the search resumes with the same trial."""

    def fail(number: int, folder: Path) -> None:
        if number == 0:
            raise error

    with pytest.raises(raised):
        searches.run(*SPACE, n_trials=2, n_jobs=2, launcher=runs(fail))
    assert states_of("search") == ["RUNNING", "COMPLETE"]
    params = study_of("search").trials[0].params
    searches.run(*SPACE, n_trials=2, n_jobs=2)
    assert states_of("search") == ["COMPLETE", "COMPLETE"]
    assert study_of("search").trials[0].params == params


def prune(number: int, folder: Path) -> bool:
    (folder / CONFIG).touch()
    if number == 1:
        (folder / PRUNED).touch()
    return number == 1


def test_pruned_trial_that_was_not_recorded_does_not_run_again(
    searches: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command finds its state in its run's folder."""
    searches.run(*SPACE, n_trials=3, folder="uninterrupted", launcher=Runs(Path("uninterrupted"), prune))
    record = search.Search._record

    def killed(self: search.Search, number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt
        record(self, number)

    monkeypatch.setattr(search.Search, "_record", killed)
    with pytest.raises(KeyboardInterrupt):
        searches.run(*SPACE, n_trials=3, launcher=runs(prune))
    monkeypatch.setattr(search.Search, "_record", record)
    launcher = runs(prune)
    searches.run(*SPACE, n_trials=3, launcher=launcher)
    assert launcher.ran == [2]
    assert outcomes("search") == outcomes("uninterrupted")
    assert states_of("search") == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_search_waits_for_a_job_that_an_earlier_command_left_running(
    searches: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster a job continues after its search ended, so no second job must start in the same folder."""

    def kill(number: int, folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searches.run(*SPACE, n_trials=1, launcher=runs(kill))
    Path("search/0", CONFIG).touch()
    lock = FileLock("search/0/.lock")
    lock.acquire()
    waited: list[float] = []

    def release(seconds: float) -> None:
        waited.append(seconds)
        lock.release()

    monkeypatch.setattr(search, "time", type("Time", (), {"sleep": staticmethod(release)}))
    searches.run(*SPACE, n_trials=1, launcher=runs(lambda number, folder: None if waited else pytest.fail("too early")))
    assert waited == [search.POLL_SECONDS]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["before", "within", "run"])
def test_search_killed_at_any_point_resumes(searches: Searches, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """It is killed before or within any write of the journal, or in any run: no trial is lost or run twice."""
    n, written, kill_at = 4, 0, -1
    append = JournalFileBackend.append_logs

    def killing(self: Any, logs: list[Any]) -> None:
        nonlocal written
        written += 1
        if at != "run" and written == kill_at:
            if at == "within":
                append(self, logs)
                journal = Path(folder, search.JOURNAL)
                journal.write_bytes(journal.read_bytes()[:-7])
            raise Killed
        append(self, logs)

    def before(number: int, folder: Path) -> None:
        if at == "run" and number == kill_at - 1:
            raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", killing)
    folder, launcher = "uninterrupted", Runs(Path("uninterrupted"), before)
    first_search = searches.run(
        *SPACE, folder=folder, launcher=launcher, n_jobs=2, n_trials=n, sampler=TPE | {"n_startup_trials": 2}
    )
    assert launcher.ran == [*range(n)]
    uninterrupted, points = outcomes("uninterrupted"), n if at == "run" else written
    assert points >= n
    for point in range(1, points + 1):
        folder, kill_at, written = f"killed{point}", point, 0
        with pytest.raises(Killed):
            searches.again(first_search, folder, Runs(Path(folder), before))
        kill_at = -1
        searches.again(first_search, folder, Runs(Path(folder)))
        assert outcomes(folder) == uninterrupted, point
        assert sorted(recorded(folder)) == [*range(n)], point


# ---- pruning


def test_hyperband_compares_trials_where_all_cycles_end(searches: Searches) -> None:
    """Cycles of 4, 8 and 12 epochs, for all k in the range, end together every 24 epochs."""
    overrides = (*SPACE[:2], "schedule.k=range(2,7,2)")
    pruner = {"_target_": "optuna.pruners.HyperbandPruner"}
    launcher = runs()
    searches.run(*overrides, "schedule.epochs=96", n_trials=1, launcher=launcher, pruner=pruner)
    callback = instantiate_callback(launcher.jobs[0][-1])
    assert (callback.every, callback.trial, callback.metric) == (24, 0, "test/accuracy")
    assert (callback.pruner["min_resource"], callback.pruner["max_resource"]) == (24, 96)


# ---- the default space, and user errors


@pytest.mark.parametrize(
    ("experiment", "searched"),
    [
        ("gaussian", {"lr.what", "lr.where", "schedule.k"}),
        ("gaussian_type1", {"lr.what", "lr.where"}),
        ("weighted_average", {"lr.what"}),
        ("mnist_sum", {"lr.network"}),
    ],
)
def test_default_space_of_an_experiment(searches: Searches, experiment: str, searched: set[str]) -> None:
    config = compose("train", ["hydra/sweeper=optuna"], return_hydra_config=True)
    configs = JobConfigs(GlobalHydra.instance().config_loader(), config)
    unused = partial(search.Search._unused, SimpleNamespace(configs=configs))
    typed = [f"experiment={experiment}"]
    assert parse_space(config.hydra.sweeper.params, typed, None, unused).searched.keys() == searched


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ("lr.what=interval(0.001,2)", "lr.what"),
        ("lr.what=0.1", "lr.what"),
        ("optimized_metric=test/loss", "optimized_metric"),
    ],
)
def test_folder_with_another_search_is_refused(searches: Searches, changed: str, key: str) -> None:
    searches.run(*ONE_K, n_trials=1)
    before = Path("search/study.journal").read_bytes()
    others = [override for override in ONE_K if override.partition("=")[0] != key]
    with pytest.raises(UserError, match=rf"^hydra\.sweep\.dir: 'search' .*\({key} was"):
        searches.run(*others, changed, n_trials=2)
    assert len(study_of("search").trials) == 1
    assert len(Path("search/study.journal").read_bytes().splitlines()) <= len(before.splitlines()) + 1


def test_folder_with_a_search_in_the_other_direction_is_refused(searches: Searches) -> None:
    overrides = (*ONE_K, "optimized_metric=test/entropy")
    searches.run(*overrides, n_trials=1, direction="minimize")
    assert study_of("search").direction.name == "MINIMIZE"
    with pytest.raises(UserError, match=r"hydra\.sweeper\.direction was minimize"):
        searches.run(*overrides, n_trials=2, direction="maximize")


def test_folder_with_trials_with_other_settings_is_refused(searches: Searches) -> None:
    """Metrics of trials with other settings are not comparable."""
    first_search = searches.run(*ONE_K, n_trials=1)
    folder = Path("search/0").absolute()
    config = resolve(job_config(first_search._planned(0, study_of("search").trials[0].params).config, str(folder)))
    (folder / CONFIG).write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    searches.again(first_search, "search", runs(), n_trials=2)
    with pytest.raises(UserError, match=r"schedule\.epochs"):
        searches.run(*ONE_K, "schedule.epochs=6", n_trials=3)
    assert len(study_of("search").trials) == 2


def test_second_search_in_a_folder_is_refused(searches: Searches) -> None:
    Path("search").mkdir()
    launcher = runs()
    with FileLock("search/.search.lock"), pytest.raises(BusyError, match=r"hydra\.sweep\.dir"):
        searches.run(*SPACE, launcher=launcher)
    assert launcher.ran == []


@pytest.mark.parametrize(
    ("overrides", "key", "word"),
    [
        (("schedule.k=choice(1,0)",), "schedule.k", "got 0"),
        (("schedule=joint", "schedule.k=1,2"), "schedule.k", "single stage"),
        (("optimized_metric=test/loss,test/accuracy",), "optimized_metric", "differs"),
        (("optimized_metric=held_out/accuracy",), "optimized_metric", "test/accuracy"),
    ],
    ids=["value", "unused", "differs", "held_out"],
)
def test_user_errors(searches: Searches, overrides: tuple[str, ...], key: str, word: str) -> None:
    """Errors are raised before anything is written to the study."""
    with pytest.raises(UserError) as caught:
        searches.new(*overrides)
    assert str(caught.value).startswith(f"{key}: ")
    assert word in str(caught.value)
    assert not Path("search").exists()


def test_sweeper_needs_optuna_and_the_command_train(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeper = Plugins.instance().class_name_to_class["hydra_plugins.attnmosaic_sweeper.AttnmosaicSweeper"]
    config = OmegaConf.create({"hydra": {"job": {"config_name": "evaluate"}}})
    arguments: Any = {"hydra_context": None, "task_function": None, "config": config}
    with pytest.raises(UserError, match=r"attnmosaic\.train"):
        sweeper().setup(**arguments)
    monkeypatch.setitem(sweeper.setup.__globals__, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hydra/sweeper=optuna: .*pip install 'optuna"):
        sweeper().setup(**arguments)
