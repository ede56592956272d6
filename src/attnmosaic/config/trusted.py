"""The classes that a config in somebody else's checkpoint may name. Light: imports no torch.

A config names by ``_target_`` what is to be imported and called, so one in a checkpoint is a program of whoever made
the file. Only what is listed here is instantiated unless the user trusts more names: an allow-list, as what could do
harm cannot be listed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attnmosaic.config.paths import short_path
from attnmosaic.config.resolution import walk
from attnmosaic.core.errors import UserError
from attnmosaic.core.quoting import typed_override

_LISTED = {
    "attnmosaic.data.gaussian": "GaussianMosaics",
    "attnmosaic.data.image_folder": "ImageFolderMosaics",
    "attnmosaic.data.images": "DigitsMosaics TorchvisionMosaics",
    "attnmosaic.data.numbers": "DigitsAndNumber TorchvisionAndNumber",
    "attnmosaic.data.weights": "DirichletWeights FixedWeights RandomPatch",
    "attnmosaic.nn.networks": "ConvNet MLP",
    "attnmosaic.nn.objectives": "CrossEntropy SumOfCrossEntropies",
    "attnmosaic.nn.two_outputs": "ProductNet SumNet",
    # Those whose archives torchvision checks against a hash.
    "torchvision.datasets": "CIFAR10 CIFAR100 FashionMNIST KMNIST MNIST",
    "torchvision.transforms": "CenterCrop Compose Grayscale Pad Resize",
    # Layers alone: no DataParallel, no functions, nothing that hooks or loads.
    "torch.nn": "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AlphaDropout AvgPool1d "
    "AvgPool2d BatchNorm1d BatchNorm2d Bilinear CELU Conv1d Conv2d ConvTranspose1d ConvTranspose2d Dropout Dropout1d "
    "Dropout2d ELU Flatten GELU GLU GroupNorm Hardshrink Hardsigmoid Hardswish Hardtanh Identity InstanceNorm1d "
    "InstanceNorm2d LayerNorm LeakyReLU Linear LocalResponseNorm LogSigmoid LogSoftmax MaxPool1d MaxPool2d Mish "
    "PReLU RMSNorm RReLU ReLU ReLU6 SELU Sequential SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink "
    "Softsign Tanh Tanhshrink Threshold Unflatten Upsample ZeroPad1d ZeroPad2d CrossEntropyLoss NLLLoss",
    "torch.optim": "ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD",
    "torch.optim.lr_scheduler": "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR "
    "LinearLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau StepLR",
}

TARGETS = frozenset(f"{module}.{name}" for module, names in _LISTED.items() for name in names.split())
"""The names that a saved config may have without being trusted; exact names, as others in a module may do anything."""

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+", re.ASCII)


_LEVELS = 50
"""Of a config at most; runs have six."""


class NotPlainError(Exception):
    """A config with something in it that no run saves; its text says what."""


def check_trusted(config: Mapping[str, Any], sections: Sequence[str], path: object, trust: Any = ()) -> None:
    """Checks that every ``_target_`` of a saved config is listed in `TARGETS` or trusted, before it is imported.

    Args:
        config: the saved config; plain, see `check_plain`.
        sections: the keys of the nodes that are to be instantiated.
        path: the file it is from.
        trust: "all", or names of packages, modules or what is in them.

    Raises:
        UserError: a target is neither, or ``trust`` is not valid.
    """
    names = _trusted_names(trust)
    for keys, target in walk({key: config.get(key) for key in sections}):
        where, text = ".".join(map(str, keys)), str(target)
        if keys[-1] != "_target_" or trust == "all" or text in TARGETS:
            continue
        if any(f"{text}.".startswith(f"{name}.") for name in names):
            continue
        if not _NAME.fullmatch(text):
            raise UserError(
                f"ckpt_path: '{short_path(path)}' has {text[:80]!r} as its {where}, which names nothing to import"
            )
        raise UserError(
            f"ckpt_path: '{short_path(path)}' names {text} as its {where}, which is neither of this program nor a "
            "layer of torch's and would run with your rights; if you trust whoever made the file, type "
            f"{typed_override('trust', [text])} (or its package, or trust=all)"
        )


def _trusted_names(trust: Any) -> list[str]:
    names: list[Any] = [trust] if isinstance(trust, str) else [*trust] if isinstance(trust, Sequence) else [None]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"trust: got {trust}, needs names of packages; type for example 'trust=[my_package]', or trust=all"
        )
    return [name.rstrip(".") for name in names]


def check_plain(config: Any) -> None:
    """Checks that a saved config is a tree of dicts, lists, text, numbers, true, false and null, as runs save it.

    Interpolations are refused: runs save resolved values, and ``${oc.env:...}`` would read the user's environment.

    Raises:
        NotPlainError: it is not.
    """
    for path, value in walk({"config": config}):
        key = ".".join(map(str, path))[:80]
        if len(path) > _LEVELS:
            raise NotPlainError(f"more than {_LEVELS} levels at {key}")
        if not isinstance(path[-1], (str, int)) or "${" in str(path[-1]):
            raise NotPlainError(f"an invalid key: {key}")
        if isinstance(value, str) and "${" in value:
            raise NotPlainError(f"an interpolation at {key}: {value[:80]}")
        if value is not None and not isinstance(value, (str, bool, int, float, dict, list, tuple)):
            raise NotPlainError(f"a {type(value).__name__} at {key}")
