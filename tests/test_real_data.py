"""The JPEG copy of CIFAR-10, through the commands; skips where it is absent."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from cli import Cli
from conftest import SMALL

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.real_data
def test_cifar10_as_image_folder(cli: Cli, tmp_path: Path, real_data: Path) -> None:
    """Decodes all 60,000 images, trains a little, and finds them in the cache the second time."""
    archive = real_data / "cifar10-jpeg.tar.xz"
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "cifar", filter="data")
    source = ("data=image_folder", "data.root=cifar", "data.foreground=[horse,ship,truck]")
    few = ("schedule.k=1", "schedule.epochs=2", *SMALL)
    results = []
    for name in ("first", "second"):
        code, _, err = cli("train", "experiment=stagewise", *source, *few, f"hydra.run.dir={name}")
        assert code == 0, err
        results.append(json.loads((tmp_path / name / "result.json").read_text())["metrics"])
    assert results[0] == results[1]
    cached = [torch.load(file, weights_only=True)["images"] for file in (tmp_path / "cache").glob("*.pt")]
    assert sorted(images.shape for images in cached) == [(10_000, 32, 32, 3), (50_000, 32, 32, 3)]
    assert all(images.dtype == torch.uint8 for images in cached)
    # The pixel mean of CIFAR-10's training images is about 0.473 (0.491, 0.482, 0.447 by channel).
    assert max(cached, key=len).double().mean() / 255 == pytest.approx(0.473, abs=0.005)
    assert sorted(p.name for p in (tmp_path / "cifar" / "train").iterdir()) == CLASSES
