"""Commands on the JPEG copy of CIFAR-10 and on the real MNIST; skipped if the data are missing."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from helpers.commands import Cli
from helpers.settings import SMALL
from omegaconf import DictConfig

pytestmark = pytest.mark.runs

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.real_data
def test_cifar10_as_image_folder(cli: Cli, tmp_path: Path, real_data: Path) -> None:
    """Decodes a fifth of the images once, and trains two experiments on the cached images."""
    with tarfile.open(real_data / "cifar10-jpeg.tar.xz") as opened:
        fifth = [member for member in opened if member.name.endswith(("0.jpg", "5.jpg"))]
        opened.extractall(tmp_path / "cifar", fifth, filter="data")
    source = ("data=image_folder", "data.root=cifar")
    few = ("schedule.k=1", "schedule.epochs=2", *SMALL, "hydra.run.dir=run")
    code, _, err = cli("train", "experiment=stagewise", *source, "data.foreground=[horse,ship,truck]", *few)
    assert code == 0, err
    files = sorted((tmp_path / "cache").glob("*.npy"))
    written_at = [file.stat().st_mtime_ns for file in files]
    cached = [np.load(file) for file in files]
    assert sorted(images.shape for images in cached) == [(2_000, 32, 32, 3), (10_000, 32, 32, 3)]
    assert all(images.dtype == np.uint8 for images in cached)
    # The pixel mean of CIFAR-10's training images is about 0.473 (0.491, 0.482, 0.447 by channel).
    assert max(cached, key=len).mean() / 255 == pytest.approx(0.473, abs=0.005)
    assert sorted(p.name for p in (tmp_path / "cifar" / "train").iterdir()) == CLASSES
    code, _, err = cli("train", "experiment=averages/dataset9", *source, *few[:-1], "hydra.run.dir=average")
    assert code == 0, err
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "cache").glob("*.npy"))] == written_at
    metrics = json.loads((tmp_path / "average" / "result.json").read_text())["metrics"]
    assert metrics["dataset_9/loss"] == metrics["train/loss"] != metrics["dataset_8/loss"]


@pytest.mark.real_data
def test_mnist_and_number(cli: Cli, config: Callable[..., DictConfig], tmp_path: Path, real_data: Path) -> None:
    """All 60,000 and 10,000 images have uniform numbers; a short training run on some images reaches the accuracies."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (real_data / "MNIST" / "raw").glob("*.gz"):
        shutil.copy(path, raw)
    source = ("experiment=mnist_product", "data=mnist_and_number")
    # The data group is composed after the experiment; the experiment's operation must survive.
    composed = config(*source, small=False)
    assert composed.data.operation == "product"
    data = hydra.utils.instantiate(composed.data, _convert_="all")
    data.setup()
    assert data.image_shape == (1, 28, 28)
    for split, n in (("train", 60_000), ("test", 60_000), ("held_out", 10_000)):
        examples = data.examples[split]
        assert len(examples) == len(examples.pool) == n
        counts = torch.bincount(examples.number, minlength=10).double()
        assert ((counts - n / 10) ** 2 / (n / 10)).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    batch = data.examples["held_out"].take(torch.arange(10), torch.float32)
    assert batch.digit.tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # the first digits of MNIST's test set
    few = ("data.train_images=2000", "data.held_out_images=500", "schedule.epochs=3", "lr.network=0.003")
    code, _, err = cli("train", *source, *few, "trainer.accelerator=cpu", "hydra.run.dir=run")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["held_out/digit_accuracy"] > 0.8
    assert metrics["held_out/product_accuracy"] > 0.2
