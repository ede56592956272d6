"""The search space: fixed overrides and distributions, in the grammar of Hydra's overrides."""

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
    """A search space.

    Attributes:
        searched: the distribution of each searched key, as in an override (``lr.what``).
        fixed: the overrides of all trials.
    """

    searched: Mapping[str, "BaseDistribution"]
    fixed: tuple[str, ...]

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Returns the overrides of a trial with sampled parameters."""
        return [*self.fixed, *(f"{key}={params[key]}" for key in self.searched)]

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yields parameters of the first value of every key, then with each other choice or end of a range of one."""
        ends = {key: _ends(distribution) for key, distribution in self.searched.items()}
        first = {key: values[0] for key, values in ends.items()}
        yield first
        for key, values in ends.items():
            yield from ({**first, key: value} for value in values[1:])

    def integers(self, key: str) -> Sequence[int]:
        """Returns all values of a key that is searched in a range of integers; none of another key."""
        searched: Any = self.searched.get(key)
        in_range = isinstance(getattr(searched, "low", None), int)
        return range(searched.low, searched.high + 1, searched.step) if in_range else ()


def _ends(distribution: Any) -> Sequence[Any]:
    return getattr(distribution, "choices", None) or (distribution.low, distribution.high)


def parse_space(
    params: Mapping[str, Any], typed: Sequence[str], loader: Any, unused: Callable[[list[str]], Mapping[str, str]]
) -> Space:
    """Parses the search space.

    Args:
        params: values by key, of the config.
        typed: the overrides of the command line; they replace ``params``.
        loader: Hydra's config loader.
        unused: returns, for the fixed overrides, the keys that decide nothing in the runs, with the reason.

    Raises:
        UserError: no key is searched, or one cannot be.
    """
    parser = OverridesParser.create(config_loader=loader)
    own = {override.get_key_element(): override for override in parser.parse_overrides([*typed])}
    given = parser.parse_overrides([f"{key}={text}" for key, text in params.items()])
    every = {override.get_key_element(): override for override in given} | own
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in every.items() if not o.is_sweep_override()]
    reasons = unused(fixed)
    searched = {}
    for key, override in every.items():
        if override.is_sweep_override() and (key in own or key not in reasons):
            _check_key(key, reasons)
            searched[key] = _distribution(key, override)
    if not searched:
        raise UserError(
            "hydra.sweeper.params: there is nothing to search; type for example "
            "'lr.what=tag(log, interval(0.001, 0.1))'"
        )
    return Space(searched, tuple(fixed))


def _check_key(key: str, reasons: Mapping[str, str]) -> None:
    if key.startswith("seed."):
        raise UserError(
            f"{key}: a search would select the luckiest seed; search with one seed, then type the best settings with "
            f"{key}=0,1,2 -m"
        )
    if key in reasons:
        raise UserError(f"{key}: cannot be searched, {reasons[key]}; leave it out")


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
            f"'{key}=interval(low, high)' or '{key}=range(first, beyond)', in tag(log, ...) if all of it is above 0"
        ) from error


def _numbers(low: Any, high: Any, log: bool, step: Any = None) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _choices(override: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution

    words = [*dict.fromkeys(override.sweep_string_iterator())]
    try:
        return CategoricalDistribution([int(word) for word in words])
    except ValueError:
        return CategoricalDistribution(words)
