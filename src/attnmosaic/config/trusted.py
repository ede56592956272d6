"""What a config that somebody else saved may ask for. Light: imports no torch.

A config names by ``_target_`` what is to be imported and called, so one out of a checkpoint is a program of whoever
made the file. Only what is listed here is made of it, if the user does not say otherwise: an allow-list, as what could
do harm cannot be listed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnmosaic.config.paths import shortest
from attnmosaic.core.errors import UserError
from attnmosaic.core.quoting import to_type

_LISTED = {
    "attnmosaic.data.gaussian": "GaussianMosaics",
    "attnmosaic.data.image_folder": "ImageFolderMosaics",
    "attnmosaic.data.images": "DigitsMosaics TorchvisionMosaics",
    "attnmosaic.data.numbers": "DigitsAndNumber TorchvisionAndNumber",
    "attnmosaic.data.weights": "DirichletWeights FixedWeights RandomPatch",
    "attnmosaic.nn.networks": "ConvNet MLP",
    "attnmosaic.nn.objectives": "CrossEntropy SumOfCrossEntropies",
    "attnmosaic.nn.two_outputs": "ProductNet SumNet",
    # Those whose archives are checked against a hash that stands in torchvision; the folders it writes to are named by
    # the config.
    "torchvision.datasets": "CIFAR10 CIFAR100 FashionMNIST KMNIST MNIST",
    "torchvision.transforms": "CenterCrop Compose Grayscale Pad Resize",
    # Layers alone: no containers of other processes' work (DataParallel), no functions, nothing that hooks or loads.
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
"""What a saved config may name without being trusted: exact names, as a module's others may do anything."""

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+", re.ASCII)


class NotPlainError(Exception):
    """A config with something in it that no run saves; its text says what."""


def trusted_prefixes(trust: Any) -> tuple[str, ...] | None:
    """Returns the names that a user trusts beside `TARGETS`; None for all there are.

    Args:
        trust: "all", or names of packages, modules or what is in them.

    Raises:
        UserError: it is neither.
    """
    if trust == "all":
        return None
    names = [trust] if isinstance(trust, str) else trust
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"trust: got {trust}, needs names of packages; type for example 'trust=[my_package]', or trust=all"
        )
    return tuple(name.rstrip(".") for name in names)


def check_trusted(config: Mapping[str, Any], sections: Sequence[str], path: object, trust: Any = ()) -> None:
    """Checks that all a saved config names is listed in `TARGETS` or trusted, before anything of it is imported.

    Args:
        config: that was saved; plain, see `check_plain`.
        sections: the keys of what something is to be made of.
        path: the file it is from.
        trust: see `trusted_prefixes`.

    Raises:
        UserError: it names something else.
    """
    prefixes = trusted_prefixes(trust)
    for where, target in (found for key in sections for found in _targets(config.get(key), key)):
        if isinstance(target, str) and (prefixes is None or target in TARGETS or _under(target, prefixes)):
            continue
        if isinstance(target, str) and _NAME.fullmatch(target):
            raise UserError(
                f"ckpt_path: '{shortest(path)}' names {target} as its {where}, which is neither of this program nor a "
                "layer of torch's and would run with your rights; if you trust whoever made the file, type "
                f"{to_type('trust', [target])} (or its package, or trust=all)"
            )
        raise UserError(
            f"ckpt_path: '{shortest(path)}' has {str(target)[:80]!r} as its {where}, which names nothing to import"
        )


def _under(target: str, prefixes: Sequence[str]) -> bool:
    return any(target == prefix or target.startswith(f"{prefix}.") for prefix in prefixes)


def _targets(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yields every ``_target_`` at any depth, with its key."""
    children: Iterator[tuple[Any, Any]]
    if isinstance(node, Mapping):
        children = iter(node.items())
    elif isinstance(node, (list, tuple)):
        children = iter(enumerate(node))
    else:
        return
    for name, child in children:
        if name == "_target_":
            yield f"{key}._target_", child
        yield from _targets(child, f"{key}.{name}")


DEEPEST = 50
"""Levels of a config; ours have six."""


def check_plain(node: Any) -> None:
    """Checks that a saved config is what runs save: a tree of dicts, lists, text, numbers, true, false and null.

    An interpolation is none of these: resolved values are saved, and ``${oc.env:...}`` would read what is the user's.

    Raises:
        NotPlainError: it is not, or has more than `DEEPEST` levels.
    """
    waiting = [(node, "config", 0)]
    while waiting:
        part, key, depth = waiting.pop()
        if depth > DEEPEST:
            raise NotPlainError(f"more than {DEEPEST} levels at {key[:80]}")
        if isinstance(part, str):
            if "${" in part:
                raise NotPlainError(f"an interpolation at {key}: {part[:80]}")
        elif isinstance(part, (dict, list, tuple)):
            items = part.items() if isinstance(part, dict) else enumerate(part)
            for name, child in items:
                if not isinstance(name, (str, int)) or "${" in str(name):
                    raise NotPlainError(f"a key that is none in {key}: {str(name)[:80]}")
                waiting.append((child, f"{key}.{name}", depth + 1))
        elif part is not None and not isinstance(part, (bool, int, float)):
            raise NotPlainError(f"a {type(part).__name__} at {key}")
