"""The commands of README, CONTRIBUTING and docs/ run, their examples work, and their links lead somewhere."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
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
from benchmarks.__main__ import GROUPS as BENCHMARKS

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
}
TUTORIAL = "docs/tutorial.md"


def blocks(language: str, page: str) -> list[str]:
    """Returns the code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.M | re.S)


def commands_of(page: str) -> list[list[str]]:
    """Returns the commands in the shell blocks of a page, each split into words."""
    lines = "\n".join([*blocks("sh", page), *blocks("bash", page)]).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = [words for page in PAGES for words in commands_of(page)]


def started_by(words: list[str]) -> Iterator[list[str]]:
    """Yields the arguments of ``python`` in a command, which another command (srun, torchrun, ssh) may start."""
    if words[0] == "ssh":
        inner = words[2].partition(" && ")[2]
        yield from started_by(shlex.split(inner))
    elif words[0] in ("srun", "torchrun"):
        yield words[next(i for i, word in enumerate(words) if word == "-m") :]
    elif words[0] == "python":
        yield words[1:]


def distinct(commands: list[list[str]]) -> list[list[str]]:
    return [list(words) for words in dict.fromkeys(map(tuple, commands))]


PYTHON = distinct([words for command in COMMANDS for words in started_by(command)])
"""Arguments of ``python``: ``-m attnmosaic.train ...``."""
CONFIGS = {"train": TrainConfig, "evaluate": EvaluateConfig, "explain": ExplainConfig, "predict": PredictConfig}


def first_job(words: list[str]) -> list[str]:
    """Returns the arguments of a command with the first of the values that are swept."""
    return [word if "[" in word or "(" in word else word.partition(",")[0] for word in words]


def test_the_pages_have_commands() -> None:
    assert ["make", "demo"] in COMMANDS
    assert ["python", "-m", "attnmosaic.train", "experiment=stagewise", "lr.what=0.001", "-m"] in COMMANDS
    assert {words[0] for words in COMMANDS} == {
        "make", "python", "pip", "source", "tensorboard", "torchrun", "srun", "ssh", "rsync", "mkdir", "cp",
        ".venv/bin/pre-commit", "OMP_NUM_THREADS=1",
    }  # fmt: skip


def test_readme_installs_before_it_runs() -> None:
    first = [words[0] for words in commands_of("README.md")]
    assert first.index("make") < first.index("source") < first.index("pip") < first.index("python")


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Saves the examples of CONTRIBUTING in the working directory: ``my_package.py`` and a folder of configs."""
    (tmp_path / "my_package.py").write_text("\n\n".join(blocks("python", "CONTRIBUTING.md")), encoding="utf-8")
    for config in blocks("yaml", "CONTRIBUTING.md"):
        path = tmp_path / config.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True)
        path.write_text(config, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    return tmp_path


def with_examples(words: list[str], folder: Path) -> list[str]:
    """Adds the folder of configs that a command needs for the examples of CONTRIBUTING."""
    needed = {"data=rings", "model=my_where"} & {*words}
    return [*words, f"hydra.searchpath=[file://{folder}/conf]"] if needed else words


@pytest.mark.parametrize("words", [w for w in PYTHON if w[1].startswith("attnmosaic.")], ids=" ".join)
def test_a_command_composes(words: list[str], my_package: Path) -> None:
    """Every key of it is read."""
    command = words[1].removeprefix("attnmosaic.")
    if command in CONFIGS:
        overrides = [word for word in with_examples(first_job(words[2:]), my_package) if "=" in word and word[0] != "-"]
        check_keys(composed(command, *overrides), CONFIGS[command])


def images(folder: Path, names: tuple[str, ...]) -> None:
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


PRINTED = {"predict": "digit: ", "collect": "accuracy", "explain": "patch ", "draw": "loss.png", "report": "report: "}
TESTED_ELSEWHERE = r"hydra/launcher=|hydra/sweeper=|trainer=ddp|--cfg|hydra\.searchpath"
"""Launchers, searches and several processes have tests of their own."""
IN_TUTORIAL = [words for command in commands_of(TUTORIAL) for words in started_by(command)]
RUN_ALONE = [
    words
    for words in PYTHON
    if words[1].startswith("attnmosaic.")
    and words not in IN_TUTORIAL
    and not re.search(TESTED_ELSEWHERE, " ".join(words))
]
PICTURES = {True: [pytest.mark.pictures], False: []}


@pytest.mark.runs
@pytest.mark.parametrize(
    "words", [pytest.param(w, id=" ".join(w), marks=PICTURES["attnmosaic.draw" in w]) for w in RUN_ALONE]
)
def test_a_command_runs(
    cli: Cli, tmp_path: Path, my_package: Path, trained: Callable[[str], Path], words: list[str]
) -> None:
    """Runs it on few mosaics or images, one job of a sweep, on small data in place of the user's."""
    command, text = words[1].removeprefix("attnmosaic."), " ".join(words)
    numbers = "experiment=mnist_" in text or command == "predict"
    small = [*(SMALL_NUMBERS if numbers else SMALL), *SHORT]
    needs_cifar10 = re.search(r"experiment=(stagewise|table1)", text) and not re.search(r"\bdata=", text)
    small += TINY_CIFAR10 if needs_cifar10 else []
    if "mnist_and_number" in text:
        small += [*TINY_MNIST, "data.train_images=40"]
    for folder, names in {"photos": ("cat", "dog", "other"), "cifar": ("horse", "ship", "truck", "cat")}.items():
        if f"data.root={folder}" in text:
            images(tmp_path / folder, names)
            small += ["data.image_size=32"]
    if "RUN/" in text:
        shutil.copytree(trained("numbers" if numbers else "pair"), tmp_path / "RUN")
        small += ["schedule.epochs=3"]
    if "seven.png" in text:
        Image.new("L", (50, 40), 255).save(tmp_path / "seven.png")
    if "images=album" in text:
        images(tmp_path, ("album",))
    if command in ("collect", "draw", "report"):
        folder = tmp_path / next((word for word in words[2:] if not word.startswith("-")), "outputs")
        shutil.copytree(trained("table"), folder / "joint" / "seed0")
    given = with_examples(first_job(words[2:]), my_package)
    if command == "train":  # Hydra takes its overrides on one side of -m alone
        keys = {word.lstrip("+").partition("=")[0] for word in given}
        small = [word for word in small if word.partition("=")[0] not in keys - {"schedule.epochs", "schedule.k"}]
        given = [*given, *small] if given[:1] == ["-m"] else [*small, *given]
    if command == "evaluate":
        given = [*given, "trust=helpers.user_code"]  # the class in place of CIFAR-10
    code, out, err = cli(command, *given)
    assert code == 0, err
    assert PRINTED.get(command, "held_out") in out


