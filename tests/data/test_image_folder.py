"""The user's own folder of images: which files are read, the cache, and errors for invalid folders."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnmosaic.config.image_folders import IMAGE_SUFFIXES
from attnmosaic.core.errors import UserError
from attnmosaic.data import image_folder
from attnmosaic.data.image_folder import ImageFolderMosaics, load_images
from attnmosaic.data.pool import Pool

CLASSES = ("apple", "pear", "plum")
Pools = Callable[..., tuple[Pool, Pool]]


def picture(seed: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    """Returns random RGB pixels of the given width and height."""
    return np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)


def fill(root: Path, classes: tuple[str, ...] = CLASSES, each: int = 4, seed: int = 0, suffix: str = "png") -> Path:
    """Writes ``each`` random images for each class; returns the folder."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            seed += 1
            Image.fromarray(picture(seed)).save(root / name / f"{i}.{suffix}")
    return root


@pytest.fixture
def pools(tmp_path: Path) -> Pools:
    """Returns a function that loads the training pool and the held-out pool of a folder."""

    def load(root: Path, **changes: Any) -> tuple[Pool, Pool]:
        settings: dict[str, Any] = {
            "image_size": None, "color": True, "held_out_share": 0.25, "cache_dir": tmp_path / "cache",
            "mean": 0.5, "std": 0.5, "foreground": [0, 1], "background": None, "patches": 9,
            "train_mosaics": 10, "test_mosaics": 10, "held_out_mosaics": 10, "batch_size": 5,
            "steps_per_block": 1, "eval_batch_size": 5, "seed": 0, "order_seed": 0,
        }  # fmt: skip
        return ImageFolderMosaics(root=root, **(settings | changes)).load_pools()

    return load


