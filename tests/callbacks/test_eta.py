"""A run logs its time left."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest


def test_time_left_is_logged(
    train: Callable[..., dict[str, float]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the second epoch of each kind of stage; the message names stages without a complete epoch."""
    caplog.set_level("INFO")
    seconds = iter(range(0, 10**6, 50))  # an epoch takes 50 s
    monkeypatch.setattr("attnmosaic.callbacks.eta.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    train("schedule.k=3", "schedule.epochs=12", "callbacks.timer=null")
    lines = [record.message for record in caplog.records if record.name.endswith("callbacks.eta")]
    # After epoch 2 four What epochs are left, after epoch 5 seven epochs.
    assert [line.split(";")[0] for line in lines] == ["3 min left for this run", "6 min left for this run"]
    assert "where" in lines[0]
    assert "where" not in lines[1]
