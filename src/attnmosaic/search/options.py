"""The options of a search: ``hydra.sweeper`` in ``conf/hydra/sweeper/optuna.yaml``."""

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
"""The better direction of each metric; for others (ffpt, ftpf, confident, entropy) the user must choose a direction."""


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
        """Returns these options with the direction of the optimized metric.

        Args:
            metric: the optimized metric, ``<split>/<metric>``.

        Raises:
            UserError: the options have the wrong direction for the metric, or neither the options nor the metric have
                a direction.
        """
        better = DIRECTION.get(metric.partition("/")[2])
        key = "hydra.sweeper.direction"
        if better is None and self.direction is None:
            raise UserError(f"{key}: required for {metric}; type {' or '.join(f'{key}={word}' for word in DIRECTIONS)}")
        if better is not None and self.direction not in (None, better):
            raise UserError(f"{key}: got {self.direction}, needs {better} for {metric}; remove it from the command")
        return replace(self, direction=self.direction or better)

    def sampler_for(self, trial: int) -> Any:
        """Returns the sampler of one trial, seeded with the search's seed and the trial's number.

        Each trial has a new sampler, so a killed search has no sampler state to lose.

        Raises:
            UserError: the sampler's class does not take the arguments.
        """
        seed = int(np.random.SeedSequence([self.seed, trial]).generate_state(1)[0])
        liar = {"constant_liar": True} if _class(self.sampler) == "TPESampler" and self.n_jobs > 1 else {}
        return instantiate_node("sampler", {**liar, **self.sampler, "seed": seed})

    @property
    def pruner_class(self) -> str:
        """The name of the pruner's class."""
        return _class(self.pruner)

    def pruner_node(self, longest: int, every: int) -> dict[str, Any]:
        """Returns the pruner's ``_target_`` and arguments; Hyperband also gets the range of epochs as its resource.

        Args:
            longest: epochs of the longest trial.
            every: number of epochs after which any trial of the search is at the end of a cycle.

        Raises:
            UserError: Hyperband cannot compare trials, as the longest trial has fewer than two times `every` epochs.
        """
        if self.pruner_class != "HyperbandPruner":
            return self.pruner
        if every > longest // 2:
            raise UserError(
                f"hydra/sweeper/pruner: hyperband compares trials every {every} epochs, at which cycles of every "
                f"searched schedule.k end, so it needs trials of at least {2 * every} epochs, got {longest}; type "
                "hydra/sweeper/pruner=median, or search fewer values of schedule.k that divide each other"
            )
        return {"min_resource": every, "max_resource": longest, **self.pruner}


def instantiate_node(key: str, node: Mapping[str, Any]) -> Any:
    """Instantiates the sampler or pruner of a node in ``hydra.sweeper``.

    Raises:
        UserError: the class does not take the arguments.
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
    """Returns the class name in a node's ``_target_``."""
    return str(node["_target_"]).rpartition(".")[2]