def cached(tmp_path: Path) -> list[Path]:
    """Returns the cache files; fails if an incomplete file was left."""
    files = [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    assert all(path.suffix == ".npy" for path in files), files
    return files


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("decoded an image that is in the cache")

    monkeypatch.setattr("PIL.Image.open", refuse)


# ---- files that are read


def test_folder_without_test_images_is_split(tmp_path: Path, pools: Pools) -> None:
    train, held_out = pools(fill(tmp_path / "fruit"))
    assert train.classes == held_out.classes == CLASSES
    assert train.labels.bincount().tolist() == [3, 3, 3]
    assert held_out.labels.bincount().tolist() == [1, 1, 1]
    images, labels = torch.cat([train.patches, held_out.patches]), torch.cat([train.labels, held_out.labels])
    label_of = {image.numpy().tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    assert label_of == {picture(1 + i).tobytes(): i // 4 for i in range(12)}


@pytest.mark.parametrize("test", ["test", "valid"])
def test_train_and_test_folders(tmp_path: Path, pools: Pools, test: str) -> None:
    fill(tmp_path / "fruit" / "train")
    fill(tmp_path / "fruit" / test, each=2, seed=100)
    train, held_out = pools(tmp_path / "fruit")
    assert train.patches.dtype == torch.uint8
    assert np.array_equal(train.patches.numpy(), [picture(1 + i) for i in range(12)])
    assert np.array_equal(held_out.patches.numpy(), [picture(101 + i) for i in range(6)])
    assert train.labels.tolist() == [i // 4 for i in range(12)]
    assert held_out.labels.tolist() == [i // 2 for i in range(6)]


def test_train_folder_alone_is_split(tmp_path: Path, pools: Pools) -> None:
    fill(tmp_path / "fruit" / "train")
    train, held_out = pools(tmp_path / "fruit")
    assert (len(train), len(held_out)) == (9, 3)


def test_color_option_converts_images(tmp_path: Path, pools: Pools) -> None:
    """Colour images are converted to grey; a grey image is converted to three equal channels."""
    root = fill(tmp_path / "fruit" / "train").parent
    fill(root / "test")
    train, _ = pools(root, color=False)
    assert train.patch_shape == (1, 5, 6)
    expected = [np.asarray(Image.fromarray(picture(1 + i)).convert("L")) for i in range(12)]
    assert np.array_equal(train.patches[..., 0].numpy(), expected)
    Image.fromarray(picture(7)[..., 0]).save(root / "train" / "apple" / "0.png")
    color, _ = pools(root, color=True)
    assert np.array_equal(color.patches[0].numpy(), np.stack([picture(7)[..., 0]] * 3, axis=-1))


@pytest.mark.parametrize("size", [(24, 16), (48, 65)])
def test_image_size_crops_the_centre_and_resizes(tmp_path: Path, pools: Pools, size: tuple[int, int]) -> None:
    """The image is red with a black square in its centre; one quarter of the square is white. The red is cropped."""
    side = min(size)
    pixels = np.full((size[1], size[0], 3), (255, 0, 0), dtype=np.uint8)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    pixels[top : top + side, left : left + side] = 0
    pixels[top : top + side // 2, left : left + side // 2] = 255
    root = fill(tmp_path / "fruit")
    Image.fromarray(pixels).save(root / "apple" / "0.png")
    train, held_out = pools(root, image_size=16)
    assert train.patch_shape == held_out.patch_shape == (3, 16, 16)
    at = [3, 4, 11, 12]  # not nearer to an edge, because resizing blurs edges by two pixels
    expected = torch.zeros(4, 4, 3, dtype=torch.uint8)
    expected[:2, :2] = 255
    images = torch.cat([train.patches, held_out.patches])
    assert sum(torch.equal(image[at][:, at], expected) for image in images) == 1


def test_images_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "fruit", each=30)
    loaded = []
    for threads in (1, 8):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        loaded.append(pools(tmp_path / "fruit", cache_dir=tmp_path / f"cache{threads}"))
    for one, other in zip(*loaded, strict=True):
        assert torch.equal(one.patches, other.patches)
        assert torch.equal(one.labels, other.labels)


# ---- links, extensions and skipped files


def counts(pools: tuple[Pool, Pool]) -> list[int]:
    return (pools[0].labels.bincount() + pools[1].labels.bincount()).tolist()


@pytest.mark.parametrize("link", ["a sub-folder", "a class", "images"])
def test_links_are_followed(tmp_path: Path, pools: Pools, caplog: pytest.LogCaptureFixture, link: str) -> None:
    album = fill(tmp_path / "elsewhere", ("album",), each=3, seed=500) / "album"
    fill(album, ("deeper",), each=2, seed=600)
    if link == "a class":
        root = fill(tmp_path / "fruit", ("apple", "plum"))
        (root / "pear").symlink_to("../elsewhere")
        expected = [4, 5, 4]
    else:
        root, expected = fill(tmp_path / "fruit"), [4, 9, 4]
        if link == "a sub-folder":
            (root / "pear" / "more").symlink_to(album)
        else:
            for i, path in enumerate(sorted(album.rglob("*.png"))):
                (root / "pear" / f"link{i}.png").symlink_to(path)
    assert counts(pools(root)) == expected
    assert "skipped" not in caplog.text


@pytest.mark.parametrize("target", ["..", "../pear/deeper"])
def test_links_to_folders_that_are_read_elsewhere_are_skipped(
    tmp_path: Path, pools: Pools, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    """No image is read twice, and a class gets no images of another class."""
    root = fill(tmp_path / "fruit")
    fill(root / "pear", ("deeper",), each=1, seed=300)
    (root / "pear" / "link").symlink_to(target)
    assert counts(pools(root)) == [4, 5, 4]
    assert "already read: 1" in caplog.text


def test_files_with_image_extensions_are_read(tmp_path: Path, pools: Pools) -> None:
    root = fill(tmp_path / "fruit")
    suffixes = {*IMAGE_SUFFIXES, ".JPG", ".Tiff"}
    assert {".avif", ".jfif", ".jp2", ".jpe", ".pnm"} <= suffixes
    for suffix in suffixes:
        mode = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
        Image.fromarray(picture(9)).convert(mode).save(root / "pear" / f"more{suffix}")
    assert counts(pools(root)) == [4, 4 + len(suffixes), 4]


HIDDEN_NAMES = (".DS_Store", "._0.jpg")
SKIPPED = {"list.TXT": ".txt", "0.heic": ".heic", "0.jpg.part": ".part", "IMG_0001": "no ending", "0.png~": ".png~"}


@pytest.mark.parametrize(("splits", "level"), [([""], "INFO"), (["train", "test"], "WARNING")])
def test_skipped_files_are_reported(
    tmp_path: Path, pools: Pools, caplog: pytest.LogCaptureFixture, splits: list[str], level: str
) -> None:
    """There is one line, even if all images are in the cache; it is a warning unless only hidden files are skipped."""
    caplog.set_level("INFO")
    root = tmp_path / "fruit"
    names = HIDDEN_NAMES if level == "INFO" else (*HIDDEN_NAMES, *SKIPPED)
    for split in splits:
        fill(root / split)
        for name in names:
            (root / split / "pear" / name).write_bytes(b"?")
    for _ in range(2):
        caplog.clear()
        pools(root)
        (line,) = [record for record in caplog.records if "skipped" in record.message]
        n = len(splits)
        assert f"skipped {n * len(names)} files or folders in '{root}' (hidden: {2 * n}" in line.message
        assert all(f"{SKIPPED[name]}: {n}" in line.message for name in names if name in SKIPPED)
        assert line.levelname == level


def test_report_of_skipped_files_is_printable(tmp_path: Path, pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "fruit"
    for split in ("train", "test"):
        fill(root / split)
    fill(root, ("val", ".hidden"))
    (root / "README.md").touch()
    (root / "train" / "loose.png").touch()
    (root / "train" / "broken link").symlink_to("nowhere")
    (root / "train" / "pear" / "empty").mkdir()
    (root / "train" / "pear" / "broken link").symlink_to("nowhere")
    for i in range(9):
        (root / "train" / "pear" / f"x.e{i}\x1b[2J").touch()
    pools(root)
    (line,) = [record.message for record in caplog.records if "skipped" in record.message]
    assert line.isprintable()
    assert "skipped 15 files or folders" in line
    assert "not in a class folder: 4" in line
    assert "others: " in line


def test_class_with_only_skipped_files_is_a_user_error(tmp_path: Path, pools: Pools) -> None:
    root = tmp_path / "fruit"
    fill(root / "train", (*CLASSES, "quince"))
    fill(root / "test")
    (root / "test" / "quince").mkdir()
    for name in ("0.heic", "1.heic", ".DS_Store"):
        (root / "test" / "quince" / name).touch()
    with pytest.raises(UserError, match=r"no images in '.*quince' \(skipped \.heic: 2, hidden: 1; "):
        pools(root)


# ---- the cache


def test_second_load_decodes_nothing(tmp_path: Path, pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds also if the folder was moved."""
    root = tmp_path / "fruit"
    fill(root / "train")
    fill(root / "test", seed=50)
    first = pools(root)
    assert len(cached(tmp_path)) == 2
    forbid_decoding(monkeypatch)
    for decoded, from_cache in zip(first, pools(root.rename(tmp_path / "moved")), strict=True):
        assert torch.equal(decoded.patches, from_cache.patches)
        assert torch.equal(decoded.labels, from_cache.labels)
        assert decoded.classes == from_cache.classes


def _change_a_byte(root: Path) -> None:
    """Changes one byte of a pixel in an uncompressed image; the file keeps its size."""
    path = root / "pear" / "1.bmp"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def _add(root: Path) -> None:
    Image.fromarray(picture(99)).save(root / "pear" / "9.bmp")


def _swap(root: Path) -> None:
    a, b = root / "plum" / "0.bmp", root / "apple" / "0.bmp"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.mark.parametrize("change", [_change_a_byte, _add, _swap])
def test_changed_folder_is_decoded_again(tmp_path: Path, pools: Pools, change: Callable[[Path], None]) -> None:
    root = fill(tmp_path / "fruit", suffix="bmp")
    pools(root)
    change(root)
    changed = pools(root)
    assert len(cached(tmp_path)) == 2
    fresh = pools(root, cache_dir=tmp_path / "other")
    for one, other in zip(changed, fresh, strict=True):
        assert torch.equal(one.patches, other.patches)


def test_options_that_change_pixels_have_separate_cache_files(tmp_path: Path, pools: Pools) -> None:
    root = fill(tmp_path / "fruit")
    for options in ({}, {"image_size": 4}, {"image_size": 5}, {"color": False}, {"mean": 0.1}, {"held_out_share": 0.5}):
        pools(root, **options)
    assert len(cached(tmp_path)) == 4


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"garbage"])
def test_unreadable_cache_file_is_replaced(
    tmp_path: Path, pools: Pools, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    root = fill(tmp_path / "fruit")
    first = pools(root)
    (file,) = cached(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    # A crash can leave an incomplete file and a lock file without a holder.
    file.with_suffix(".tmp").write_bytes(b"half")
    file.with_suffix(".lock").write_text("4242\nanother-machine\n")
    again = pools(root)
    assert cached(tmp_path) == [file]
    forbid_decoding(monkeypatch)
    for loaded in (again, pools(root)):
        assert all(torch.equal(a.patches, b.patches) for a, b in zip(first, loaded, strict=True))


def test_two_parallel_jobs_decode_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs are threads here; `tests/core/test_files.py` tests the lock between processes."""
    root = fill(tmp_path / "fruit", each=100)
    paths, barrier, decoded = sorted(root.rglob("*.png")), threading.Barrier(2), []
    original = image_folder._decode_all

    def counting(*args: Any) -> np.ndarray:
        decoded.append(1)
        return original(*args)

    def load() -> bytes:
        barrier.wait(timeout=50)
        return load_images(paths, root, None, True, tmp_path / "cache").numpy().tobytes()

    monkeypatch.setattr(image_folder, "_decode_all", counting)
    with ThreadPoolExecutor(2) as threads:
        loaded = [job.result(timeout=55) for job in [threads.submit(load) for _ in range(2)]]
    expected = b"".join(np.asarray(Image.open(path)).tobytes() for path in paths)
    assert loaded == [expected, expected]
    assert len(decoded) == 1
    assert len(cached(tmp_path)) == 1


def test_cache_folder_that_cannot_be_created_is_a_user_error(tmp_path: Path, pools: Pools) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"paths\.cache: .*type paths\.cache=DIR"):
        pools(fill(tmp_path / "fruit"), cache_dir=tmp_path / "file" / "cache")


# ---- invalid folders; each function creates one and returns the words of its message


def _missing(root: Path) -> list[str]:
    return [str(root), "does not exist"]


def _file(root: Path) -> list[str]:
    root.write_text("a file", encoding="utf-8")
    return [str(root), "not a folder"]


def _no_classes(root: Path) -> list[str]:
    root.mkdir()
    Image.fromarray(picture(1)).save(root / "1.png")
    return [str(root), "no folders"]


def _broken(root: Path) -> list[str]:
    path = fill(root) / "pear" / "2.png"
    path.write_bytes(b"no picture at all")
    return [str(path), "decode"]


def _unequal(root: Path) -> list[str]:
    fill(root)
    Image.fromarray(picture(1, size=(9, 7))).save(root / "pear" / "2.png")
    return [str(root / "apple" / "0.png"), "6 x 5", str(root / "pear" / "2.png"), "9 x 7", "data.image_size="]


def _other_classes(root: Path) -> list[str]:
    fill(root / "train")
    fill(root / "test", ("apple", "pear", "quince"))
    return [str(root / "train"), str(root / "test"), "plum, quince"]


def _other_size_in_test(root: Path) -> list[str]:
    fill(root / "train")
    for name in CLASSES:
        (root / "test" / name).mkdir(parents=True)
        Image.fromarray(picture(1, size=(9, 7))).save(root / "test" / name / "1.png")
    return [str(root / "train"), "6 x 5", str(root / "test"), "9 x 7", "data.image_size="]


def _single_image(root: Path) -> list[str]:
    fill(root)
    for i in range(3):
        (root / "plum" / f"{i}.png").unlink()
    return ["'plum' has 1 example"]


@pytest.mark.parametrize(
    "create", [_missing, _file, _no_classes, _broken, _unequal, _other_classes, _other_size_in_test, _single_image]
)
def test_invalid_folders_are_user_errors(tmp_path: Path, pools: Pools, create: Callable[[Path], list[str]]) -> None:
    root = tmp_path / "fruit"
    message = create(root)
    for _ in range(2):  # the second time, the images of valid folders are in the cache
        with pytest.raises(UserError) as caught:
            pools(root)
        for words in message:
            assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unequal_images_can_be_resized(tmp_path: Path, pools: Pools) -> None:
    _unequal(tmp_path / "fruit")
    train, held_out = pools(tmp_path / "fruit", image_size=8)
    assert train.patch_shape == held_out.patch_shape == (3, 8, 8)
