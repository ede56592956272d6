"""Parses the overrides of a sweep: the values of each swept key.

Every config here is the config of a sweep, with Hydra's section ``hydra``.
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
    """Replaces globs and shuffled sweeps in the overrides of a sweep by their values.

    Hydra's glob finds the files in a group's folder, but not those in its subfolders (``experiment=gradients/joint``),
    and Hydra shuffles again each time the overrides are parsed.

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
    """Returns the options of a config group that a glob matches; as in a shell, ``*`` does not match a ``/``."""

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in patterns)

    names = [*group_options(group)]
    if not names:
        raise UserError(f"{group}: glob() needs a config group, which is a folder in conf/; type values: {group}=A,B")
    for pattern in glob.include:
        if not any(matches(name, [pattern]) for name in names):
            folders = dict.fromkeys(f"{name.rpartition('/')[0]}/*" for name in names if "/" in name)
            similar = nearest(pattern, [*folders, *names], n=1)
            hint = f"; did you mean {in_shell(f'{group}=glob({similar[0]})')}?" if similar else ""
            raise UserError(f"{group}: got glob({pattern}), which matches none of {', '.join(names)}{hint}")
    return [name for name in names if matches(name, glob.include) and not matches(name, glob.exclude)]


def job_overrides(config: DictConfig) -> dict[str, list[str]]:
    """Returns the overrides of a sweep's jobs by key: one override that all jobs share, or one for each swept value.

    An interval, from which a search samples, gives two overrides: one for each end.

    Raises:
        UserError: a swept key has no values, or an interval is used without a search.
    """
    params = [f"{key}={values}" for key, values in (config.hydra.sweeper.get("params") or {}).items()]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task)
    overrides_by_key = {}
    for override in _parsed([*params, *typed]):
        key = override.get_key_element()
        if override.is_interval_sweep() and uses_basic_sweeper(config.hydra):
            raise UserError(f"{key}: only a search can use an interval; type {key}=A,B or hydra/sweeper=optuna")
        overrides_by_key[key] = [f"{key}={value}" for value in _at_least_one(override, _values(override))]
    return overrides_by_key


def _values(override: Override) -> list[str]:
    if override.is_interval_sweep():
        interval: Any = override.value()
        return [str(interval.start), str(interval.end)]
    if override.is_sweep_override():
        return [*override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def _at_least_one(override: Override, values: list[str]) -> list[str]:
    if not values:
        key, _, text = str(override.input_line).partition("=")
        raise UserError(f"{key}: got {text}, which has no values; type for example {key}=A,B")
    return values


def uses_basic_sweeper(hydra: DictConfig) -> bool:
    """Returns whether the sweeper is Hydra's basic one: its jobs are known in advance and independent of each other."""
    return str(hydra.sweeper._target_).endswith("BasicSweeper")


def uses_local_launcher(hydra: DictConfig) -> bool:
    """Returns whether the launcher runs all jobs on this machine and returns after the last one."""
    return str(hydra.launcher._target_).endswith((".BasicLauncher", ".AttnmosaicLauncher"))
