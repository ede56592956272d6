"""Only listed or trusted targets of a saved config are accepted."""

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
NOT_NAMES = (
    "",
    "x",
    "os.system ",
    "os.system\n",
    "a.b]; rm -rf ~ #",
    "torch.nn.Linear\x1b[2J",
    "torch.nn.\N{FULLWIDTH LATIN CAPITAL LETTER L}inear",
)


@pytest.mark.parametrize("target", [*GADGETS, *NOT_NAMES])
def test_target_that_is_not_listed_is_refused(target: str) -> None:
    """The message advises ``trust`` only for valid names."""
    with pytest.raises(UserError, match=r"^ckpt_path: .* as its model\.where\._target_, which is not ") as caught:
        check_trusted({"model": {"where": {"_target_": target}}}, ("model",), "a.ckpt")
    assert ("trust=[" in str(caught.value)) == (target in GADGETS)


@pytest.mark.parametrize(
    ("trust", "message"),
    [
        (["pay"], r"names helpers\.payload\.Network"),  # part of a package name does not match
        (["helpers.payload.Net"], r"names helpers\.payload\.Network"),
        (5, r"trust: got 5, needs .*'trust=\[my_package\]', or trust=all"),
        (None, r"trust: got None, needs"),
        ([5], r"trust: got \[5\], needs"),
        ([""], r"trust: got \[''\], needs"),
    ],
    ids=str,
)  # fmt: skip
def test_target_without_matching_trust_is_refused(trust: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_trusted({"model": {"where": NODE}}, ("model",), "a.ckpt", trust)


def test_every_listed_target_is_a_class() -> None:
    from hydra.utils import get_object

    assert all(isinstance(get_object(name), type) for name in TARGETS)


def test_targets_of_all_experiments_are_listed() -> None:
    """So checkpoints of attnmosaic's own experiments need no trust."""
    import yaml

    def targets(node: Any) -> list[str]:
        if isinstance(node, list):
            return [target for child in node for target in targets(child)]
        if not isinstance(node, dict):
            return []
        own = [node["_target_"]] if "_target_" in node else []
        return [*own, *(target for child in node.values() for target in targets(child))]

    names = set()
    for section in ("data", "model", "objective", "optimizer", "scheduler", "experiment"):
        for file in Path(conf_dir(), section).rglob("*.yaml"):
            names.update(targets(yaml.safe_load(file.read_text())))
    assert len(names) > 15
    assert names <= TARGETS
