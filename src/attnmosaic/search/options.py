"""What a search is told beside its space: ``hydra.sweeper`` of ``conf/hydra/sweeper/optuna.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attnmosaic.core.errors import UserError, not_among

NO_PRUNER = {"_target_": "optuna.pruners.NopPruner"}
DIRECTIONS = ("maximize", "minimize")
_BETTER = {
    "loss": "minimize", "accuracy": "maximize", "focus": "maximize", "ftpt": "maximize", "ffpf": "minimize",
    "foreground_weight": "maximize", "digit_accuracy": "maximize", "sum_accuracy": "maximize",
    "product_accuracy": "maximize",
}  # fmt: skip
"""Metrics of which more, or less, is better; of the others (ffpt, ftpf, confident, entropy) either may be wanted."""


@dataclass(frozen=True)
class Options:
    """Options of a search; ``conf/hydra/sweeper/optuna.yaml`` says what each means."""

    n_trials: int = 20
    n_jobs: int = 1
    direction: str | None = None
    seed: int = 0
    sampler: dict[str, Any] = field(default_factory=lambda: {"_target_": "optuna.samplers.TPESampler"})
    pruner: dict[str, Any] = field(default_factory=lambda: NO_PRUNER)
    storage: str | None = None
    study_name: str | None = None
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Options":
        """Makes options of what the config has.

        Raises:
            UserError: one of them will not do.
        """
        plain: dict[str, Any] = {
            key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in given.items()
        }
        options = cls(**{key: value for key, value in plain.items() if value is not None})
        for key, least in (("n_trials", 1), ("n_jobs", 1), ("seed", 0)):
            value = getattr(options, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(
                    f"hydra.sweeper.{key}: got {value}, needs a whole number of at least {least}; "
                    f"type for example hydra.sweeper.{key}={max(least, 4)}"
                )
        if options.direction not in (None, *DIRECTIONS):
            raise not_among("hydra.sweeper.direction", options.direction, DIRECTIONS)
        for key in ("sampler", "pruner"):
            if not isinstance(node := getattr(options, key), dict) or "_target_" not in node:
                raise UserError(f"hydra.sweeper.{key}: got {node}, needs a _target_; type for example {_GROUPS[key]}")
        return options

    def directed(self, metric: str) -> "Options":
        """Returns these options with the direction that a metric has.

        Args:
            metric: what is searched for, ``<split>/<metric>``.

        Raises:
            UserError: the direction given is the other one; or none is given, and the metric has none.
        """
        better = _BETTER.get(metric.partition("/")[2])
        key = "hydra.sweeper.direction"
        if better is None and self.direction is None:
            raise UserError(f"{key}: required for {metric}; type {' or '.join(f'{key}={word}' for word in DIRECTIONS)}")
        if better is not None and self.direction not in (None, better):
            raise UserError(f"{key}: got {self.direction}, needs {better} for {metric}; remove it from the command")
        return replace(self, direction=self.direction or better)

    def sampler_for(self, trial: int) -> Any:
        """Makes the sampler that draws a trial.

        It is made anew for each, and its randomness follows from the seed and the trial's number: there is no state
        that a search which was killed could have lost.

        Raises:
            UserError: it takes no such arguments.
        """
        import numpy as np

        seed = int(np.random.SeedSequence([self.seed, trial]).generate_state(1)[0])
        liar = {"constant_liar": True} if _class(self.sampler) == "TPESampler" and self.n_jobs > 1 else {}
        return _instantiated("sampler", {**liar, **self.sampler, "seed": seed})

    @property
    def prunes(self) -> bool:
        """Whether trials may be ended early."""
        return _class(self.pruner) != "NopPruner"

    @property
    def compares_all(self) -> bool:
        """Whether the pruner compares all trials after the same numbers of epochs."""
        return _class(self.pruner) == "HyperbandPruner"

    def make_pruner(self, longest: int, every: int | None) -> Any:
        """Instantiates the pruner.

        Args:
            longest: epochs of a trial, at most.
            every: epochs between two looks that all trials have in common; None if they have none.

        Raises:
            UserError: it takes no such arguments, or there is nothing that it could compare.
        """
        resources: dict[str, Any] = {}
        if self.compares_all:
            if every is None or every > longest // 2:
                raise UserError(
                    "hydra/sweeper/pruner: hyperband compares trials where every k has come to the end of a cycle, and "
                    f"there is no such epoch well before epoch {longest}; type hydra/sweeper/pruner=median, or search "
                    "few k that divide each other"
                )
            resources = {"min_resource": every, "max_resource": longest}
        return _instantiated("pruner", {**resources, **self.pruner})


_GROUPS = {"sampler": "hydra/sweeper/sampler=tpe", "pruner": "hydra/sweeper/pruner=median"}


def _class(node: Mapping[str, Any]) -> str:
    """Returns the name of the class that a node is of."""
    return str(node["_target_"]).rpartition(".")[2]


def _instantiated(key: str, node: Mapping[str, Any]) -> Any:
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise UserError(f"hydra.sweeper.{key}: {' '.join(str(cause).split())}") from error
