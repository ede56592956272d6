"""Composes the configs of a sweep's jobs quickly."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.config.groups import names_in


class JobConfigs:
    """Composes the configs of a sweep's jobs, the same as ``ConfigLoader.load_sweep_config`` does.

    Hydra takes a third of a second for each job. Jobs that differ only in plain values, for example in their seeds, are
    copies of one composed config here, which takes a twentieth of that.

    Args:
        loader: Hydra's loader of configs.
        config: config of the sweep, with Hydra's section ``hydra``.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader = loader
        self._config = config
        self._composed: list[tuple[tuple[str, ...], DictConfig]] = []

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Returns the config of the job with these overrides."""
        for texts, composed in reversed(self._composed):
            if (job := _with_other_values(composed, texts, overrides)) is not None:
                OmegaConf.copy_cache(from_config=self._config, to_config=job)  # the time in names of folders
                return job
        job = self._loader.load_sweep_config(self._config, [*overrides])
        self._composed.append((tuple(overrides), job.copy()))
        return job


def _with_other_values(composed: DictConfig, before: Sequence[str], now: Sequence[str]) -> DictConfig | None:
    """Returns a copy of a composed config with other values of its overrides; None if it must be composed anew."""
    if len(before) != len(now) or any(_key(old) != _key(new) for old, new in zip(before, now, strict=True)):
        return None
    changed = {old: new for old, new in zip(before, now, strict=True) if old != new}
    job = with_overrides(composed, [*changed.values()])
    if job is not None:
        # Without resolving them, as the text of an override can hold an interpolation.
        recorded: Any = OmegaConf.to_container(job.hydra.overrides, resolve=False)
        texts = {kind: [changed.get(text, text) for text in recorded[kind]] for kind in ("task", "hydra")}
        for kind, lines in texts.items():
            job.hydra.overrides[kind] = lines
        job.hydra.job.override_dirname = _folder_name(texts["task"], job.hydra.job.config.override_dirname)
    return job


def _key(text: str) -> str:
    return text.partition("=")[0]


def with_overrides(config: DictConfig, texts: Sequence[str]) -> DictConfig | None:
    """Returns a copy of a config with other values; None if an override is not a plain ``KEY=VALUE`` of a value."""
    overrides = OverridesParser.create().parse_overrides([*texts])
    try:
        if not all(_is_plain(config, override) for override in overrides):
            return None
        other = config.copy()
        for override in overrides:
            OmegaConf.update(other, override.get_key_element(), override.value())
    except (
        OmegaConfBaseException
    ):  # for example a value of another type, which Hydra reports when it composes the config
        return None
    return other


def _is_plain(config: DictConfig, override: Override) -> bool:
    """Whether an override gives another value to a key that has a value, and does nothing else."""
    key, text = override.get_key_element(), str(override.input_line)
    if key[0] in "+~" or "@" in key or "${" in text or override.is_sweep_override():
        return False
    before = OmegaConf.select(config, key)
    # `scale` is both a key and a config group.
    return before is not None and not OmegaConf.is_config(before) and not names_in(key, ObjectType.CONFIG)


def _folder_name(texts: Sequence[str], settings: DictConfig) -> str:
    """Returns ``hydra.job.override_dirname``, which Hydra documents as part of the names of folders."""
    lines = sorted(text for text in texts if _key(text).lstrip("+~") not in settings.exclude_keys)
    return re.sub("=", settings.kv_sep, settings.item_sep.join(lines))
