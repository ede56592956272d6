"""Searches for settings: what is drawn, told, kept, pruned, refused; and what a kill costs."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock
from helpers.commands import Cli
from helpers.fresh_process import answers
from helpers.instant_searches import SEARCH, SPACE, Runs, facts, plugin, stand_in, study_of, told
from helpers.settings import SMALL
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend

from attnmosaic.collect import collect
from attnmosaic.config.operations import OPERATIONS
from attnmosaic.config.schema import METRICS, two_output_metrics
from attnmosaic.core.errors import UserError
from attnmosaic.runs.run import RESULT, Run
from attnmosaic.search.options import _BETTER, Options
from attnmosaic.search.space import parse_space
from attnmosaic.search.study import draw, open_storage, open_study

pytestmark = pytest.mark.runs

PLAIN = (
    *SMALL, "callbacks.record=null", "callbacks.dashboards=null", "callbacks.gradients=null", "logger=none",
    "schedule.epochs=4", "schedule.k=1", "hydra.sweep.dir=search",
)  # fmt: skip
NO_PRUNING = "hydra/sweeper/pruner=none"
Sets = Callable[..., Any]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs that take no time."""
    return stand_in(monkeypatch)


# ---- a search from end to end


def test_a_search(cli: Cli, tmp_path: Path) -> None:
    """Its trials, its table, the best one's command; quiet but for a line as each ends."""
    space = ("lr.what=tag(log,interval(0.01,0.3))", "lr.where=0.02")
    code, out, err = cli("train", *PLAIN, *space, "hydra.sweeper.n_trials=3", *SEARCH)
    assert code == 0, err
    study = study_of("search")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert all(set(trial.params) == {"lr.what"} for trial in study.trials)
    results = [json.loads((Path("search") / str(n) / RESULT).read_text())["metrics"] for n in range(3)]
    assert [trial.value for trial in study.trials] == [result["test/accuracy"] for result in results]
    configs = [Run(Path("search") / str(n)).config or {} for n in range(3)]
    assert [config["lr"]["what"] for config in configs] == [trial.params["lr.what"] for trial in study.trials]
    assert {config["lr"]["where"] for config in configs} == {0.02}
    assert not [n for n in range(3) if "Launching" in (Path("search") / str(n) / "train.log").read_text()]

    ended = [line for line in err.splitlines() if not line.startswith(("/", "  "))]
    assert [re.sub(r": accuracy train .*", "", line) for line in ended] == [
        f"done  trial {n} lr.what={trial.params['lr.what']:.4g}" for n, trial in enumerate(study.trials)
    ]
    best = study.best_trial
    assert out.startswith("\ntest/accuracy, maximized; 3 of 3 trials, 3 finished")
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ +0?\.\d+|  +\d+ +1\.0", line)]
    order = sorted(study.trials, key=lambda trial: (-trial.value, trial.number))
    assert [int(row[0]) for row in rows] == [trial.number for trial in order]
    assert f"best: trial {best.number}, accuracy train " in out
    assert f"held_out {results[best.number]['held_out/accuracy']:.4f}; selected on test" in out

    plan = json.loads(Path("search/sweep.json").read_text(encoding="utf-8"))
    assert list(plan["jobs"]) == ["0", "1", "2"]
    assert "hydra/sweeper=optuna" in plan["commands"][0]
    (table,) = collect(Path("search"))
    assert sum(len(row.runs) for row in table.rows) == 3

    (again,) = (line.removeprefix("again: ") for line in out.splitlines() if line.startswith("again: "))
    _, _, module, *overrides = shlex.split(again)
    assert module == "attnmosaic.train"
    code, _, err = cli("train", *overrides, "hydra.run.dir=again")
    assert code == 0, err
    assert json.loads(Path("again/result.json").read_text(encoding="utf-8"))["metrics"] == results[best.number]