@pytest.mark.runs
@pytest.mark.pictures
def test_the_tutorial_from_beginning_to_end(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs all commands of the tutorial in order, with fewer mosaics and epochs."""
    (script,) = blocks("python", TUTORIAL)
    exec(script, {})
    assert sum(1 for _ in tmp_path.glob("photos/*/*.png")) == 1797
    for words in commands_of(TUTORIAL):
        if words[0] in ("mkdir", "cp"):
            subprocess.run(["bash", "-c", shlex.join(words).replace("'", "")], check=True, cwd=tmp_path)
        if words[0] != "python":
            continue
        given = [re.sub(r"(_mosaics)=\d+", r"\1=60", word) for word in words[3:]]
        given = [re.sub(r"schedule\.epochs=\d+", "schedule.epochs=10", word) for word in given]
        code, _, err = cli(words[2].removeprefix("attnmosaic."), *given)
        assert code == 0, err
    assert "first" in (next(tmp_path.glob("outputs/explain/*")) / "explained.csv").read_text()
    assert (tmp_path / "runs" / "orders" / "report.html").is_file()
    assert (tmp_path / "runs" / "first" / "mosaics.png").is_file()


def test_the_example_of_python(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python", "docs/python.md")
    exec(example, {})
    focus, folder = capfd.readouterr().out.split()
    assert 0 <= float(focus) <= 1
    assert (Path(folder) / "result.json").is_file()
    assert Path(folder).parent == Path("outputs/smoke/gaussian")


def targets_of_make() -> set[str]:
    return {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)}


@pytest.mark.parametrize("words", distinct([words for words in COMMANDS if words[0] == "make"]), ids=" ".join)
def test_a_make_command(words: list[str]) -> None:
    """The target exists; running it would install everything again."""
    done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences(page: str) -> None:
    """Targets of make and modules in the text exist."""
    for target in re.findall(r"`make ([a-z0-9-]+)", PAGES[page]):
        assert target in targets_of_make(), target
    for module in re.findall(r"python -m ((?:attnmosaic|benchmarks)[\w.]*)", PAGES[page]):
        path = (ROOT if module.startswith("benchmarks") else ROOT / "src") / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for group in re.findall(r"python -m benchmarks\s+--only (\w+)", PAGES[page]):
        assert group in BENCHMARKS, group
    for path in re.findall(r"\b((?:tests|conf|src|docs|benchmarks)/[\w./-]+\.(?:py|yaml|md))`", PAGES[page]):
        assert (ROOT / path).is_file() or re.search(r"[A-Z]{3}|rings|my_where", path), path


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/config.md"])
def test_names_of_the_code_exist(page: str) -> None:
    """Such as ``runs.run.Run`` and ``attnmosaic.runs.snapshots.read_record``."""
    for name in re.findall(r"`(?:attnmosaic\.)?([a-z_]+(?:\.\w+)+)", PAGES[page]):
        package, module, *inner = name.split(".")
        file = ROOT / "src" / "attnmosaic" / package / f"{module}.py"
        if file.is_file() and inner:
            assert hasattr(importlib.import_module(f"attnmosaic.{package}.{module}"), inner[0]), name


def test_extras_that_are_installed_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for words in COMMANDS:
        if words[0] == "pip":
            for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
                assert {*extras.split(",")} <= {*project["optional-dependencies"]}


def anchors(text: str) -> set[str]:
    """Returns the addresses that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_readme_links_every_page() -> None:
    for page in PAGES:
        assert page == "README.md" or f"({page})" in PAGES["README.md"], page
