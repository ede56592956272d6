"""Training on a GPU gives the results of the CPU; skipped without a GPU."""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers.settings import ROOT
from helpers.small_runs import fit
from omegaconf import DictConfig
from torch import Tensor

from attnmosaic.data.pool import Pool, place_pools
from attnmosaic.nn.networks import ConvNet
from attnmosaic.training import cuda_graphs, stagewise
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.steps import StepOutputs

Train = Callable[..., dict[str, float]]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("data", ["gaussian", "digits"])
def test_gpu_equals_cpu_in_float64(train: Train, data: str) -> None:
    model = "cnn" if data == "digits" else "mlp"
    settings = (f"data={data}", f"model={model}", "precision=float64", "schedule.k=2", "schedule.epochs=6")
    cpu = train(*settings, run_dir="cpu")
    gpu = train(*settings, "trainer.accelerator=gpu", run_dir="gpu")
    assert gpu == pytest.approx(cpu, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gpu_run_resumes(train: Train, precision: str, tmp_path: Path) -> None:
    settings = ("data=digits", "model=cnn", f"precision={precision}", "trainer.accelerator=gpu", "schedule.k=1")
    train(*settings, "schedule.epochs=2", run_dir="first")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    metrics = train(*settings, "schedule.epochs=4", f"ckpt_path={last}", run_dir="second")
    assert all(math.isfinite(value) for value in metrics.values())


def torch_optimizer(name: str) -> tuple[str, ...]:
    """Returns the overrides for an optimizer of torch, without the momentum that the config sets for SGD."""
    return ("optimizer=adam", *(f"optimizer.{network}._target_=torch.optim.{name}" for network in ("what", "where")))


@pytest.mark.parametrize("optimizer", ["Adam", "RMSprop", "SGD"])
@pytest.mark.parametrize(("started_on", "resumed_on"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_run_resumes_on_another_device(
    train: Train, started_on: str, resumed_on: str, optimizer: str, tmp_path: Path
) -> None:
    """The optimizer continues its count of steps on the other device."""
    settings = ("data=digits", "model=cnn", *torch_optimizer(optimizer), "precision=float64", "schedule.k=1")
    train(*settings, f"trainer.accelerator={started_on}", "schedule.epochs=2", run_dir="started")
    last = tmp_path / "started" / "checkpoints" / "last.ckpt"
    resume = ("schedule.epochs=4", f"ckpt_path={last}", f"trainer.accelerator={resumed_on}")
    moved = train(*settings, *resume, run_dir="moved")
    assert moved == pytest.approx(train(*settings, "schedule.epochs=4", run_dir="whole"), rel=1e-5, abs=1e-5)


class ForbidWaits(pl.Callback):
    """Raises an error if code waits for the device in the second block of epochs 1 and 4 (counted from 0)."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        forbidden = trainer.current_epoch in (1, 4) and batch_idx == 1
        torch.cuda.set_sync_debug_mode("error" if forbidden else "default")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def fit_without_waits(config: DictConfig) -> StagewiseModule:
    """Trains with `ForbidWaits`, and restores torch's debug mode also after an error."""
    try:
        return fit(config, ForbidWaits())
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list of the steps that are captured during the test."""
    captured_steps: list[Any] = []

    def capture(step: Callable[[], StepOutputs], stream: Any) -> Any:
        captured_steps.append(step)
        return cuda_graphs.cuda_graph(step, stream)

    monkeypatch.setattr(stagewise, "GraphedSteps", lambda steps: cuda_graphs.GraphedSteps(steps, capture))
    return captured_steps


SHORT = (
    "trainer.accelerator=gpu", "data.train_mosaics=300", "data.batch_size=10", "data.steps_per_block=10",
    "schedule.k=3", "schedule.epochs=6", "logger=none",
)  # fmt: skip
CLIPPED = "optimizer.clip_norm=0.1"
CLOSE = {"float64": 1e-10, "float32": 1e-3, "bfloat16": 1e-2}


@pytest.mark.parametrize("model", [("data=gaussian",), ("data=digits", "model=cnn")], ids=["points", "images"])
@pytest.mark.parametrize(
    ("precision", "more"),
    [
        ("float64", ()),
        ("float64", (CLIPPED,)),
        ("float64", ("optimizer=adam",)),
        ("float64", torch_optimizer("AdamW")),
        ("float64", torch_optimizer("RMSprop")),
        ("float64", ("schedule=joint",)),
        ("float32", ()),
        ("float32", (CLIPPED, "optimizer=adam")),
        ("bfloat16", ()),
        ("bfloat16", (CLIPPED,)),
        ("bfloat16", (CLIPPED, "optimizer=adam")),
    ],
)
def test_graph_steps_equal_eager_steps(
    config: Callable[..., DictConfig],
    model: tuple[str, ...],
    precision: str,
    more: tuple[str, ...],
    captured: list[Any],
) -> None:
    settings = (*model, f"precision={precision}", *more, *SHORT)
    graphed = fit_without_waits(config(*settings))
    assert len(captured) == (1 if "schedule=joint" in more else 2), "one step of each stage was captured"
    captured.clear()
    eager = fit_without_waits(config(*settings, "compute.engine=eager"))
    assert not captured
    for name in ("running/loss", "running/accuracy"):
        assert graphed.epoch_metrics[name] == pytest.approx(eager.epoch_metrics[name], rel=0.05, abs=CLOSE[precision])
    if not any("optimizer" in setting for setting in more if setting != CLIPPED):
        # The other optimizers divide by the size of a gradient and so amplify rounding of gradients that should be 0.
        for one, other in zip(graphed.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=CLOSE[precision])


@pytest.mark.parametrize("settings", [("model.what._target_=test_fake_cuda.Waiting",), torch_optimizer("Adagrad")])
def test_steps_that_cannot_be_captured_are_ordinary_steps(
    config: Callable[..., DictConfig], settings: tuple[str, ...], captured: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        module = fit(config("data=digits", "model=cnn", *settings, *SHORT))
    assert not captured
    assert "cannot be captured" in caplog.text
    assert math.isfinite(module.epoch_metrics["running/loss"])


class Synchronizing(ConvNet):
    """A network that synchronizes the device, which a capture does not allow and torch does not report as a wait."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        return super().forward(x)


def test_failed_capture_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """In a separate process, because torch's allocator can be unusable afterwards."""
    settings = ("data=digits", "model=cnn", "model.what._target_=test_gpu.Synchronizing", *SHORT)
    command = [sys.executable, "-m", "attnmosaic.train", *settings, "callbacks.pictures=null", "hydra.run.dir=run"]
    path = os.pathsep.join([str(ROOT / "tests"), str(Path(__file__).parent), *sys.path])
    completed = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert completed.returncode == 1, completed.stderr
    assert "compute.engine=eager" in completed.stderr.splitlines()[-1]
    assert "Traceback" not in completed.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_equal_one_gpu(train: Train) -> None:
    settings = ("data=digits", "model=cnn", "precision=float64", "schedule.k=1", "schedule.epochs=4", "logger=none")
    one = train(*settings, "trainer.accelerator=gpu", run_dir="one")
    two = train(*settings, "trainer=ddp", "trainer.accelerator=gpu", run_dir="two")
    assert two == pytest.approx(one, rel=1e-9, abs=1e-9)


def test_patches_from_main_memory_equal_those_on_the_device() -> None:
    """The device is busy, so that the test fails if pinned memory is reused before its copy has finished."""
    device = torch.device("cuda")
    pixels = torch.randint(256, (20_000, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pool = Pool(pixels, torch.arange(len(pixels)) % 10, tuple("0123456789"))
    (host,), (near,) = (place_pools([pool], device, torch.float32, where) for where in ("host", "device"))
    table = torch.randint(len(pool), (2000, 9), device=device)
    parts = torch.randperm(2000, device=device).split(100)
    torch.cuda._sleep(10**7)
    for part in parts:
        from_host = [host.gather(table[piece], torch.float32) for piece in part.chunk(3)]
        torch.cuda._sleep(10**6)
        assert torch.equal(torch.cat(from_host), near.gather(table[part], torch.float32))
    assert torch.equal(host.gather(table[:50], torch.float32), near.gather(table[:50], torch.float32))


@pytest.mark.parametrize("order", ["what_then_where", "joint"])
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_training_with_pool_in_main_memory_equals_pool_on_device(
    config: Callable[..., DictConfig], order: str, cache_gb: int
) -> None:
    settings = (
        "data=digits", "model=cnn", f"schedule={order}", f"compute.cache_gb={cache_gb}", "precision=float64",
        "trainer.accelerator=gpu", "data.steps_per_block=null", "schedule.k=2", "schedule.epochs=4", "logger=none",
    )  # fmt: skip
    near = fit(config(*settings, "compute.engine=eager", "compute.pool=device"))
    host = fit(config(*settings, "compute.pool=host"))
    assert host.graphed_steps is None
    assert host.mosaics["train"].pool.patches.device.type == "cpu"
    for one, other in zip(near.parameters(), host.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
