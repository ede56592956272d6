"""Tells the digit of an image and what it gives with a number: ``python -m attnmosaic.predict image=seven.png ...``."""

import operator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli.command import guard, run
from attnmosaic.config.operations import OPERATIONS
from attnmosaic.config.paths import where_started
from attnmosaic.config.schema import PAIR, PredictConfig, conf_dir, networks_of, register
from attnmosaic.config.structure import check_keys
from attnmosaic.config.trusted import check_trusted
from attnmosaic.config.validation import check_ckpt_path
from attnmosaic.core.errors import UserError
from attnmosaic.core.internals import import_lightning

register()


def predict(ckpt_path: str | Path, image: Any, number: int, *, invert: bool = False, trust: Any = ()) -> dict[str, int]:
    """Asks a trained network what it sees.

    Args:
        ckpt_path: a checkpoint of a run with two outputs (``experiment=mnist_sum`` or ``mnist_product``).
        image: a path, a PIL image, or uint8 pixels ``[H, W]`` or ``[H, W, 3]``. It is resized to the size trained
            on, and made grey if that was; white on black, as the digits trained on are.
        number: 0 to 9.
        invert: the image is black on white.
        trust: what the checkpoint may name beside what comes with this program, ``["my_package"]`` say, or "all".

    Returns:
        ``{"digit": 7, "sum": 12}``, or "product": values, not indices of classes.

    Raises:
        UserError: one of the arguments will not do.
    """
    number = _check_number(number)
    check_ckpt_path(ckpt_path)
    picture = _open(image)
    # Heavy imports (seconds) only once that much is known to be good.
    import_lightning()
    import torch

    from attnmosaic.data.numbers import resize
    from attnmosaic.data.pool import Pool
    from attnmosaic.data.sources import per_channel
    from attnmosaic.training.checkpointing import check_weights_fit, read_saved
    from attnmosaic.training.factory import build_two_outputs
    from attnmosaic.training.instantiation import check_targets

    checkpoint = read_saved(ckpt_path)
    trained = checkpoint["hyper_parameters"]["config"]
    if networks_of(trained) == PAIR:
        raise UserError(
            f"ckpt_path: '{ckpt_path}' is of a where/what pair, which takes mosaics; "
            "give a checkpoint of experiment=mnist_sum or experiment=mnist_product"
        )
    check_trusted(trained, ("model",), ckpt_path, trust)
    config = trained["model"]["network"]
    check_targets(config, "model.network")
    operation = OPERATIONS[trained["data"]["operation"]]
    shape = tuple(checkpoint["hyper_parameters"]["image_shape"])
    network = build_two_outputs(config, shape, len(operation.values), seed=0)
    dtype = torch.float64 if trained["precision"] == "float64" else torch.float32
    module = torch.nn.ModuleDict({"network": network.to(dtype)})  # named as in the checkpoint
    check_weights_fit(checkpoint, module, ckpt_path)
    module.load_state_dict(checkpoint["state_dict"])

    pixels = torch.from_numpy(_pixels(picture, "L" if shape[0] == 1 else "RGB"))
    patches = resize(255 - pixels if invert else pixels, *shape[1:])
    mean, std = (per_channel(trained["data"][key]) for key in ("mean", "std"))
    pool = Pool(patches, torch.zeros(1, dtype=torch.int64), ("unknown",), mean, std)
    with torch.no_grad():
        logits = network.eval()(pool.gather(torch.tensor([0]), dtype), torch.tensor([number]))
    digit, result = (int(output.argmax()) for output in logits)
    return {"digit": digit, operation.name: operation.values[result]}


def _check_number(number: Any) -> int:
    try:
        if not isinstance(number, bool) and 0 <= operator.index(number) <= 9:
            return operator.index(number)
    except TypeError:
        pass
    raise UserError(f"number: got {number}, needs a whole number from 0 to 9; type for example number=5")


def _open(image: Any) -> Any:
    """Returns an image as a PIL image, decoded."""
    from PIL import Image

    from attnmosaic.data.image_files import UnreadableError, open_image, printable

    if isinstance(image, (str, Path)) and not Path(image).expanduser().is_file():
        raise UserError(f"image: '{image}' does not exist; type image=FILE")
    try:
        if isinstance(image, (str, Path)):
            picture = open_image(Path(image).expanduser())
        elif isinstance(image, Image.Image):
            picture = image
        elif str(getattr(image, "dtype", "")) == "uint8" and image.ndim in (2, 3):
            picture = Image.fromarray(image)
        else:
            raise TypeError("it is neither a file, nor a PIL image, nor uint8 pixels [H, W] or [H, W, 3]")
        if picture.mode.startswith(("I", "F")):  # Pillow would clip them to white
            raise ValueError(f"its pixels are of mode {picture.mode}, only 8-bit images are read")
        picture.load()
    except UnreadableError as error:
        name = printable(str(image))
        raise UserError(f"image: cannot read '{name}', which {error}; give a PNG or JPEG file, say") from error
    except Exception as error:  # whatever Pillow raises on hostile pixels
        raise UserError(
            f"image: cannot read a {type(image).__name__} ({error}); give a PNG or JPEG file, say"
        ) from error
    return picture


def _pixels(picture: Any, mode: str) -> Any:
    """Returns uint8 pixels ``[1, H, W, C]`` as a pool keeps them."""
    import numpy as np

    pixels = np.array(picture.convert(mode))
    return pixels.reshape(1, *pixels.shape[:2], -1)


def _answer(config: DictConfig) -> dict[str, int]:
    check_keys(config, PredictConfig)
    for key, example in (("ckpt_path", "outputs/.../checkpoints/last.ckpt"), ("image", "FILE"), ("number", "5")):
        if OmegaConf.is_missing(config, key):
            raise UserError(f"{key}: has no value and needs one; type {key}={example}")
    with where_started():
        return predict(config.ckpt_path, config.image, config.number, invert=config.invert, trust=config.trust)


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="predict")
def _job(config: DictConfig) -> None:
    print("  ".join(f"{name}: {value}" for name, value in guard(_answer, config).items()))


def main() -> None:
    """Runs the command line."""
    run(_job)


if __name__ == "__main__":
    main()
