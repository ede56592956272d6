"""The estimate of the remaining time, from the durations of each stage's epochs in this run or in others."""

from attnmosaic.config.schedule import Schedule, Stage
from attnmosaic.runs.eta import EpochTimes, time_left

STAGES = Schedule("what_then_where", 5, 20)


def test_stages_without_a_duration_are_returned() -> None:
    times = EpochTimes()
    assert time_left(STAGES, 20) == (0, set())
    assert time_left(STAGES, 0, times) == (0, {Stage.WHAT, Stage.WHERE})
    times.add(STAGES, 0, 2, 2)
    assert time_left(STAGES, 2, times) == (3 + 5, {Stage.WHERE})


def test_epochs_of_several_stages_share_a_duration_equally() -> None:
    times = EpochTimes()
    times.add(STAGES, 3, 7, 40)
    assert time_left(STAGES, 15, times) == (50, set())
    times.add(STAGES, 0, 2, 4)
    assert time_left(STAGES, 10, times) == (5 * 6 + 5 * 10, set())
    assert times.total == 44


def test_durations_of_this_run_precede_those_of_others() -> None:
    this_run, others = EpochTimes(), EpochTimes()
    this_run.add(STAGES, 0, 1, 1)
    others.add(STAGES, 0, 1, 100)
    others.add(STAGES, 5, 6, 10)
    assert time_left(STAGES, 0, this_run, others) == (10 * 1 + 10 * 10, set())
    this_run.add_all(others)
    assert time_left(STAGES, 10, this_run) == (5 * 50.5 + 5 * 10, set())
