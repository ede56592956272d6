"""Undocumented names of libraries that the package uses still work as expected."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
from helpers.settings import SMALL
from hydra.core.config_store import ConfigStore

from attnmosaic.core.library_internals import forget_library_configs, keep_signal_handlers

RUN = """
import sys
from attnmosaic.train import main
main()
unused = {"matplotlib", "scipy", "seaborn", "plotly", "pandas"}
print("unused:", sorted({name.split(".")[0] for name in sys.modules} & unused))
import torchmetrics.utilities.imports as imports
print("available:", bool(imports._MATPLOTLIB_AVAILABLE), bool(imports._SCIPY_AVAILABLE))
"""


@pytest.mark.runs
def test_run_without_figures_imports_no_plotting_library_and_no_scipy(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        RUN,
        *SMALL,
        "schedule.epochs=2",
        "schedule.k=1",
        "callbacks.pictures=null",
        "hydra.run.dir=run",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unused: []" in done.stdout
    assert "available: True True" in done.stdout, "later checks get the true answer"
    assert (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run").glob("*.png"))


def test_trainer_keeps_signal_handlers() -> None:
    """By default, Lightning installs its own handlers while it trains or evaluates."""
    handlers = []

    class RecordHandler(pl.Callback):
        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            handlers.append(signal.getsignal(signal.SIGTERM))

    def validate(keep: bool) -> None:
        trainer = pl.Trainer(callbacks=[RecordHandler()], logger=False, enable_progress_bar=False, accelerator="cpu")
        if keep:
            keep_signal_handlers(trainer)
        module = pl.LightningModule()
        module.validation_step = lambda batch: None  # type: ignore[method-assign]
        trainer.validate(module, [0], verbose=False)

    before = signal.getsignal(signal.SIGTERM)
    validate(keep=False)
    validate(keep=True)
    assert handlers[0] != before, "Lightning installs a handler"
    assert handlers[1] == before


def test_configs_of_plugins_are_removed() -> None:
    store = ConfigStore.instance()
    for name in ("a_plugins", "another_plugins"):
        store.store(group="hydra/launcher", name=name, node={"_target_": "a.Launcher"})
    forget_library_configs("launcher", "a_plugins", "not registered")
    assert "a_plugins.yaml" not in store.list("hydra/launcher")
    assert "another_plugins.yaml" in store.list("hydra/launcher")
    forget_library_configs("launcher", "another_plugins")


def test_fork_server_has_a_process_id() -> None:
    code = (
        "import os\nfrom multiprocessing import forkserver\n"
        "from attnmosaic.core.library_internals import forkserver_pid\n"
        "assert forkserver_pid() is None\nforkserver.ensure_running()\nos.kill(forkserver_pid(), 0)\nprint('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr
