"""Explains errors of Hydra and OmegaConf in one line, with what to type instead."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.config.resolution import walk
from attnmosaic.config.schema import conf_dir
from attnmosaic.core.errors import nearest, not_among
from attnmosaic.core.quoting import as_override, in_quotes, in_shell, parsed, typed_override


def explain_error(error: Exception, overrides: list[str]) -> str:
    """Returns the line that reports an error of Hydra or OmegaConf.

    Args:
        error: the error.
        overrides: the arguments on the command line.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _unknown_option(error.missing_cfg_file, error.options, overrides)
    first = str(error).partition("\n")[0]
    if swept := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", first):
        return f"{first}; add -m to run one job for each value{_as_text(swept[1], overrides)}"
    if isinstance(error, OverrideParseException):
        return _not_parsed(error, overrides)
    if "UserError raised while resolving interpolation: " in first:  # by a resolver of attnmosaic
        return first.partition(": ")[2]
    if key := re.search(r"Could not override '([\w./@]+)'", str(error)):
        return _unknown_key(key[1], overrides)
    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException):
        return " ".join(map(str.strip, str(error).splitlines()[:2]))
    if cause.full_key in _SECTIONS:
        return f"{cause.full_key}: is a section of keys; type for example {_SECTIONS[cause.full_key]}"
    return f"{f'{cause.full_key}:' if cause.full_key else first} {str(cause).splitlines()[0]}"


_SECTIONS = {
    "seed": "seed.all=1",
    "lr": "lr.what=0.01 lr.where=0.01",
    "compute": "compute.threads=1",
    "paths": "paths.data=DIR",
}
"""Sections that users mistake for keys, and an example of what to type instead."""

_FIRST_KEYS = {"train": "experiment", "evaluate": "ckpt_path", "explain": "images", "predict": "image"}
"""By command: the key that a user probably means by a word without a key."""


def _not_parsed(error: OverrideParseException, overrides: list[str]) -> str:
    if "=" not in error.override:
        example = typed_override(_FIRST_KEYS[_command()], error.override)
        return f"{error.override}: an override has the form key=value; type for example {example}"
    key, _, value = error.override.partition("=")
    list_hint = f"; quote lists: '{key}=[a,b]'" if value.lstrip().startswith("[") else ""
    reason = str(error).splitlines()[0]
    reason = "a character that needs quotes" if reason.startswith("LexerNoViableAlt") else reason
    return f"{error.override}: is not a valid override ({reason}){list_hint}{_as_text(error.override, overrides)}"


def _as_text(override: str, overrides: list[str]) -> str:
    """Returns the advice to quote an override's value, or an empty text if Hydra refuses the quoted value, too."""
    key, _, value = override.partition("=")
    quoted = f"{key}={in_quotes(value)}"  # interpolations in the value still work
    if as_override(key, value) == override or parsed(quoted) is None:
        return ""
    others = [other for other in _plain(overrides) if other != override]
    if _composed(others) and not _composed([*others, quoted]):
        return ""
    return f"; if the value is a text, type {in_shell(quoted)}"


def _unknown_option(path: str, options: Iterable[str], overrides: list[str]) -> str:
    groups = (override.partition("=")[0] for override in overrides)
    group = max((g for g in groups if path.startswith(f"{g}/")), key=len, default=path.rpartition("/")[0])
    folder = Path(conf_dir(), "experiment")  # the only group with options in subfolders
    nested = (file.relative_to(folder).with_suffix("").as_posix() for file in sorted(folder.glob("*/*.yaml")))
    allowed = [*options, *(nested if group == "experiment" else ())]
    return str(not_among(group, path.removeprefix(f"{group}/"), allowed))


def _unknown_key(key: str, overrides: list[str]) -> str:
    known = _known_keys(key, overrides)
    close = nearest(key, known)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    node = key.rpartition(".")[0]
    add_hint = f"; +{key}=... adds an argument of its _target_" if f"{node}._target_" in known else ""
    return f"{key}: there is no such config key{hint} (--cfg job lists all keys{add_hint})"


def _command() -> str:
    """Returns the name of the command's module, which is also the name of its config."""
    program = Path(sys.argv[0]).stem
    return next((name for name in _FIRST_KEYS if program.endswith(name)), "train")


def _known_keys(bad: str, overrides: list[str]) -> list[str]:
    """Returns all keys and groups of the config without the wrong override."""
    config = _composed([override for override in _plain(overrides) if not override.startswith(bad)])
    if config is None:  # another override is also wrong, so nothing can be suggested
        return []
    groups = [group for group in map(str, config.hydra.runtime.choices) if "/" not in group]
    return [*groups, *keys_of(config)]


def _plain(words: list[str]) -> list[str]:
    """Returns the words of a command line that set an existing key to one value."""
    overrides = ((word, parsed(word)) for word in words if re.match(r"[\w./@]+=", word))
    return [word for word, override in overrides if override is not None and not override.is_sweep_override()]


def _composed(overrides: list[str]) -> DictConfig | None:
    """Returns the command's config with the overrides, or None if Hydra refuses them."""
    in_use = GlobalHydra.instance().hydra  # a sweep still needs it for its other jobs
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=conf_dir(), version_base="1.3"):
            return compose(_command(), overrides, return_hydra_config=True)
    except Exception:
        return None
    finally:
        GlobalHydra.instance().hydra = in_use


def keys_of(config: DictConfig) -> list[str]:
    """Returns all keys of a composed config, including sections, without Hydra's own section."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    paths = [path for path, _ in walk(plain) if path[0] != "hydra" and not any(type(name) is int for name in path)]
    return [".".join(map(str, path)) for path in paths]
