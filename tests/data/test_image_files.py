"""Image files of every supported format are decoded to their pixels."""

from pathlib import Path

import numpy as np
import pytest
from helpers.image_bytes import VALID_FILES, pixels
from PIL import Image

from attnmosaic.data.image_files import open_image


@pytest.mark.parametrize("kind", VALID_FILES)
def test_formats_are_decoded_with_any_extension(tmp_path: Path, kind: str) -> None:
    """An animation gives its first frame; the EXIF orientation is applied."""
    path = tmp_path / "wrong.ppm"
    path.write_bytes(VALID_FILES[kind])
    expected, decoded = Image.fromarray(pixels()), open_image(path, "RGB")
    if "exif" in kind:
        expected = expected.transpose(Image.Transpose.ROTATE_270)
    lossy = any(name in kind for name in ("jpeg", "gif", "palette", "avif", "mpo"))
    assert decoded.size == expected.size
    difference = np.abs(np.asarray(decoded).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= (20 if lossy else 0)
