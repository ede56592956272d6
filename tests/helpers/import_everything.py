"""Imports every module of the package and of its Hydra plugins; lists modules that cannot be imported."""

import importlib
import pkgutil
import sys
import traceback

import attnmosaic
import hydra_plugins


def failing_modules() -> list[str]:
    """Returns the names of modules that cannot be imported; prints the errors."""
    failed = []
    for package in (attnmosaic, hydra_plugins):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda name: None):
            try:
                importlib.import_module(module.name)
            except ImportError:
                traceback.print_exc()
                failed.append(module.name)
    return failed


if __name__ == "__main__":
    if failed := failing_modules():
        sys.exit(f"need more than the base dependencies: {' '.join(failed)}")
