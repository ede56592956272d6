"""Decodes image files. Light: imports no torch."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from attnmosaic.core.errors import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are decoded, whatever a file is called: Pillow has others that start programs."""


class UnreadableError(Exception):
    """The error of an image that cannot be decoded; its text is the reason."""


def open_image(path: Path, mode: str | None = None) -> Image.Image:
    """Decodes an image file and rotates it as its EXIF orientation says.

    Args:
        path: the file.
        mode: Pillow's name of the mode wanted, "L" or "RGB"; None for the file's own.

    Raises:
        UnreadableError: the file cannot be decoded, or has more pixels than Pillow's limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                if opened.mode.startswith(("I", "F")):  # Pillow would clip them to white
                    raise UnreadableError(f"has pixels of mode {opened.mode}, only 8-bit images are read")
                if min(opened.size) < 1:
                    raise UnreadableError(f"has {opened.width} x {opened.height} pixels")
                image: Image.Image = ImageOps.exif_transpose(opened)
                image.load()
                return image if mode is None else image.convert(mode)
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("is no image in a format that is read (PNG, JPEG, WebP, AVIF, BMP, GIF, TIFF)") from error
    # Pillow raises many kinds on damaged files: OSError, SyntaxError, ValueError, DecompressionBombError ...
    except Exception as error:
        why = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise UnreadableError(f"cannot be read ({one_line(why.splitlines()[0])})") from error
