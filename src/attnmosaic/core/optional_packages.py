"""Reports missing packages of an extra of ``pyproject.toml``, with the command that installs them."""

import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

from attnmosaic.core.errors import UserError


def missing_packages(key: str, extra: str) -> UserError:
    """Returns the error for a choice (``key``, as it was typed) that needs packages of an extra."""
    return UserError(f"{key}: needs packages that are not installed; type {install_command(extra)}")


def install_command(extra: str) -> str:
    """Returns the command that installs an extra's packages into the environment of this process."""
    return shlex.join([sys.executable, "-m", "pip", "install", *_packages(extra)])


def _packages(extra: str) -> list[str]:
    """Returns the extra's packages; where only the sources are on the path, the checkout with its extra."""
    try:
        declared = [Requirement(line) for line in requires("attnmosaic") or []]
    except PackageNotFoundError:
        return [f"{Path(__file__).parents[3]}[{extra}]"]
    wanted = [one for one in declared if one.marker and one.marker.evaluate({"extra": extra})]
    return [f"{one.name}{one.specifier}" for one in wanted]
