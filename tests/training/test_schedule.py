"""The stage of each epoch, and its training networks."""

import pytest

from attnmosaic.config.schedule import ORDERS, Schedule, Stage

WHAT, WHERE, JOINT = Stage.WHAT, Stage.WHERE, Stage.JOINT


@pytest.mark.parametrize(
    ("order", "stages"),
    [
        ("what_then_where", [WHAT, WHAT, WHERE, WHERE, WHAT, WHAT, WHERE]),
        ("where_then_what", [WHERE, WHERE, WHAT, WHAT, WHERE, WHERE, WHAT]),
        ("joint", [JOINT] * 7),
        ("what_only", [WHAT] * 7),
    ],
)
def test_stage_of_each_epoch(order: str, stages: list[Stage]) -> None:
    assert [Schedule(order, k=2, epochs=7).stage(epoch) for epoch in range(7)] == stages


def test_what_then_where_follows_the_published_rule() -> None:
    """docs/sources.md: What trains while epoch % 2k < k, otherwise Where, without an idle epoch."""
    schedule = Schedule("what_then_where", k=5, epochs=180)
    assert all(schedule.stage(e) is (WHAT if e % 10 < 5 else WHERE) for e in range(180))
    assert schedule.cycle == 10


def test_training_networks_of_each_stage() -> None:
    assert (WHAT.training_networks, WHERE.training_networks, JOINT.training_networks) == (
        ("what",),
        ("where",),
        ("what", "where"),
    )
    assert {stage for stages in ORDERS.values() for stage in stages} == set(Stage)
