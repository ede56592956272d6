"""Shared by all tests: shape checks on, small configs, and the real data where it is at hand."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

# Small tensors gain nothing from threads, and the workers of pytest share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background of a script, the suite ignores Ctrl-C, and so would every command that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What `make test ARGS=...` was given is not for the make that some tests run.
for name in ("MAKEFLAGS", "ARGS"):
    os.environ.pop(name, None)

# Before anything of the package is imported: every shape in a signature is then checked on every call.
install_import_hook(["attnmosaic.data", "attnmosaic.nn", "attnmosaic.metrics"], "beartype.beartype")

from helpers.commands import Cli, make_cli  # noqa: E402
from helpers.configs import composed  # noqa: E402
from helpers.settings import SMALL, SMALL_NUMBERS  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

import attnmosaic.draw  # noqa: E402, F401  # binds draw_run before a test replaces it


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a cache or data folder of the user's."""
    monkeypatch.setenv("ATTNMOSAIC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ATTNMOSAIC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than most runs of the tests: only tests that are marked ``pictures`` have them drawn."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("attnmosaic.plotting.run.draw_run", lambda folder, formats: None)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a config as the command line would, for few mosaics or images, writing under tmp_path."""

    def make(*overrides: str, run_dir: str = "run", name: str = "train", small: bool = True) -> DictConfig:
        numbers = any(override.startswith("experiment=mnist_") for override in overrides)
        few = (SMALL_NUMBERS if numbers else SMALL) if small else ()
        return composed(name, *few, *overrides, f"run_dir={tmp_path / run_dir}")

    return make


@pytest.fixture
def train(config: Callable[..., DictConfig]) -> Callable[..., dict[str, float]]:
    """Trains in this process and returns the final metrics."""

    def run(*overrides: str, **kwargs: Any) -> dict[str, float]:
        from attnmosaic.train import train

        return train(config(*overrides, **kwargs))

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real MNIST and the JPEG copy of CIFAR-10, or a skip."""
    folder = os.environ.get("ATTNMOSAIC_REAL_DATA", "")
    if not folder or not Path(folder, "MNIST").is_dir():
        pytest.skip("real data absent: set ATTNMOSAIC_REAL_DATA to a folder with MNIST/ and cifar10-jpeg.tar.xz")
    return Path(folder)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs a command in an empty folder; see `cli.make_cli`."""
    monkeypatch.chdir(tmp_path)
    return make_cli(monkeypatch, capfd)
