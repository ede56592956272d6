"""Options of a search: direction, sampler, pruner, and invalid options."""

from typing import Any

import optuna
import pytest

from attnmosaic.config.digit_operations import OPERATIONS
from attnmosaic.config.schema import METRICS, two_output_metrics
from attnmosaic.core.errors import UserError
from attnmosaic.search.options import DIRECTION, Options, instantiate_node

DEFAULTS: dict[str, Any] = {
    "n_trials": 20, "n_jobs": 1, "direction": None, "seed": 0, "storage": None, "study_name": None, "params": {},
    "sampler": {"_target_": "optuna.samplers.TPESampler"}, "pruner": {"_target_": "optuna.pruners.NopPruner"},
}  # fmt: skip


def options(**changed: Any) -> Options:
    return Options(**DEFAULTS | changed)


@pytest.mark.parametrize(
    ("metric", "typed", "direction"),
    [
        ("test/loss", None, "minimize"),
        ("test/ffpf", None, "minimize"),
        ("test/accuracy", None, "maximize"),
        ("test/accuracy", "maximize", "maximize"),
        ("test/entropy", "minimize", "minimize"),
        ("test/entropy", "maximize", "maximize"),
    ],
)
def test_direction_of_a_metric(metric: str, typed: str | None, direction: str) -> None:
    assert options(direction=typed).with_direction(metric).direction == direction


def test_every_metric_has_a_direction_or_needs_one() -> None:
    every = {*METRICS, *(name for operation in OPERATIONS for name in two_output_metrics(operation))}
    assert every - DIRECTION.keys() == {"ffpt", "ftpf", "confident", "entropy"}
    assert DIRECTION.keys() <= every


@pytest.mark.parametrize(("metric", "typed"), [("test/accuracy", "minimize"), ("test/entropy", None)])
def test_wrong_or_missing_direction_is_a_user_error(metric: str, typed: str | None) -> None:
    with pytest.raises(UserError, match=r"hydra\.sweeper\.direction"):
        options(direction=typed).with_direction(metric)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_trials", 0),
        ("n_trials", None),
        ("n_jobs", 1.5),
        ("n_jobs", True),
        ("seed", -1),
        ("direction", "up"),
        ("sampler", "tpe"),
        ("pruner", {"n": 2}),
    ],
)
def test_invalid_option_is_a_user_error(key: str, value: Any) -> None:
    with pytest.raises(
        UserError, match=rf"hydra\.sweeper\.{key}: got .*{'maximize' if key == 'direction' else 'type'}"
    ):
        options(**{key: value})


@pytest.mark.parametrize(
    ("key", "target"), [("sampler", "optuna.samplers.TPESampler"), ("pruner", "optuna.pruners.MedianPruner")]
)
def test_unknown_argument_of_a_class_is_a_user_error(key: str, target: str) -> None:
    with pytest.raises(UserError, match=rf"hydra\.sweeper\.{key}: .*'n'"):
        instantiate_node(key, {"_target_": target, "n": 2})


def test_hyperband_counts_epochs() -> None:
    hyperband = options(pruner={"_target_": "optuna.pruners.HyperbandPruner", "reduction_factor": 2})
    node = hyperband.pruner_node(longest=96, every=24)
    assert (node["min_resource"], node["max_resource"], node["reduction_factor"]) == (24, 96, 2)
    assert isinstance(instantiate_node("pruner", node), optuna.pruners.HyperbandPruner)
    with pytest.raises(UserError, match="hydra/sweeper/pruner"):
        hyperband.pruner_node(longest=40, every=24)
    assert options().pruner_node(longest=40, every=24) == DEFAULTS["pruner"]
