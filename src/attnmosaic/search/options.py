"""Options of a search: ``hydra.sweeper`` in ``conf/hydra/sweeper/optuna.yaml``."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from attnmosaic.core.errors import UserError, not_among

DIRECTIONS = ("maximize", "minimize")

DIRECTION = {
    "loss": "minimize", "ffpf": "minimize", "accuracy": "maximize", "focus": "maximize", "ftpt": "maximize",
    "foreground_weight": "maximize", "digit_accuracy": "maximize", "sum_accuracy": "maximize",
    "product_accuracy": "maximize",
}  # fmt: skip
"""The direction that a metric has; of the others (ffpt, ftpf, confident, entropy) a user may want either."""


@dataclass(frozen=True)
class Options:
    """The options of a search; ``conf/hydra/sweeper/optuna.yaml`` describes each.

    Raises:
        UserError: an option is invalid.
    """

    n_trials: int
    n_jobs: int
    direction: str | None
    seed: int
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    storage: str | None
    study_name: str | None
    params: dict[str, Any]

    def __post_init__(self) -> None:
        for key, least in (("n_trials", 1), ("n_jobs", 1), ("seed", 0)):
            value = getattr(self, key)
            if type(value) is not int or value < least:
                raise UserError(
                    f"hydra.sweeper.{key}: got {value}, needs a whole number of at least {least}; "
                    f"type for example hydra.sweeper.{key}={max(least, 4)}"
                )
        if self.direction not in (None, *DIRECTIONS):
            raise not_among("hydra.sweeper.direction", self.direction, DIRECTIONS)
        for key, option in (("sampler", "tpe"), ("pruner", "median")):
            if "_target_" not in (node := getattr(self, key)):
                raise UserError(
                    f"hydra.sweeper.{key}: got {node}, needs a _target_; type for example hydra/sweeper/{key}={option}"
                )

    def with_direction(self, metric: str) -> "Options":
        """Returns these options with the direction of a metric.

        Args:
            metric: the optimized metric, ``<split>/<metric>``.

        Raises:
            UserError: the given direction is the other one; or none is given, and the metric has none.
        """
        own = DIRECTION.get(metric.partition("/")[2])
        key = "hydra.sweeper.direction"
        if own is None and self.direction is None:
            raise UserError(f"{key}: required for {metric}; type {' or '.join(f'{key}={word}' for word in DIRECTIONS)}")
        if own is not None and self.direction not in (None, own):
            raise UserError(f"{key}: got {self.direction}, needs {own} for {metric}; remove it from the command")
        return replace(self, direction=self.direction or own)

    def sampler_for(self, trial: int) -> Any:
        """Returns a sampler for one trial, seeded by the search's seed and the trial's number.

        Each trial has its own, so that a killed search loses no sampler's state.

        Raises:
            UserError: the sampler takes no such arguments.
        """
        seed = int(np.random.SeedSequence([self.seed, trial]).generate_state(1)[0])
        liar = {"constant_liar": True} if _class(self.sampler) == "TPESampler" and self.n_jobs > 1 else {}
        return instantiate_node("sampler", {**liar, **self.sampler, "seed": seed})

    @property
    def pruner_class(self) -> str:
        """The name of the pruner's class."""
        return _class(self.pruner)

    def pruner_node(self, longest: int, every: int) -> dict[str, Any]:
        """Returns the pruner's ``_target_`` and arguments; Hyperband's resources are epochs.

        Args:
            longest: the most epochs that a trial has.
            every: epochs after which every possible trial is at the end of a cycle.

        Raises:
            UserError: there is no such epoch at which Hyperband could compare trials.
        """
        if self.pruner_class != "HyperbandPruner":
            return self.pruner
        if every > longest // 2:
            raise UserError(
                "hydra/sweeper/pruner: hyperband compares trials at epochs where a cycle of every k ends, and there is "
                f"none well before epoch {longest}; type hydra/sweeper/pruner=median, or search few k that divide "
                "each other"
            )
        return {"min_resource": every, "max_resource": longest, **self.pruner}


def instantiate_node(key: str, node: Mapping[str, Any]) -> Any:
    """Returns the sampler or pruner that a node of ``hydra.sweeper`` describes.

    Raises:
        UserError: its class takes no such arguments.
    """
    from optuna.exceptions import ExperimentalWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise UserError(f"hydra.sweeper.{key}: {' '.join(str(cause).split())}") from error


def _class(node: Mapping[str, Any]) -> str:
    """Returns the name of a node's class."""
    return str(node["_target_"]).rpartition(".")[2]
