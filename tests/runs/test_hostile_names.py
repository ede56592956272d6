"""Names never become paths outside a run's folder, and files that others wrote are read as text and numbers alone."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bounds import bounded
from helpers.commands import Cli, check_line
from helpers.run_folders import composed, pair_metrics, write_run
from omegaconf import open_dict

from attnmosaic.core.errors import UserError, one_line
from attnmosaic.runs.run import Run

NAMES = ("../../out", "/tmp/out", "..", "a/../../b", "", "a//b", " ", "a/./b", "x" * 300, "a\\\\b", "é" * 101)


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.parts}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_a_name_leads_nowhere(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sweep: bool
) -> None:
    """Not even Hydra's own folder is made, which comes before anything of ours."""
    (tmp_path / "deep" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "here")
    before = everything(tmp_path)
    code, _, err = cli("train", *(["-m", "seed.all=0"] if sweep else []), f"name='{name}'")
    check_line(code, err, r"name: got .*needs a name that a folder can have.*type for example name=mine")
    assert everything(tmp_path) == before


def test_a_row_s_name_leads_nowhere(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a table have folders called by it, in one that is called by the table."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = everything(tmp_path)
    code, _, err = cli("train", "-m", "reproduce=table1", "seed.all=0", "name=a/..")
    check_line(code, err, r"name: got 'a/\.\.', needs a name that a folder can have")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "../x", "/x", "a\x1b[2J"], ids=ascii)
def test_a_name_from_python(train: Callable[..., Any], config: Callable[..., Any], name: str, tmp_path: Path) -> None:
    from attnmosaic.train import train as door

    made = config()
    made.name = name
    with pytest.raises(UserError, match="name: got ") as caught:
        door(made)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "run").exists()


RANDOM = "attnmosaic.data.weights.RandomPatch"


@pytest.mark.parametrize("view", ["train", "held_out"])
def test_a_view_called_as_a_split(cli: Cli, view: str) -> None:
    """It would be measured in the split's place."""
    code, _, err = cli("train", f"+data.views={{{view}:{{split:train,weights:{{_target_:{RANDOM}}}}}}}")
    check_line(code, err, rf"^error: data\.views\.{view}: is no name for a view")


@pytest.mark.parametrize(
    "view", ["../../x", "train", "test", "a/b", ".x", "a b", "a\nb", "x y", "", "x\n", "-x", "x" * 62], ids=ascii
)
def test_a_view_s_name(config: Callable[..., Any], view: str) -> None:
    """Most of these no command line takes."""
    from attnmosaic.config.validation import check

    made = config()
    with open_dict(made):
        made.data.views = {view: {"split": "train", "weights": {"_target_": RANDOM}}}
    with pytest.raises(UserError, match="is no name for a view"):
        check(made)


# ---- what others wrote


def run_with(folder: Path, text: str) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return Run(folder)


LAUGHS = "name: x\nseed: {data: 0}\nschedule: {epochs: 1}\na0: &a0 [1, 1]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)
)
YAMLS = {
    "an object": "!!python/object/apply:os.system ['touch pwned']",
    "a name": "name: !!python/name:os.system",
    "laughs": LAUGHS,
    "itself": "&a [*a]",
    "itself in data": "{name: x, seed: {a: 1}, schedule: {epochs: 1}, data: &d {x: *d}}",
    "depth": "[" * 20_000,
    "bytes": "name: !!binary aGVsbG8=",
    "keys": "{? [a] : b}",
}


@pytest.mark.parametrize("what", YAMLS)
@pytest.mark.parametrize("door", ["collect", "report"])
def test_an_odd_config_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], door: str, what: str
) -> None:
    """It is told to be none, and nothing is made of it: the doors that read runs make objects of nothing at all."""
    import importlib

    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "good", "gaussian", pair_metrics(test=0.5))
    text = YAMLS[what]
    if what in ("laughs", "itself in data"):  # as a whole config would have it
        text = composed("gaussian") + (LAUGHS.partition("epochs: 1}\n")[2] if what == "laughs" else "zz: &d {x: *d}\n")
    with bounded(60):
        assert run_with(tmp_path / "runs" / "odd", text).config is None
        code = 0
        try:
            importlib.import_module(f"attnmosaic.{door}").main([str(tmp_path / "runs")])
        except SystemExit as end:
            code = int(end.code or 0)
    assert code == 0
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "pwned").exists()


