"""Training, and what belongs to it, from a notebook or a script: no command, no job of Hydra's."""

import asyncio
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.configs import composed
from helpers.settings import ROOT, SMALL
from hydra.core.hydra_config import HydraConfig

from attnmosaic.core.errors import UserError
from attnmosaic.evaluate import evaluate
from attnmosaic.train import train

pytestmark = pytest.mark.runs

SHORT = (*SMALL, "schedule.k=1", "schedule.epochs=5", "compute.threads=1")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process, whatever was tested before in this one."""
    monkeypatch.chdir(tmp_path)
    assert not HydraConfig.initialized()
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    yield
    root.setLevel(level)


def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves logging as it is in a new process: pytest has handlers of its own."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_each_call_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Of one config that is changed in between, of the same again, and of another composition."""
    config = composed("train", *SHORT)
    folders, losses = [], []
    for seed in (0, 1, 1):
        config.seed.all = seed
        losses.append(train(config)["test/loss"])
        folders.append(Path(config.run_dir))
    other = composed("train", *SHORT)
    losses.append(train(other)["test/loss"])
    folders.append(Path(other.run_dir))
    assert len({*folders}) == 4
    assert losses[0] == losses[3] != losses[1] == losses[2]
    for folder in folders:
        assert folder.parent == Path("outputs/gaussian")
        assert {"result.json", "config.yaml", "train.log", "checkpoints"} <= {path.name for path in folder.iterdir()}


def test_a_folder_that_is_named(tmp_path: Path) -> None:
    """The finished run there is not run again; another one is refused."""
    config = composed("train", *SHORT, "run_dir=mine")
    first = train(config)
    written = (tmp_path / "mine" / "result.json").stat().st_mtime_ns
    assert train(config) == first
    assert (tmp_path / "mine" / "result.json").stat().st_mtime_ns == written
    config.lr.what = 0.5
    with pytest.raises(UserError, match="run_dir"):
        train(config)


def test_in_a_running_event_loop() -> None:
    """As a cell of a notebook is."""

    async def cell() -> dict[str, float]:
        return train(composed("train", *SHORT))

    assert 0 <= asyncio.run(cell())["held_out/focus"] <= 1


SLIPS: dict[str, tuple[str, ...]] = {
    "lr.what": ("lr.what=-1",),
    "data.root": ("experiment=stagewise", "data=image_folder", "data.root=missing", "data.foreground=[a,b]"),
    "name": ("name=../x",),
    "nowhere": ("paths.output=${nowhere}",),
    "ckpt_path": ("ckpt_path=missing.ckpt",),
    "nonsense": ("+nonsense=1",),
    "run_dir": ("run_dir=???",),
}


@pytest.mark.parametrize("key", SLIPS)
def test_an_error_is_a_users(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=re.escape(key)):
        train(composed("train", *SMALL, *SLIPS[key]))
    assert not (tmp_path / "outputs").exists()


def test_an_evaluation() -> None:
    config = composed("train", *SHORT)
    final = train(config)
    checkpoint = f"ckpt_path={config.run_dir}/checkpoints/last.ckpt"
    asked = composed("evaluate", checkpoint)
    assert evaluate(asked) == final
    assert (Path(asked.run_dir) / "evaluation.json").is_file()
    with pytest.raises(UserError, match="ckpt_path"):
        evaluate(composed("evaluate", "ckpt_path=missing.ckpt"))


def state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "precision": torch.get_float32_matmul_precision(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)],
        "logging": [(logger.level, [*logger.handlers]) for logger in map(logging.getLogger, ("", "attnmosaic"))],
    }


def test_what_it_leaves_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    unconfigured(monkeypatch)
    train(composed("train", *SHORT))  # what importing torch and Lightning leaves is not a run's
    before = state()
    train(composed("train", *SHORT, "compute.threads=2", "seed.all=3", "compute.matmul_precision=high"))
    with pytest.raises(UserError):
        train(composed("train", *SHORT, "lr.what=-1"))
    assert state() == before


@pytest.mark.parametrize(("mode", "line"), [("auto", True), ("quiet", False)])
def test_what_it_prints(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str, line: bool
) -> None:
    """As the command does where there is no terminal, and into the log of its folder."""
    unconfigured(monkeypatch)
    config = composed("train", *SHORT, f"progress={mode}")
    metrics = train(config)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{metrics['held_out/focus']:.4f}" in err
    assert ("epoch 5/5" in err) == line
    log = (Path(config.run_dir) / "train.log").read_text(encoding="utf-8")
    assert "epoch 5/5" in log
    assert f"{metrics['held_out/focus']:.4f}" in log


def test_logging_that_was_set_up_stays_as_it_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [logging.StreamHandler()]
    monkeypatch.setattr(logging.getLogger(), "handlers", mine)
    train(composed("train", *SHORT))
    assert logging.getLogger().handlers is mine
    assert len(mine) == 1
    assert capfd.readouterr() == ("", "")


def readme_examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_readmes_example(capfd: pytest.CaptureFixture[str]) -> None:
    (example,) = readme_examples()
    exec(example, {})
    focus, folder = capfd.readouterr().out.split()
    assert 0 <= float(focus) <= 1
    assert (Path(folder) / "result.json").is_file()
    assert Path(folder).parent == Path("outputs/smoke/gaussian")
