"""Checkpoints that somebody made to do harm are refused in one line, and nothing that they name is imported."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Cli, check_line
from helpers.settings import SMALL, SMALL_NUMBERS
from helpers.small_runs import train_in
from PIL import Image

from attnmosaic.config.trusted import check_trusted
from attnmosaic.core.errors import UserError
from attnmosaic.evaluate import TARGET_KEYS
from attnmosaic.training.checkpointing import read_saved

FEW = ("schedule.k=1", "schedule.epochs=2", "logger=none", "callbacks.pictures=null")
PAIR = ("experiment=stagewise", "data=digits", "model=mlp", *SMALL, *FEW)
NUMBERS = ("experiment=mnist_sum", *SMALL_NUMBERS, *FEW)

pytestmark = pytest.mark.faults

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good checkpoints: of a pair, and of a network with two outputs."""
    folder = tmp_path_factory.mktemp("good")
    for name, given in (("pair", PAIR), ("numbers", NUMBERS)):
        train_in(folder / name, *given)
    return {name: folder / name / "checkpoints" / "last.ckpt" for name in ("pair", "numbers")}


@pytest.fixture
def changed(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Change], Path]:
    """Returns a function that writes ``hostile.ckpt``, a good checkpoint after a change, in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(kind: str, change: Change) -> Path:
        held = torch.load(files[kind], weights_only=True)
        change(held)
        torch.save(held, "hostile.ckpt")
        return Path("hostile.ckpt")

    return write


@pytest.fixture
def ask(cli: Cli, changed: Callable[[str, Change], Path], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Returns a function that gives a command a checkpoint that was changed."""
    Image.new("L", (24, 24), 99).save(tmp_path / "a.png")
    rest = {
        "evaluate": ("pair", "hydra.run.dir=out"),
        "explain": ("pair", "images=a.png", "hydra.run.dir=out"),
        "predict": ("numbers", "image=a.png", "number=5"),
        "train": ("pair", *PAIR, "schedule.epochs=3", "hydra.run.dir=out"),
    }

    def run(door: str, change: Change, *more: str) -> tuple[int, str, str]:
        kind, *arguments = rest[door]
        return cli(door, f"ckpt_path={changed(kind, change)}", *arguments, *more)

    return run


