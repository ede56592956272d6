"""Which network learns when."""

import pytest

from attnmosaic.config.schedule import ORDERS, Schedule, Stage

WHAT, WHERE, JOINT = Stage.WHAT, Stage.WHERE, Stage.JOINT


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        ("what_then_where", [WHAT, WHAT, WHERE, WHERE, WHAT, WHAT, WHERE]),
        ("where_then_what", [WHERE, WHERE, WHAT, WHAT, WHERE, WHERE, WHAT]),
        ("joint", [JOINT] * 7),
        ("what_only", [WHAT] * 7),
    ],
)
def test_stage_of_each_epoch(order: str, wanted: list[Stage]) -> None:
    assert [Schedule(order, k=2, epochs=7).stage(epoch) for epoch in range(7)] == wanted


def test_what_first_is_the_published_rule() -> None:
    """`protocol.md`: What steps while epoch % 2k < k, else Where, with no idle epoch."""
    schedule = Schedule("what_then_where", k=5, epochs=180)
    assert all(schedule.stage(e) is (WHAT if e % 10 < 5 else WHERE) for e in range(180))
    assert schedule.cycle == 10


def test_learners() -> None:
    assert (WHAT.learners, WHERE.learners, JOINT.learners) == (("what",), ("where",), ("what", "where"))
    assert {stage for stages in ORDERS.values() for stage in stages} == set(Stage)
