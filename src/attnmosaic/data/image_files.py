"""Opening image files that anybody may have made: the right pixels, or one line that says why not. Imports no torch."""

import io
import os
import stat
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read, whatever a file's name says: Pillow knows formats that start other programs."""


class UnreadableError(Exception):
    """An image that makes no patches; its text says why."""


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a file to be read, if it is one: a pipe would be waited for, and a device may never end.

    Raises:
        OSError: it is none, or cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to hangs; of a file it changes nothing.
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "it is no file but a folder, a pipe or a device")
    return file


def open_image(path: Path, mode: str | None = None) -> Image.Image:
    """Decodes an image and turns it as its camera says.

    Args:
        path: of the file.
        mode: Pillow's name of the mode wanted, "L" or "RGB"; None for the one it has.

    Raises:
        UnreadableError: it cannot be read, or has more pixels than Pillow holds to be harmless.
    """
    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
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
    # Pillow raises many kinds on hostile files: OSError, SyntaxError, ValueError, DecompressionBombError ...
    except Exception as error:
        why = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise UnreadableError(f"cannot be read ({printable(why.splitlines()[0])})") from error


def printable(name: str) -> str:
    """Returns a name on one line, without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in as_text(name))


def as_text(name: str) -> str:
    """Returns a file's name as text that can be written; bytes that are none become replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")
