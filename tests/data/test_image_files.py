"""Image files of every kind are decoded to their pixels."""

from pathlib import Path

import numpy as np
import pytest
from helpers.image_bytes import WHOLE, pixels
from PIL import Image

from attnmosaic.data.image_files import open_image


@pytest.mark.parametrize("kind", WHOLE)
def test_files_have_their_pixels(tmp_path: Path, kind: str) -> None:
    """Whatever their name says they are; of an animation the first frame, and rotated as EXIF says."""
    path = tmp_path / "wrong.ppm"
    path.write_bytes(WHOLE[kind])
    wanted, got = Image.fromarray(pixels()), open_image(path, "RGB")
    if "exif" in kind:
        wanted = wanted.transpose(Image.Transpose.ROTATE_270)
    lossy = any(name in kind for name in ("jpeg", "gif", "palette", "avif", "mpo"))
    assert got.size == wanted.size
    difference = np.abs(np.asarray(got).astype(int) - np.asarray(wanted).astype(int))
    assert difference.max() <= (20 if lossy else 0)
