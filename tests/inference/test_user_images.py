"""Mosaics of a user's images: which files are read, how images are cut, and the names of the pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnmosaic.core.errors import UserError
from attnmosaic.data.image_files import UnreadableError
from attnmosaic.inference.explanation import picture_names
from attnmosaic.inference.user_images import Source, find_sources, read_mosaic


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(3).integers(256, size=(24, 24), dtype=np.uint8)).save(path)


def test_picture_is_cut_into_cells(tmp_path: Path) -> None:
    """Row by row, with sizes that differ by at most a pixel; each patch depends on its own cell only."""
    pixels = np.random.default_rng(0).integers(256, size=(70, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (source,) = find_sources(tmp_path / "wide.png")
    mosaic = read_mosaic(source, 3, (3, 8, 6))
    y, x = (0, 23, 47, 70), (0, 67, 133, 200)
    cells = [Image.fromarray(pixels[y[i] : y[i + 1], x[j] : x[j + 1]]) for i in range(3) for j in range(3)]
    assert np.array_equal(mosaic.patches, [np.asarray(c.resize((6, 8), Image.Resampling.BICUBIC)) for c in cells])
    with pytest.raises(UnreadableError, match="200 x 70"):
        read_mosaic(source, 71, (3, 8, 6))


def test_folder_is_one_mosaic(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of its readable images, sorted by name; images that are not square are cropped at their centre."""
    pixels = np.random.default_rng(0).integers(256, size=(8, 20), dtype=np.uint8)
    (tmp_path / "set").mkdir()
    Image.fromarray(pixels).save(tmp_path / "set" / "b.png")
    Image.fromarray(pixels[:, :8]).save(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "cut.png").write_bytes((tmp_path / "set" / "a.png").read_bytes()[:60])
    (source,) = find_sources(tmp_path)
    assert source.name == "set"
    assert np.array_equal(read_mosaic(source, 3, (1, 8, 8)).patches[..., 0], [pixels[:, :8], pixels[:, 6:14]])
    assert "'set/cut.png' cannot be read" in caplog.text
    for name in "ab":
        (tmp_path / "set" / f"{name}.png").unlink()
    with pytest.raises(UnreadableError, match=r"no readable image.*'set/cut\.png'"):
        read_mosaic(find_sources(tmp_path)[0], 3, (1, 8, 8))


SKIPPED = {
    ".DS_Store": "hidden: 1",
    "list.txt": ".txt: 1",
    "set/0.heic": ".heic: 1",
    "set/IMG_0001": "no ending: 1",
    "set/deeper/0.png": "folders in a mosaic's folder: 1",
    "none/list.txt": ".txt: 1, folders without images: 1",
}


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_files_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    caplog.set_level("INFO")
    save(tmp_path / "a.png", tmp_path / "set" / "b.jfif", tmp_path / "set" / "c.avif")
    assert [len(source.files) for source in find_sources(tmp_path)] == [0, 2]
    assert "skipped" not in caplog.text
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert [len(source.files) for source in find_sources(tmp_path)] == [0, 2]
    (line,) = [record for record in caplog.records if "skipped" in record.message]
    assert f"'{tmp_path}' ({SKIPPED[name]})" in line.message
    assert line.levelname == ("INFO" if "hidden" in SKIPPED[name] else "WARNING")


def test_links_are_followed(tmp_path: Path) -> None:
    """A link to a missing file is an image that cannot be read."""
    save(tmp_path / "there.png")
    (tmp_path / "mine" / "set").mkdir(parents=True)
    (tmp_path / "mine" / "dangling.png").symlink_to("nowhere")
    (tmp_path / "mine" / "linked.png").symlink_to("../there.png")
    (tmp_path / "mine" / "set" / "linked.png").symlink_to(tmp_path / "there.png")
    (tmp_path / "mine" / "sets").symlink_to("set")
    dangling, linked, *sets = find_sources(tmp_path / "mine")
    assert [len(source.files) for source in sets] == [1, 1]
    assert read_mosaic(linked, 3, (1, 8, 8)).patches.shape == (9, 8, 8, 1)
    with pytest.raises(UnreadableError, match="No such file"):
        read_mosaic(dangling, 3, (1, 8, 8))


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.heic").touch()
    with pytest.raises(UserError, match=r"images: .*\.heic: 1; "):
        find_sources(tmp_path)


def test_picture_names() -> None:
    """Names are distinct, also if upper and lower case are not distinguished, and similar to the image's name."""

    def names(*paths: str) -> list[str]:
        return picture_names([Source(Path(path), () if "." in path else (Path(path, "1.png"),)) for path in paths])

    assert names("a.jpg", "b.png", "c") == ["a.png", "b.png", "c.png"]
    assert names("a", "a.jpg", "a.png", "b.png") == ["a.png", "a_2.png", "a_3.png", "b.png"]
    assert names("A.png", "a.png") == ["A.png", "a_2.png"]
    assert names("a?.png", "a*.png") == ["a_.png", "a__2.png"]
    assert names("index.jpg") == ["index_2.png"]
    assert names("..") == ["_.png"]
    assert names("a/../../b.png") == ["b.png"]
