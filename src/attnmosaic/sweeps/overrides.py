"""Parses the overrides of a sweep: which values each key is swept over.

Configs here are a sweep's, with Hydra's own section.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.groups import group_options
from attnmosaic.core.errors import UserError, nearest
from attnmosaic.core.quoting import in_shell


def expand_sweeps(config: DictConfig) -> None:
    """Replaces the globs and shuffled sweeps among a sweep's overrides by their values.

    Hydra's own glob finds the files of a group's folder, but not those of the folders in it
    (``experiment=gradients/joint``); and it shuffles each time it is asked.

    Raises:
        UserError: a glob matches nothing.
    """
    params: Any = config.hydra.sweeper.get("params") or {}
    for key, values in params.items():
        params[key] = _expanded(f"{key}={values}").partition("=")[2]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task)  # interpolations stay as they were typed
    config.hydra.overrides.task = [_expanded(text) for text in typed]


def _expanded(text: str) -> str:
    (override,) = _parsed([text])
    sweep = override.value() if override.is_sweep_override() else None
    if isinstance(sweep, Glob):
        values = _matching(override.key_or_group, sweep)
    elif getattr(sweep, "shuffle", False):
        values = _values(override)
    else:
        return text
    return f"{override.get_key_element()}={','.join(_at_least_one(override, values))}"


def _parsed(overrides: Sequence[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides([*overrides])


def _matching(group: str, glob: Glob) -> list[str]:
    """Returns the options of a group that a glob matches; a ``*`` in it stops at a ``/``, as in a shell."""

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(name.count("/") == each.count("/") and fnmatch(name, each) for each in patterns)

    names = [*group_options(group)]
    if not names:
        raise UserError(f"{group}: glob() takes the name of a group, a folder of conf/; type values: {group}=A,B")
    for pattern in glob.include:
        if not any(matches(name, [pattern]) for name in names):
            folders = dict.fromkeys(f"{name.rpartition('/')[0]}/*" for name in names if "/" in name)
            close = nearest(pattern, [*folders, *names], n=1)
            hint = f"; did you mean {in_shell(f'{group}=glob({close[0]})')}?" if close else ""
            raise UserError(f"{group}: got glob({pattern}), which matches none of {', '.join(names)}{hint}")
    return [name for name in names if matches(name, glob.include) and not matches(name, glob.exclude)]


def job_overrides(config: DictConfig) -> dict[str, list[str]]:
    """Returns the overrides of a sweep's jobs by their keys: one for all jobs, or each that a job may have.

    For an interval, which a search samples from, these are both ends.

    Raises:
        UserError: a key is swept over no value at all, or over an interval without a search.
    """
    params = [f"{key}={values}" for key, values in (config.hydra.sweeper.get("params") or {}).items()]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task)
    found = {}
    for override in _parsed([*params, *typed]):
        key = override.get_key_element()
        if override.is_interval_sweep() and is_own(config.hydra):
            raise UserError(f"{key}: an interval is for a search; type {key}=A,B, or hydra/sweeper=optuna")
        found[key] = [f"{key}={value}" for value in _at_least_one(override, _values(override))]
    return found


def _values(override: Override) -> list[str]:
    if override.is_interval_sweep():
        interval: Any = override.value()
        return [str(interval.start), str(interval.end)]
    if override.is_sweep_override():
        return [*override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def _at_least_one(override: Override, values: list[str]) -> list[str]:
    if not values:
        key, _, given = str(override.input_line).partition("=")
        raise UserError(f"{key}: got {given}, which has no values; type for example {key}=A,B")
    return values


def is_own(hydra: DictConfig) -> bool:
    """Returns whether the sweeper is Hydra's own, whose jobs are known beforehand and do not depend on each other."""
    return str(hydra.sweeper._target_).endswith("BasicSweeper")
