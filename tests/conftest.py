"""Fixtures and settings for all tests: shape checks, small configs, and the real data if it is available."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

# Threads do not speed up small tensors, and the workers of pytest share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test run in the background of a script ignores Ctrl-C, and the commands that it starts would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Some tests run make; it must not inherit the options of `make test ARGS=...`.
for name in ("MAKEFLAGS", "ARGS"):
    os.environ.pop(name, None)

# Must precede all imports of the package: then every call checks the shapes in its signature.
install_import_hook(["attnmosaic.data", "attnmosaic.nn", "attnmosaic.metrics"], "beartype.beartype")

from helpers.commands import Cli, make_cli  # noqa: E402
from helpers.configs import composed  # noqa: E402
from helpers.settings import SMALL, SMALL_NUMBERS  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

import attnmosaic.sweeps.figures  # noqa: E402, F401  # binds draw_run before a test replaces it
from attnmosaic.core.library_internals import forkserver_pid  # noqa: E402
from attnmosaic.sweeps.fork_server import stop_server  # noqa: E402


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents tests from reading the user's cache and data folders."""
    monkeypatch.setenv("ATTNMOSAIC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ATTNMOSAIC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def kernels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of compiled kernels, which all tests share: compiling takes longer than most of them."""
    return tmp_path_factory.getbasetemp().parent / "kernels"  # the base folder is of one worker of pytest


@pytest.fixture(autouse=True)
def _shared_kernels(kernels_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnmosaic.training.convolutions.FOLDER", kernels_folder)


@pytest.fixture(autouse=True)
def _own_fork_server() -> Iterator[None]:
    """Stops a fork server that the test has started: later tests would use it, and it has this test's output."""
    before = forkserver_pid()
    yield
    if forkserver_pid() != before:
        stop_server()


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the figures, which take longer than most runs, except in tests with the mark ``pictures``."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("attnmosaic.plotting.run.draw_run", lambda *_: None)
        monkeypatch.setattr("attnmosaic.sweeps.figures.plot_sweep", lambda *_: None)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """Returns a function that composes a config like the command line, for few mosaics or images, in tmp_path."""

    def make(*overrides: str, run_dir: str = "run", name: str = "train", small: bool = True) -> DictConfig:
        numbers = any(override.startswith("experiment=mnist_") for override in overrides)
        few = (SMALL_NUMBERS if numbers else SMALL) if small else ()
        return composed(name, *few, *overrides, f"run_dir={tmp_path / run_dir}")

    return make


@pytest.fixture
def train(config: Callable[..., DictConfig]) -> Callable[..., dict[str, float]]:
    """Returns a function that trains in this process and returns the final metrics."""

    def run(*overrides: str, **kwargs: Any) -> dict[str, float]:
        from attnmosaic.train import train

        return train(config(*overrides, **kwargs))

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Returns the folder with MNIST and the JPEG copy of CIFAR-10; skips the test without it."""
    folder = os.environ.get("ATTNMOSAIC_REAL_DATA", "")
    if not folder or not Path(folder, "MNIST").is_dir():
        pytest.skip("real data are missing: set ATTNMOSAIC_REAL_DATA to a folder with MNIST/ and cifar10-jpeg.tar.xz")
    return Path(folder)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Returns a function that runs a command in an empty folder; see `helpers.commands.make_cli`."""
    monkeypatch.chdir(tmp_path)
    return make_cli(monkeypatch, capfd)