def config_of(held: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = held["hyper_parameters"]["config"]
    return config


def put(key: str, value: Any) -> Change:
    """Returns a change that sets a key of the saved config."""

    def change(held: dict[str, Any]) -> None:
        *path, last = key.split(".")
        node: Any = config_of(held)
        for name in path:
            node = node[name]
        node[last] = value

    return change


# ---- what it may name

NODE = {"_target_": "helpers.payload.Network", "hidden": [4]}
PLACES = {
    "evaluate": {
        "model.what._target_": "helpers.payload.Network",
        "objective.other": {"_target_": "helpers.payload.Network"},
        "optimizer.network.betas": [{"x": [NODE]}],
        "scheduler.where": {"_target_": "helpers.payload.Network"},
        "data.views": {"x": {"split": "train", "weights": NODE}},
        "data.first": {"_target_": "attnmosaic.data.weights.FixedWeights", "_args_": [NODE], "_recursive_": False},
        "data.second": {"_target_": "helpers.payload.Network", "_partial_": True, "_convert_": "object"},
    },
    "explain": {"model.where": NODE},
    "predict": {"model.network.channels": ({"deep": NODE},)},
}  # fmt: skip


def check_unlisted(told: str, key: str) -> None:
    """Checks that a message names what is not listed, where it stands, and what to type if it is trusted."""
    target = r"helpers\.payload\.\w+"
    wanted = rf"names {target} as its {key}\S*, which is neither .* type 'trust=\[{target}\]'"
    assert re.search(wanted, told), told
    assert "helpers.payload" not in sys.modules


@pytest.mark.parametrize("key", PLACES["evaluate"])
def test_no_place_is_overlooked(changed: Callable[[str, Change], Path], key: str) -> None:
    sys.modules.pop("helpers.payload", None)
    config = config_of(read_saved(changed("pair", put(key, PLACES["evaluate"][key]))))
    with pytest.raises(UserError) as error:
        check_trusted(config, TARGET_KEYS, "hostile.ckpt")
    check_unlisted(str(error.value), key)


@pytest.mark.parametrize(("door", "key"), [(door, next(iter(keys))) for door, keys in PLACES.items()])
def test_nothing_it_names_is_imported(ask: Callable[..., Any], door: str, key: str, tmp_path: Path) -> None:
    sys.modules.pop("helpers.payload", None)
    code, _, err = ask(door, put(key, PLACES[door][key]))
    check_line(code, err, r"ckpt_path: 'hostile\.ckpt' names")
    check_unlisted(err, key)
    assert not [*tmp_path.rglob("*.csv"), *tmp_path.rglob("evaluation.json")]


def test_a_name_does_nothing_to_the_terminal(ask: Callable[..., Any]) -> None:
    code, _, err = ask("explain", put("model.where._target_", "torch.nn.Linear\x1b[2J"))
    check_line(code, err, r"as its model\.where\._target_")
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("target", [None, 5, ["os.system"]], ids=str)
def test_names_that_are_none(changed: Callable[[str, Change], Path], target: Any) -> None:
    with pytest.raises(UserError, match=r"ckpt_path: 'hostile\.ckpt' is not what a run"):
        read_saved(changed("pair", put("model.where._target_", target)))


TRUSTED = {
    "evaluate": ("model.where._target_", "Network", "trust=helpers.payload"),
    "explain": ("model.where._target_", "Network", "trust=[a,helpers.payload.Network]"),
    "predict": ("model.network._target_", "Numbers", "trust=all"),
}


@pytest.mark.parametrize("door", TRUSTED)
def test_what_is_trusted_is_built(ask: Callable[..., Any], door: str) -> None:
    from helpers import payload

    key, name, trust = TRUSTED[door]
    payload.CALLED.clear()
    code, _, err = ask(door, put(key, f"helpers.payload.{name}"), trust)
    assert code == 0, err
    (called,) = payload.CALLED
    assert called == name


def test_callbacks_and_loggers_of_a_user_s_own_hinder_nobody(ask: Callable[..., Any]) -> None:
    """They are not made again, so they need no trust; nor are they imported."""
    sys.modules.pop("helpers.payload", None)

    def change(held: dict[str, Any]) -> None:
        config_of(held)["callbacks"]["mine"] = config_of(held)["trainer"] = {"_target_": "helpers.payload.Network"}
        config_of(held)["logger"] = {"tensorboard": {"_target_": "helpers.payload.Network"}}

    assert ask("evaluate", lambda held: (change(held), config_of(held)["callbacks"].pop("mine")))[0] == 0
    assert "helpers.payload" not in sys.modules


def test_going_on_makes_nothing_of_the_file(ask: Callable[..., Any], tmp_path: Path) -> None:
    """The settings of a run that goes on are the command's; the file's are compared, and no more."""
    sys.modules.pop("helpers.payload", None)

    def change(held: dict[str, Any]) -> None:
        for key in ("model.where", "objective", "data.other"):
            put(key, {"_target_": "helpers.payload.Network"})(held)

    code, _, err = ask("train", change)
    assert code == 0, err
    assert "helpers.payload" not in sys.modules
    assert "helpers.payload.Network" in (tmp_path / "out" / "config.yaml").read_text(), (
        "what it began with is written down"
    )


# ---- what it may not read


@pytest.mark.parametrize(
    ("door", "key", "value"),
    [
        ("evaluate", "name", "x${oc.env:SECRET,no}"),
        ("explain", "data.classes", ["${hydra:runtime.cwd}"]),
        ("predict", "model.what", {"_target_": "${"}),
        ("train", "name", "${lr.what}"),
    ],
)
def test_no_interpolation_is_resolved(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, door: str, key: str, value: Any
) -> None:
    monkeypatch.setenv("SECRET", "a-secret")
    code, out, err = ask(door, put(key, value))
    check_line(code, err, rf"is not what a run of attnmosaic saves \(an interpolation at config\.{key}")
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".ckpt")
    assert "a-secret" not in out + err
    assert b"a-secret" not in written


