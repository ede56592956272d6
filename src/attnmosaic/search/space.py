"""Parses the search space, which is written in Hydra's override grammar: fixed values and distributions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from attnmosaic.core.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Space:
    """A search space: keys with a fixed value, and keys with a distribution to sample from.

    Attributes:
        searched: the distributions to sample from, by key as in an override (``lr.what``).
        fixed: the overrides that all trials share.
    """

    searched: Mapping[str, "BaseDistribution"]
    fixed: tuple[str, ...]

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Returns a trial's overrides for its sampled parameters."""
        return [*self.fixed, *(f"{key}={params[key]}" for key in self.searched)]

    def at_limits(self) -> Iterator[dict[str, Any]]:
        """Yields parameters at the limits of the space, to check their configs before the first trial.

        The first yielded parameters have the first choice or lower limit of every key. Each of the others differs from
        them in one key, which has another choice or its upper limit.
        """
        limits = {key: _limits(distribution) for key, distribution in self.searched.items()}
        first = {key: values[0] for key, values in limits.items()}
        yield first
        for key, values in limits.items():
            yield from ({**first, key: value} for value in values[1:])

    def integers(self, key: str) -> Sequence[int]:
        """Returns all values of a key that is searched in a range of integers; empty for other keys."""
        searched: Any = self.searched.get(key)
        in_range = isinstance(getattr(searched, "low", None), int)
        return range(searched.low, searched.high + 1, searched.step) if in_range else ()


def _limits(distribution: Any) -> Sequence[Any]:
    """Returns all choices of a categorical distribution, or the limits of a numeric one."""
    return getattr(distribution, "choices", None) or (distribution.low, distribution.high)


def parse_space(
    params: Mapping[str, Any], typed: Sequence[str], loader: Any, unused: Callable[[list[str]], Mapping[str, str]]
) -> Space:
    """Parses overrides such as ``lr.what=interval(0.001, 0.1)`` into a search space.

    A key that the runs do not use is skipped in ``params`` and is an error on the command line.

    Args:
        params: ``hydra.sweeper.params`` of the config: values or distributions by key, as text.
        typed: the overrides of the command line, which replace ``params`` with the same key.
        loader: Hydra's config loader.
        unused: for the fixed overrides, returns the keys that the runs do not use, with the reasons.

    Raises:
        UserError: no key is searched, or a typed key cannot be searched.
    """
    parser = OverridesParser.create(config_loader=loader)
    from_typed = {override.get_key_element(): override for override in parser.parse_overrides([*typed])}
    from_params = parser.parse_overrides([f"{key}={text}" for key, text in params.items()])
    overrides = {override.get_key_element(): override for override in from_params} | from_typed
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in overrides.items() if not o.is_sweep_override()]
    reasons = unused(fixed)
    searched = {}
    for key, override in overrides.items():
        if override.is_sweep_override() and (key in from_typed or key not in reasons):
            _check_key(key, reasons)
            searched[key] = _distribution(key, override)
    if not searched:
        raise UserError(
            "hydra.sweeper.params: got no key to search; type for example 'lr.what=tag(log, interval(0.001, 0.1))'"
        )
    return Space(searched, tuple(fixed))


def _check_key(key: str, reasons: Mapping[str, str]) -> None:
    if key.startswith("seed."):
        raise UserError(
            f"{key}: cannot be searched, as the best result would come from a lucky seed; search with one seed, then "
            f"train the best settings with {key}=0,1,2 -m"
        )
    if key in reasons:
        raise UserError(f"{key}: cannot be searched, {reasons[key]}; remove it from the command")


def _distribution(key: str, override: Override) -> "BaseDistribution":
    sweep: Any = override.value()
    log = "log" in getattr(sweep, "tags", ())
    try:
        if isinstance(sweep, IntervalSweep):
            return _numbers(sweep.start, sweep.end, log)
        if isinstance(sweep, RangeSweep):
            values = sorted(sweep.range())
            return _numbers(values[0], values[-1], log, abs(sweep.step))
        return _choices(override)
    except ValueError as error:
        raise UserError(
            f"{override.input_line}: cannot be searched ({' '.join(str(error).split())}); type "
            f"'{key}=interval(LOW, HIGH)' or '{key}=range(START, STOP)', inside tag(log, ...) only if all values are "
            "above 0"
        ) from error


def _numbers(low: Any, high: Any, log: bool, step: Any = None) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _choices(override: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution

    texts = [*dict.fromkeys(override.sweep_string_iterator())]
    try:
        return CategoricalDistribution([int(text) for text in texts])
    except ValueError:
        return CategoricalDistribution(texts)
