"""Small searches through the command line."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.commands import Cli
from helpers.fresh_process import LARGE, answers
from helpers.instant_searches import SPACE, Runs, replace_basic_launcher, states_of, study_of
from helpers.settings import ALL_CHECKPOINTS, SMALL
from hydra.core.config_store import ConfigStore

from attnmosaic.collect import collect
from attnmosaic.runs.run import RESULT, Run

pytestmark = pytest.mark.runs

SEARCH = ("hydra/sweeper=optuna", "progress=quiet", "hydra.sweep.dir=search", "-m")
LEAN = (
    *SMALL, "callbacks.record=null", "callbacks.dashboards=null", "callbacks.gradients=null", "logger=none",
    "lr.where=0.01", "schedule.epochs=2",
)  # fmt: skip


def metrics_of(folder: str) -> dict[str, float]:
    return json.loads(Path(folder, RESULT).read_text(encoding="utf-8"))["metrics"]  # type: ignore[no-any-return]


def test_search_prints_its_table_and_the_command_of_the_best_trial(cli: Cli) -> None:
    """With progress=quiet it also prints one line when a trial ends."""
    overrides = ("lr.what=tag(log,interval(0.01,0.3))", "schedule.k=1", "hydra.sweeper.n_trials=2")
    code, out, err = cli("train", *LEAN, *overrides, *SEARCH)
    assert code == 0, err
    trials = study_of("search").trials
    results = [metrics_of(f"search/{n}") for n in range(2)]
    assert [trial.value for trial in trials] == [result["test/accuracy"] for result in results]
    configs = [Run(Path("search") / str(n)).config or {} for n in range(2)]
    assert [config["lr"] | {"network": None} for config in configs] == [
        {"what": trial.params["lr.what"], "where": 0.01, "network": None} for trial in trials
    ]
    assert not [n for n in range(2) if "Launching" in Path("search", str(n), "train.log").read_text(encoding="utf-8")]

    ended = [line for line in err.splitlines() if not line.startswith(("/", "  "))]
    assert [line.partition(":")[0] for line in ended] == [
        f"done  trial {n} lr.what={trial.params['lr.what']:.4g}" for n, trial in enumerate(trials)
    ]
    best = study_of("search").best_trial
    assert out.startswith("\ntest/accuracy, maximized; 2 of 2 trials, 2 finished")
    assert f"held_out {results[best.number]['held_out/accuracy']:.4f}; selected on test" in out
    plan = json.loads(Path("search/sweep.json").read_text(encoding="utf-8"))
    assert list(plan["jobs"]) == ["0", "1"]
    assert "hydra/sweeper=optuna" in plan["commands"][0]
    (table,) = collect(Path("search"))
    assert sum(len(row.runs) for row in table.rows) == 2

    (again,) = (line.partition("again: ")[2] for line in out.splitlines() if "again: " in line)
    _, _, module, *overrides = shlex.split(again)
    assert module == "attnmosaic.train"
    code, _, err = cli("train", *overrides, "hydra.run.dir=again")
    assert code == 0, err
    assert metrics_of("again") == results[best.number]


def test_failed_trial_is_shown_in_the_table(cli: Cli) -> None:
    overrides = (
        "lr.what=choice(0.01,1e30)",
        "schedule.k=1",
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.n_trials=2",
    )
    code, out, err = cli("train", *LEAN, *overrides, *SEARCH)
    assert code == 0, err
    assert {trial.params["lr.what"]: trial.state.name for trial in study_of("search").trials} == {
        "0.01": "COMPLETE", "1e+30": "FAIL",
    }  # fmt: skip
    assert re.search(r"^failed  trial 0 lr\.what=1e\+30: the loss", err, flags=re.M)
    assert re.search(r"1e\+30 +failed$", out, flags=re.M)


def test_search_over_experiments_has_one_folder(cli: Cli) -> None:
    """The folder is not named after an experiment and contains all trials with their results."""
    overrides = ("experiment=choice(gaussian,gaussian_type1)", "lr.what=0.01", "hydra.sweeper.n_trials=2")
    search = [override for override in SEARCH if not override.startswith("hydra.sweep.dir")]
    random = ("hydra/sweeper/sampler=random", "hydra.sweeper.params={}")
    code, out, err = cli("train", *LEAN, *overrides, *random, *search)
    assert code == 0, err
    (folder,) = Path("outputs/sweeps").iterdir()
    assert sorted(path.parent.name for path in folder.glob("*/result.json")) == ["0", "1"]
    trials = study_of(folder).trials
    assert {trial.params["experiment"] for trial in trials} == {"gaussian", "gaussian_type1"}
    assert out.count(" finished\n") == 3  # in the heading, too


def test_pruned_trial_resumes_outside_the_search(cli: Cli) -> None:
    """The pruned trial has no result; its resumed run has the numbers of an uninterrupted run."""
    settings = (
        *LEAN[:-1], "schedule.epochs=12", "schedule.k=2", "trainer.check_val_every_n_epoch=1",
        "optimized_metric=test/loss", *ALL_CHECKPOINTS,
    )  # fmt: skip
    overrides = (
        "lr.what=choice(1e-9,0.1)", "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=2",
        "hydra/sweeper/pruner=median", "+hydra.sweeper.pruner.n_startup_trials=1",
    )  # fmt: skip
    code, out, err = cli("train", *settings, *overrides, *SEARCH)
    assert code == 0, err
    good, bad = study_of("search").trials
    assert (good.state.name, good.params["lr.what"], {*good.intermediate_values}) == ("COMPLETE", "0.1", {4, 8})
    assert (bad.state.name, bad.params["lr.what"], {*bad.intermediate_values}) == ("PRUNED", "1e-09", {4})
    run = Run(Path("search/1"))
    assert (run.state, run.result, run.error, run.epochs_done) == ("pruned", None, None, 4)
    assert "pruned  trial 1 lr.what=1e-09: after epoch 4 of 12" in err
    assert "pruned after epoch 4 of 12" in out
    assert "failed" not in err
    rows = {row.runs[0].state: row for table in collect(Path("search")) for row in table.rows}
    assert all(cell.values for cell in rows["finished"].cells)
    assert not any(cell.values for cell in rows["pruned"].cells)
    assert "pruned after epoch" in rows["pruned"].state

    code, out, err = cli("train", *settings, "lr.what=1e-9", "hydra.run.dir=search/1")
    assert code == 0, err
    assert "resuming after epoch" in out
    assert Run(Path("search/1")).state == "finished"
    assert cli("train", *settings, "lr.what=1e-9", "hydra.run.dir=uninterrupted")[0] == 0
    assert metrics_of("search/1") == metrics_of("uninterrupted")


def test_interrupted_search_exits_with_130_and_resumes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweeper also works if a library has registered a schema under the same name.

    Hydra would check the sweeper's config against this schema.
    """

    @dataclass
    class Other:  # A schema of a class does not allow other keys.
        _target_: str = "elsewhere.Sweeper"
        n_trials: int = 20

    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=Other, provider="another")

    def interrupt(number: int, folder: Path) -> None:
        if number == 1:
            raise KeyboardInterrupt

    runs = Runs(Path("search"), interrupt)
    replace_basic_launcher(monkeypatch, runs)
    code, out, _ = cli("train", *SPACE, "hydra.sweeper.n_trials=2", *SEARCH)
    assert code == 130
    assert states_of("search") == ["COMPLETE", "RUNNING"]
    assert "hydra.sweep.dir=search" in next(line for line in out.splitlines() if "resume" in line)
    runs.before = lambda number, folder: None
    assert cli("train", *SPACE, "hydra.sweeper.n_trials=2", *SEARCH)[0] == 0
    assert runs.ran == [0, 1, 1]


