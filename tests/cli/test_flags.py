"""Flags with which commands only print: --help, --version, --cfg, --info."""

import re

import pytest
import yaml
from helpers.commands import Cli
from helpers.configs import composed

from attnmosaic import __version__

pytestmark = pytest.mark.runs

HYDRA_COMMANDS = ("train", "evaluate", "explain", "predict")
OTHER_COMMANDS = ("collect", "report", "draw")
GROUPS = {"train": ("experiment", "model", "data/weights", "scale"), "evaluate": (), "explain": (), "predict": ()}


@pytest.mark.parametrize("command", [*HYDRA_COMMANDS, *OTHER_COMMANDS])
def test_version_is_printed(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--version")
    assert code == 0
    assert out.split()[:2] == ["attnmosaic", __version__]


@pytest.mark.parametrize("command", HYDRA_COMMANDS)
def test_help_explains_every_key_in_80_columns(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert f"python -m attnmosaic.{command} " in out
    for key in map(str, composed(command)):
        assert re.search(rf"\b{key}\b", out), key
    assert [group for group in GROUPS["train"] if re.search(rf"^  {group} ", out, re.M)] == [*GROUPS[command]]
    experiments = (
        {"stagewise", "gradients/joint", "table1/row1..8", "gaussian_type1..5"} if command == "train" else set()
    )
    assert experiments <= {*out.split()}


@pytest.mark.parametrize("command", OTHER_COMMANDS)
def test_help_of_commands_without_hydra_has_80_columns(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "``" not in out


@pytest.mark.parametrize(
    ("part", "arguments"),
    [
        ("job", ("train", "experiment=table1/row3", "scale=smoke")),
        ("all", ("train", "reproduce=gradients")),
        ("all", ("train", "experiment=mnist_product", "hydra/launcher=joblib")),
        ("job", ("evaluate", "ckpt_path=last.ckpt")),
        ("job", ("explain",)),
        ("all", ("predict",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_resolved_config_has_the_folder_of_a_run_and_no_interpolation(
    cli: Cli, arguments: tuple[str, ...], part: str
) -> None:
    command, *overrides = arguments
    code, out, err = cli(command, *overrides, "--cfg", part, "--resolve")
    assert code == 0, err
    shown = yaml.safe_load(out)
    assert not any("${" in str(value) for key, value in shown.items() if key != "hydra")
    if command != "predict":
        assert shown["run_dir"].startswith("outputs/")
    if part == "all":
        assert "${" not in str(shown["hydra"]["run"])
        assert shown["hydra"]["job"]["config_name"] == command


def test_resolved_package_of_the_config_is_printed(cli: Cli) -> None:
    code, out, _ = cli("train", "hydra.run.dir=there", "--cfg", "job", "--resolve", "-p", "callbacks.last")
    assert code == 0
    assert yaml.safe_load(out)["dirpath"] == "there/checkpoints"


@pytest.mark.parametrize("topic", ["all", "plugins"])
def test_info_is_printed(cli: Cli, topic: str) -> None:
    code, out, err = cli("train", "--info", topic)
    assert (code, err) == (0, "")
    assert out.strip()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--cfg", "job", "-m"), "--multirun"),
        (("--resolve",), "--cfg"),
        (("--info", "--cfg", "job"), "--info"),
        (("--config-dir", "missing"), "missing"),
        (("--shell-completion", "x"), "install"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_wrong_flags_are_a_user_error(cli: Cli, flags: tuple[str, ...], word: str) -> None:
    code, out, err = cli("train", *flags)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert word in err
