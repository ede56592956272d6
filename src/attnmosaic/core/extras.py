"""Packages that only some commands need, the extras of ``pyproject.toml``. Light: imports no torch."""

import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

from attnmosaic.core.errors import UserError


def missing_packages(key: str, extra: str) -> UserError:
    """Returns the error for a choice that needs packages which are not installed.

    Args:
        key: what was typed.
        extra: theirs.
    """
    return UserError(f"{key}: needs packages that are not installed; type {install_command(extra)}")


def install_command(extra: str) -> str:
    """Returns the command that installs an extra into the environment of this process, from no index of ours."""
    return shlex.join([sys.executable, "-m", "pip", "install", *_packages(extra)])


def _packages(extra: str) -> list[str]:
    """Returns what to install: the extra's packages, or of sources that are on the path alone the checkout's extra."""
    try:
        declared = [Requirement(line) for line in requires("attnmosaic") or []]
    except PackageNotFoundError:
        return [f"{Path(__file__).parents[3]}[{extra}]"]
    wanted = [one for one in declared if one.marker and one.marker.evaluate({"extra": extra})]
    return [f"{one.name}{one.specifier}" for one in wanted]
