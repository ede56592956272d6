"""Checkpoints that somebody made to do harm: each command answers in one line, and imports nothing that they name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Cli, check_line
from helpers.settings import SMALL, SMALL_NUMBERS
from hydra import compose, initialize_config_dir
from PIL import Image

from attnmosaic.config.schema import conf_dir, register
from attnmosaic.config.trusted import TARGETS, check_trusted
from attnmosaic.core.errors import UserError

FEW = ("schedule.k=1", "schedule.epochs=2", "logger=none", "callbacks.pictures=null")
PAIR = ("experiment=stagewise", "data=digits", "model=mlp", *SMALL, *FEW)
NUMBERS = ("experiment=mnist_sum", *SMALL_NUMBERS, *FEW)

Change = Callable[[dict[str, Any]], Any]


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    """Trains, and returns what the checkpoint holds."""
    from attnmosaic.train import train

    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        train(compose("train", [*overrides, f"run_dir={folder}"]))
    held: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return held


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good checkpoints: of a pair, and of a network with two outputs."""
    folder = tmp_path_factory.mktemp("good")
    for name, given in (("pair", PAIR), ("numbers", NUMBERS)):
        trained(folder / name, *given)
    return {name: folder / name / "checkpoints" / "last.ckpt" for name in ("pair", "numbers")}


