"""A run that is started again in the same folder: finished, stopped, with other settings, or ended early."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Cli
from helpers.finished_runs import check_same
from helpers.settings import ALL_CHECKPOINTS, SMALL
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

SHORT = ("schedule.k=2", "schedule.epochs=6", "logger=none", *ALL_CHECKPOINTS)
Train = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished, uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    register()
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(conf_dir(), version_base="1.3"):
        patch.setattr("attnmosaic.plotting.run.draw_run", lambda *_: None)
        train_run(compose("train", [*SMALL, *SHORT, f"run_dir={folder}"]))
    return folder


@pytest.fixture
def finished(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of the finished run in the folder in which `train` runs."""
    return shutil.copytree(uninterrupted, tmp_path / "run")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULT).read_text())


def test_finished_run_is_not_run_again(train: Train, finished: Path) -> None:
    def modification_times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != LOCK and path.is_file()}

    before = modification_times()
    metrics = result(finished)["metrics"]
    assert train(*SHORT) == metrics
    # These settings decide no numbers.
    assert train(*SHORT, "callbacks.pictures=null", "paths.data=elsewhere") == metrics
    assert {path: modification_times()[path] for path in before} == before


class Stop(BaseException):
    """Stops a run like a kill: no handler of the run catches it."""


def _raise(*_: Any) -> None:
    raise Stop


@pytest.mark.parametrize("epoch", [3, 6])
def test_resumed_run_equals_uninterrupted_run(
    train: Train, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """The run is stopped after epoch 3, or after the last epoch and before its result is written."""
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
    assert train(*SHORT) == result(uninterrupted)["metrics"]
    check_same(uninterrupted, tmp_path / "run")
    assert Run(tmp_path / "run").state == "finished"


def test_folder_of_a_run_with_other_settings_is_refused(train: Train, finished: Path) -> None:
    before = (finished / RESULT).read_text()
    with pytest.raises(UserError, match=r"run_dir: .* other settings \(lr\.what was 0\.01, now 0\.1\)"):
        train(*SHORT, "lr.what=0.1")
    assert (finished / RESULT).read_text() == before
    (finished / RESULT).unlink()  # Checkpoints alone are protected, too.
    with pytest.raises(UserError, match="other settings"):
        train(*SHORT, "lr.what=0.1")


def test_unreadable_checkpoint_is_skipped(train: Train, finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    metrics = result(finished)["metrics"]
    (finished / RESULT).unlink()
    (finished / "checkpoints" / "last.ckpt").write_bytes(b"torn")
    assert train(*SHORT) == metrics
    (warned,) = (record.message for record in caplog.records if "last.ckpt" in record.message)
    assert "before_last.ckpt" in warned
    assert "resuming after epoch 5 of 6" in caplog.text


def hash_of(config: Callable[..., DictConfig], *overrides: str, run_dir: str = "run") -> str:
    plain: Any = OmegaConf.to_container(config(*overrides, run_dir=run_dir), resolve=True)
    return config_hash(plain)


def test_hash_includes_callbacks_that_end_a_run(config: Callable[..., DictConfig]) -> None:
    stop = "callbacks=stop_at_loss"
    assert hash_of(config) == hash_of(config, "callbacks=gradients") != hash_of(config, stop)
    assert hash_of(config, stop) == hash_of(config, stop, run_dir="other")
    assert hash_of(config, stop) != hash_of(config, stop, "callbacks.stop.stopping_threshold=0.1")


def test_run_started_from_a_checkpoint_with_other_settings_has_another_hash(
    train: Train, config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(*SHORT, "seed.order=1", "schedule.epochs=4", run_dir="first")
    checkpoint = f"ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}"
    train(*SHORT, checkpoint, run_dir="second")
    train(*SHORT, "seed.order=1", checkpoint, run_dir="longer")
    assert result(tmp_path / "second")["config_hash"] != hash_of(config, *SHORT)
    assert result(tmp_path / "longer")["config_hash"] == hash_of(config, *SHORT, "seed.order=1")
    assert (tmp_path / "second" / "config.yaml").read_text().count("began_otherwise") == 1


@pytest.mark.parametrize("epochs", [1, 2])
def test_run_that_ended_early_ends_at_the_same_epoch_again(
    train: Train, tmp_path: Path, uninterrupted: Path, epochs: int
) -> None:
    """The run is killed after `callbacks=stop_at_loss` ended it and before its result is written.

    A stop after the first epoch is a special case, as `EarlyStopping` uses 0 both for it and for a run without a stop.
    """
    first, second, *_ = csv.DictReader((uninterrupted / "metrics.csv").open())
    assert float(second["running/loss"]) < float(first["running/loss"])
    # A threshold between the two losses, as their last digits depend on the CPU.
    threshold = (float(first["running/loss"]) + float(second["running/loss"])) / 2
    threshold = threshold if epochs == 2 else 1000
    early = (*SHORT, "callbacks=stop_at_loss", f"callbacks.stop.stopping_threshold={threshold}")
    metrics = train(*early)
    assert Run(tmp_path / "run").epochs_done == epochs
    (tmp_path / "run" / RESULT).unlink()
    assert train(*early) == metrics
    assert Run(tmp_path / "run").epochs_done == epochs


def test_failed_run_keeps_its_error(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("train", *SMALL, *SHORT, "lr.what=1e30", "hydra.run.dir=run")
    run = Run(tmp_path / "run")
    assert (code, run.state) == (1, "failed")
    assert run.error is not None
    assert run.error.strip() in err


def test_error_file_is_written_only_by_its_own_run(cli: Cli, finished: Path, tmp_path: Path) -> None:
    """A command that is refused in another run's folder writes no error there; other commands write no error file."""
    assert cli("train", *SMALL, *SHORT, "lr.what=0.1", "hydra.run.dir=run")[0] == 2
    assert not (finished / ERROR).exists()
    assert cli("predict", "ckpt_path=nowhere", "image=a.png", "number=1")[0] == 2
    assert cli("evaluate", "ckpt_path=nowhere", "hydra.run.dir=evaluation")[0] == 2
    assert not [*tmp_path.rglob(ERROR)]
    assert cli("train", *SMALL, *SHORT, "lr.what=-1", "hydra.run.dir=refused")[0] == 2
    assert "lr.what" in (tmp_path / "refused" / ERROR).read_text()
    (tmp_path / ERROR).touch()
    assert {run.folder.name for run in find_runs(tmp_path)} >= {"run", "refused"}
