"""Relative paths of commands: they start at the folder where a command is started."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.commands import Cli
from helpers.configs import composed
from helpers.settings import ALL_CHECKPOINTS, SMALL, SMALL_NUMBERS
from PIL import Image

from attnmosaic.train import train

pytestmark = pytest.mark.runs

SHORT = (*SMALL, "schedule.k=1", "schedule.epochs=2", "compute.threads=1", *ALL_CHECKPOINTS)
PHOTOS = ("experiment=stagewise", "data=image_folder", "data.foreground=[cat,dog]", "data.image_size=8", *SHORT)
CHDIR = "hydra.job.chdir=true"


def make_photos(folder: Path) -> None:
    for c, name in enumerate(("cat", "dog", "other")):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.random.default_rng([c, i]).integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with images and a run that was trained on them with relative paths."""
    folder = tmp_path_factory.mktemp("project")
    make_photos(folder / "photos")
    with contextlib.chdir(folder):
        train(composed("train", *PHOTOS, "data.root=photos", "run_dir=run"))
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a copy of the folder that a test can change, and makes it the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder)
    for file in (folder / "run" / "config.yaml", *(folder / "run" / "checkpoints").iterdir()):
        move_paths(file, str(trained), str(folder))
    monkeypatch.chdir(folder)
    return folder


def move_paths(file: Path, old: str, new: str) -> None:
    """Replaces a folder in the config of a run's file."""
    if file.suffix == ".yaml":
        file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        return
    saved = torch.load(file, weights_only=True)
    config = saved["hyper_parameters"]["config"]
    saved["hyper_parameters"]["config"] = json.loads(json.dumps(config).replace(old, new))
    torch.save(saved, file)


def metrics_of(folder: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]
    return metrics


