"""What a folder tells of its run, and that no run is lost or taken for another."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Cli
from helpers.settings import SMALL
from omegaconf import DictConfig

from attnmosaic.core.errors import UserError
from attnmosaic.runs.discovery import find_runs, sweep_of
from attnmosaic.runs.rows import curve
from attnmosaic.runs.run import ERROR, LOCK, RESULT, Run, claimed

pytestmark = pytest.mark.runs

SHORT = (*SMALL, "schedule.k=2", "schedule.epochs=6")
Train = Callable[..., dict[str, float]]


def states(path: Path) -> dict[str, Any]:
    return torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_finished_run_is_not_run_again(train: Train, tmp_path: Path) -> None:
    first = train(*SHORT)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train(*SHORT) == first
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path: after[path] for path in before if path.name != LOCK} == {
        path: time for path, time in before.items() if path.name != LOCK
    }


class Stop(BaseException):
    """As a kill does it: nothing is left to say why."""


@pytest.mark.parametrize("epoch", [1, 3, 6])
def test_a_stopped_run_goes_on(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Stopped at some epoch, or after the last one and before its result: the files equal an uninterrupted run's."""
    whole = train(*SHORT, run_dir="whole")
    from attnmosaic.callbacks.csv_tables import RunTables
    from attnmosaic.training import results as outcome

    original = RunTables.on_train_epoch_start
    if epoch < 6:
        monkeypatch.setattr(RunTables, "on_train_epoch_start", _stopping(original, epoch))
    else:
        monkeypatch.setattr("attnmosaic.training.results.evaluation_of", _raise)
    with pytest.raises(Stop):
        train(*SHORT)
    run = Run(tmp_path / "run")
    assert (run.state, run.epochs_done) == ("stopped", epoch)
    monkeypatch.undo()
    assert outcome.evaluation_of is not _raise
    monkeypatch.setenv("ATTNMOSAIC_CACHE", str(tmp_path / "cache"))
    assert train(*SHORT) == whole
    for name in ("metrics.csv", "focus_vs_pred_train.csv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    one, other = states(tmp_path / "run"), states(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert Run(tmp_path / "run").state == "finished"


def _raise(*_: Any) -> None:
    raise Stop


def _stopping(original: Callable[..., None], epoch: int) -> Callable[..., None]:
    def hook(self: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == epoch:
            raise Stop
        original(self, trainer, module)

    return hook


def test_another_runs_folder_is_refused(train: Train, tmp_path: Path) -> None:
    train(*SHORT)
    kept = (tmp_path / "run" / RESULT).read_text()
    with pytest.raises(UserError, match=r"run_dir: .* other settings \(lr\.what was 0\.01, now 0\.1\)"):
        train(*SHORT, "lr.what=0.1")
    assert (tmp_path / "run" / RESULT).read_text() == kept
    (tmp_path / "run" / RESULT).unlink()  # its checkpoints are worth as much
    with pytest.raises(UserError, match="other settings"):
        train(*SHORT, "lr.what=0.1")


def test_what_does_not_decide_the_numbers_may_change(train: Train) -> None:
    assert train(*SHORT) == train(*SHORT, "logger=none", "callbacks.pictures=null", "paths.data=elsewhere")


def test_a_callback_that_ends_a_run_counts(config: Callable[..., DictConfig]) -> None:
    from omegaconf import OmegaConf

    from attnmosaic.config.identity import config_hash

    def hashed(*overrides: str, run_dir: str = "run") -> str:
        plain: Any = OmegaConf.to_container(config(*overrides, run_dir=run_dir), resolve=True)
        return config_hash(plain)

    stop = "callbacks=stop_at_loss"
    assert hashed() == hashed("callbacks=gradients") != hashed(stop)
    assert hashed(stop) == hashed(stop, run_dir="other") != hashed(stop, "callbacks.stop.stopping_threshold=0.1")


def test_an_unreadable_checkpoint_is_passed_over(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole = train(*SHORT)
    (tmp_path / "run" / RESULT).unlink()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"torn")
    assert train(*SHORT) == whole
    (warned,) = (record.message for record in caplog.records if "no readable attnmosaic checkpoint" in record.message)
    assert re.search(r"last\.ckpt' is no .* \(it is damaged.*\); resuming from '.*before_last\.ckpt'$", warned)
    assert "resuming after epoch 5 of 6" in caplog.text


def test_two_processes_do_not_run_in_one_folder(train: Train, tmp_path: Path) -> None:
    held = "import sys; from pathlib import Path; from attnmosaic.runs.run import claimed\n"
    held += "with claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        (folder / "config.yaml").write_text("schedule: {epochs: 6}")
        assert Run(folder).state == "running"
        with pytest.raises(UserError, match="another process is running in"):
            train(*SHORT)
        other.kill()
    assert Run(folder).state == "stopped"
    train(*SHORT)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"), claimed(tmp_path / "file" / "run"):
        pass


def test_a_failed_run(cli: Cli, tmp_path: Path) -> None:
    """It says what it failed with, until it is tried again."""
    failing = (*SHORT, "lr.what=1e30", "hydra.run.dir=run")
    code, _, err = cli("train", *failing)
    assert code == 1
    run = Run(tmp_path / "run")
    assert run.state == "failed"
    assert run.error is not None
    assert run.error.strip() in err
    with claimed(tmp_path / "run"):
        assert not (tmp_path / "run" / ERROR).exists()


def test_an_error_is_its_own_runs(cli: Cli, train: Train, tmp_path: Path) -> None:
    """A start that is refused is not the failure of the run it was refused for; other commands write none."""
    train(*SHORT)
    assert cli("train", *SHORT, "lr.what=0.1", "hydra.run.dir=run")[0] == 2
    assert not (tmp_path / "run" / ERROR).exists()
    assert cli("predict", "ckpt_path=nowhere", "image=a.png", "number=1")[0] == 2
    assert cli("evaluate", "ckpt_path=nowhere", "hydra.run.dir=evaluation")[0] == 2
    assert not [*tmp_path.rglob(ERROR)]
    assert cli("train", *SHORT, "lr.what=-1", "hydra.run.dir=slip")[0] == 2
    assert "lr.what" in (tmp_path / "slip" / ERROR).read_text()
    (tmp_path / ERROR).touch()
    assert {run.folder.name for run in find_runs(tmp_path)} >= {"run", "slip"}


def test_a_run_begun_with_other_settings_is_not_this_one(train: Train, tmp_path: Path) -> None:
    first = ("seed.order=1", *SHORT[:-1], "schedule.epochs=4")
    train(*first, run_dir="first")
    begun = f"ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}"
    train(*SHORT, begun, run_dir="second")
    train(*SHORT, "seed.order=1", begun, run_dir="longer")
    hashes = {name: json.loads((tmp_path / name / RESULT).read_text())["config_hash"] for name in ("second", "longer")}
    train(*SHORT, run_dir="plain")
    train(*SHORT, "seed.order=1", run_dir="same")
    plain, same = (json.loads((tmp_path / name / RESULT).read_text()) for name in ("plain", "same"))
    assert hashes["second"] != plain["config_hash"]
    assert hashes["longer"] == same["config_hash"]
    assert (tmp_path / "second" / "config.yaml").read_text().count("began_otherwise") == 1


def test_a_run_that_ended_early_ends_there_again(train: Train, tmp_path: Path) -> None:
    """Killed after `callbacks=stop_at_loss` had ended it, and before its result."""
    train(*SHORT, run_dir="long")
    first, second, *_ = csv.DictReader((tmp_path / "long" / "metrics.csv").open())
    assert float(second["running/loss"]) < float(first["running/loss"])
    threshold = (float(first["running/loss"]) + float(second["running/loss"])) / 2  # either is rounded as the CPU does
    early = (*SHORT, "callbacks=stop_at_loss", f"callbacks.stop.stopping_threshold={threshold}")
    whole = train(*early)
    assert Run(tmp_path / "run").epochs_done == 2
    (tmp_path / "run" / RESULT).unlink()
    assert train(*early) == whole
    assert Run(tmp_path / "run").epochs_done == 2


def test_a_run_that_ended_in_its_first_epoch_does_so_too(train: Train, tmp_path: Path) -> None:
    """`EarlyStopping` calls that epoch 0, which is also what it says of a run that it did not stop."""
    early = (*SHORT, "callbacks=stop_at_loss", "callbacks.stop.stopping_threshold=1000")
    whole = train(*early)
    assert Run(tmp_path / "run").epochs_done == 1
    (tmp_path / "run" / RESULT).unlink()
    assert train(*early) == whole
    assert Run(tmp_path / "run").epochs_done == 1


def test_states_of_damaged_folders(tmp_path: Path) -> None:
    assert Run(tmp_path / "nowhere").state == "missing"
    (tmp_path / "config.yaml").write_text("name: [")
    (tmp_path / "result.json").write_text('{"metrics": ')
    assert Run(tmp_path).state == "stopped"
    (tmp_path / "config.yaml").write_text("name: a")
    assert Run(tmp_path).state == "stopped"
    assert Run(tmp_path).config is None
    assert Run(tmp_path).epochs_done == 0


def test_files_that_are_torn_or_odd_are_listed(tmp_path: Path) -> None:
    """What can be read of them is, and a file that is missing is no problem."""
    (tmp_path / "config.yaml").write_text("name: [")
    (tmp_path / "result.json").write_text('{"metrics": {"train/accuracy": "much"}}')
    (tmp_path / "metrics.csv").write_text("epoch,stage,train/focus\n1,what,\n2,what,0.5\n3,where,nan\n4,wh")
    (tmp_path / "gradients.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "confusion_digit_test.csv").write_text("true digit,0,1,scale\n0,3,1,smoke\n")
    (tmp_path / "error.txt").write_bytes(b"no \xff text")
    run = Run(tmp_path)
    assert (run.config, run.result, run.snapshots, run.rows("gradients")) == (None, None, None, [])
    assert run.rows("focus_vs_pred_train") == []
    assert run.confusion("digit", "test") is run.confusion("digit", "train") is None
    assert run.error == "no \N{REPLACEMENT CHARACTER} text"
    assert curve(run.metrics, "train/focus") == ([2], [0.5])
    assert run.stages == [("what", 0, 2), ("where", 2, 3)]
    assert run.epochs_done == 3
    said = {
        "config.yaml": "not a complete config", "result.json": "a metric is no number", "metrics.csv": "1 of 4 rows",
        "gradients.csv": "UnicodeDecodeError", "confusion_digit_test.csv": "not a square matrix",
    }  # fmt: skip
    assert run.problems.keys() == said.keys()
    assert all(word in run.problems[name] for name, word in said.items())


def test_what_is_no_config_or_result(tmp_path: Path) -> None:
    for content in (b'{"metrics": {"train/acc', b"seed: [", b"\xff\xfe\x00", b""):
        (tmp_path / "config.yaml").write_bytes(content)
        (tmp_path / "result.json").write_bytes(content)
        run = Run(tmp_path)
        assert (run.config, run.result, run.state) == (None, None, "stopped")
        assert run.problems.keys() == {"config.yaml", "result.json"}
    (tmp_path / "result.json").write_bytes(b"[" * 100_000)
    assert Run(tmp_path).result is None


def test_a_confusion_matrix(tmp_path: Path) -> None:
    (tmp_path / "confusion_sum_test.csv").write_text(
        "true sum,0,1,9,scale\n0,3,1,0,smoke\n1,0,0,0,smoke\n9,0,2,2,smoke\n"
    )
    found = Run(tmp_path).confusion("sum", "test")
    assert found is not None
    assert (found.values, found.examples, found.accuracy) == (["0", "1", "9"], 8, 5 / 8)
    assert found.fractions == [[0.75, 0.25, 0], [0, 0, 0], [0, 0.5, 0.5]]


def test_find_runs(tmp_path: Path) -> None:
    for folder in ("a", "sweep/b/seed0"):
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
        (tmp_path / folder / "config.yaml").write_text("name: a")
    (tmp_path / "a" / "inner").mkdir()
    (tmp_path / "a" / "inner" / "config.yaml").write_text("")  # runs do not lie in runs
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "config.yaml").write_text("")
    plan = {"commands": [], "jobs": {"b/seed0": {"name": "b"}, "b/seed1": {"name": "b"}}}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(plan))
    found = {str(run.folder.relative_to(tmp_path)): run.state for run in find_runs(tmp_path)}
    assert found == {"a": "stopped", "sweep/b/seed0": "stopped", "sweep/b/seed1": "missing"}
    assert sweep_of(tmp_path / "sweep" / "b" / "seed0") == tmp_path / "sweep"
    assert sweep_of(tmp_path / "a") is None