def test_a_trial_that_fails(cli: Cli) -> None:
    """It is told as failed, and ends nothing; none but such is an error."""
    space = ("lr.what=choice(0.01,1e30)", "hydra/sweeper/sampler=random")
    code, out, err = cli("train", *PLAIN, *space, "lr.where=0.01", "hydra.sweeper.n_trials=4", *SEARCH)
    assert code == 0, err
    states = {trial.params["lr.what"]: trial.state.name for trial in study_of("search").trials}
    assert states == {"0.01": "COMPLETE", "1e+30": "FAIL"}
    assert len(study_of("search").trials) == 4
    assert re.search(r"^failed  trial \d lr\.what=1e\+30: the loss became", err, flags=re.M)
    assert err.count("failed  ") == sum(trial.state.name == "FAIL" for trial in study_of("search").trials)
    assert re.search(r"1e\+30 +failed$", out, flags=re.M)
    space = ("lr.what=choice(1e29,1e30)", "hydra.sweep.dir=worse")
    code, _, err = cli("train", *PLAIN, *space, "lr.where=0.01", "hydra.sweeper.n_trials=2", *SEARCH)
    assert (code, err.splitlines()[-1]) == (1, "error: none of 2 trials was finished: see above for what each said")


def test_a_slip_ends_a_search(cli: Cli) -> None:
    """It is every trial's; once it is put right, the trial it was found in is run."""
    space = ("lr.what=interval(0.01,0.02)", "lr.where=0.01", "hydra.sweeper.n_trials=2")
    code, _, err = cli("train", *PLAIN, *space, "+objective.foo=1", *SEARCH)
    assert code == 2
    assert re.match(r"error: objective: .*foo", err.splitlines()[-1])
    assert [trial.state.name for trial in study_of("search").trials] == ["RUNNING"]
    drawn = study_of("search").trials[0].params
    assert cli("train", *PLAIN, *space, *SEARCH)[0] == 0
    assert [trial.state.name for trial in study_of("search").trials] == ["COMPLETE"] * 2
    assert study_of("search").trials[0].params == drawn


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.faults)])
def test_a_search_over_experiments(cli: Cli, launcher: str) -> None:
    """The folder has no experiment's name, and all trials are in it, each with its result."""
    space = ("experiment=choice(gaussian,gaussian_type1)", "lr.what=0.01", "lr.where=0.01", "hydra.sweeper.n_trials=3")
    given = [override for override in PLAIN if override not in ("hydra.sweep.dir=search", "schedule.k=1")]
    random = ("hydra/sweeper/sampler=random", f"hydra/launcher={launcher}", "hydra.sweeper.params={}")
    code, out, err = cli("train", *given, *space, *random, *SEARCH)
    assert code == 0, err
    (folder,) = Path("outputs/sweeps").iterdir()
    assert sorted(path.parent.name for path in folder.glob("*/result.json")) == ["0", "1", "2"]
    trials = study_of(folder).trials
    assert {(trial.state.name, trial.params["experiment"]) for trial in trials} == {
        ("COMPLETE", "gaussian"), ("COMPLETE", "gaussian_type1"),
    }  # fmt: skip
    assert out.count(" finished\n") == 4  # in the heading, too


# ---- the direction


@pytest.mark.parametrize("metric", ["test/loss", "test/ffpf", "test/accuracy"])
def test_the_metric_has_the_direction(cli: Cli, runs: Runs, metric: str) -> None:
    """The best trial, the table's order and what is drawn next follow from it."""
    given = (f"optimized_metric={metric}", "hydra.sweeper.n_trials=6", "hydra.sweep.dir=search")
    code, out, err = cli("train", *SPACE, *given, *SEARCH)
    assert code == 0, err
    trials, less = study_of("search").trials, metric != "test/accuracy"
    best = (min if less else max)(trials, key=lambda trial: trial.value)
    assert study_of("search").best_trial.number == best.number
    assert out.startswith(f"\n{metric}, {'minimized' if less else 'maximized'}; 6 of 6 trials, 6 finished")
    assert f"best: trial {best.number}, " in out
    rows = [float(line.split()[1]) for line in out.splitlines() if re.match(r" +\d+ +\d\.\d{4} ", line)]
    assert rows == sorted(rows, reverse=not less)
    assert len(rows) == 6


