"""Checks which classes a checkpoint's config asks the program to import. Imports no torch.

Each ``_target_`` of a config names a class or function that is imported and called, so a config from another person
can run any code. Only the classes in `TARGETS` are instantiated from a checkpoint, unless the user trusts more names.
This is an allow-list because a complete list of harmful names is impossible.
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
    # Data sets whose archives torchvision compares with a checksum.
    "torchvision.datasets": "CIFAR10 CIFAR100 FashionMNIST KMNIST MNIST",
    "torchvision.transforms": "CenterCrop Compose Grayscale Pad Resize",
    # Layers only: no DataParallel, no functions, nothing that registers hooks or loads files.
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
"""Full names of the classes that a saved config can use without the user's trust."""

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+", re.ASCII)


_MAX_DEPTH = 50
"""Greatest depth of a saved config; configs of runs have depth 6."""


class NotPlainError(Exception):
    """Raised for a saved config with a value that no run saves; the message describes the value."""


def check_trusted(config: Mapping[str, Any], sections: Sequence[str], path: object, trust: Any = ()) -> None:
    """Checks that every ``_target_`` of a saved config is in `TARGETS` or trusted by the user; imports no target.

    Args:
        config: the saved config; plain, see `check_plain`.
        sections: keys of the sections that will be instantiated.
        path: the checkpoint, for error messages.
        trust: "all", or names of trusted packages, modules, classes or functions.

    Raises:
        UserError: a target is neither listed nor trusted, or ``trust`` is not valid.
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
                f"ckpt_path: '{short_path(path)}' has {text[:80]!r} as its {where}, which is not the name of a class"
            )
        raise UserError(
            f"ckpt_path: '{short_path(path)}' names {text} as its {where}, which is not a known class of attnmosaic or "
            "torch; its code would run on your account. If you trust the author of the checkpoint, type "
            f"{typed_override('trust', [text])} (or its package, or trust=all)"
        )


def _trusted_names(trust: Any) -> list[str]:
    names: list[Any] = [trust] if isinstance(trust, str) else [*trust] if isinstance(trust, Sequence) else [None]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"trust: got {trust}, needs a list of package names; type for example 'trust=[my_package]', or trust=all"
        )
    return [name.rstrip(".") for name in names]


def check_plain(config: Any) -> None:
    """Checks that a saved config has only dicts, lists, texts, numbers, true, false and null, like configs of runs.

    Interpolations are refused: runs save resolved values, and ``${oc.env:...}`` would read the user's environment.

    Raises:
        NotPlainError: the config has another kind of value.
    """
    for path, value in walk({"config": config}):
        key = ".".join(map(str, path))[:80]
        if len(path) > _MAX_DEPTH:
            raise NotPlainError(f"more than {_MAX_DEPTH} levels at {key}")
        if not isinstance(path[-1], (str, int)) or "${" in str(path[-1]):
            raise NotPlainError(f"an invalid key: {key}")
        if isinstance(value, str) and "${" in value:
            raise NotPlainError(f"an interpolation at {key}: {value[:80]}")
        if value is not None and not isinstance(value, (str, bool, int, float, dict, list, tuple)):
            raise NotPlainError(f"a {type(value).__name__} at {key}")
