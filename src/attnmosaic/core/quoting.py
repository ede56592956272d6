"""Formats commands and overrides so that a shell and Hydra's parser read back the same values."""

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException


def command(module: str, *words: str) -> str:
    """Returns the shell line that runs a command of this package.

    Args:
        module: the command's name, for example ``train``.
        words: its arguments without shell quotes: overrides in Hydra's grammar, or paths from `path_word`.
    """
    return in_shell("python", "-m", f"attnmosaic.{module}", *words)


def typed_override(key: str, value: Any) -> str:
    """Returns the override that sets a key, quoted for a shell: ``'data.root="r/ünï"'``."""
    return in_shell(as_override(key, value))


def as_override(key: str, value: Any) -> str:
    """Returns the override that sets a key, in Hydra's grammar: ``data.root="r/ünï"``."""
    return f"{key}={in_hydra_grammar(value)}"


def in_hydra_grammar(value: Any) -> str:
    """Returns a value in the grammar of Hydra's overrides; text has no special meaning there.

    Args:
        value: text, a number, a bool, None, or a list or dict of such values; keys of a dict are words.
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_hydra_grammar(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(in_hydra_grammar, value)) + "]"
    if isinstance(value, str):
        return in_quotes(literal(value)) if _needs_quotes(value) else value
    return "null" if value is None else str(value)


def in_quotes(text: str) -> str:
    """Returns a text in double quotes of Hydra's grammar: ``"r/ünï"``."""
    return str(QuotedString(text, Quote.double).with_quotes())


def literal(text: str) -> str:
    r"""Returns a text with its interpolations escaped for OmegaConf: ``\${x}`` for ``${x}``."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def parsed(text: str) -> Override | None:
    """Returns an override parsed by Hydra, or None if it is not valid."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _needs_quotes(text: str) -> bool:
    """Whether Hydra reads an unquoted text as another value.

    The text is parsed inside a list, because a backslash at its end changes the value only there.
    """
    read = parsed(f"_=[{text}]")
    return read is None or read.value() != [literal(text)]


def in_shell(*words: str) -> str:
    """Returns words, quoted for a shell and joined by spaces."""
    return shlex.join(words)


def path_word(path: str | Path) -> str:
    """Returns a path that no command reads as an option or home folder: ``./-x`` for ``-x``, ``./~`` for ``~``."""
    text = str(path)
    return f"./{text}" if text.startswith(("-", "~")) else text