def test_a_metric_without_a_direction(cli: Cli, runs: Runs) -> None:
    given = ("optimized_metric=test/entropy", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=search")
    assert cli("train", *SPACE, *given, *SEARCH)[0] == 2
    assert not Path("search/study.journal").exists()
    assert cli("train", *SPACE, *given, "hydra.sweeper.direction=minimize", *SEARCH)[0] == 0
    assert study_of("search").direction.name == "MINIMIZE"


def test_each_metric_was_thought_of() -> None:
    """Those of a run of either kind: a new one has a direction, or is one of these."""
    every = {*METRICS, *(name for operation in OPERATIONS for name in two_output_metrics(operation))}
    assert every - _BETTER.keys() == {"ffpt", "ftpf", "confident", "entropy"}
    assert _BETTER.keys() <= every


# ---- pruning

PRUNED = (
    "lr.what=choice(0.1,1e-9)", "lr.where=0.01", "trainer.check_val_every_n_epoch=1", "hydra/sweeper/pruner=median",
    "+hydra.sweeper.pruner.n_startup_trials=1", "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=5",
    "optimized_metric=test/loss", "schedule.k=2", "schedule.epochs=12",
)  # fmt: skip


def check_pruned(out: str, err: str) -> None:
    """Some trials were pruned, and every trace of them says so."""
    trials = study_of("search").trials
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned
    assert {trial.state.name for trial in trials} == {"PRUNED", "COMPLETE"}
    for trial in trials:
        run = Run(Path("search") / str(trial.number))
        # Cycles take four epochs; the last epoch is for the result.
        assert set(trial.intermediate_values) <= {4, 8}
        if trial.state.name == "COMPLETE":
            assert set(trial.intermediate_values) == {4, 8}
            assert run.state == "finished"
            continue
        last = max(trial.intermediate_values)
        assert (run.state, run.result, run.error, run.epochs_done) == ("pruned", None, None, last)
        assert f"pruned  trial {trial.number} lr.what={trial.params['lr.what']}: after epoch {last} of 12" in err
        assert f"pruned after epoch {last} of 12" in out
    (table,) = collect(Path("search"))
    for row in table.rows:
        states = {run.state for run in row.runs}
        measured = [cell for cell in row.cells if cell.values]
        assert len(measured) == len(row.cells) if states == {"finished"} else True
        assert all(len(cell.values) <= sum(run.state == "finished" for run in row.runs) for cell in row.cells)
        assert ("pruned after epoch" in row.state) == ("pruned" in states)
    assert "failed" not in err


def test_pruning(cli: Cli) -> None:
    code, out, err = cli("train", *PLAIN, *PRUNED, *SEARCH)
    assert code == 0, err
    check_pruned(out, err)
    finished = [t.params["lr.what"] for t in study_of("search").trials if t.state.name == "COMPLETE"]
    pruned = [t.params["lr.what"] for t in study_of("search").trials if t.state.name == "PRUNED"]
    assert set(pruned) == {"1e-09"}
    assert "0.1" in finished


@pytest.mark.faults
def test_pruning_in_other_processes(cli: Cli) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweeper.n_jobs=1")
    code, out, err = cli("train", *PLAIN, *PRUNED, *launcher, *SEARCH)
    assert code == 0, err
    check_pruned(out, err)


def test_a_trial_pruned_before_it_was_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start finds it in its folder, and does not run it again; the search has as many trials as without."""
    from attnmosaic.search.search import Search

    assert cli("train", *PLAIN, *PRUNED, "hydra.sweep.dir=whole", *SEARCH)[0] == 0
    tell = Search._tell

    def killed(self: Any, number: int) -> None:
        if Run(self._folder(number)).state == "pruned":
            raise KeyboardInterrupt
        tell(self, number)

    monkeypatch.setattr(Search, "_tell", killed)
    assert cli("train", *PLAIN, *PRUNED, *SEARCH)[0] == 130
    monkeypatch.setattr(Search, "_tell", tell)
    (waiting,) = (trial.number for trial in study_of("search").trials if trial.state.name == "RUNNING")
    mark = Path("search") / str(waiting) / "pruned.txt"
    before = mark.stat().st_mtime_ns
    assert cli("train", *PLAIN, *PRUNED, *SEARCH)[0] == 0
    assert mark.stat().st_mtime_ns == before
    assert facts("search") == facts("whole")


@pytest.mark.parametrize(
    "launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1")], ids=["basic", "joblib"]
)
def test_a_full_disk_costs_no_trial(cli: Cli, tmp_path: Path, launcher: tuple[str, ...]) -> None:
    """The search ends in one line, and the same command goes on with the trial; none is recorded as failed."""
    room = tmp_path / "room"
    full = ("+callbacks.full._target_=helpers.instant_searches.FullDisk", f"+callbacks.full.until={room}")
    search = (*PLAIN, "hydra.sweeper.n_trials=2", *launcher, *full, *SEARCH)
    code, _, err = cli("train", *search)
    assert code == 1
    assert "error: trial 0: disk full" in err
    assert [trial.state.name for trial in study_of("search").trials] == ["RUNNING"]
    room.touch()
    code, _, err = cli("train", *search)
    assert code == 0, err
    assert [trial.state.name for trial in study_of("search").trials] == ["COMPLETE"] * 2


def test_a_pruned_run_can_be_ended(cli: Cli) -> None:
    """Outside its search it goes on from its checkpoint, to the numbers of a run that was never pruned."""
    assert cli("train", *PLAIN, *PRUNED, *SEARCH)[0] == 0
    trial = next(trial for trial in study_of("search").trials if trial.state.name == "PRUNED")
    own = [o for o in (*PLAIN, *PRUNED) if not o.startswith(("hydra", "+hydra", "lr.what"))]
    own.append(f"lr.what={trial.params['lr.what']}")
    code, out, err = cli("train", *own, f"hydra.run.dir=search/{trial.number}")
    assert code == 0, err
    assert "resuming after epoch" in out
    assert Run(Path("search") / str(trial.number)).state == "finished"
    assert cli("train", *own, "hydra.run.dir=whole")[0] == 0
    results = [json.loads((Path(f) / RESULT).read_text()) for f in (f"search/{trial.number}", "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_a_study_out_of_reach_costs_no_trial(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnmosaic.search.pruning import Pruning

    def broken(self: Any, value: float, done: int) -> bool:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Pruning, "_report", broken)
    assert cli("train", *PLAIN, *PRUNED, "hydra.sweeper.n_trials=1", *SEARCH)[0] == 0
    assert [trial.state.name for trial in study_of("search").trials] == ["COMPLETE"]


def test_hyperband_compares_where_all_cycles_end(cli: Cli, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of k between the ends of a range: cycles of 4, 8 and 12 epochs end together every 24."""
    from attnmosaic.search.search import Search

    seen: list[Any] = []
    original = Search._pruning
    monkeypatch.setattr(Search, "_pruning", lambda self, number: seen.append(self.every) or original(self, number))
    given = (*SPACE[:2], "schedule.k=range(2,7,2)", "schedule.epochs=96", "hydra.sweep.dir=search")
    hyperband = ("hydra/sweeper/pruner=hyperband", "hydra.sweeper.n_trials=1")
    code, _, err = cli("train", *given, *hyperband, *SEARCH)
    assert code == 0, err
    assert seen == [24]
    code, _, err = cli("train", *given, *hyperband, "schedule.epochs=40", *SEARCH)
    assert code == 2
    assert err.startswith("error: hydra/sweeper/pruner: hyperband compares trials where every k has come to the end")


# ---- what is drawn


def test_same_seed_same_trials(cli: Cli, runs: Runs) -> None:
    """Wherever the search was stopped, and however it was started again; TPE has begun to learn by then."""
    given = (*SPACE, "+hydra.sweeper.sampler.n_startup_trials=3")
    for folder, n in (("a", 8), ("b", 3), ("b", 5), ("b", 8)):
        assert cli("train", *given, f"hydra.sweeper.n_trials={n}", f"hydra.sweep.dir={folder}", *SEARCH)[0] == 0
    assert facts("a") == facts("b")
    assert len({tuple(params.items()) for _, params, *_ in facts("a")}) == 8
    assert runs.ran == [*range(8), *range(8)]
    assert (
        cli("train", *given, "hydra.sweeper.seed=1", "hydra.sweeper.n_trials=8", "hydra.sweep.dir=c", *SEARCH)[0] == 0
    )
    assert not [params for _, params, *_ in facts("c") if params in [params for _, params, *_ in facts("a")]]
    later, first = (max(value for *_, value in part) for part in (facts("a")[3:], facts("a")[:3]))
    assert later > first


def test_rounds(cli: Cli, runs: Runs) -> None:
    """Several at once: as many as asked, drawn before any of them is told, and in all as many as asked."""
    batches: list[list[int]] = []
    launch = runs.launch

    def keep(launcher: Any, jobs: Any, initial_job_idx: int) -> Any:
        batches.append([*range(initial_job_idx, initial_job_idx + len(jobs))])
        assert [trial.number for trial in study_of("search").trials if trial.state.name == "RUNNING"] == batches[-1]
        return launch(launcher, jobs, initial_job_idx)

    runs.launch = keep  # type: ignore[method-assign]
    at_once = ("hydra.sweeper.n_jobs=3", "hydra.sweeper.n_trials=7", "hydra.sweep.dir=search")
    assert cli("train", *SPACE, *at_once, *SEARCH)[0] == 0
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert told("search") == [*range(7)]


def test_space() -> None:
    def space(text: str) -> Any:
        return parse_space({"x": text}, [], None, lambda fixed: {}).searched["x"]

    assert space("interval(1,8)") == FloatDistribution(1.0, 8.0)
    assert space("tag(log, interval(0.001, 0.1))") == FloatDistribution(0.001, 0.1, log=True)
    assert space("int(interval(1,8))") == IntDistribution(1, 8)
    assert space("range(1,9,2)") == IntDistribution(1, 7, step=2)
    assert space("range(0.1,0.5,0.1)") == FloatDistribution(0.1, 0.4, step=0.1)
    assert space("tag(log,range(1,17))") == IntDistribution(1, 16, log=True)
    assert space("1,2,4") == CategoricalDistribution([1, 2, 4])
    assert space("choice(a,[1,2],0.1,true)") == CategoricalDistribution(["a", "[1,2]", "0.1", "True"])


def test_the_command_line_counts() -> None:
    """It fixes what the config searches, searches what it does not, and replaces what it does."""
    params = {"lr.what": "interval(1,2)", "lr.where": "interval(1,2)", "lr.network": "interval(1,2)", "scale": "smoke"}
    typed = ["lr.what=0.1", "+lr.other=choice(3,4)", "lr.where=range(1,3)"]
    space = parse_space(params, typed, None, lambda fixed: {"lr.network": "as there is none"})
    assert {*space.searched} == {"+lr.other", "lr.where"}
    assert space.overrides({"+lr.other": 3, "lr.where": 1}) == [
        "lr.what=0.1", "scale=smoke", "lr.where=1", "+lr.other=3",
    ]  # fmt: skip
    assert [*space.corners()] == [
        {"+lr.other": 3, "lr.where": 1}, {"+lr.other": 3, "lr.where": 2}, {"+lr.other": 4, "lr.where": 1},
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"lr\.network: cannot be searched, as there is none; leave it out"):
        parse_space({}, ["lr.network=interval(1,2)"], None, lambda fixed: {"lr.network": "as there is none"})


@pytest.mark.parametrize(
    ("experiment", "searched"),
    [
        ("gaussian", {"lr.what", "lr.where", "schedule.k"}),
        ("gaussian_type1", {"lr.what", "lr.where"}),
        ("weighted_average", {"lr.what"}),
        ("mnist_sum", {"lr.network"}),
    ],
)
def test_what_is_searched_by_itself(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, experiment: str, searched: set[str]
) -> None:
    from attnmosaic.search.search import Search

    seen: list[set[str]] = []

    def look(self: Search) -> Any:
        seen.append({*self.space.searched})
        raise UserError("seen")

    monkeypatch.setattr(Search, "_check", look)
    cli("train", f"experiment={experiment}", *SEARCH)
    assert seen == [searched]


# ---- what is kept


@pytest.mark.faults
@pytest.mark.parametrize("at", ["before", "within", "after", "run"])
def test_a_search_can_be_killed_anywhere(
    cli: Cli,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    """Before, within and after every write of its journal, and in every run: nothing is lost or done twice."""

    class Killed(BaseException):
        pass

    n = 4
    given = (
        *SPACE,
        f"hydra.sweeper.n_trials={n}",
        "hydra.sweeper.n_jobs=2",
        "+hydra.sweeper.sampler.n_startup_trials=2",
    )
    written = 0
    kill_at = -1
    append = JournalFileBackend.append_logs

    def killing(self: Any, logs: list[Any]) -> None:
        nonlocal written
        written += 1
        if at == "run" or written != kill_at:
            append(self, logs)
            return
        if at == "within":
            with open(self._file_path, "ab") as journal:
                journal.write(json.dumps(logs[0]).encode()[:-7])
        if at == "after":
            append(self, logs)
        raise Killed

    def before(number: int) -> None:
        if at == "run" and number == kill_at - 1:
            raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", killing)
    runs.before = before
    assert cli("train", *given, "hydra.sweep.dir=whole", *SEARCH)[0] == 0
    whole, places = facts("whole"), n if at == "run" else written
    assert runs.ran == [*range(n)]
    assert places >= n
    for place in range(1, places + 1):
        kill_at, written, runs.ran = place, 0, []
        with pytest.raises(Killed):
            cli("train", *given, f"hydra.sweep.dir=killed{place}", *SEARCH)
        kill_at = -1
        code, _, err = cli("train", *given, f"hydra.sweep.dir=killed{place}", *SEARCH)
        assert code == 0, (place, err)
        assert facts(f"killed{place}") == whole, place
        assert sorted(told(f"killed{place}")) == [*range(n)], place
        assert {*runs.ran} == {*range(n)}


def test_a_journal_outlives_its_writers(tmp_path: Path) -> None:
    """A line that was being written is taken away, and nobody waits for a lock whose process is gone."""
    path = tmp_path / "study.journal"
    study = open_study(str(path), "search", "maximize", None)
    study.add_trial(optuna.create_trial(value=1.0))
    with path.open("ab") as journal:
        journal.write(b'{"op_code":4,"study')
    (tmp_path / "study.journal.lock").touch()  # Optuna's own, left by a process that was killed
    study = open_study(str(path), "search", "maximize", None)
    study.add_trial(optuna.create_trial(value=2.0))
    assert [trial.value for trial in open_study(str(path), "search", "maximize", None).trials] == [1.0, 2.0]


def test_drawing_leaves_the_study_as_it_is(tmp_path: Path) -> None:
    """A trial is written at once, with all that was drawn: none that is half drawn can be left behind."""
    space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    study = open_study(str(tmp_path / "study.journal"), "search", "maximize", None)
    before = (tmp_path / "study.journal").read_text()
    drawn = draw(study, Options().sampler_for(0), space)
    assert set(drawn) == {"x", "y"}
    assert (tmp_path / "study.journal").read_text() == before
    assert drawn == draw(study, Options().sampler_for(0), space) != draw(study, Options().sampler_for(1), space)


def test_databases_of_optunas(cli: Cli, runs: Runs) -> None:
    given = (*SPACE, "hydra.sweep.dir=search", "hydra.sweeper.storage=sqlite:///study.db")
    for n in (1, 3):
        code, _, err = cli("train", *given, f"hydra.sweeper.n_trials={n}", *SEARCH)
        assert code == 0, err
    study = optuna.load_study(study_name="search", storage=open_storage("sqlite:///study.db"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert runs.ran == [0, 1, 2]
    assert not Path("search/study.journal").exists()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            "lr.what=interval(0.001,2)",
            r"holds another search \(lr\.what: FloatDistribution\(.*high=1\.0.* before, .*2\.0.* now",
        ),
        ("lr.what=0.1", r"holds another search \(lr\.what: .* before, None now\)"),
        ("optimized_metric=test/loss", r"another search \(optimized_metric: test/accuracy before, test/loss now\)"),
    ],
)
def test_a_folder_with_another_search(cli: Cli, runs: Runs, changed: str, why: str) -> None:
    given = ("hydra.sweeper.n_trials=1", "hydra.sweep.dir=search")
    assert cli("train", *SPACE, *given, *SEARCH)[0] == 0
    before = Path("search/study.journal").read_text(encoding="utf-8")
    others = [text for text in SPACE if text.partition("=")[0] != changed.partition("=")[0]]
    code, _, err = cli("train", *others, *given, changed, *SEARCH)
    assert code == 2
    assert re.search(why, err), err
    assert err.count("\n") == 1
    assert facts("search")
    assert len(Path("search/study.journal").read_text(encoding="utf-8").splitlines()) <= len(before.splitlines()) + 1


def test_a_folder_with_a_search_in_the_other_direction(cli: Cli, runs: Runs) -> None:
    given = (*SPACE, "optimized_metric=test/entropy", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=search")
    assert cli("train", *given, "hydra.sweeper.direction=minimize", *SEARCH)[0] == 0
    code, _, err = cli("train", *given, "hydra.sweeper.direction=maximize", *SEARCH)
    assert code == 2
    assert "holds another search (hydra.sweeper.direction: minimize before, maximize now)" in err
    assert runs.ran == [0]


def test_a_search_with_other_settings_is_refused(cli: Cli) -> None:
    """What was measured with other settings says nothing of these."""
    space = ("lr.what=interval(0.01,0.02)", "lr.where=0.01")
    assert cli("train", *PLAIN, *space, "hydra.sweeper.n_trials=1", *SEARCH)[0] == 0
    code, _, err = cli("train", *PLAIN, *space, "schedule.epochs=6", "hydra.sweeper.n_trials=2", *SEARCH)
    assert code == 2
    assert "holds a run with other settings (schedule.epochs was 4, now 6)" in err
    assert len(study_of("search").trials) == 1


def test_one_search_a_folder(cli: Cli, runs: Runs) -> None:
    Path("search").mkdir()
    with FileLock("search/.search.lock"):
        code, _, err = cli("train", *SPACE, "hydra.sweep.dir=search", *SEARCH)
    assert code == 2
    assert err.startswith("error: hydra.sweep.dir: another search is at work in 'search'; wait for it, or choose")
    assert runs.ran == []


def test_a_job_left_at_work_is_waited_for(cli: Cli, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster jobs outlive their search: none is started beside them in the same folder."""
    from attnmosaic.search import search

    def killed(number: int) -> None:
        raise KeyboardInterrupt

    runs.before = killed
    given = (*SPACE, "hydra.sweep.dir=search", "hydra.sweeper.n_trials=1")
    code, out, _ = cli("train", *given, *SEARCH)
    assert code == 130
    assert "go on: the same command, with hydra.sweep.dir=search" in out
    (Path("search/0") / "config.yaml").touch()
    lock = FileLock("search/0/.lock")
    lock.acquire()
    waited = []

    def release(seconds: float) -> None:
        waited.append(seconds)
        lock.release()

    monkeypatch.setattr(search, "time", type("Time", (), {"sleep": staticmethod(release)}))
    runs.before = lambda number: None if waited else pytest.fail("started beside a job at work")
    assert cli("train", *given, *SEARCH)[0] == 0
    assert waited == [search.SECONDS]
    assert runs.ran == [0]


# ---- slips

LIGHT = {
    ("hydra/sweeper/sampler=tpee",): r"hydra/sweeper/sampler: got 'tpee', allowed: random, tpe; did you mean",
    ("hydra/sweeper/pruner=medium",): r"hydra/sweeper/pruner: got 'medium', allowed: hyperband, median, none; did",
    ("hydra.sweeper.sampler=tpe",): r"hydra\.sweeper\.sampler: got tpe, needs a _target_; type .*sampler=tpe",
    ("hydra.sweeper.direction=up",): r"hydra\.sweeper\.direction: got 'up', allowed: maximize, minimize",
    ("hydra.sweeper.direction=minimize",): r"hydra\.sweeper\.direction: got minimize, needs maximize for test/accuracy",
    (
        "optimized_metric=test/loss",
        "hydra.sweeper.direction=maximize",
    ): r"hydra\.sweeper\.direction: got maximize, needs",
    ("optimized_metric=test/entropy",): r"hydra\.sweeper\.direction: required for test/entropy; type .*=maximize or",
    ("optimized_metric=test/loss,test/accuracy",): r"optimized_metric: differs between trials \(test/loss, test/acc",
    ("experiment=glob(gradeints/*)",): r"experiment: got glob\(gradeints/\*\), which matches none of gaussian, ",
    ("schedule.k=range(3,3)",): r"schedule\.k: got range\(3,3\), which has no values; type",
    ("hydra.sweeper.n_trials=0",): r"hydra\.sweeper\.n_trials: got 0, needs a whole number of at least 1; type",
    ("hydra.sweeper.n_jobs=1.5",): r"hydra\.sweeper\.n_jobs: got 1\.5, needs a whole number",
    ("hydra.sweeper.seed=-1",): r"hydra\.sweeper\.seed: got -1, needs a whole number of at least 0",
    ("hydra.sweeper.trials=5",): r"hydra\.sweeper\.trials: there is no such config key",
    ("+hydra.sweeper.sampler.n_startup=2",): r"hydra\.sweeper\.sampler: .*unexpected .*'n_startup'",
    ("hydra/sweeper/pruner=median", "+hydra.sweeper.pruner.n=2"): r"hydra\.sweeper\.pruner: .*'n'",
    ("hydra.sweeper.storage=nosuch://x",): r"hydra\.sweeper\.storage: 'nosuch://x' cannot be opened \(.*choose another",
    ("lr.what=interval(0.1,0.001)",): r"lr\.what=.*: cannot be searched \(0\.1 is no number below 0\.001\); type",
    ("lr.what=interval(0.1,inf)",): r"lr\.what=.*: cannot be searched \(0\.1 is no number below inf\); type",
    ("lr.what=tag(log,interval(0,0.1))",): r"lr\.what=.*: cannot be searched \(.*low > 0",
    ("lr.what=interval(0.1",): r"lr\.what=interval\(0\.1: is not a valid override",
    ("lr.what=interval(-1,1)",): r"lr\.what: got -1\.0, needs a number above 0",
    ("lr.what=interval(1e-3,1)", "lr.wat=1,2"): r"lr\.wat: there is no such config key; did you mean lr\.what",
    ("schedule.k=choice(1,0)",): r"schedule\.k: got 0, needs a whole number of at least 1",
    ("schedule.k=range(1,2)",): r"schedule\.k=range\(1,2\): cannot be searched \(a range of fewer than two numbers\)",
    ("schedule.k=choice(1)",): r"schedule\.k=.*: cannot be searched \(fewer than two choices\)",
    ("schedule=joint", "schedule.k=1,2"): r"schedule\.k: cannot be searched, as there are no stages in .*joint",
    ("lr.network=interval(0.1,1)",): r"lr\.network: cannot be searched, as these runs train no network 'network'",
    ("seed.all=0,1",): r"seed\.all: a search would pick the luckiest seed; .*seed\.all=0,1,2 -m",
    ("lr.what=1", "lr.where=1", "schedule.k=1"): r"hydra\.sweeper\.params: there is nothing to search; type",
    ("optimized_metric=test/acuracy",): r"optimized_metric: got 'test/acuracy', .*did you mean .*test/accuracy",
    ("optimized_metric=held_out/accuracy",): r"optimized_metric: got held_out/accuracy, .*type .*=test/accuracy",
    ("progress=loud",): r"progress: got 'loud', allowed",
}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, list[str]]]:
    """Runs every slip in one fresh process."""
    folder = tmp_path_factory.mktemp("slips")
    one = "hydra.sweeper.n_trials=1"  # so that what is not refused soon ends
    given = [(one, *slip, "hydra/sweeper=optuna", "hydra.sweep.dir=search", "-m") for slip in LIGHT]
    told = dict(zip(LIGHT, answers("train", given, folder), strict=True))
    assert not [*folder.rglob("study.journal")]
    return told


@pytest.mark.parametrize("slip", LIGHT, ids=" ".join)
def test_slips(light: dict[tuple[str, ...], tuple[int, str, list[str]]], slip: tuple[str, ...]) -> None:
    """One line, before anything is written to the study, and before torch is imported."""
    code, err, heavy = light[slip]
    assert code == 2, err
    assert re.match(f"error: {LIGHT[slip]}", err), err
    assert err.count("\n") == 1
    assert heavy == []


def test_without_the_package(cli: Cli, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeper = plugin("hydra_plugins.attnmosaic_sweeper.AttnmosaicSweeper")
    monkeypatch.setitem(sweeper.setup.__globals__, "find_spec", lambda name: None)
    code, _, err = cli("train", *SPACE, *SEARCH)
    assert code == 2
    assert err.startswith("error: hydra/sweeper=optuna: needs packages")
    assert f"{sys.executable} -m pip install 'optuna>=4.4'\n" in err
    assert not Path("outputs").exists()


def test_only_training_is_searched(cli: Cli) -> None:
    code, _, err = cli("evaluate", "ckpt_path=a,b", "hydra/sweeper=optuna", "-m")
    assert (code, err.startswith("error: hydra/sweeper=optuna: searches for settings of attnmosaic.train")) == (2, True)


def test_optuna_is_imported_by_searches_alone(tmp_path: Path) -> None:
    ((code, _, heavy),) = answers("train", [("lr.what=0",)], tmp_path, ("optuna", "sqlalchemy"))
    assert (code, heavy) == (2, [])


def test_beside_the_library_of_this_name(cli: Cli, runs: Runs) -> None:
    """Its schema, which Hydra would hold ours against, does not count."""
    from hydra.core.config_store import ConfigStore

    @dataclass
    class Other:  # only a class takes no other keys
        _target_: str = "elsewhere.Sweeper"
        n_trials: int = 20

    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=Other, provider="another")
    code, _, err = cli("train", *SPACE, "hydra.sweeper.n_trials=1", "hydra.sweep.dir=search", *SEARCH)
    assert code == 0, err
    assert sys.modules.get("elsewhere") is None
