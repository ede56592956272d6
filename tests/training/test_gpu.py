"""The same training on a GPU; skips where there is none."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Train = Callable[..., dict[str, float]]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("data", ["gaussian", "digits"])
def test_float64_agrees_with_the_cpu(train: Train, data: str) -> None:
    model = "cnn" if data == "digits" else "mlp"
    settings = (f"data={data}", f"model={model}", "precision=float64", "schedule.k=2", "schedule.epochs=6")
    cpu = train(*settings, run_dir="cpu")
    gpu = train(*settings, "trainer.accelerator=gpu", run_dir="gpu")
    assert gpu == pytest.approx(cpu, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_runs_and_resumes(train: Train, precision: str, tmp_path: Path) -> None:
    settings = ("data=digits", "model=cnn", f"precision={precision}", "trainer.accelerator=gpu", "schedule.k=1")
    train(*settings, "schedule.epochs=2", run_dir="first")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    metrics = train(*settings, "schedule.epochs=4", f"ckpt_path={last}", run_dir="second")
    assert all(math.isfinite(value) for value in metrics.values())
