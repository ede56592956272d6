"""What a search varies, in the grammar of Hydra's overrides."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep

from attnmosaic.core.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Space:
    """What is varied, and what is the same in every trial.

    Attributes:
        searched: by key, as it stands in an override (``lr.what``), where its values come from.
        fixed: overrides that all trials have.
    """

    searched: Mapping[str, "BaseDistribution"]
    fixed: tuple[str, ...]

    def overrides(self, drawn: Mapping[str, Any]) -> list[str]:
        """Returns the overrides of a trial for what was drawn."""
        return [*self.fixed, *(f"{key}={drawn[key]}" for key in self.searched)]

    def corners(self) -> Iterable[dict[str, Any]]:
        """Yields values to try before any is drawn: each choice, both ends of whatever has ends."""
        ends = {key: list(_ends(distribution)) for key, distribution in self.searched.items()}
        first = {key: values[0] for key, values in ends.items()}
        yield first
        for key, values in ends.items():
            for value in values[1:]:
                yield {**first, key: value}

    def values(self, key: str) -> Sequence[Any]:
        """Returns all values of a key that is searched; none if they cannot be counted, or it is not."""
        distribution: Any = self.searched.get(key)
        if hasattr(distribution, "choices"):
            return list(distribution.choices)
        if isinstance(getattr(distribution, "low", None), int):
            return range(distribution.low, distribution.high + 1, distribution.step or 1)
        return ()


def parse_space(
    params: Mapping[str, Any], typed: Sequence[str], loader: Any, useless: Callable[[list[str]], Mapping[str, str]]
) -> Space:
    """Reads the space.

    Args:
        params: of the config, by key.
        typed: the command line's overrides; they replace those.
        loader: Hydra's config loader.
        useless: given all fixed overrides, tells of keys that decide nothing why they do not.

    Raises:
        UserError: there is nothing to search, or something cannot be searched.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = {o.get_key_element(): o for o in parser.parse_overrides([f"{key}={text}" for key, text in params.items()])}
    own = {override.get_key_element(): override for override in parser.parse_overrides([*typed])}
    every = given | own
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in every.items() if not o.is_sweep_override()]
    searched = {}
    idle = useless(fixed)
    for key, override in every.items():
        if not override.is_sweep_override():
            continue
        if key.startswith("seed."):
            raise UserError(
                f"{key}: a search would pick the luckiest seed; search with one, then type the best settings with "
                f"{key}=0,1,2 -m"
            )
        if key in idle and key not in own:
            continue
        if key in idle:
            raise UserError(f"{key}: cannot be searched, {idle[key]}; leave it out")
        searched[key] = _distribution(key, override)
    if not searched:
        raise UserError(
            "hydra.sweeper.params: there is nothing to search; type for example "
            "'lr.what=tag(log, interval(0.001, 0.1))'"
        )
    return Space(searched, tuple(fixed))


def _distribution(key: str, override: Override) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    sweep = override.value()
    log = isinstance(sweep, Sweep) and "log" in sweep.tags
    try:
        if isinstance(sweep, IntervalSweep):
            low, high = sweep.start, sweep.end
            assert low is not None
            assert high is not None
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{low} is no number below {high}")
            whole = isinstance(low, int) and isinstance(high, int)
            return IntDistribution(int(low), int(high), log=log) if whole else FloatDistribution(low, high, log=log)
        if isinstance(sweep, RangeSweep):
            values = sorted(sweep.range())
            if len(values) < 2:
                raise ValueError("a range of fewer than two numbers")
            step = abs(sweep.step)
            if isinstance(values[0], int):
                return IntDistribution(values[0], values[-1], log=log, step=int(step))
            return FloatDistribution(values[0], values[-1], log=log, step=float(step))
        return _choices(override, log)
    except ValueError as error:
        shown = override.input_line or key
        raise UserError(
            f"{shown}: cannot be searched ({' '.join(str(error).split())}); "
            f"type '{key}=interval(low, high)', '{key}=range(first, beyond)' or '{key}=choice(a, b)'; tag(log, ...) "
            "around it if all of it is above 0"
        ) from error


def _choices(override: Override, log: bool) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution

    if log:
        raise ValueError("choices have no logarithm")
    words = [*dict.fromkeys(override.sweep_string_iterator())]
    if len(words) < 2:
        raise ValueError("fewer than two choices")
    try:
        return CategoricalDistribution([int(word) for word in words])
    except ValueError:
        return CategoricalDistribution(words)


def _ends(distribution: Any) -> Iterable[Any]:
    choices = getattr(distribution, "choices", None)
    return choices if choices is not None else (distribution.low, distribution.high)
