"""Image files that anybody may have made: pixels, or one line that names the file and the reason."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bounds import bounded
from helpers.image_bytes import WHOLE
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from attnmosaic.config.image_folders import check_folder
from attnmosaic.core.errors import UserError
from attnmosaic.data.image_files import UnreadableError, open_image
from attnmosaic.data.image_folder import load_images
from attnmosaic.inference.user_images import find_sources, read_mosaic
from attnmosaic.predict import _open

pytestmark = pytest.mark.faults

DAMAGED = 150
"""Number of damaged files."""


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draws a file with some bytes changed, left out, put in or cut off."""
    kind = draw(st.sampled_from(sorted(WHOLE)))
    held = bytearray(WHOLE[kind])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(held) - 1)))
        how = draw(st.sampled_from(["flip", "set", "insert", "delete", "cut", "large", "double"]))
        if how == "flip" and held:
            held[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and held:
            held[at] = draw(st.sampled_from([0, 1, 127, 128, 255]))
        elif how == "insert":
            held[at:at] = draw(st.binary(max_size=8))
        elif how == "delete":
            del held[at : at + draw(st.integers(1, 8))]
        elif how == "cut":
            del held[at:]
        elif how == "large":
            held[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff"]))
        else:
            held += held[at:]
    return kind, bytes(held)


def test_damaged_files(tmp_path: Path) -> None:
    read = refused = 0
    path = tmp_path / "x.png"

    @settings(
        max_examples=DAMAGED, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(damaged())
    def one(drawn: tuple[str, bytes]) -> None:
        nonlocal read, refused
        path.write_bytes(drawn[1])
        with bounded(20, 3):
            try:
                image: Any = open_image(path, "RGB")
            except UnreadableError as error:
                image = str(error)
        if isinstance(image, str):
            refused += 1
            assert image.isprintable()
            assert len(image) < 500
            return
        read += 1
        assert image.mode == "RGB"
        assert min(image.size) >= 1
        assert np.asarray(image).shape == (image.height, image.width, 3)

    one()
    assert min(read, refused) > DAMAGED / 20


NO_WIDTH = b"GIF89a\0\0\x05\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\0\0\x05\0\0\x02\x02D\x01\0;"

ODD: dict[str, Callable[[Path], Any]] = {
    "a loop": lambda path: path.symlink_to(path),
    "a dangling link": lambda path: path.symlink_to("nowhere.png"),
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "another format": lambda path: Image.new("L", (6, 7)).save(path, "PCX"),
    "a program": lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"),
    "no width": lambda path: path.write_bytes(NO_WIDTH),
    "more pixels than Pillow's limit": lambda path: Image.new("1", (10_000, 10_000)).save(path, "PNG"),
    "16 bits": lambda path: Image.fromarray(np.zeros((6, 7), np.uint16)).save(path, "PNG"),
    "floats": lambda path: Image.fromarray(np.zeros((6, 7), np.float32)).save(path, "TIFF"),
    "cut": lambda path: path.write_bytes(WHOLE["png"][:60]),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_image(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.png"
    ODD[what](path)
    with bounded(30, 3), pytest.raises(UnreadableError) as caught:
        open_image(path, "RGB")
    assert str(caught.value).isprintable()


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    """Wherever it is given: in a folder of classes, to `explain`, to `predict`."""
    path = tmp_path / "classes" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    ODD["cut"](path)
    for given_to in (
        lambda: load_images([path], tmp_path / "classes", 8, True, tmp_path / "cache"),
        lambda: _open(path),
    ):
        with pytest.raises(UserError, match=str(path)):
            given_to()
    (source,) = find_sources(path)
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_mosaic(source, 2, (3, 8, 8))
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"data\.root: cannot read '{path}' \(No such file"):
        load_images([path], tmp_path / "classes", 8, True, tmp_path / "cache")


def test_odd_shapes_are_read(tmp_path: Path) -> None:
    for name, size in (("wide.png", (100_000, 1)), ("high.png", (1, 100_000)), ("dot.png", (1, 1))):
        Image.new("L", size, 7).save(tmp_path / name)
        with bounded(30, 3):
            images = load_images([tmp_path / name], tmp_path, 8, True, tmp_path / "cache")
        assert images.shape == (1, 8, 8, 3)
        assert images.unique().tolist() == [7]


def test_odd_names(tmp_path: Path) -> None:
    """File names that are no text are read; folders that a class is called by are to be printable."""
    for name in (b"\xff\xfe.png", b"a\nb.png", b"\x1b[2J.png", "名前.png".encode(), b"'; rm -rf .png", b"%s${x}.png"):
        folder = os.fsencode(tmp_path / "good" / "a")
        os.makedirs(folder, exist_ok=True)
        Image.new("L", (8, 8), 7).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.path.join(folder, name))
    paths = sorted((tmp_path / "good" / "a").iterdir())
    assert load_images(paths, tmp_path / "good", None, False, tmp_path / "cache").shape == (6, 8, 8, 1)
    paths[0].write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot decode") as caught:
        load_images(paths, tmp_path / "good", None, False, tmp_path / "cache")
    assert str(caught.value).isprintable()
    for name in (b"\xff", b"a\nb", b"\x1b[2J"):
        folder = os.path.join(os.fsencode(tmp_path / "bad" / name.hex()), name)
        os.makedirs(folder)
        Image.new("L", (8, 8)).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.path.join(folder, b"x.png"))
        with pytest.raises(UserError, match="rename") as caught:
            check_folder(tmp_path / "bad" / name.hex())
        assert str(caught.value).isprintable()


def test_folders_called_like_images(tmp_path: Path) -> None:
    """They are folders; and links to folders are not followed round and round."""
    (tmp_path / "a" / "b.png").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "a" / "b.png" / "c.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    with bounded(20):
        assert check_folder(tmp_path) == ["a"]
        (source,) = find_sources(tmp_path / "a")
    assert [file.name for file in source.files] == ["c.png"]


def test_thousands_of_classes(tmp_path: Path) -> None:
    from attnmosaic.config.classes import split_classes

    for i in range(2_000):
        (tmp_path / f"c{i:04}").mkdir()
        (tmp_path / f"c{i:04}" / "x.png").touch()
    names = check_folder(tmp_path)
    assert len(names) == 2_000
    with pytest.raises(UserError) as caught:
        split_classes(["nothing", "c0001"], None, names)
    assert len(str(caught.value)) < 600
