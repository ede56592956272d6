"""Decodes image files. Light: imports no torch."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from attnmosaic.core.errors import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are decoded, whatever the file's extension; some of Pillow's other formats start programs."""


class UnreadableError(Exception):
    """Error for an image file that cannot be decoded; its message continues a sentence that begins with the file."""


def open_image(path: Path, mode: str | None = None) -> Image.Image:
    """Decodes an image file and applies its EXIF orientation.

    Args:
        path: path of the file.
        mode: Pillow mode of the result, "L" or "RGB"; None for the mode of the file.

    Raises:
        UnreadableError: the file cannot be decoded, or has more pixels than Pillow's limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about unusual metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                if opened.mode.startswith(("I", "F")):  # Pillow would clip them to white
                    raise UnreadableError(f"has pixels of mode {opened.mode}, but only 8-bit images can be read")
                if min(opened.size) < 1:
                    raise UnreadableError(f"has {opened.width} x {opened.height} pixels")
                image: Image.Image = ImageOps.exif_transpose(opened)
                image.load()
                return image if mode is None else image.convert(mode)
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError(
            "is not an image in a supported format (PNG, JPEG, WebP, AVIF, BMP, GIF, TIFF)"
        ) from error
    # Pillow raises many kinds of errors for damaged files: OSError, SyntaxError, ValueError, DecompressionBombError ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise UnreadableError(f"cannot be read ({one_line(reason.splitlines()[0])})") from error
