"""Predicts an image's digit and its sum or product with a number: ``python -m attnmosaic.predict image=FILE ...``."""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from attnmosaic.cli.command import guard, run
from attnmosaic.config.keys import check_keys
from attnmosaic.config.paths import where_started
from attnmosaic.config.schema import PredictConfig, conf_dir, register
from attnmosaic.config.validation import check_ckpt_path
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.core.library_internals import import_lightning
from attnmosaic.data.image_files import UnreadableError, open_image

register()


def predict(ckpt_path: str | Path, image: Any, number: int, *, invert: bool = False, trust: Any = ()) -> dict[str, int]:
    """Returns the predicted digit of an image, and its predicted sum or product with a number.

    Args:
        ckpt_path: a checkpoint of a run with two outputs (``experiment=mnist_sum`` or ``mnist_product``).
        image: a path, a PIL image, or uint8 pixels ``[H, W]`` or ``[H, W, 3]``, with the digit white on black. It is
            resized to the size of the training images, and converted to grey if these were grey.
        number: 0 to 9.
        invert: whether the digit is black on white.
        trust: packages, modules or classes that the checkpoint can use in addition to those of this program, for
            example ``["my_package"]``; or "all".

    Returns:
        The values of digit and result, for example ``{"digit": 7, "sum": 12}``; or "product" in place of "sum".

    Raises:
        UserError: an argument is invalid.
    """
    if number not in range(10):
        raise UserError(f"number: got {number}, needs a whole number from 0 to 9; type for example number=5")
    check_ckpt_path(ckpt_path)
    picture = _open(image)
    import_lightning()  # takes seconds, so the arguments are checked first
    from attnmosaic.inference.restore import restore_two_outputs

    return restore_two_outputs(ckpt_path, trust).predict(picture, int(number), invert)


def _open(image: Any) -> Image.Image:
    """Returns the decoded image as a PIL image with 8 bits per channel."""
    if isinstance(image, (str, Path)):
        try:
            return open_image(Path(image).expanduser())
        except UnreadableError as error:
            raise UserError(one_line(f"image: '{image}' {error}; use a PNG or JPEG file")) from error
    if str(getattr(image, "dtype", "")) == "uint8" and image.ndim in (2, 3):
        return Image.fromarray(image)
    if isinstance(image, Image.Image) and not image.mode.startswith(("I", "F")):  # Pillow clips I and F
        return image
    raise UserError(
        f"image: got a {type(image).__name__}, needs a file, a PIL image of 8 bits, or uint8 pixels [H, W] or [H, W, 3]"
    )


def _predict(config: DictConfig) -> dict[str, int]:
    """Returns the prediction for a composition of ``conf/predict.yaml``."""
    check_keys(config, PredictConfig)
    for key, example in (("ckpt_path", "outputs/.../checkpoints/last.ckpt"), ("image", "FILE"), ("number", "5")):
        if OmegaConf.is_missing(config, key):
            raise UserError(f"{key}: required; type {key}={example}")
    with where_started():
        return predict(config.ckpt_path, config.image, config.number, invert=config.invert, trust=config.trust)


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="predict")
def _job(config: DictConfig) -> None:
    print("  ".join(f"{name}: {value}" for name, value in guard(_predict, config).items()))


def main() -> None:
    """Runs the command line."""
    run(_job)


if __name__ == "__main__":
    main()
