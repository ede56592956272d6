"""Malicious checkpoints are refused in one line, and nothing that they name is imported."""

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
    """Valid checkpoints of a pair and of a network with two outputs."""
    folder = tmp_path_factory.mktemp("good")
    for name, settings in (("pair", PAIR), ("numbers", NUMBERS)):
        train_in(folder / name, *settings)
    return {name: folder / name / "checkpoints" / "last.ckpt" for name in ("pair", "numbers")}


@pytest.fixture
def changed(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Change], Path]:
    """Returns a function that changes a valid checkpoint and writes it to ``hostile.ckpt`` in a temporary folder."""
    monkeypatch.chdir(tmp_path)

    def write(kind: str, change: Change) -> Path:
        contents = torch.load(files[kind], weights_only=True)
        change(contents)
        torch.save(contents, "hostile.ckpt")
        return Path("hostile.ckpt")

    return write


@pytest.fixture
def run_command(
    cli: Cli, changed: Callable[[str, Change], Path], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Returns a function that runs a command with a changed checkpoint."""
    Image.new("L", (24, 24), 99).save(tmp_path / "a.png")
    arguments_of = {
        "evaluate": ("pair", "hydra.run.dir=out"),
        "explain": ("pair", "images=a.png", "hydra.run.dir=out"),
        "predict": ("numbers", "image=a.png", "number=5"),
        "train": ("pair", *PAIR, "schedule.epochs=3", "hydra.run.dir=out"),
    }

    def run(command: str, change: Change, *more: str) -> tuple[int, str, str]:
        kind, *arguments = arguments_of[command]
        return cli(command, f"ckpt_path={changed(kind, change)}", *arguments, *more)

    return run


def config_of(contents: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = contents["hyper_parameters"]["config"]
    return config


def put(key: str, value: Any) -> Change:
    """Returns a change that sets a key of the saved config."""

    def change(contents: dict[str, Any]) -> None:
        *path, last = key.split(".")
        node: Any = config_of(contents)
        for name in path:
            node = node[name]
        node[last] = value

    return change


# ---- targets that a checkpoint names

NODE = {"_target_": "helpers.payload.Network", "hidden": [4]}
NODES = {
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


def check_unlisted(message: str, key: str) -> None:
    """Checks that a message names the unlisted target, its key, and the override that trusts it."""
    target = r"helpers\.payload\.\w+"
    pattern = rf"names {target} as its {key}\S*, which .* type 'trust=\[{target}\]'"
    assert re.search(pattern, message), message
    assert "helpers.payload" not in sys.modules


@pytest.mark.parametrize("key", NODES["evaluate"])
def test_target_anywhere_in_the_config_is_refused(changed: Callable[[str, Change], Path], key: str) -> None:
    sys.modules.pop("helpers.payload", None)
    config = config_of(read_saved(changed("pair", put(key, NODES["evaluate"][key]))))
    with pytest.raises(UserError) as error:
        check_trusted(config, TARGET_KEYS, "hostile.ckpt")
    check_unlisted(str(error.value), key)


@pytest.mark.parametrize(("command", "key"), [(command, next(iter(keys))) for command, keys in NODES.items()])
def test_no_target_of_a_checkpoint_is_imported(
    run_command: Callable[..., Any], command: str, key: str, tmp_path: Path
) -> None:
    sys.modules.pop("helpers.payload", None)
    code, _, err = run_command(command, put(key, NODES[command][key]))
    check_line(code, err, r"ckpt_path: 'hostile\.ckpt' names")
    check_unlisted(err, key)
    assert not [*tmp_path.rglob("*.csv"), *tmp_path.rglob("evaluation.json")]


def test_control_characters_in_a_name_are_not_printed(run_command: Callable[..., Any]) -> None:
    code, _, err = run_command("explain", put("model.where._target_", "torch.nn.Linear\x1b[2J"))
    check_line(code, err, r"as its model\.where\._target_")
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("target", [None, 5, ["os.system"]], ids=str)
def test_target_that_is_not_text_is_refused(changed: Callable[[str, Change], Path], target: Any) -> None:
    with pytest.raises(UserError, match=r"ckpt_path: 'hostile\.ckpt' was not saved"):
        read_saved(changed("pair", put("model.where._target_", target)))


TRUSTED = {
    "evaluate": ("model.where._target_", "Network", "trust=helpers.payload"),
    "explain": ("model.where._target_", "Network", "trust=[a,helpers.payload.Network]"),
    "predict": ("model.network._target_", "Numbers", "trust=all"),
}


@pytest.mark.parametrize("command", TRUSTED)
def test_trusted_target_is_instantiated(run_command: Callable[..., Any], command: str) -> None:
    from helpers import payload

    key, name, trust = TRUSTED[command]
    payload.CALLED.clear()
    code, _, err = run_command(command, put(key, f"helpers.payload.{name}"), trust)
    assert code == 0, err
    (called,) = payload.CALLED
    assert called == name


def test_custom_callbacks_and_loggers_need_no_trust(run_command: Callable[..., Any]) -> None:
    """The commands do not instantiate or import them."""
    sys.modules.pop("helpers.payload", None)

    def change(contents: dict[str, Any]) -> None:
        config_of(contents)["callbacks"]["mine"] = config_of(contents)["trainer"] = {
            "_target_": "helpers.payload.Network"
        }
        config_of(contents)["logger"] = {"tensorboard": {"_target_": "helpers.payload.Network"}}

    assert (
        run_command("evaluate", lambda contents: (change(contents), config_of(contents)["callbacks"].pop("mine")))[0]
        == 0
    )
    assert "helpers.payload" not in sys.modules


def test_resuming_instantiates_nothing_from_the_checkpoint(run_command: Callable[..., Any], tmp_path: Path) -> None:
    """A resumed run has the settings of its command, and only compares them with the checkpoint's."""
    sys.modules.pop("helpers.payload", None)

    def change(contents: dict[str, Any]) -> None:
        for key in ("model.where", "objective", "data.other"):
            put(key, {"_target_": "helpers.payload.Network"})(contents)

    code, _, err = run_command("train", change)
    assert code == 0, err
    assert "helpers.payload" not in sys.modules
    assert "helpers.payload.Network" in (tmp_path / "out" / "config.yaml").read_text(), (
        "the settings of the checkpoint's run are recorded"
    )


# ---- secrets that a checkpoint must not read


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("evaluate", "name", "x${oc.env:SECRET,no}"),
        ("explain", "data.classes", ["${hydra:runtime.cwd}"]),
        ("predict", "model.what", {"_target_": "${"}),
        ("train", "name", "${lr.what}"),
    ],
)
def test_no_interpolation_is_resolved(
    run_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, key: str, value: Any
) -> None:
    monkeypatch.setenv("SECRET", "a-secret")
    code, out, err = run_command(command, put(key, value))
    check_line(code, err, rf"was not saved .* \(an interpolation at config\.{key}")
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".ckpt")
    assert "a-secret" not in out + err
    assert b"a-secret" not in written


