"""The README's commands compose and run, and what it links to exists."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Cli
from helpers.configs import composed
from helpers.settings import ROOT, SMALL, SMALL_NUMBERS
from helpers.user_code import TINY_CIFAR10, TINY_MNIST
from PIL import Image

from attnmosaic.config.keys import check_keys
from attnmosaic.config.schema import EvaluateConfig, ExplainConfig, PredictConfig, TrainConfig
from attnmosaic.train import train

README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """Returns each command of the README's shell blocks, split into words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PYTHON = [words for words in commands() if words[0] == "python"]
HYDRAS = {"train": TrainConfig, "evaluate": EvaluateConfig, "explain": ExplainConfig, "predict": PredictConfig}
DRAWING = {True: [pytest.mark.pictures], False: []}
MAKE = [words for words in commands() if words[0] == "make"]


def first_job(words: list[str]) -> list[str]:
    """Returns the arguments of a command with the first of values that are swept."""
    return [word if "[" in word else word.partition(",")[0] for word in words]


def test_there_are_commands() -> None:
    assert ["make", "demo"] in MAKE
    assert ["make", "test"] in MAKE
    assert ["python", "-m", "attnmosaic.train", "experiment=stagewise", "lr.what=0.001", "-m"] in PYTHON
    assert {words[0] for words in commands()} == {"python", "make", "source", "pip", "tensorboard"}


def test_its_order_is_that_of_a_fresh_shell() -> None:
    """What makes ``python`` the one with the package comes after what installs it, and before it is needed."""
    first = [words[0] for words in commands()]
    assert commands()[first.index("source")] == ["source", ".venv/bin/activate"]
    assert first.index("make") < first.index("source") < first.index("pip") < first.index("python")


@pytest.mark.parametrize("words", PYTHON, ids=" ".join)
def test_a_python_command_composes(words: list[str]) -> None:
    """Each of its keys is read."""
    command = words[2].removeprefix("attnmosaic.")
    if command in HYDRAS:
        check_keys(composed(command, *(word for word in first_job(words[3:]) if "=" in word)), HYDRAS[command])


def photos(folder: Path, names: tuple[str, ...] = ("cat", "dog", "other")) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.random.default_rng(i).integers(256, size=(40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")


SHORT = ("schedule.k=1", "schedule.epochs=2")
RUNS = {
    "pair": ("experiment=stagewise", *TINY_CIFAR10, *SMALL, *SHORT),
    "numbers": ("experiment=mnist_sum", *SMALL_NUMBERS, *SHORT),
    "table": ("experiment=gradients/joint", *SMALL, *SHORT),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns a function that returns the folder of one of `RUNS`, trained once."""

    @cache
    def folder(name: str) -> Path:
        run = tmp_path_factory.mktemp(name) / "run"
        train(composed("train", *RUNS[name], f"run_dir={run}"))
        return run

    return folder


SHOWN = {"predict": "digit: ", "collect": "accuracy", "explain": "attends to", "draw": "loss.png", "report": "report: "}


RUN_ELSEWHERE = "hydra/launcher=joblib"  # in tests/sweeps, which start its server once


@pytest.mark.runs
@pytest.mark.parametrize(
    "words",
    [pytest.param(w, id=" ".join(w), marks=DRAWING["attnmosaic.draw" in w]) for w in PYTHON if RUN_ELSEWHERE not in w],
)
def test_python_command(cli: Cli, tmp_path: Path, trained: Callable[[str], Path], words: list[str]) -> None:
    """Runs it on few mosaics or images, one job of a sweep; stand-ins replace what the user's machine has."""
    command, text = words[2].removeprefix("attnmosaic."), " ".join(words)
    numbers = "experiment=mnist_" in text or command == "predict"
    small = [*(SMALL_NUMBERS if numbers else SMALL), *SHORT]
    if "experiment=stagewise" in words and "data=" not in text.replace("data.", ""):
        small += TINY_CIFAR10
    if "mnist_and_number" in text:
        small += [*TINY_MNIST, "data.train_images=40"]
    if "photos" in text:
        photos(tmp_path / "photos")
    if "RUN/" in text:
        shutil.copytree(trained("numbers" if numbers else "pair"), tmp_path / "RUN")
        small += ["schedule.epochs=3"]
    if "seven.png" in text:
        Image.new("L", (50, 40), 255).save(tmp_path / "seven.png")
    if "images=album" in text:
        photos(tmp_path, ("album",))
    if command in ("collect", "draw", "report"):
        table = "table1" if command == "report" else "gradients"
        shutil.copytree(trained("table"), tmp_path / "outputs" / table / "joint" / "seed0")
    given = [word.replace("my_package.", "helpers.user_code.") for word in first_job(words[3:])]
    if command == "train":  # Hydra takes its overrides on one side of -m alone
        given = [*given, *small] if given[:1] == ["-m"] else [*small, *given]
    if command == "evaluate":
        given = [*given, "trust=helpers.user_code"]  # what stands in for CIFAR-10
    code, out, err = cli(command, *given)
    assert code == 0, err
    assert SHOWN.get(command, "held_out") in out


@pytest.mark.parametrize("words", MAKE, ids=" ".join)
def test_make_command(words: list[str]) -> None:
    """The target is there; running it would install everything anew."""
    done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_it_names_is_there() -> None:
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_config_map_names_every_choice() -> None:
    for group in ("data", "model", "schedule", "objective", "optimizer", "scheduler", "debug", "experiment"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            name = re.sub(r"^gaussian_type[2-4]$", "gaussian_type1", file.stem)
            assert name in README or (name == "gaussian_type5" and "`..`5`" in README), (group, name)