def measured(folder: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((folder / "evaluation.json").read_text())
    return metrics


def enter_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates another folder, makes it the working directory, and returns it."""
    other = tmp_path / "else" / "where"
    other.mkdir(parents=True)
    monkeypatch.chdir(other)
    return other


def test_run_is_evaluated_and_found_from_another_folder(
    cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert yaml.safe_load((project / "run" / "config.yaml").read_text())["data"]["root"] == str(project / "photos")
    other = enter_other_folder(tmp_path, monkeypatch)
    code, _, err = cli("evaluate", "ckpt_path=../../project/run/checkpoints/last.ckpt", "hydra.run.dir=measured")
    assert code == 0, err
    assert measured(other / "measured") == metrics_of(project / "run")
    code, out, _ = cli("train", *PHOTOS, "data.root=../../project/photos", "hydra.run.dir=../../project/run")
    assert (code, "finished" in out) == (0, True)


def test_evaluation_with_moved_images(cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = enter_other_folder(tmp_path, monkeypatch)
    shutil.move(project / "photos", other / "album")
    checkpoint = f"ckpt_path={project / 'run' / 'checkpoints' / 'last.ckpt'}"
    code, _, err = cli("evaluate", checkpoint, "hydra.run.dir=lost")
    assert (code, err.count("\n"), "data.root" in err) == (2, 1, True)
    code, _, err = cli("evaluate", checkpoint, "data.root=album", "hydra.run.dir=measured")
    assert code == 0, err
    assert measured(other / "measured") == metrics_of(project / "run")


def test_run_moved_with_its_images(cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example to another machine: evaluation works without changes, and the same command resumes the run."""
    other = enter_other_folder(tmp_path, monkeypatch)
    moved = tmp_path / "moved"
    shutil.move(project, moved)
    code, _, err = cli("evaluate", f"ckpt_path={moved / 'run' / 'checkpoints' / 'last.ckpt'}", "hydra.run.dir=measured")
    assert code == 0, err
    assert measured(other / "measured") == metrics_of(moved / "run")
    monkeypatch.chdir(moved)
    (moved / "run" / "result.json").unlink()
    shutil.move(moved / "run" / "checkpoints" / "before_last.ckpt", moved / "run" / "checkpoints" / "last.ckpt")
    code, out, err = cli("train", *PHOTOS, "data.root=photos", "hydra.run.dir=run", CHDIR)
    assert code == 0, err
    assert "resuming after epoch 1 of 2" in out
    assert "resuming with another" not in out + err


LAUNCHERS = {
    "alone": (("hydra.run.dir=job",), "job"),
    "joblib": (("hydra.sweep.dir=job", "hydra.sweep.subdir=sub", "hydra/launcher=joblib", "-m"), "job/sub"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_training_with_chdir(cli: Cli, project: Path, launcher: str) -> None:
    """``hydra.job.chdir=true`` changes neither the paths that are read nor the paths that are written."""
    overrides, folder = LAUNCHERS[launcher]
    paths = ("data.root=photos", "paths.cache=cache", "ckpt_path=run/checkpoints/before_last.ckpt")
    code, out, err = cli("train", *PHOTOS, *paths, CHDIR, *overrides)
    assert code == 0, out + err
    assert metrics_of(project / folder) == metrics_of(project / "run")
    saved = yaml.safe_load((project / folder / "config.yaml").read_text())
    assert (saved["run_dir"], saved["paths"]["cache"]) == (str(project / folder), str(project / "cache"))
    assert list((project / "cache").glob("images-*.npy"))
    assert {path.name for path in project.iterdir()} == {"cache", "job", "photos", "run"}
    assert not [*(project / folder).glob("*/**/result.json")]


def test_other_commands_with_chdir(cli: Cli, project: Path) -> None:
    checkpoint = "ckpt_path=run/checkpoints/last.ckpt"
    code, _, err = cli("evaluate", checkpoint, "data.root=photos", "hydra.run.dir=measured", CHDIR)
    assert code == 0, err
    assert measured(project / "measured") == metrics_of(project / "run")
    code, _, err = cli("explain", checkpoint, "images=photos", "hydra.run.dir=explained", CHDIR)
    assert code == 0, err
    assert (project / "explained" / "explained.csv").is_file()
    train(composed("train", "experiment=mnist_sum", *SMALL_NUMBERS, "schedule.epochs=1", "run_dir=numbers"))
    overrides = ("ckpt_path=numbers/checkpoints/last.ckpt", "image=photos/cat/0.png", "number=5")
    code, out, err = cli("predict", *overrides, "hydra.run.dir=away", CHDIR)
    assert (code, "digit: " in out) == (0, True), err


def test_tilde_is_the_home_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every path, including those of Hydra."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _, err = cli("train", *SHORT, 'paths.output="~/outs"')
    assert code == 0, err
    (run,) = (tmp_path / "home" / "outs" / "gaussian").iterdir()
    checkpoint = f'ckpt_path="~/outs/gaussian/{run.name}/checkpoints/last.ckpt"'
    code, _, err = cli("evaluate", checkpoint, 'hydra.run.dir="~/e"')
    assert code == 0, err
    assert measured(tmp_path / "home" / "e") == metrics_of(run)
    code, _, err = cli("train", *SHORT, 'hydra.sweep.dir="~/sweep"', "-m")
    assert code == 0, err
    assert metrics_of(tmp_path / "home" / "sweep" / "0") == metrics_of(run)
    assert not (tmp_path / "~").exists()


def test_evaluation_finds_torchvision_data_sets(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that the run used, or in ``paths.data``."""
    from helpers.user_code import TINY_CIFAR10, TinyCifar10

    roots: list[str] = []
    original: Callable[..., None] = TinyCifar10.__init__

    def note_root(self: Any, root: str, **arguments: Any) -> None:
        roots.append(root)
        original(self, root, **arguments)

    monkeypatch.setattr(TinyCifar10, "__init__", note_root)
    train(composed("train", "experiment=stagewise", *SHORT, *TINY_CIFAR10, "paths.data=sets", "run_dir=run"))
    other = enter_other_folder(tmp_path, monkeypatch)
    checkpoint = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    for override, root in ((), tmp_path / "sets"), (("paths.data=mine",), other / "mine"):
        roots.clear()
        code, _, err = cli("evaluate", checkpoint, "trust=helpers.user_code", *override)
        assert code == 0, err
        assert {*roots} == {str(root)}