# ---- structures that no run saves


def itself(contents: dict[str, Any]) -> None:
    config_of(contents)["data"]["loop"] = config_of(contents)["data"]


def deep(contents: dict[str, Any]) -> None:
    node: list[Any] = []
    for _ in range(400):
        node = [node]
    config_of(contents)["data"]["deep"] = node


ODD: dict[str, Change] = {
    "a loop": itself,
    "depth": deep,
    "a tensor": put("lr.what", torch.zeros(3)),
    "bytes": put("name", b"x"),
    "a key": lambda contents: config_of(contents)["data"].update({(1, 2): 3}),
    "an interpolated key": lambda contents: config_of(contents)["data"].update({"${oc.env:HOME}": 3}),
    "no config": lambda contents: contents["hyper_parameters"].update(config=[]),
    "no data": lambda contents: config_of(contents).pop("data"),
    "no seed": lambda contents: config_of(contents).pop("seed"),
    "no schedule": lambda contents: config_of(contents).pop("schedule"),
    "a number for data": put("data", 5),
    "an empty model": put("model", {}),
    "text for a rate": put("lr.what", "abc"),
    "null for networks": put("model", {"what": None, "where": None, "network": None}),
    "an epoch": lambda contents: contents.update(epoch="x"),
    "no weights": lambda contents: contents.update(state_dict=[]),
    "weights alone": lambda contents: [contents.pop(key) for key in list(contents) if key != "state_dict"],
    "a shape": lambda contents: contents["hyper_parameters"].update(patch_shape="xyz", image_shape="xyz"),
    "a large shape": lambda contents: contents["hyper_parameters"].update(patch_shape=[3, 10**9], image_shape=[10**9]),
}  # fmt: skip


@pytest.mark.parametrize("change", ODD)
def test_structure_that_no_run_saves_is_refused(changed: Callable[[str, Change], Path], change: str) -> None:
    with pytest.raises(UserError, match=r"ckpt_path: 'hostile\.ckpt' was not saved"):
        read_saved(changed("pair", ODD[change]))


@pytest.mark.parametrize(
    ("key", "value", "command"),
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
def test_invalid_settings_are_used_or_refused(
    run_command: Callable[..., Any], key: str, value: Any, command: str
) -> None:
    """Each command either works with the setting or reports the problem in one line."""
    code, _, err = run_command(command, put(key, value))
    if code != 0:
        check_line(code, err, r"^error: \S+")


# ---- paths that a checkpoint must not write to


def test_nothing_is_written_to_a_path_from_the_checkpoint(run_command: Callable[..., Any], tmp_path: Path) -> None:
    """Decoded images are kept in the user's own cache, not in the cache folder that the checkpoint names."""
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "images" / name / f"{i}.png")

    def change(contents: dict[str, Any]) -> None:
        data = config_of(contents)["data"]
        data.update(
            _target_="attnmosaic.data.image_folder.ImageFolderMosaics", root=str(tmp_path / "images"), color=False,
            image_size=None, cache_dir=str(tmp_path / "elsewhere"), foreground=["a", "b"], classes=None,
        )  # fmt: skip
        for name in ("weight", "bias"):  # two classes, not three
            key = f"pair.what.layers.1.{name}"
            contents["state_dict"][key] = contents["state_dict"][key][:2].clone()

    code, _, err = run_command("evaluate", change)
    assert code == 0, err
    assert not (tmp_path / "elsewhere").exists()
    assert [*(tmp_path / "cache").glob("images-*.npy")]
