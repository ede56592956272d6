"""Restores trained networks from their checkpoints alone: no data are loaded."""

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
        pair: the networks, in float64 if they were trained so, otherwise in float32.
        patch_shape: ``(C, H, W)``, C 1 or 3.
        classes: names of the F foreground classes, in label order.
        config: of the run that trained it.
    """

    pair: WhereWhat
    patch_shape: tuple[int, ...]
    classes: tuple[str, ...]
    config: dict[str, Any]

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> tuple[Float[Tensor, " P"], Float[Tensor, " F"]]:
        """Returns the attention weights of one mosaic's patches, and What's probability of each class.

        Args:
            pixels: the patches, uint8 ``[P, H, W, C]``, on the pair's device.
        """
        logits, alpha = self.pair(_scaled(pixels, self.config["data"], self.pair).unsqueeze(0))
        return alpha.squeeze(0), logits.squeeze(0).softmax(dim=0)


@dataclass(frozen=True, eq=False)
class RestoredTwoOutputs:
    """A network that was trained on digits with a number, in eval mode.

    Attributes:
        network: in float64 if it was trained so, otherwise in float32.
        image_shape: ``(C, H, W)``, C 1 or 3.
        config: of the run that trained it.
    """

    network: nn.Module
    image_shape: tuple[int, ...]
    config: dict[str, Any]

    @torch.no_grad()
    def predict(self, image: Image.Image, number: int, invert: bool) -> dict[str, int]:
        """Returns the digit of an image and what it gives with a number, by name.

        Args:
            image: of any size and mode; it is resized to the size trained on, and made grey if that was.
            number: 0 to 9.
            invert: the image is black on white.
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
        path: of the checkpoint.
        trust: what it may name, see `attnmosaic.config.trusted.trusted_prefixes`.

    Raises:
        UserError: the checkpoint is unreadable, names what is not trusted, or is not of a pair that learned where to
            attend in images.
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
    """Checks that a checkpoint's hyperparameters are those of a pair that learned where to attend in images."""
    trained = saved["config"]
    if networks_of(trained) != PAIR:
        raise UserError(
            f"ckpt_path: '{path}' is of a network with two outputs, which takes one image; type "
            f"{command('predict', as_override('ckpt_path', str(path)), 'image=FILE', 'number=5')}"
        )
    data, shape = trained["data"], saved["patch_shape"]
    if data.get("weights") is not None:
        raise UserError(
            f"ckpt_path: '{path}' has no where network: its data fixed the attention weights (data.weights); give a "
            "checkpoint of a pair that learned where to attend, of experiment=stagewise say"
        )
    if len(shape) != 3 or shape[0] not in (1, 3) or not {"mean", "std"} <= data.keys():
        raise UserError(
            f"ckpt_path: '{path}' is of a pair whose patches, of shape {tuple(shape)}, are no grey or RGB images; give "
            "one trained on images, of experiment=stagewise data=digits say"
        )


def restore_two_outputs(path: str | Path, trust: Any = ()) -> RestoredTwoOutputs:
    """Restores the network with two outputs of a checkpoint, on the CPU.

    Args:
        path: of the checkpoint.
        trust: what it may name, see `attnmosaic.config.trusted.trusted_prefixes`.

    Raises:
        UserError: the checkpoint is unreadable, names what is not trusted, or is of a where/what pair.
    """
    checkpoint = read_saved(path)
    trained = checkpoint["hyper_parameters"]["config"]
    if networks_of(trained) == PAIR:
        raise UserError(
            f"ckpt_path: '{path}' is of a where/what pair, which takes mosaics; "
            "give a checkpoint of experiment=mnist_sum or experiment=mnist_product"
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
    """Loads a network's weights, which a checkpoint holds under the network's name, and puts it into eval mode."""
    module = nn.ModuleDict({name: network.eval()})
    # An objective of one's own may have weights, too.
    weights = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(f"{name}.")}
    check_weights_fit({"state_dict": weights}, module, path)
    module.load_state_dict(weights)


def _scaled(pixels: Tensor, data: dict[str, Any], network: nn.Module) -> Tensor:
    """Returns images, uint8 ``[N, H, W, C]``, scaled as the training data were, ``[N, C, H, W]``."""
    labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
    pool = image_pool(Images(pixels, labels, ["unknown"]), data["mean"], data["std"])
    return pool.gather(torch.arange(len(pixels), device=pixels.device), next(network.parameters()).dtype)
