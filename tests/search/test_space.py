"""The search space: distributions in Hydra's grammar, and the precedence of the command line."""

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from attnmosaic.core.errors import UserError
from attnmosaic.search.space import parse_space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(1,8)", FloatDistribution(1.0, 8.0)),
        ("tag(log, interval(0.001, 0.1))", FloatDistribution(0.001, 0.1, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("range(1,9,2)", IntDistribution(1, 7, step=2)),
        ("range(9,1,-2)", IntDistribution(3, 9, step=2)),
        ("range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("tag(log,range(1,17))", IntDistribution(1, 16, log=True)),
        ("1,2,4", CategoricalDistribution([1, 2, 4])),
        ("choice(a,[1,2],0.1,true,a)", CategoricalDistribution(["a", "[1,2]", "0.1", "True"])),
    ],
)
def test_distribution_of_a_key(text: str, expected: Any) -> None:
    assert parse_space({"x": text}, [], None, lambda fixed: {}).searched == {"x": expected}


def test_command_line_replaces_the_config() -> None:
    """The command line fixes a key that the config searches, adds a searched key, and replaces a distribution."""
    params = {"lr.what": "interval(1,2)", "lr.where": "interval(1,2)", "lr.network": "interval(1,2)", "scale": "smoke"}
    typed = ["lr.what=0.1", "+lr.other=choice(3,4)", "lr.where=range(1,3)"]
    space = parse_space(params, typed, None, lambda fixed: {"lr.network": "as there is none"})
    assert {*space.searched} == {"+lr.other", "lr.where"}
    assert space.overrides({"+lr.other": 3, "lr.where": 1}) == [
        "lr.what=0.1", "scale=smoke", "lr.where=1", "+lr.other=3",
    ]  # fmt: skip
    assert [*space.at_limits()] == [
        {"+lr.other": 3, "lr.where": 1}, {"+lr.other": 3, "lr.where": 2}, {"+lr.other": 4, "lr.where": 1},
    ]  # fmt: skip
    assert [*space.integers("lr.where")] == [1, 2]
    assert [*space.integers("+lr.other")] == [*space.integers("lr.what")] == []


@pytest.mark.parametrize(
    ("typed", "key", "reason"),
    [
        ("lr.what=interval(0.1,0.001)", "lr.what", "low <= high"),
        ("lr.what=tag(log,interval(0,0.1))", "lr.what", "low > 0"),
        ("lr.network=interval(0.1,1)", "lr.network", "as there is none"),
        ("seed.all=0,1", "seed.all", "seed"),
        ("lr.what=0.1", "hydra.sweeper.params", "search"),
    ],
)
def test_user_errors(typed: str, key: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_space({}, [typed], None, lambda fixed: {"lr.network": "as there is none"})
    assert str(caught.value).startswith(key)
    assert reason in str(caught.value)
