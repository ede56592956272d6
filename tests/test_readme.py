"""The commands in the README compose and run, and its links lead to existing files."""

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
    """Returns the commands in the README's shell blocks, split into words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PYTHON = [words for words in commands() if words[0] == "python"]
SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig, "explain": ExplainConfig, "predict": PredictConfig}
DRAWING = {True: [pytest.mark.pictures], False: []}
MAKE = [words for words in commands() if words[0] == "make"]


def first_job(words: list[str]) -> list[str]:
    """Returns the arguments of the first job of a sweep: the first value of each swept key."""
    return [word if "[" in word else word.partition(",")[0] for word in words]


def test_commands_are_found_in_the_readme() -> None:
    assert ["make", "demo"] in MAKE
    assert ["make", "test"] in MAKE
    assert ["python", "-m", "attnmosaic.train", "experiment=stagewise", "lr.what=0.001", "-m"] in PYTHON
    assert {words[0] for words in commands()} == {"python", "make", "source", "pip", "tensorboard"}


def test_commands_are_in_the_order_that_a_new_shell_needs() -> None:
    """The environment is created, then activated, then used."""
    first = [words[0] for words in commands()]
    assert commands()[first.index("source")] == ["source", ".venv/bin/activate"]
    assert first.index("make") < first.index("source") < first.index("pip") < first.index("python")


@pytest.mark.parametrize("words", PYTHON, ids=" ".join)
def test_python_command_composes_and_all_its_keys_are_read(words: list[str]) -> None:
    command = words[2].removeprefix("attnmosaic.")
    if command in SCHEMAS:
        check_keys(composed(command, *(word for word in first_job(words[3:]) if "=" in word)), SCHEMAS[command])


def write_photos(folder: Path, names: tuple[str, ...] = ("cat", "dog", "other")) -> None:
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
    """Returns a function that trains a run of `RUNS` once and returns its folder."""

    @cache
    def folder(name: str) -> Path:
        run = tmp_path_factory.mktemp(name) / "run"
        train(composed("train", *RUNS[name], f"run_dir={run}"))
        return run

    return folder


SHOWN = {"predict": "digit: ", "collect": "accuracy", "explain": "looks at", "draw": "loss.png", "report": "report: "}


RUN_ELSEWHERE = "hydra/launcher=joblib"  # tests/sweeps run such commands, because they start the fork server only once


@pytest.mark.runs
@pytest.mark.parametrize(
    "words",
    [pytest.param(w, id=" ".join(w), marks=DRAWING["attnmosaic.draw" in w]) for w in PYTHON if RUN_ELSEWHERE not in w],
)
def test_python_command_runs(cli: Cli, tmp_path: Path, trained: Callable[[str], Path], words: list[str]) -> None:
    """Few mosaics or images and the first job of a sweep are enough; small files replace the user's data."""
    command, text = words[2].removeprefix("attnmosaic."), " ".join(words)
    numbers = "experiment=mnist_" in text or command == "predict"
    small = [*(SMALL_NUMBERS if numbers else SMALL), *SHORT]
    if "experiment=stagewise" in words and "data=" not in text.replace("data.", ""):
        small += TINY_CIFAR10
    if "mnist_and_number" in text:
        small += [*TINY_MNIST, "data.train_images=40"]
    if "photos" in text:
        write_photos(tmp_path / "photos")
    if "RUN/" in text:
        shutil.copytree(trained("numbers" if numbers else "pair"), tmp_path / "RUN")
        small += ["schedule.epochs=3"]
    if "seven.png" in text:
        Image.new("L", (50, 40), 255).save(tmp_path / "seven.png")
    if "images=album" in text:
        write_photos(tmp_path, ("album",))
    if command in ("collect", "draw", "report"):
        table = "table1" if command == "report" else "gradients"
        shutil.copytree(trained("table"), tmp_path / "outputs" / table / "joint" / "seed0")
    arguments = [word.replace("my_package.", "helpers.user_code.") for word in first_job(words[3:])]
    if command == "train":  # Hydra accepts overrides only on one side of -m
        arguments = [*arguments, *small] if arguments[:1] == ["-m"] else [*small, *arguments]
    if command == "evaluate":
        arguments = [*arguments, "trust=helpers.user_code"]  # its data replace CIFAR-10
    code, out, err = cli(command, *arguments)
    assert code == 0, err
    assert SHOWN.get(command, "held_out") in out


@pytest.mark.parametrize("words", MAKE, ids=" ".join)
def test_make_command_has_a_target(words: list[str]) -> None:
    """A dry run: a real one would install all packages again."""
    done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_linked_files_exist() -> None:
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / path).exists(), path


def test_readme_lists_every_option_of_the_config_groups() -> None:
    for group in ("data", "model", "schedule", "objective", "optimizer", "scheduler", "debug", "experiment"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            name = re.sub(r"^gaussian_type[2-4]$", "gaussian_type1", file.stem)
            assert name in README or (name == "gaussian_type5" and "`..`5`" in README), (group, name)
