"""Names never become paths outside a run's folder, and files that others wrote are read as text and numbers alone."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import Cli, check_line
from omegaconf import open_dict

from attnmosaic.config.schema import folder_name
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.runs.run import Run

NAMES = ("../../out", "/tmp/out", "..", "a/../../b", "", "a//b", " ", "a/./b", "x" * 300, "a\\\\b", "é" * 101)


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.parts}


@pytest.mark.parametrize("name", [*NAMES, "a\nb", "a\0b", "a\x1b[2J"], ids=lambda name: ascii(name)[:20])
def test_what_is_no_folder_s_name(name: str) -> None:
    with pytest.raises(UserError, match=r"^name: got .*needs a name that a folder can have.*name=mine$") as caught:
        folder_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "given",
    [
        ("name=../../out",),
        ("-m", "reproduce=mnist", "seed.all=0", "name=a/.."),  # the rows of a table are folders in the table's
    ],
    ids=["run", "table"],
)
def test_a_name_leads_nowhere(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    """Not even Hydra's own folder is made, which comes before anything of ours."""
    (tmp_path / "deep" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "here")
    before = everything(tmp_path)
    code, _, err = cli("train", *given)
    check_line(code, err, r"name: got .*needs a name that a folder can have.*type for example name=mine")
    assert everything(tmp_path) == before


def test_a_name_from_python(config: Callable[..., Any], tmp_path: Path) -> None:
    from attnmosaic.train import train

    made = config()
    made.name = "../x"
    with pytest.raises(UserError, match="name: got "):
        train(made)
    assert not (tmp_path / "run").exists()


RANDOM = "attnmosaic.data.weights.RandomPatch"


def test_a_view_called_as_a_split(cli: Cli) -> None:
    """It would be measured in the split's place."""
    code, _, err = cli("train", f"+data.views={{train:{{split:train,weights:{{_target_:{RANDOM}}}}}}}")
    check_line(code, err, r"^error: data\.views\.train: is no name for a view")


VIEWS = ("../../x", "train", "held_out", "a/b", ".x", "a b", "a\nb", "", "x\n", "-x", "x" * 62)


def test_a_view_s_name(config: Callable[..., Any]) -> None:
    """Most of these no command line takes."""
    from attnmosaic.config.validation import check

    made = config()
    for view in VIEWS:
        with open_dict(made):
            made.data.views = {view: {"split": "train", "weights": {"_target_": RANDOM}}}
        with pytest.raises(UserError, match="is no name for a view"):
            check(made)


# ---- what others wrote


YAMLS = {
    "an object": "!!python/object/apply:os.system ['touch pwned']",
    "a name": "name: !!python/name:os.system",
    "keys": "{? [a] : b}",
}


@pytest.mark.parametrize("what", YAMLS)
def test_an_odd_config_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """It is no config, and nothing of it is instantiated."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(YAMLS[what])
    run = Run(tmp_path)
    assert run.config is None
    assert run.problems.keys() == {"config.yaml"}
    assert not (tmp_path / "pwned").exists()


def test_errors_move_no_cursor(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from attnmosaic.collect import main

    with pytest.raises(SystemExit):
        main([str(tmp_path / "no\x1b[2Jsuch\nfolder")])
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert said.removesuffix("\n").isprintable()
    assert one_line("a\x1b[2J\n b") == "a\N{REPLACEMENT CHARACTER}[2J b"


# ---- numbers


def test_an_odd_record_is_no_record(tmp_path: Path) -> None:
    """Objects in it are not unpickled."""
    from attnmosaic.runs.snapshots import read_record

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = tmp_path / "mosaics.npz"
    np.savez(path, classes=np.array([Evil()], dtype=object))
    with pytest.raises(UserError, match="no record of mosaics"):
        read_record(path)
    assert not (tmp_path / "pwned").exists()
