"""A run that is started again in its folder: finished, stopped, with other settings, or ended early."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Cli
from helpers.finished_runs import check_same
from helpers.settings import SMALL
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from attnmosaic.callbacks.csv_tables import RunTables
from attnmosaic.config.identity import config_hash
from attnmosaic.config.schema import conf_dir, register
from attnmosaic.core.errors import UserError
from attnmosaic.runs.discovery import find_runs
from attnmosaic.runs.run import ERROR, LOCK, RESULT, Run
from attnmosaic.train import train as train_run

pytestmark = pytest.mark.runs

SHORT = ("schedule.k=2", "schedule.epochs=6", "logger=none")
Train = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    register()
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(conf_dir(), version_base="1.3"):
        patch.setattr("attnmosaic.plotting.run.draw_run", lambda *_: None)
        train_run(compose("train", [*SMALL, *SHORT, f"run_dir={folder}"]))
    return folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """The finished run in the folder that `train` runs in."""
    return shutil.copytree(whole, tmp_path / "run")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULT).read_text())


def test_a_finished_run_is_not_run_again(train: Train, finished: Path) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != LOCK and path.is_file()}

    before = written()
    metrics = result(finished)["metrics"]
    assert train(*SHORT) == metrics
    assert train(*SHORT, "callbacks.pictures=null", "paths.data=elsewhere") == metrics  # they decide no number
    assert {path: written()[path] for path in before} == before


class Stop(BaseException):
    """Ends a process as a kill does."""


def _raise(*_: Any) -> None:
    raise Stop


@pytest.mark.parametrize("epoch", [3, 6])
def test_a_stopped_run_resumes(
    train: Train, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """Stopped at some epoch, or after the last one and before its result: the files equal an uninterrupted run's."""
    original = RunTables.on_train_epoch_start

    def stop(self: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == epoch:
            raise Stop
        original(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(RunTables, "on_train_epoch_start", stop)
        patch.setattr("attnmosaic.training.results.evaluation_of", _raise)
        with pytest.raises(Stop):
            train(*SHORT)
    run = Run(tmp_path / "run")
    assert (run.state, run.epochs_done) == ("stopped", epoch)
    assert train(*SHORT) == result(whole)["metrics"]
    check_same(whole, tmp_path / "run")
    assert Run(tmp_path / "run").state == "finished"


def test_another_runs_folder_is_refused(train: Train, finished: Path) -> None:
    kept = (finished / RESULT).read_text()
    with pytest.raises(UserError, match=r"run_dir: .* other settings \(lr\.what was 0\.01, now 0\.1\)"):
        train(*SHORT, "lr.what=0.1")
    assert (finished / RESULT).read_text() == kept
    (finished / RESULT).unlink()  # its checkpoints are worth as much
    with pytest.raises(UserError, match="other settings"):
        train(*SHORT, "lr.what=0.1")


def test_an_unreadable_checkpoint_is_skipped(train: Train, finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    metrics = result(finished)["metrics"]
    (finished / RESULT).unlink()
    (finished / "checkpoints" / "last.ckpt").write_bytes(b"torn")
    assert train(*SHORT) == metrics
    (warned,) = (record.message for record in caplog.records if "last.ckpt" in record.message)
    assert "before_last.ckpt" in warned
    assert "resuming after epoch 5 of 6" in caplog.text


def hashed(config: Callable[..., DictConfig], *overrides: str, run_dir: str = "run") -> str:
    plain: Any = OmegaConf.to_container(config(*overrides, run_dir=run_dir), resolve=True)
    return config_hash(plain)


def test_a_callback_that_ends_a_run_counts(config: Callable[..., DictConfig]) -> None:
    stop = "callbacks=stop_at_loss"
    assert hashed(config) == hashed(config, "callbacks=gradients") != hashed(config, stop)
    one, other = hashed(config, stop, run_dir="other"), hashed(config, stop, "callbacks.stop.stopping_threshold=0.1")
    assert hashed(config, stop) == one != other


def test_a_run_begun_with_other_settings_is_another_run(
    train: Train, config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(*SHORT, "seed.order=1", "schedule.epochs=4", run_dir="first")
    begun = f"ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}"
    train(*SHORT, begun, run_dir="second")
    train(*SHORT, "seed.order=1", begun, run_dir="longer")
    assert result(tmp_path / "second")["config_hash"] != hashed(config, *SHORT)
    assert result(tmp_path / "longer")["config_hash"] == hashed(config, *SHORT, "seed.order=1")
    assert (tmp_path / "second" / "config.yaml").read_text().count("began_otherwise") == 1


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_ended_early_ends_there_again(train: Train, tmp_path: Path, whole: Path, epochs: int) -> None:
    """Killed after `callbacks=stop_at_loss` had ended it and before its result.

    `EarlyStopping` calls the first epoch 0, its number for a run that it did not stop.
    """
    first, second, *_ = csv.DictReader((whole / "metrics.csv").open())
    assert float(second["running/loss"]) < float(first["running/loss"])
    threshold = (float(first["running/loss"]) + float(second["running/loss"])) / 2  # either is rounded as the CPU does
    threshold = threshold if epochs == 2 else 1000
    early = (*SHORT, "callbacks=stop_at_loss", f"callbacks.stop.stopping_threshold={threshold}")
    metrics = train(*early)
    assert Run(tmp_path / "run").epochs_done == epochs
    (tmp_path / "run" / RESULT).unlink()
    assert train(*early) == metrics
    assert Run(tmp_path / "run").epochs_done == epochs


def test_a_failed_run(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("train", *SMALL, *SHORT, "lr.what=1e30", "hydra.run.dir=run")
    run = Run(tmp_path / "run")
    assert (code, run.state) == (1, "failed")
    assert run.error is not None
    assert run.error.strip() in err


def test_an_error_is_its_own_runs(cli: Cli, finished: Path, tmp_path: Path) -> None:
    """A start that is refused is not the failure of the run it was refused for; other commands write none."""
    assert cli("train", *SMALL, *SHORT, "lr.what=0.1", "hydra.run.dir=run")[0] == 2
    assert not (finished / ERROR).exists()
    assert cli("predict", "ckpt_path=nowhere", "image=a.png", "number=1")[0] == 2
    assert cli("evaluate", "ckpt_path=nowhere", "hydra.run.dir=evaluation")[0] == 2
    assert not [*tmp_path.rglob(ERROR)]
    assert cli("train", *SMALL, *SHORT, "lr.what=-1", "hydra.run.dir=refused")[0] == 2
    assert "lr.what" in (tmp_path / "refused" / ERROR).read_text()
    (tmp_path / ERROR).touch()
    assert {run.folder.name for run in find_runs(tmp_path)} >= {"run", "refused"}
