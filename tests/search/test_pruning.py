"""The callback that prunes trials: the epochs at which it reports to the study, and its decision."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from helpers.instant_searches import study_of
from optuna.trial import TrialState, create_trial

from attnmosaic.config.schedule import Schedule
from attnmosaic.core.errors import Pruned
from attnmosaic.search import search
from attnmosaic.search.pruning import Pruning
from attnmosaic.search.study import open_study
from attnmosaic.training.base import RunModule

MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1}
CYCLE = Schedule("what_then_where", 2, 12)


@pytest.fixture
def callback(tmp_path: Path) -> Pruning:
    """The callback of the second trial in a study; the first trial reported 0.8 after four epochs."""
    storage = str(tmp_path / search.JOURNAL)
    study = open_study(storage, "search", "maximize", None)
    study.add_trial(create_trial(value=0.9, intermediate_values={4: 0.8}))
    study.add_trial(create_trial(state=TrialState.RUNNING))
    return Pruning(storage, "search", 1, "test/accuracy", MEDIAN)


def end_epoch(callback: Pruning, epoch: int, value: float | None, rank: int = 0) -> None:
    metrics = {} if value is None else {"test/accuracy": value}
    module = Mock(spec=RunModule, schedule=CYCLE, epochs_done=epoch, epoch_metrics=metrics)
    callback.on_train_epoch_end(Mock(is_global_zero=rank == 0), module)


def reported_values(callback: Pruning) -> dict[int, float]:
    return study_of(Path(callback.storage).parent).trials[1].intermediate_values


def test_trial_worse_than_others_is_pruned(callback: Pruning) -> None:
    with pytest.raises(Pruned, match="after epoch 4 of 12"):
        end_epoch(callback, 4, 0.7)
    assert reported_values(callback) == {4: 0.7}


def test_trial_better_than_others_continues(callback: Pruning) -> None:
    end_epoch(callback, 4, 0.85)
    assert reported_values(callback) == {4: 0.85}


def test_resumed_run_does_not_report_again(callback: Pruning, recwarn: pytest.WarningsRecorder) -> None:
    """A run that was killed before its next checkpoint trains the same epoch again, with the same decision."""
    for _ in range(2):
        with pytest.raises(Pruned):
            end_epoch(callback, 4, 0.7)
    assert reported_values(callback) == {4: 0.7}
    assert not [*recwarn]


@pytest.mark.parametrize(
    ("epoch", "value", "rank", "every"),
    [(4, None, 0, None), (2, 0.7, 0, None), (12, 0.7, 0, None), (4, 0.7, 1, None), (4, 0.7, 0, 8)],
    ids=["not evaluated", "within a cycle", "the last epoch", "another process", "not where all cycles end"],
)
def test_epochs_without_a_report(callback: Pruning, epoch: int, value: Any, rank: int, every: int | None) -> None:
    callback.every = every
    end_epoch(callback, epoch, value, rank)
    assert reported_values(callback) == {}


def test_unreachable_study_does_not_end_a_trial(callback: Pruning) -> None:
    callback.study = "deleted"
    end_epoch(callback, 4, 0.7)
