"""Missing data sets and folders are reported before a run begins."""

from pathlib import Path
from typing import Any

import pytest

from attnmosaic.config.availability import _FILES, check_available
from attnmosaic.core.errors import UserError


def section(name: str, root: Path, download: bool = False) -> dict[str, Any]:
    node = {"_target_": f"torchvision.datasets.{name}", "_partial_": True, "root": str(root), "download": download}
    return {"train_set": node, "test_set": dict(node)}


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST"])
def test_missing_file_of_a_data_set_is_a_user_error(tmp_path: Path, name: str) -> None:
    """Unless torchvision can download it."""
    files = [tmp_path / file for file in _FILES[f"torchvision.datasets.{name}"]]
    for file in files:
        with pytest.raises(
            UserError,
            match=rf"{name} .*data\.train_set\.download=true.*paths\.data=DIR.*data=image_folder",
        ):
            check_available(section(name, tmp_path))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    check_available(section(name, tmp_path))
    check_available(section(name, tmp_path / "nowhere", download=True))


def test_advised_data_fit_the_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=digits_and_number"):
        check_available(section("MNIST", tmp_path) | {"operation": "sum"})


def test_checked_files_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR10, MNIST

    assert _FILES["torchvision.datasets.CIFAR10"] == [CIFAR10.base_folder]
    assert [f"{file}.gz" for file in _FILES["torchvision.datasets.MNIST"]] == [
        f"MNIST/raw/{name}" for name, _ in MNIST.resources
    ]


def test_other_data_are_not_checked() -> None:
    check_available({"root": "nowhere"})  # a custom data module
    check_available({"root": "???", "foreground": []})  # reported as a key without a value
    check_available({"train_set": {"_target_": "my.Set"}, "test_set": None})
