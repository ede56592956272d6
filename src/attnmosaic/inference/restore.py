"""Restores trained networks from their checkpoints, without their training data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from attnmosaic.config.digit_operations import OPERATIONS
from attnmosaic.config.schema import PAIR, networks_of
from attnmosaic.config.trusted import check_trusted
from attnmosaic.core.errors import UserError
from attnmosaic.core.quoting import as_override, command
from attnmosaic.data.numbers import resize
from attnmosaic.data.sources import Images, image_pool
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training.checkpointing import check_weights_fit, read_saved
from attnmosaic.training.factory import build_pair, build_two_outputs
from attnmosaic.training.instantiation import check_targets


@dataclass(frozen=True, eq=False)
class RestoredPair:
    """A pair that was trained on mosaics of images, in eval mode.

    Attributes:
        pair: the networks, in float64 if they were trained in float64, otherwise in float32.
        patch_shape: ``(C, H, W)``, C 1 or 3.
        classes: names of the F foreground classes, in label order.
        config: config of the run that trained the pair.
    """

    pair: WhereWhat
    patch_shape: tuple[int, ...]
    classes: tuple[str, ...]
    config: dict[str, Any]

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> tuple[Float[Tensor, " P"], Float[Tensor, " F"]]:
        """Returns the attention weights of a mosaic's patches, and What's probability of each class.

        Args:
            pixels: pixels of the patches, uint8 ``[P, H, W, C]``, on the pair's device.
        """
        logits, alpha = self.pair(_scaled(pixels, self.config["data"], self.pair).unsqueeze(0))
        return alpha.squeeze(0), logits.squeeze(0).softmax(dim=0)


@dataclass(frozen=True, eq=False)
class RestoredTwoOutputs:
    """A network that was trained on digits with a number, in eval mode.

    Attributes:
        network: the network, in float64 if it was trained in float64, otherwise in float32.
        image_shape: ``(C, H, W)``, C 1 or 3.
        config: config of the run that trained the network.
    """

    network: nn.Module
    image_shape: tuple[int, ...]
    config: dict[str, Any]

    @torch.no_grad()
    def predict(self, image: Image.Image, number: int, invert: bool) -> dict[str, int]:
        """Returns the predicted digit of an image, and the predicted sum or product with a number, by name.

        Args:
            image: an image of any size and mode. It is resized to the size of the training images, and converted to
                grey if these were grey.
            number: 0 to 9.
            invert: whether the digit is black on white.
        """
        channels, *size = self.image_shape
        operation = OPERATIONS[self.config["data"]["operation"]]
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        rows = torch.from_numpy(pixels.reshape(1, *pixels.shape[:2], -1))
        patches = _scaled(resize(255 - rows if invert else rows, *size), self.config["data"], self.network)
        digit, result = (int(logits.argmax()) for logits in self.network(patches, torch.tensor([number])))
        return {"digit": digit, operation.name: operation.values[result]}


def restore_pair(path: str | Path, trust: Any = ()) -> RestoredPair:
    """Restores the pair of a checkpoint, on the CPU.

    Args:
        path: path of the checkpoint.
        trust: trusted names, see `attnmosaic.config.trusted.check_trusted`.

    Raises:
        UserError: the checkpoint is unreadable, uses a class that is not trusted, or is not of a pair that learned
            attention weights on images.
    """
    checkpoint = read_saved(path)
    saved = checkpoint["hyper_parameters"]
    _check_pair(saved, path)
    trained, shape, classes = saved["config"], tuple(saved["patch_shape"]), tuple(saved["foreground_classes"])
    check_trusted(trained, ("model",), path, trust)
    check_targets(trained["model"], "model")
    pair = build_pair(trained, shape, len(classes))
    _load_weights("pair", pair, checkpoint, path)
    return RestoredPair(pair.to(memory_format=torch.channels_last), shape, classes, trained)


def _check_pair(saved: dict[str, Any], path: str | Path) -> None:
    """Checks that a checkpoint is of a pair that learned attention weights on images."""
    trained = saved["config"]
    if networks_of(trained) != PAIR:
        raise UserError(
            f"ckpt_path: '{path}' is of a digit-and-number network with two outputs, not of a where/what pair; type "
            f"{command('predict', as_override('ckpt_path', str(path)), 'image=FILE', 'number=5')}"
        )
    data, shape = trained["data"], saved["patch_shape"]
    if data.get("weights") is not None:
        raise UserError(
            f"ckpt_path: '{path}' has no where network: it was trained with fixed attention weights (data.weights); "
            "use a checkpoint of a pair with a where network, for example of experiment=stagewise"
        )
    if len(shape) != 3 or shape[0] not in (1, 3) or not {"mean", "std"} <= data.keys():
        raise UserError(
            f"ckpt_path: '{path}' is a checkpoint of a pair with patches of shape {tuple(shape)}, "
            "needs grey or RGB images; "
            "use a checkpoint of a pair trained on images, for example of experiment=stagewise data=digits"
        )


def restore_two_outputs(path: str | Path, trust: Any = ()) -> RestoredTwoOutputs:
    """Restores the network with two outputs of a checkpoint, on the CPU.

    Args:
        path: path of the checkpoint.
        trust: trusted names, see `attnmosaic.config.trusted.check_trusted`.

    Raises:
        UserError: the checkpoint is unreadable, uses a class that is not trusted, or is of a where/what pair.
    """
    checkpoint = read_saved(path)
    trained = checkpoint["hyper_parameters"]["config"]
    if networks_of(trained) == PAIR:
        raise UserError(
            f"ckpt_path: '{path}' is a checkpoint of a where/what pair, which predicts on mosaics; "
            "use a checkpoint of experiment=mnist_sum or experiment=mnist_product"
        )
    check_trusted(trained, ("model",), path, trust)
    check_targets(trained["model"]["network"], "model.network")
    shape = tuple(checkpoint["hyper_parameters"]["image_shape"])
    results = len(OPERATIONS[trained["data"]["operation"]].values)
    network = build_two_outputs(trained["model"]["network"], shape, results, seed=0)
    network.to(torch.float64 if trained["precision"] == "float64" else torch.float32)
    _load_weights("network", network, checkpoint, path)
    return RestoredTwoOutputs(network, shape, trained)


def _load_weights(name: str, network: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Loads the weights of a network from a checkpoint, and puts the network into eval mode.

    Args:
        name: prefix of the network's weights in the checkpoint.
        network: the network.
        checkpoint: the checkpoint.
        path: path of the checkpoint, for error messages.
    """
    module = nn.ModuleDict({name: network.eval()})
    # A user's objective can have weights, too; they are skipped.
    weights = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(f"{name}.")}
    check_weights_fit({"state_dict": weights}, module, path)
    module.load_state_dict(weights)


def _scaled(pixels: Tensor, data: dict[str, Any], network: nn.Module) -> Tensor:
    """Returns images, uint8 ``[N, H, W, C]``, as network inputs ``[N, C, H, W]``, scaled like the training data."""
    labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
    pool = image_pool(Images(pixels, labels, ["unknown"]), data["mean"], data["std"])
    return pool.gather(torch.arange(len(pixels), device=pixels.device), next(network.parameters()).dtype)
