"""The README's commands run as they stand."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Cli
from helpers.settings import ROOT, SMALL, SMALL_NUMBERS
from helpers.user_code import TINY_CIFAR10, TINY_MNIST
from PIL import Image

pytestmark = pytest.mark.runs

README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """Returns each command of the README's shell blocks, split into words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PYTHON = [words for words in commands() if words[0] == "python"]
DRAWING = {True: [pytest.mark.pictures], False: []}
MAKE = [words for words in commands() if words[0] == "make"]


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


@pytest.mark.parametrize(
    "words", [pytest.param(w, id=" ".join(w), marks=DRAWING["attnmosaic.draw" in w]) for w in PYTHON]
)
def test_python_command(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Runs it on few mosaics or images; what it takes from the user's machine is stood in for."""
    door = words[2].removeprefix("attnmosaic.")
    text = " ".join(words)
    numbers = "experiment=mnist_" in text or door == "predict"
    small = [*(SMALL_NUMBERS if numbers else SMALL), "schedule.k=1", "schedule.epochs=4"]
    if "experiment=stagewise" in words and "data=" not in text.replace("data.", ""):
        small += TINY_CIFAR10
    if "photos" in text:
        for name in ("cat", "dog", "other"):
            for i in range(5):
                (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(i).integers(256, size=(40 + i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    if "RUN/" in text:
        first = [override for override in small if not override.startswith("schedule.epochs")]
        target = ["experiment=mnist_sum"] if numbers else ["experiment=stagewise", *TINY_CIFAR10]
        assert cli("train", *target, *first, "schedule.epochs=2", "hydra.run.dir=RUN")[0] == 0
    if "mnist_and_number" in text:
        small += TINY_MNIST
        small += ["data.train_images=40"]
    if "seven.png" in text:
        Image.new("L", (50, 40), 255).save(tmp_path / "seven.png")
    if "images=album" in text:
        (tmp_path / "album").mkdir()
        Image.new("RGB", (300, 200), "orange").save(tmp_path / "album" / "beach.jpg")
    if door in ("collect", "draw", "report"):
        table = "table1" if door == "report" else "gradients"
        run = f"hydra.run.dir=outputs/{table}/joint/seed0"
        assert cli("train", "experiment=gradients/joint", *small, run)[0] == 0
    words = [word.replace("my_package.", "helpers.user_code.") for word in words]
    given = words[3:]
    if door == "train":  # Hydra takes its overrides on one side of -m alone
        given = [*given, *small] if given[:1] == ["-m"] else [*small, *given]
    if door == "evaluate":
        given = [*given, "trust=helpers.user_code"]  # what stands in for CIFAR-10
    code, out, err = cli(door, *given)
    assert code == 0, err
    told = {
        "predict": "digit: ",
        "collect": "accuracy",
        "explain": "looks at",
        "draw": "loss.png",
        "report": "report: ",
    }
    assert told.get(door, "held_out") in out


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