# ---- what it may not be


def itself(held: dict[str, Any]) -> None:
    config_of(held)["data"]["loop"] = config_of(held)["data"]


def deep(held: dict[str, Any]) -> None:
    node: list[Any] = []
    for _ in range(400):
        node = [node]
    config_of(held)["data"]["deep"] = node


ODD: dict[str, Change] = {
    "a loop": itself,
    "depth": deep,
    "a tensor": put("lr.what", torch.zeros(3)),
    "bytes": put("name", b"x"),
    "a key": lambda held: config_of(held)["data"].update({(1, 2): 3}),
    "an interpolated key": lambda held: config_of(held)["data"].update({"${oc.env:HOME}": 3}),
    "no config": lambda held: held["hyper_parameters"].update(config=[]),
    "no data": lambda held: config_of(held).pop("data"),
    "no seed": lambda held: config_of(held).pop("seed"),
    "no schedule": lambda held: config_of(held).pop("schedule"),
    "a number for data": put("data", 5),
    "an empty model": put("model", {}),
    "text for a rate": put("lr.what", "abc"),
    "null for networks": put("model", {"what": None, "where": None, "network": None}),
    "an epoch": lambda held: held.update(epoch="x"),
    "no weights": lambda held: held.update(state_dict=[]),
    "weights alone": lambda held: [held.pop(key) for key in list(held) if key != "state_dict"],
    "a shape": lambda held: held["hyper_parameters"].update(patch_shape="xyz", image_shape="xyz"),
    "a large shape": lambda held: held["hyper_parameters"].update(patch_shape=[3, 10**9], image_shape=[10**9]),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_no_run_saves_is_refused(changed: Callable[[str, Change], Path], what: str) -> None:
    with pytest.raises(UserError, match=r"ckpt_path: 'hostile\.ckpt' is not what a run"):
        read_saved(changed("pair", ODD[what]))


@pytest.mark.parametrize(
    ("key", "value", "door"),
    [
        ("data.mean", "x", "evaluate"),
        ("data.std", [0], "explain"),
        ("data.mean", [0.5] * 7, "predict"),
        ("data.patches", 0, "explain"),
        ("data.patches", 10**30, "evaluate"),
        ("precision", "float7", "predict"),
        ("compute", {}, "evaluate"),
        ("scale", "x", "explain"),
        ("data.operation", "x", "predict"),
    ],
    ids=str,
)
def test_odd_settings(ask: Callable[..., Any], key: str, value: Any, door: str) -> None:
    """Taken for what they are, or refused in one line that says what is wrong."""
    code, _, err = ask(door, put(key, value))
    if code != 0:
        check_line(code, err, r"^error: \S+")


# ---- where it may not write


def test_nothing_is_written_where_it_says(ask: Callable[..., Any], tmp_path: Path) -> None:
    """Decoded images are kept in the user's own cache, whatever the cache of the run was."""
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "images" / name / f"{i}.png")

    def change(held: dict[str, Any]) -> None:
        data = config_of(held)["data"]
        data.update(
            _target_="attnmosaic.data.image_folder.ImageFolderMosaics", root=str(tmp_path / "images"), color=False,
            image_size=None, cache_dir=str(tmp_path / "elsewhere"), foreground=["a", "b"], classes=None,
        )  # fmt: skip
        for name in ("weight", "bias"):  # two classes, not three
            key = f"pair.what.layers.1.{name}"
            held["state_dict"][key] = held["state_dict"][key][:2].clone()

    code, _, err = ask("evaluate", change)
    assert code == 0, err
    assert not (tmp_path / "elsewhere").exists()
    assert [*(tmp_path / "cache").glob("images-*.npy")]