USER_ERRORS = {
    ("hydra/sweeper/sampler=tpee",): r"hydra/sweeper/sampler: got 'tpee'.* tpe",
    ("hydra.sweeper.sampler=tpe",): r"hydra\.sweeper\.sampler: got tpe",
    ("hydra.sweeper.n_jobs=1.5",): r"hydra\.sweeper\.n_jobs: got 1\.5",
    ("hydra.sweeper.trials=5",): r"hydra\.sweeper\.trials: ",
    ("lr.what=interval(-1,1)",): r"lr\.what: got -1\.0, needs a number above 0",
    ("lr.what=interval(0.1,inf)",): r"lr\.what: got inf",
    ("lr.what=interval(1e-3,1)", "lr.wat=1,2"): r"lr\.wat: .*lr\.what",
    ("schedule.k=range(3,3)",): r"schedule\.k: got range\(3,3\)",
}


def test_user_errors(tmp_path: Path) -> None:
    """Each error is one line, before the study is written and before torch is imported; only searches import Optuna."""
    options = ("hydra/sweeper=optuna", "hydra.sweep.dir=s", "-m")
    commands = [("lr.what=0",), *((*overrides, *options) for overrides in USER_ERRORS)]
    (code, _, imported), *ends = answers("train", commands, tmp_path, (*LARGE, "optuna", "sqlalchemy"))
    assert (code, imported) == (2, [])
    for (overrides, message), (code, err, imported) in zip(USER_ERRORS.items(), ends, strict=True):
        assert code == 2, (overrides, err)
        assert re.match(f"error: {message}", err), (overrides, err)
        assert err.count("\n") == 1
        assert not {*imported} & {*LARGE}
    assert not [*tmp_path.rglob("study.journal")]
