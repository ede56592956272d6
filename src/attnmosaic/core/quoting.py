"""Writes commands and overrides as text that a shell and Hydra read back exactly."""

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException


def command(module: str, *words: str) -> str:
    """Returns the line that runs a command of this package, to paste into a shell.

    Args:
        module: the command's name, ``train`` say.
        words: its arguments, unquoted: overrides in Hydra's grammar, or from `path_word`.
    """
    return in_shell("python", "-m", f"attnmosaic.{module}", *words)


def typed_override(key: str, value: Any) -> str:
    """Returns the override that gives a key a value, to paste into a shell: ``'data.root="r/ünï"'``."""
    return in_shell(as_override(key, value))


def as_override(key: str, value: Any) -> str:
    """Returns the override that gives a key a value, in Hydra's grammar: ``data.root="r/ünï"``."""
    return f"{key}={in_grammar(value)}"


def in_grammar(value: Any) -> str:
    """Returns a plain value in the grammar of Hydra's overrides; text is taken literally.

    Args:
        value: text, a number, a bool, None, or a list or dict of such; a dict's keys are words.
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_grammar(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(in_grammar, value)) + "]"
    if isinstance(value, str):
        return in_quotes(literal(value)) if _needs_quotes(value) else value
    return "null" if value is None else str(value)


def in_quotes(text: str) -> str:
    """Returns text in the quotes of Hydra's grammar: ``"r/ünï"``."""
    return str(QuotedString(text, Quote.double).with_quotes())


def literal(text: str) -> str:
    r"""Returns text as OmegaConf takes it literally: ``${x}`` is an interpolation, ``\${x}`` is not."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def parsed(text: str) -> Override | None:
    """Returns an override as Hydra's parser reads it, None where it cannot."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _needs_quotes(text: str) -> bool:
    """Whether Hydra reads text as something else; in a list, where a last backslash counts, too."""
    read = parsed(f"_=[{text}]")
    return read is None or read.value() != [literal(text)]


def in_shell(*words: str) -> str:
    """Returns words quoted for a shell."""
    return shlex.join(words)


def path_word(path: str | Path) -> str:
    """Returns a path as a command's argument: ``./-x`` and ``./~``, which are neither an option nor the home folder."""
    text = str(path)
    return f"./{text}" if text.startswith(("-", "~")) else text
