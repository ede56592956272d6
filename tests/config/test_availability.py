"""Data that cannot be had are told at once."""

from pathlib import Path
from typing import Any

import pytest

from attnmosaic.config import availability
from attnmosaic.config.availability import check_available
from attnmosaic.core.errors import UserError

MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def section(name: str, root: Path, download: bool = True) -> dict[str, Any]:
    node = {"_target_": f"torchvision.datasets.{name}", "_partial_": True, "root": str(root), "download": download}
    return {"train_set": node, "test_set": dict(node)}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_answers", lambda address: False)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["CIFAR10", "MNIST"])
def test_absent(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=rf"{name} is not in .* cannot be downloaded .*paths\.data=DIR.*data=image_folder"
    ):
        check_available(section(name, tmp_path))
    with pytest.raises(UserError, match=r"data\.train_set\.download is false"):
        check_available(section(name, tmp_path, download=False))


@pytest.mark.usefixtures("offline")
def test_the_remedy_suits_the_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"or use other images with data=digits_and_number$"):
        check_available(section("MNIST", tmp_path) | {"operation": "sum"})


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("download", [True, False])
def test_unpacked(tmp_path: Path, download: bool) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    check_available(section("CIFAR10", tmp_path, download))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST[:3]:
        (raw / name).touch()
    with pytest.raises(UserError):
        check_available(section("MNIST", tmp_path, download))
    (raw / MNIST[3]).touch()
    check_available(section("MNIST", tmp_path, download))


@pytest.mark.usefixtures("offline")
def test_archives_are_unpacked_by_a_download_alone(tmp_path: Path) -> None:
    """As torchvision does it."""
    (tmp_path / "cifar-10-python.tar.gz").touch()
    check_available(section("CIFAR10", tmp_path))
    with pytest.raises(UserError):
        check_available(section("CIFAR10", tmp_path, download=False))


def test_a_server_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(availability, "_answers", lambda address: not asked.append(address))  # type: ignore[func-returns-value]
    check_available(section("CIFAR10", tmp_path))
    assert all("cifar-10" in address for address in asked)
    assert asked


def test_the_names_are_torchvisions() -> None:
    """Where torchvision looks, and what it downloads from."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets import MNIST as TorchvisionMNIST

    sources = availability._SOURCES
    cifar, mnist = (sources[f"torchvision.datasets.{name}"] for name in ("CIFAR10", "MNIST"))
    assert (cifar.unpacked, cifar.archives) == ([CIFAR10.base_folder], [CIFAR10.filename])
    assert [*cifar.servers] == [CIFAR10.url]
    assert [*mnist.archives] == [f"MNIST/raw/{name}" for name, _ in TorchvisionMNIST.resources]
    assert all(any(server.startswith(mirror) for mirror in TorchvisionMNIST.mirrors) for server in mnist.servers)


def test_no_answer_is_no_error() -> None:
    assert not availability._answers("http://127.0.0.1:9/nothing")


def test_other_data_are_not_looked_at() -> None:
    check_available({"root": "nowhere"})  # a data module of somebody's own
    check_available({"root": "???", "foreground": []})  # told as a key without a value
    check_available({"train_set": {"_target_": "my.Set"}, "test_set": None})