def test_names_in_a_report_are_text(tmp_path: Path) -> None:
    """Of a run's name, its classes, its labels and its settings."""
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'`${{7*7}}"
    folder = tmp_path / "runs" / "one"
    write_run(folder, "gaussian", pair_metrics(test=0.5))
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["name"] = config["precision"] = bad
    config["data"]["foreground"] = [bad, "b"]
    config["data"][bad] = bad
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "train.log").write_text(bad)
    from attnmosaic.reporting.page import write_report

    write_report(tmp_path / "runs", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in text
    assert "<script>alert" not in text


def test_errors_move_no_cursor(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from attnmosaic.collect import main

    with pytest.raises(SystemExit):
        main([str(tmp_path / "no\x1b[2Jsuch\nfolder")])
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert said.removesuffix("\n").isprintable()
    assert one_line("a\x1b[2J\n b") == "a\N{REPLACEMENT CHARACTER}[2J b"


# ---- archives


def hostile_tar(path: Path, name: str, **entry: Any) -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        for key, value in entry.items():
            setattr(info, key, value)
        if info.isreg():
            info.size = 4
        archive.addfile(info, io.BytesIO(b"evil") if info.isreg() else None)
        if info.issym() or info.islnk():
            through = tarfile.TarInfo(f"{name}/through")
            through.size = 4
            archive.addfile(through, io.BytesIO(b"evil"))
    return path


TARS: dict[str, tuple[str, dict[str, Any]]] = {
    "up": ("../escaped", {}),
    "far up": ("a/../../escaped", {}),
    "symlink": ("link", {"type": tarfile.SYMTYPE, "linkname": ".."}),
    "absolute symlink": ("link", {"type": tarfile.SYMTYPE, "linkname": "/"}),
    "hard link": ("link", {"type": tarfile.LNKTYPE, "linkname": "../secret"}),
    "device": ("device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}),
    "pipe": ("pipe", {"type": tarfile.FIFOTYPE}),
}


@pytest.mark.parametrize("what", TARS)
def test_an_archive_stays_in_its_folder(tmp_path: Path, what: str) -> None:
    """Also one that a data set unpacks by plain tarfile, without a filter of its own; nothing half-unpacked stays."""
    from attnmosaic.data.sources import load_set

    name, entry = TARS[what]
    archive = hostile_tar(tmp_path / "a.tar", name, **entry)
    (tmp_path / "secret").write_text("s")

    class Unpacks:
        base_folder = "Unpacks"

        def __init__(self) -> None:
            with tarfile.open(archive) as opened:
                opened.extractall(root / "Unpacks")

    root = tmp_path / "data"
    root.mkdir()
    from functools import partial

    class Rooted(Unpacks):
        def __init__(self, root: str) -> None:
            super().__init__()

    with pytest.raises(UserError, match=r"data\.train_set: Rooted is not in .* could not be downloaded"):
        load_set("data.train_set", partial(Rooted, root=str(root)), tmp_path / "locks", "others")
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {path for path in left if not path.startswith("locks")} == {"a.tar", "secret", "data"}
    assert vars(tarfile.TarFile)["extraction_filter"] is None, "it is put back"


# ---- numbers


def test_an_odd_record_is_no_record(tmp_path: Path) -> None:
    """Objects are not unpickled; what claims to be huge, or is none, is told."""
    from attnmosaic.runs.snapshots import read_record

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = tmp_path / "mosaics.npz"
    np.savez(path, classes=np.array([Evil()], dtype=object))
    with pytest.raises(UserError, match="no record of mosaics"):
        read_record(path)
    assert not (tmp_path / "pwned").exists()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    import zipfile

    with zipfile.ZipFile(path, "w") as file:
        file.writestr("classes.npy", header.getvalue())
    with bounded(), pytest.raises(UserError, match="no record of mosaics"):
        read_record(path)
