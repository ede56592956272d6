"""A trained pair made again from its checkpoint alone: no data are loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attnmosaic.config.schema import PAIR, networks_of
from attnmosaic.config.trusted import check_trusted
from attnmosaic.core.errors import UserError
from attnmosaic.core.quoting import as_override, command
from attnmosaic.data.pool import Pool
from attnmosaic.data.sources import per_channel
from attnmosaic.nn.attention import WhereWhat, aggregate
from attnmosaic.training.attention_cache import rows_per_piece
from attnmosaic.training.checkpointing import check_weights_fit, read_saved
from attnmosaic.training.factory import build_pair
from attnmosaic.training.instantiation import check_targets


@dataclass(frozen=True, eq=False)
class RestoredPair:
    """A pair that was trained on mosaics of images, in eval mode.

    Attributes:
        pair: the networks, in float64 if they were trained so, otherwise in float32.
        patch_shape: ``(C, H, W)``, C 1 or 3.
        classes: names of the F foreground classes, in label order.
        patches: patches a mosaic that it was trained on.
        mean: of pixels, see `Pool`.
        std: likewise.
        scale: ``full`` or ``smoke``.
        matmul_precision: that it was trained with.
    """

    pair: WhereWhat
    patch_shape: tuple[int, ...]
    classes: tuple[str, ...]
    patches: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: str
    matmul_precision: str

    @torch.no_grad()
    def look(self, patches: Tensor) -> tuple[Float[Tensor, " P"], Float[Tensor, " F"]]:
        """Weighs the patches of one mosaic and classifies their weighted sum.

        Args:
            patches: uint8 ``[P, H, W, C]``, where the pair is.

        Returns:
            The attention weights, and What's probability of each class.
        """
        parameter = next(self.pair.parameters())
        pool = Pool(patches, torch.zeros(len(patches), dtype=torch.int64), ("unknown",), self.mean, self.std)
        rows = torch.arange(len(patches), device=parameter.device)
        # A folder may hold any number of patches: in pieces, memory does not grow with it.
        pieces = rows.split(rows_per_piece(patches[0].numel() * parameter.dtype.itemsize, parameter.device))
        scores = torch.cat([self.pair.score(pool.gather(piece, parameter.dtype)) for piece in pieces])
        alpha = self.pair.weigh(scores.unsqueeze(0))
        summed = [aggregate(alpha[:, piece], pool.gather(piece, parameter.dtype).unsqueeze(0)) for piece in pieces]
        logits = self.pair.what(torch.stack(summed).sum(dim=0))
        return alpha.squeeze(0), logits.squeeze(0).softmax(dim=0)


def restore_pair(path: str | Path, trust: Any = ()) -> RestoredPair:
    """Makes the pair of a checkpoint again, on the CPU.

    Args:
        path: of the checkpoint.
        trust: what it may name, see `attnmosaic.config.trusted.trusted_prefixes`.

    Raises:
        UserError: the checkpoint is unreadable, names what is not trusted, or is not of a pair that learned where to
            look in images.
    """
    checkpoint = read_saved(path)
    saved = checkpoint["hyper_parameters"]
    trained = saved["config"]
    if networks_of(trained) != PAIR:
        raise UserError(
            f"ckpt_path: '{path}' is of a network with two outputs, which looks at one image; type "
            f"{command('predict', as_override('ckpt_path', str(path)), 'image=FILE', 'number=5')}"
        )
    data = trained["data"]
    if data.get("weights") is not None:
        raise UserError(
            f"ckpt_path: '{path}' has no where network: its data decreed the weights (data.weights); give a "
            "checkpoint of a pair that learned where to look, of experiment=stagewise say"
        )
    shape, classes = tuple(saved["patch_shape"]), tuple(saved["foreground_classes"])
    if len(shape) != 3 or shape[0] not in (1, 3) or not {"mean", "std"} <= data.keys():
        raise UserError(
            f"ckpt_path: '{path}' is of a pair whose patches, of shape {shape}, are no grey or RGB images; give one "
            "trained on images, of experiment=stagewise data=digits say"
        )
    check_trusted(trained, ("model",), path, trust)
    check_targets(trained["model"], "model")
    pair = build_pair(trained, shape, len(classes))
    module = torch.nn.ModuleDict({"pair": pair})  # named as in the checkpoint
    # An objective of one's own may have weights, too.
    weights = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("pair.")}
    check_weights_fit({"state_dict": weights}, module, path)
    module.load_state_dict(weights)
    return RestoredPair(
        pair=pair.to(memory_format=torch.channels_last).eval(),
        patch_shape=shape,
        classes=classes,
        patches=data["patches"],
        mean=per_channel(data["mean"]),
        std=per_channel(data["std"]),
        scale=trained["scale"],
        matmul_precision=trained["compute"]["matmul_precision"],
    )
