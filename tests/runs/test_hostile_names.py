"""Names never become paths outside a run's folder, and files from elsewhere are read only as text and numbers."""

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
def test_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^name: got .*folder.*name=mine$") as caught:
        folder_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "overrides",
    [
        ("name=../../out",),
        ("-m", "reproduce=mnist", "seed.all=0", "name=a/.."),  # A row's name is a folder below the table's folder.
    ],
    ids=["run", "table"],
)
def test_invalid_name_creates_no_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    """Hydra's own folder, which is created first, is not created either."""
    (tmp_path / "deep" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "here")
    before = everything(tmp_path)
    code, _, err = cli("train", *overrides)
    check_line(code, err, r"name: got .*folder.*name=mine")
    assert everything(tmp_path) == before


def test_invalid_name_from_python_is_refused(config: Callable[..., Any], tmp_path: Path) -> None:
    from attnmosaic.train import train

    settings = config()
    settings.name = "../x"
    with pytest.raises(UserError, match="name: got "):
        train(settings)
    assert not (tmp_path / "run").exists()


RANDOM = "attnmosaic.data.weights.RandomPatch"


def test_view_with_the_name_of_a_split_is_refused(cli: Cli) -> None:
    """Its metrics would replace those of the split."""
    code, _, err = cli("train", f"+data.views={{train:{{split:train,weights:{{_target_:{RANDOM}}}}}}}")
    check_line(code, err, r"^error: data\.views\.train: .*view")


VIEWS = ("../../x", "train", "held_out", "a/b", ".x", "a b", "a\nb", "", "x\n", "-x", "x" * 62)


def test_invalid_name_of_a_view_is_refused(config: Callable[..., Any]) -> None:
    """Most of these names cannot be typed on a command line."""
    from attnmosaic.config.validation import check

    settings = config()
    for view in VIEWS:
        with open_dict(settings):
            settings.data.views = {view: {"split": "train", "weights": {"_target_": RANDOM}}}
        with pytest.raises(UserError, match="view"):
            check(settings)


# ---- files from elsewhere


YAMLS = {
    "an object": "!!python/object/apply:os.system ['touch pwned']",
    "a name": "name: !!python/name:os.system",
    "keys": "{? [a] : b}",
}


@pytest.mark.parametrize("what", YAMLS)
def test_config_with_yaml_tags_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Nothing in the file is instantiated or executed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(YAMLS[what])
    run = Run(tmp_path)
    assert run.config is None
    assert run.problems.keys() == {"config.yaml"}
    assert not (tmp_path / "pwned").exists()


def test_error_lines_have_no_control_characters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from attnmosaic.collect import main

    with pytest.raises(SystemExit):
        main([str(tmp_path / "no\x1b[2Jsuch\nfolder")])
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.removesuffix("\n").isprintable()
    assert one_line("a\x1b[2J\n b") == "a\N{REPLACEMENT CHARACTER}[2J b"


# ---- arrays


def test_mosaics_file_with_objects_is_refused(tmp_path: Path) -> None:
    """Objects in the file are not unpickled."""
    from attnmosaic.runs.snapshots import read_record

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = tmp_path / "mosaics.npz"
    np.savez(path, classes=np.array([Evil()], dtype=object))
    with pytest.raises(UserError, match="cannot read"):
        read_record(path)
    assert not (tmp_path / "pwned").exists()
