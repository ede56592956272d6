"""Relative paths: of the folder where a command is started, wherever a run works, is measured or is moved to."""

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
from helpers.settings import SMALL, SMALL_NUMBERS
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from attnmosaic.config.identity import config_hash
from attnmosaic.config.paths import absolute, located, with_absolute_paths
from attnmosaic.config.resolution import resolve, scaled
from attnmosaic.config.schema import conf_dir, register

pytestmark = pytest.mark.runs

SHORT = (*SMALL, "schedule.k=1", "schedule.epochs=2", "compute.threads=1")
PHOTOS = ("experiment=stagewise", "data=image_folder", "data.foreground=[cat,dog]", "data.image_size=8", *SHORT)
CHDIR = "hydra.job.chdir=true"


def make_photos(folder: Path) -> None:
    for c, name in enumerate(("cat", "dog", "other")):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.random.default_rng([c, i]).integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture
def project(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and a run on them, named by relative paths; the working directory."""
    folder = tmp_path / "project"
    make_photos(folder / "photos")
    monkeypatch.chdir(folder)
    code, _, err = cli("train", *PHOTOS, "data.root=photos", "hydra.run.dir=run")
    assert code == 0, err
    return folder


def metrics_of(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]
    return found


def measured(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "evaluation.json").read_text())
    return found


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    other = tmp_path / "else" / "where"
    other.mkdir(parents=True)
    monkeypatch.chdir(other)
    return other


def test_a_run_is_measured_and_resumed_from_another_folder(
    cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers and its hash are those of a run that was started there."""
    saved = yaml.safe_load((project / "run" / "config.yaml").read_text())
    assert saved["data"]["root"] == str(project / "photos")
    other = elsewhere(tmp_path, monkeypatch)
    code, _, err = cli("evaluate", "ckpt_path=../../project/run/checkpoints/last.ckpt", "hydra.run.dir=measured")
    assert code == 0, err
    assert measured(other / "measured") == metrics_of(project / "run")
    same = (*PHOTOS, "data.root=../../project/photos")
    code, out, _ = cli("train", *same, "hydra.run.dir=../../project/run")
    assert (code, "finished before" in out) == (0, True)
    assert cli("train", *same, "hydra.run.dir=run")[0] == 0
    hashes = {json.loads((folder / "run" / "result.json").read_text())["config_hash"] for folder in (project, other)}
    assert len(hashes) == 1


def test_images_that_were_moved(cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = elsewhere(tmp_path, monkeypatch)
    shutil.move(project / "photos", other / "album")
    checkpoint = f"ckpt_path={project / 'run' / 'checkpoints' / 'last.ckpt'}"
    code, _, err = cli("evaluate", checkpoint, "hydra.run.dir=lost")
    assert (code, err.count("\n"), "data.root" in err) == (2, 1, True)
    for number, override in enumerate(("data.root=album", "+data.root=album")):
        code, _, err = cli("evaluate", checkpoint, override, f"hydra.run.dir=measured{number}")
        assert code == 0, err
        assert measured(other / f"measured{number}") == metrics_of(project / "run")


def test_a_run_that_was_moved_with_its_images(
    cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To another machine, say: it is measured there as it is, and the same command knows it again."""
    other = elsewhere(tmp_path, monkeypatch)
    moved = tmp_path / "moved"
    shutil.move(project, moved)
    code, _, err = cli("evaluate", f"ckpt_path={moved / 'run' / 'checkpoints' / 'last.ckpt'}", "hydra.run.dir=measured")
    assert code == 0, err
    assert measured(other / "measured") == metrics_of(moved / "run")
    monkeypatch.chdir(moved)
    command = (*PHOTOS, "data.root=photos", "hydra.run.dir=run")
    code, out, err = cli("train", *command)
    assert (code, "finished before" in out) == (0, True), err
    (moved / "run" / "result.json").unlink()
    shutil.move(moved / "run" / "checkpoints" / "before_last.ckpt", moved / "run" / "checkpoints" / "last.ckpt")
    code, out, err = cli("train", *command)
    assert code == 0, err
    assert "resuming after epoch 1 of 2" in out
    assert "resuming with another" not in out + err


def test_a_checkpoint_with_a_relative_path(cli: Cli, project: Path) -> None:
    """Of earlier versions: it means the folder where it is measured."""
    file = project / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["hyper_parameters"]["config"]["data"]["root"] = "photos"
    torch.save(checkpoint, file)
    config = project / "run" / "config.yaml"
    config.write_text(config.read_text().replace(f"root: {project / 'photos'}", "root: photos"))
    code, _, err = cli("evaluate", f"ckpt_path={file}", "hydra.run.dir=measured")
    assert code == 0, err
    assert measured(project / "measured") == metrics_of(project / "run")
    code, out, _ = cli("train", *PHOTOS, "data.root=photos", "hydra.run.dir=run")
    assert (code, "finished before" in out) == (0, True)


LAUNCHERS = {
    "alone": ((), "job"),
    "basic": (("hydra.sweep.dir=job", "hydra.sweep.subdir=sub", "-m"), "job/sub"),
    "joblib": (("hydra.sweep.dir=job", "hydra.sweep.subdir=sub", "hydra/launcher=joblib", "-m"), "job/sub"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_that_change_directory(cli: Cli, project: Path, launcher: str) -> None:
    """Every path that is given is read as ever, and all that is written lies where it lies without."""
    given, folder = LAUNCHERS[launcher]
    paths = ("data.root=photos", "paths.cache=cache", "ckpt_path=run/checkpoints/before_last.ckpt")
    where = given or ("hydra.run.dir=job",)
    code, out, err = cli("train", *PHOTOS, *paths, CHDIR, *where)
    assert code == 0, out + err
    assert metrics_of(project / folder) == metrics_of(project / "run")
    saved = yaml.safe_load((project / folder / "config.yaml").read_text())
    assert (saved["run_dir"], saved["paths"]["cache"]) == (str(project / folder), str(project / "cache"))
    assert list((project / "cache").glob("images-*.pt"))
    assert {path.name for path in project.iterdir()} == {"cache", "job", "photos", "run"}
    assert not [*(project / folder).glob("*/**/result.json")]


def test_a_run_is_resumed_by_a_job_that_changes_directory(cli: Cli, project: Path) -> None:
    (project / "run" / "result.json").unlink()
    shutil.move(project / "run" / "checkpoints" / "before_last.ckpt", project / "run" / "checkpoints" / "last.ckpt")
    code, out, err = cli("train", *PHOTOS, "data.root=photos", "hydra.run.dir=run", CHDIR)
    assert code == 0, err
    assert "resuming after epoch 1 of 2" in out


def test_other_commands_that_change_directory(cli: Cli, project: Path) -> None:
    checkpoint = "ckpt_path=run/checkpoints/last.ckpt"
    code, _, err = cli("evaluate", checkpoint, "data.root=photos", "hydra.run.dir=measured", CHDIR)
    assert code == 0, err
    assert measured(project / "measured") == metrics_of(project / "run")
    code, _, err = cli("explain", checkpoint, "images=photos", "hydra.run.dir=explained", CHDIR)
    assert code == 0, err
    assert (project / "explained" / "explained.csv").is_file()
    few = (*SMALL_NUMBERS, "schedule.epochs=1", "hydra.run.dir=numbers")
    assert cli("train", "experiment=mnist_sum", *few)[0] == 0
    given = ("ckpt_path=numbers/checkpoints/last.ckpt", "image=photos/cat/0.png", "number=5")
    code, out, err = cli("predict", *given, "hydra.run.dir=away", CHDIR)
    assert (code, "digit: " in out) == (0, True), err


def test_the_home_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``~`` means it wherever a path is given, those of Hydra included."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _, err = cli("train", *SHORT, 'paths.output="~/outs"')
    assert code == 0, err
    (run,) = (tmp_path / "home" / "outs" / "gaussian").iterdir()
    code, _, err = cli(
        "evaluate", f'ckpt_path="~/outs/gaussian/{run.name}/checkpoints/last.ckpt"', 'hydra.run.dir="~/e"'
    )
    assert code == 0, err
    assert measured(tmp_path / "home" / "e") == metrics_of(run)
    code, _, err = cli("train", *SHORT, 'hydra.sweep.dir="~/sweep"', "-m")
    assert code == 0, err
    assert metrics_of(tmp_path / "home" / "sweep" / "0") == metrics_of(run)
    assert not (tmp_path / "~").exists()


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return OmegaConf.create(resolve(with_absolute_paths(scaled(compose("train", ["run_dir=run", *overrides])))))


PATHS = {
    "run_dir": ("", "run"),
    "trainer.default_root_dir": ("", "run"),
    "callbacks.last.dirpath": ("", "run/checkpoints"),
    "callbacks.tables.folder": ("", "run"),
    "logger.tensorboard.folder": ("", "run"),
    "ckpt_path": ("ckpt_path=../x.ckpt", "../x.ckpt"),
    "data.train_set.root": ("paths.data=sets/", "sets"),
    "data.test_set.root": ("data.test_set.root=sets", "sets"),
    "data.lock_dir": ("paths.cache=cache", "cache"),
    "callbacks.best.dirpath": ("+callbacks.best={_target_: x, dirpath: best}", "best"),
    "logger.csv.save_dir": ("+logger.csv={_target_: x, save_dir: logs}", "logs"),
    "trainer.profiler.dirpath": ("debug=profiler", "run"),
    "paths.output": ("paths.output=outs", "outs"),
}


@pytest.mark.parametrize("key", PATHS)
def test_every_path_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.chdir(tmp_path)
    override, wanted = PATHS[key]
    config = composed("experiment=stagewise", *filter(None, [override]))
    value: Any = config
    for name in key.split("."):
        value = value[name]
    assert value == str((tmp_path / wanted).resolve())


def test_what_is_no_relative_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("/a/b") == "/a/b"
    assert absolute("gs://bucket/run") == "gs://bucket/run"
    config = composed("+callbacks.mine={_target_: x, folder: 3, root: null}", "model.what._target_=a.b")
    assert config.callbacks.mine == {"_target_": "x", "folder": 3, "root": None}
    assert config.model.what._target_ == "a.b"


def test_the_hash_is_the_same_wherever_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder, root in ((tmp_path, "photos"), (tmp_path / "a" / "b", "../../photos/"), (tmp_path, "a/../photos")):
        monkeypatch.chdir(folder)
        config: Any = composed("data=image_folder", "data.foreground=[0,1]", f"data.root={root}")
        hashes.append(config_hash(OmegaConf.to_container(config)))
    assert len({*hashes}) == 1


def test_where_a_saved_folder_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was; or beside the run, as it was; or, if it is nowhere, as it was saved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "new" / "sets").mkdir(parents=True)
    saved = {"run_dir": "/old/runs/first", "data": {"train_set": {"root": "/old/sets"}, "test_set": None}}
    now = located(saved, tmp_path / "new" / "runs" / "first")
    assert now["data"] == {"train_set": {"root": str(tmp_path / "new" / "sets")}, "test_set": None}
    for root, found in (("/gone", "/gone"), (str(tmp_path / "there"),) * 2, ("there", str(tmp_path / "there"))):
        assert located({**saved, "data": {"root": root}}, tmp_path / "new")["data"]["root"] == found
    assert located({"data": {"root": "there"}}, tmp_path)["data"]["root"] == str(tmp_path / "there")
    assert saved["data"]["train_set"]["root"] == "/old/sets"


def test_named_data_sets_of_an_evaluation(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are where the run had them, or where ``paths.data`` says."""
    from helpers.user_code import TINY_CIFAR10, TinyCifar10

    roots: list[str] = []
    made: Callable[..., None] = TinyCifar10.__init__

    def noted(self: Any, root: str, **arguments: Any) -> None:
        roots.append(root)
        made(self, root, **arguments)

    monkeypatch.setattr(TinyCifar10, "__init__", noted)
    code, _, err = cli("train", "experiment=stagewise", *SHORT, *TINY_CIFAR10, "paths.data=sets", "hydra.run.dir=run")
    assert code == 0, err
    other = elsewhere(tmp_path, monkeypatch)
    checkpoint = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    for override, root in ((), tmp_path / "sets"), (("paths.data=mine",), other / "mine"):
        roots.clear()
        code, _, err = cli("evaluate", checkpoint, "trust=helpers.user_code", *override)
        assert code == 0, err
        assert {*roots} == {str(root)}
