"""Errors for missing optional packages, with the command that installs them."""

import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

from attnmosaic.core.errors import UserError


def missing_packages(key: str, extra: str) -> UserError:
    """Returns the user error for an option that needs missing packages.

    Args:
        key: the option as the user types it: ``hydra/launcher=joblib``.
        extra: the extra of ``pyproject.toml`` that lists the packages.
    """
    return UserError(f"{key}: needs packages that are not installed; type {install_command(extra)}")


def install_command(extra: str) -> str:
    """Returns the command that installs an extra's packages into the environment of this process."""
    return shlex.join([sys.executable, "-m", "pip", "install", *_packages(extra)])


def _packages(extra: str) -> list[str]:
    """Returns pip's arguments for an extra: its packages, or the repository if attnmosaic itself is not installed."""
    try:
        declared = [Requirement(line) for line in requires("attnmosaic") or []]
    except PackageNotFoundError:
        return [f"{Path(__file__).parents[3]}[{extra}]"]
    of_extra = [package for package in declared if package.marker and package.marker.evaluate({"extra": extra})]
    return [f"{package.name}{package.specifier}" for package in of_extra]
