"""A small image as the bytes of a file, for every supported format."""

import io
from typing import Any

import numpy as np
from PIL import Image


def pixels(height: int = 6, width: int = 7) -> np.ndarray:
    """Returns a smooth image without symmetry, which JPEG changes only a little."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + 9 * x + 3 * y, 200 - 12 * y - x, 90 + 5 * x + 7 * y], axis=-1).astype(np.uint8)


def encoded(kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image, mode = Image.fromarray(pixels()), options.pop("mode", "RGB")
    (image.quantize(256) if mode == "P" else image.convert(mode)).save(content, kind, **options)
    return content.getvalue()


VALID_FILES = {
    "png": encoded("PNG"),
    "palette png": encoded("PNG", mode="P", transparency=3),
    "jpeg": encoded("JPEG", quality=95),
    "progressive jpeg": encoded("JPEG", progressive=True),
    "cmyk jpeg": encoded("JPEG", mode="CMYK"),
    "exif jpeg": encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "gif": encoded("GIF"),
    "animated gif": encoded("GIF", save_all=True, append_images=[Image.new("RGB", (7, 6))]),
    "bmp": encoded("BMP"),
    "webp": encoded("WEBP", lossless=True),
    "tiff": encoded("TIFF"),
    "packed tiff": encoded("TIFF", compression="tiff_lzw"),
    "ppm": encoded("PPM"),
    "jpeg 2000": encoded("JPEG2000"),
    "avif": encoded("AVIF", quality=100, subsampling="4:4:4"),
    "dib": encoded("DIB"),
    "mpo": encoded("MPO", quality=95),
}
"""The bytes of a file of each kind; the EXIF orientation rotates the image by 90 degrees clockwise."""
