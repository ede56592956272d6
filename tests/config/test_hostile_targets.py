"""Which names a saved config may have in it."""

from pathlib import Path
from typing import Any

import pytest

from attnmosaic.config.schema import conf_dir
from attnmosaic.config.trusted import TARGETS, check_trusted
from attnmosaic.core.errors import UserError

NODE = {"_target_": "helpers.payload.Network", "hidden": [4]}
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