@pytest.fixture
def ask(cli: Cli, files: dict[str, Path], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Asks a door about a checkpoint that was changed."""
    Image.new("L", (24, 24), 99).save(tmp_path / "a.png")
    rest = {
        "evaluate": ("pair", "hydra.run.dir=out"),
        "explain": ("pair", "images=a.png", "hydra.run.dir=out"),
        "predict": ("numbers", "image=a.png", "number=5"),
        "train": ("pair", *PAIR, "schedule.epochs=3", "hydra.run.dir=out"),
    }

    def run(door: str, change: Change, *more: str) -> tuple[int, str, str]:
        kind, *arguments = rest[door]
        held = torch.load(files[kind], weights_only=True)
        change(held)
        torch.save(held, tmp_path / "hostile.ckpt")
        return cli(door, "ckpt_path=hostile.ckpt", *arguments, *more)

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


@pytest.mark.parametrize(("door", "key"), [(door, key) for door, keys in PLACES.items() for key in keys])
def test_nothing_it_names_is_imported(ask: Callable[..., Any], door: str, key: str, tmp_path: Path) -> None:
    sys.modules.pop("helpers.payload", None)
    code, _, err = ask(door, put(key, PLACES[door][key]))
    assert "helpers.payload" not in sys.modules
    check_line(
        code,
        err,
        rf"names helpers\.payload\.\w+ as its {key}\S*, which is neither .* type 'trust=\[helpers\.payload\.\w+\]'",
    )
    assert not [*tmp_path.rglob("*.csv"), *tmp_path.rglob("evaluation.json")]


GADGETS = (
    "os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "shutil.rmtree", "pathlib.Path",
    "functools.partial", "torch.load", "torch.hub.load", "torch.save", "torch.jit.load", "torch.nn.DataParallel",
    "torch.nn.Module", "torch.nn.modules.module.register_module_forward_hook",
    "torch.nn.parallel.DistributedDataParallel", "torch.ops.load_library", "torch.utils.cpp_extension.load",
    "torch.optim.Optimizer", "torch.optim.lr_scheduler.LambdaLR", "torchvision.datasets.utils.extract_archive",
    "torchvision.datasets.folder.default_loader", "torchvision.datasets.ImageFolder",
    "torchvision.transforms.Lambda", "pytorch_lightning.Trainer", "pytorch_lightning.callbacks.ModelCheckpoint",
    "pytorch_lightning.loggers.CSVLogger", "hydra.utils.get_method", "hydra.utils.instantiate", "numpy.load",
    "numpy.save", "attnmosaic.callbacks.csv_tables.RunTables", "attnmosaic.core.files.write_atomically",
    "attnmosaic.training.instantiation.instantiate", "attnmosaic.nn.networks.torch.load", "attnmosaic.data.images.Path",
    "torch.nn.Linear.__init__.__globals__",
)  # fmt: skip
NO_NAMES = (
    "",
    "x",
    "os.system ",
    "os.system\n",
    "a.b]; rm -rf ~ #",
    "torch.nn.Linear\x1b[2J",
    "torch.nn.\N{FULLWIDTH LATIN CAPITAL LETTER L}inear",
)


@pytest.mark.parametrize("target", [*GADGETS, *NO_NAMES])
def test_only_listed_names_will_do(target: str) -> None:
    """What is no name is not repeated as something to type."""
    with pytest.raises(
        UserError, match=r"as its model\.where\._target_, which (is neither of|names nothing)"
    ) as caught:
        check_trusted({"model": {"where": {"_target_": target}}}, ("model",), "a.ckpt")
    assert ("trust=[" in str(caught.value)) == (target in GADGETS)


def test_a_name_does_nothing_to_the_terminal(ask: Callable[..., Any]) -> None:
    code, _, err = ask("explain", put("model.where._target_", NO_NAMES[-2]))
    check_line(code, err, r"as its model\.where\._target_")
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("target", [None, 5, ["os.system"]], ids=str)
def test_names_that_are_none(ask: Callable[..., Any], target: Any) -> None:
    code, _, err = ask("evaluate", put("model.where._target_", target))
    check_line(code, err, r"ckpt_path: 'hostile\.ckpt' ")


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


@pytest.mark.parametrize(
    ("trust", "said"),
    [
        (["pay"], r"names helpers\.payload\.Network"),  # a name, and not the beginning of one
        (["helpers.payload.Net"], r"names helpers\.payload\.Network"),
        (5, r"trust: got 5, needs names of packages; type for example 'trust=\[my_package\]', or trust=all"),
        (None, r"trust: got None, needs"),
        ([5], r"trust: got \[5\], needs"),
        ([""], r"trust: got \[''\], needs"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_trusted(trust: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_trusted({"model": {"where": NODE}}, ("model",), "a.ckpt", trust)


def test_every_listed_name_is_there_and_is_a_class() -> None:
    from hydra.utils import get_object

    made = [get_object(name) for name in TARGETS]
    assert all(isinstance(target, type) for target in made)


def test_every_experiment_is_listed() -> None:
    """What runs of this program save is made of it again, without a word of trust."""
    import yaml

    def targets(node: Any) -> list[str]:
        if isinstance(node, list):
            return [found for child in node for found in targets(child)]
        if not isinstance(node, dict):
            return []
        own = [node["_target_"]] if "_target_" in node else []
        return [*own, *(found for child in node.values() for found in targets(child))]

    named = set()
    for section in ("data", "model", "objective", "optimizer", "scheduler", "experiment"):
        for file in Path(conf_dir(), section).rglob("*.yaml"):
            named.update(targets(yaml.safe_load(file.read_text())))
    assert len(named) > 15
    assert named <= TARGETS


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

DOORS = ("evaluate", "explain", "predict", "train")


@pytest.mark.parametrize(
    ("text", "door"),
    [*zip(["x${oc.env:SECRET,no}", "${hydra:runtime.cwd}", "${", "${lr.what}"], DOORS, strict=True)],
)
def test_no_interpolation_is_resolved(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, text: str, door: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET", "a-secret")
    for key in ("name", "data.classes", "model.what"):
        value = {"_target_": text} if key == "model.what" else [text] if key == "data.classes" else text
        code, out, err = ask(door, put(key, value))
        check_line(
            code,
            err,
            rf"ckpt_path: 'hostile\.ckpt' is not what a run of attnmosaic saves \(an interpolation at config\.{key}",
        )
        written = b"".join(
            file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".ckpt"
        )
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
    "a shape": lambda held: held["hyper_parameters"].update(patch_shape="xyz", image_shape="xyz"),
    "a large shape": lambda held: held["hyper_parameters"].update(patch_shape=[3, 10**9], image_shape=[10**9]),
}  # fmt: skip


@pytest.mark.parametrize(("what", "door"), [(what, DOORS[i % len(DOORS)]) for i, what in enumerate(ODD)])
def test_what_no_run_saves_is_refused(ask: Callable[..., Any], what: str, door: str) -> None:
    code, _, err = ask(door, ODD[what])
    check_line(code, err, r"ckpt_path: 'hostile\.ckpt' ")


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
    assert [*(tmp_path / "cache").glob("images-*.pt")]
