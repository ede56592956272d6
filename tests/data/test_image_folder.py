"""A folder of images of one's own: what is read, what is cached, and what a broken folder is answered."""

import os
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


def picture(seed: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    """Random RGB pixels of a given width and height."""
    return np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)


def fill(root: Path, classes: tuple[str, ...] = CLASSES, each: int = 4, seed: int = 0, suffix: str = "png") -> Path:
    """Writes ``each`` random images a class."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            seed += 1
            Image.fromarray(picture(seed)).save(root / name / f"{i}.{suffix}")
    return root


@pytest.fixture
def pools(tmp_path: Path) -> Callable[..., tuple[Pool, Pool]]:
    """Loads the training and the held-out pool of a folder."""

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
    """Cache files; fails when a half-written one stayed."""
    found = [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    assert all(path.suffix == ".pt" for path in found), found
    return found


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("decoded although the cache holds it")

    monkeypatch.setattr("PIL.Image.open", refuse)


# ---- what is read


def test_however_many_threads_decode(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "fruit", each=30)
    loaded = []
    for threads in (1, 8):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        loaded.append(pools(tmp_path / "fruit", cache_dir=tmp_path / f"cache{threads}"))
    for one, other in zip(*loaded, strict=True):
        assert torch.equal(one.patches, other.patches)
        assert torch.equal(one.labels, other.labels)


def test_one_folder_is_split(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    train, held_out = pools(fill(tmp_path / "fruit"))
    assert train.classes == held_out.classes == CLASSES
    assert train.labels.bincount().tolist() == [3, 3, 3]
    assert held_out.labels.bincount().tolist() == [1, 1, 1]
    images, labels = torch.cat([train.patches, held_out.patches]), torch.cat([train.labels, held_out.labels])
    found = {image.numpy().tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    assert found == {picture(1 + i).tobytes(): i // 4 for i in range(12)}


@pytest.mark.parametrize("test", ["test", "val", "valid"])
def test_train_and_test_folders(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], test: str) -> None:
    fill(tmp_path / "fruit" / "train")
    fill(tmp_path / "fruit" / test, each=2, seed=100)
    train, held_out = pools(tmp_path / "fruit")
    assert train.patches.dtype == torch.uint8
    assert np.array_equal(train.patches.numpy(), [picture(1 + i) for i in range(12)])
    assert np.array_equal(held_out.patches.numpy(), [picture(101 + i) for i in range(6)])
    assert train.labels.tolist() == [i // 4 for i in range(12)]
    assert held_out.labels.tolist() == [i // 2 for i in range(6)]


def test_train_folder_alone_is_split(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    fill(tmp_path / "fruit" / "train")
    train, held_out = pools(tmp_path / "fruit")
    assert (len(train), len(held_out)) == (9, 3)


def test_other_files_and_hidden_folders_are_left_out(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    root = fill(tmp_path / "fruit")
    (root / ".git").mkdir()
    (root / "README.md").write_text("mine")
    (root / "pear" / "Thumbs.db").write_bytes(b"not an image")
    (root / "pear" / "deeper").mkdir()
    Image.fromarray(picture(99)).save(root / "pear" / "deeper" / "SHOUTED.PNG")
    train, held_out = pools(root)
    assert train.classes == CLASSES
    assert (train.labels.bincount() + held_out.labels.bincount()).tolist() == [4, 5, 4]


def test_grey(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    fill(tmp_path / "fruit" / "train")
    fill(tmp_path / "fruit" / "test")
    train, _ = pools(tmp_path / "fruit", color=False)
    assert train.patch_shape == (1, 5, 6)
    wanted = [np.asarray(Image.fromarray(picture(1 + i)).convert("L")) for i in range(12)]
    assert np.array_equal(train.patches[..., 0].numpy(), wanted)
    color, _ = pools(tmp_path / "fruit", color=True)
    assert color.patch_shape == (3, 5, 6), "the cache of grey images is another"


def test_grey_files_read_as_color(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    root = fill(tmp_path / "fruit")
    grey = picture(7)[..., 0]
    Image.fromarray(grey).save(root / "apple" / "0.png")
    images = torch.cat([pool.patches for pool in pools(root)]).numpy()
    assert any(np.array_equal(image, np.stack([grey] * 3, axis=-1)) for image in images)


def test_jpeg_is_read_about_right(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    for i, name in enumerate(CLASSES):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (6, 5), (80 * i, 10, 200)).save(tmp_path / "fruit" / name / f"{k}.jpg")
    for pool in pools(tmp_path / "fruit", held_out_share=0.5):
        for image, label in zip(pool.patches, pool.labels.tolist(), strict=True):
            wanted = torch.tensor([80 * label, 10, 200]).expand(5, 6, 3)
            assert (image.int() - wanted).abs().max() <= 4


@pytest.mark.parametrize("size", [(24, 16), (16, 40), (64, 48), (48, 65)])
def test_image_size_crops_the_centre_and_resizes(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], size: tuple[int, int]
) -> None:
    """A centred black square with one white quarter, on red: the red is cropped, the square is scaled."""
    side = min(size)
    whole = np.full((size[1], size[0], 3), (255, 0, 0), dtype=np.uint8)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    whole[top : top + side, left : left + side] = 0
    whole[top : top + side // 2, left : left + side // 2] = 255
    root = fill(tmp_path / "fruit")
    Image.fromarray(whole).save(root / "apple" / "0.png")
    train, held_out = pools(root, image_size=16)
    assert train.patch_shape == held_out.patch_shape == (3, 16, 16)
    at = [3, 4, 11, 12]  # resizing blurs edges by two pixels
    wanted = torch.zeros(4, 4, 3, dtype=torch.uint8)
    wanted[:2, :2] = 255
    images = torch.cat([train.patches, held_out.patches])
    assert sum(torch.equal(image[at][:, at], wanted) for image in images) == 1


def test_images_turn_as_their_camera_says(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    root = tmp_path / "fruit"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(picture(1)).save(root / name / f"{i}.png", exif=exif)
    train, _ = pools(root, held_out_share=0.5)
    assert np.array_equal(train.patches[0].numpy(), np.rot90(picture(1), k=-1))


# ---- links, endings, and what is skipped


def linked(root: Path) -> Path:
    """Writes images of another place, and returns their folder."""
    elsewhere = fill(root.parent / "elsewhere", ("album",), each=3, seed=500) / "album"
    fill(elsewhere, ("deeper",), each=2, seed=600)
    return elsewhere


def counts(pools: tuple[Pool, Pool]) -> list[int]:
    return (pools[0].labels.bincount() + pools[1].labels.bincount()).tolist()


def _sub_folder(root: Path) -> None:
    (fill(root) / "pear" / "more").symlink_to(linked(root))


def _relative_sub_folder(root: Path) -> None:
    linked(root)
    (fill(root) / "pear" / "more").symlink_to("../../elsewhere/album")


def _class_folder(root: Path) -> None:
    linked(root)
    (fill(root, ("apple", "plum")) / "pear").symlink_to(root.parent / "elsewhere")
    for i in range(4):
        Image.fromarray(picture(700 + i)).save(root.parent / "elsewhere" / f"{i}.png")


def _link_to_a_link(root: Path) -> None:
    (root.parent / "way").symlink_to(linked(root))
    (fill(root) / "pear" / "more").symlink_to(root.parent / "way")


def _images_one_by_one(root: Path) -> None:
    fill(root)
    for i, path in enumerate(sorted(linked(root).rglob("*.png"))):
        (root / "pear" / f"link{i}.png").symlink_to(path)


@pytest.mark.parametrize(
    "link", [_sub_folder, _relative_sub_folder, _class_folder, _link_to_a_link, _images_one_by_one]
)
def test_links_are_followed(
    tmp_path: Path,
    pools: Callable[..., tuple[Pool, Pool]],
    caplog: pytest.LogCaptureFixture,
    link: Callable[[Path], None],
) -> None:
    link(tmp_path / "fruit")
    assert counts(pools(tmp_path / "fruit")) == [4, 9, 4]
    assert "skipped" not in caplog.text


def test_a_linked_split(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b", each=2, seed=100)
    (tmp_path / "fruit").mkdir()
    (tmp_path / "fruit" / "train").symlink_to("../a")
    (tmp_path / "fruit" / "test").symlink_to(tmp_path / "b")
    assert [len(pool) for pool in pools(tmp_path / "fruit")] == [12, 6]


@pytest.mark.parametrize("target", [".", "..", "../..", "../pear/deeper"])
def test_links_that_lead_back(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], caplog: pytest.LogCaptureFixture, target: str
) -> None:
    """No image is read twice, nor those of another class."""
    root = fill(tmp_path / "fruit")
    fill(root / "pear", ("deeper",), each=1, seed=300)
    (root / "pear" / "link").symlink_to(target)
    assert counts(pools(root)) == [4, 5, 4]
    assert "links to a folder that is read elsewhere: 1" in caplog.text


def test_images_that_appear_behind_a_link(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    """The cache is not that of what the link led to before."""
    root = fill(tmp_path / "fruit")
    (root / "pear" / "more").symlink_to(tmp_path / "later")
    assert counts(pools(root)) == [4, 4, 4]
    fill(tmp_path, ("later",), each=3, seed=500)
    assert counts(pools(root)) == [4, 7, 4]
    assert len(cached(tmp_path)) == 2


def test_endings_that_are_read(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    root = fill(tmp_path / "fruit")
    endings = {*IMAGE_SUFFIXES, ".JPG", ".Tiff"}
    assert {".avif", ".jfif", ".jp2", ".jpe", ".pnm"} <= endings
    for suffix in endings:
        mode = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
        Image.fromarray(picture(9)).convert(mode).save(root / "pear" / f"more{suffix}")
    assert counts(pools(root)) == [4, 4 + len(endings), 4]


HIDDEN_NAMES = (".DS_Store", "._0.jpg")
SKIPPED = {
    "Thumbs.db": ".db",
    "list.TXT": ".txt",
    "0.heic": ".heic",
    "0.jpg.part": ".part",
    "IMG_0001": "no ending",
    "0.png~": ".png~",
}


@pytest.mark.parametrize("layout", ["one", "two"])
@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_skipped_files_are_reported(
    tmp_path: Path,
    pools: Callable[..., tuple[Pool, Pool]],
    caplog: pytest.LogCaptureFixture,
    layout: str,
    level: str,
) -> None:
    """In one line, also if the images come from the cache; a warning if more than hidden files are skipped."""
    caplog.set_level("INFO")
    root = tmp_path / "fruit"
    folders = [root] if layout == "one" else [root / "train", root / "test"]
    names = HIDDEN_NAMES if level == "INFO" else (*HIDDEN_NAMES, *SKIPPED)
    for folder in folders:
        fill(folder)
        for name in names:
            (folder / "pear" / name).write_bytes(b"?")
    for _ in range(2):
        caplog.clear()
        pools(root)
        (line,) = [record for record in caplog.records if "skipped" in record.message]
        assert f"skipped {len(folders) * len(names)} files or folders in '{root}' (hidden: {2 * len(folders)}" in (
            line.message
        )
        assert all(f"{SKIPPED[name]}: {len(folders)}" in line.message for name in names if name in SKIPPED)
        assert line.levelname == level


def test_all_that_is_skipped(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "fruit"
    for split in ("train", "test"):
        fill(root / split)
    fill(root, ("val", ".hidden"))
    (root / "README.md").touch()
    (root / "train" / "loose.png").touch()
    (root / "train" / "gone").symlink_to("nowhere")
    (root / "train" / "pear" / "empty").mkdir()
    (root / "train" / "pear" / "gone").symlink_to("nowhere")
    for i in range(9):
        (root / "train" / "pear" / f"x.e{i}\x1b[2J").touch()
    pools(root)
    (line,) = [record.message for record in caplog.records if "skipped" in record.message]
    assert line.isprintable()
    assert "skipped 15 files or folders" in line
    assert "beside the folders that are read: 4" in line
    assert "others: " in line


def test_nothing_is_skipped(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pools(fill(tmp_path / "fruit"))
    assert "skipped" not in caplog.text


@pytest.mark.parametrize("split", ["", "train", "test"])
def test_a_class_of_skipped_files(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], split: str) -> None:
    root = tmp_path / "fruit"
    for folder in {root / split, root / "train"} if split else {root}:
        fill(folder)
    fill(root / split, ("quince",), suffix="ppm")
    if split == "test":
        fill(root / "train", ("quince",))
    for path in (root / split / "quince").iterdir():
        path.rename(path.with_suffix(".heic"))
    (root / split / "quince" / ".DS_Store").touch()
    with pytest.raises(UserError, match=r"no images in '.*quince' \(skipped \.heic: 4, hidden: 1; "):
        pools(root)


def test_a_folder_that_cannot_be_listed(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "fruit")
    fill(root / "pear", ("closed",), seed=50)
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=r"data\.root: cannot list '.*closed' \(Permission denied\)"):
        pools(root)


# ---- the cache


@pytest.mark.parametrize("layout", ["one", "two"])
def test_second_load_decodes_nothing(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    root = tmp_path / "fruit"
    fill(root if layout == "one" else root / "train")
    if layout == "two":
        fill(root / "test", seed=50)
    first = pools(root)
    assert len(cached(tmp_path)) == (1 if layout == "one" else 2)
    forbid_decoding(monkeypatch)
    for one, again in zip(first, pools(root), strict=True):
        assert torch.equal(one.patches, again.patches)
        assert torch.equal(one.labels, again.labels)
        assert one.classes == again.classes


def test_moved_folder_keeps_its_cache(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "fruit")
    pools(root)
    forbid_decoding(monkeypatch)
    pools(root.rename(tmp_path / "moved"))


def _change_a_byte(root: Path) -> None:
    """Of one pixel, in an uncompressed image; size and time stay."""
    path = root / "pear" / "1.bmp"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def _add(root: Path) -> None:
    Image.fromarray(picture(99)).save(root / "pear" / "9.bmp")


def _remove(root: Path) -> None:
    (root / "plum" / "3.bmp").unlink()


def _swap(root: Path) -> None:
    a, b = root / "plum" / "0.bmp", root / "apple" / "0.bmp"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.mark.parametrize("change", [_change_a_byte, _add, _remove, _swap])
def test_changed_folder_is_decoded_anew(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], change: Callable[[Path], None]
) -> None:
    root = fill(tmp_path / "fruit", suffix="bmp")
    pools(root)
    change(root)
    changed = pools(root)
    assert len(cached(tmp_path)) == 2
    fresh = pools(root, cache_dir=tmp_path / "other")
    for one, other in zip(changed, fresh, strict=True):
        assert torch.equal(one.patches, other.patches)


def test_options_have_caches_of_their_own(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    root = fill(tmp_path / "fruit")
    for options in ({}, {"image_size": 4}, {"image_size": 5}, {"color": False}, {"mean": 0.1}, {"held_out_share": 0.5}):
        pools(root, **options)
    assert len(cached(tmp_path)) == 4


def _flip(data: bytes) -> bytes:
    """Changes one pixel in the middle of the images."""
    at = data.index(picture(5).tobytes())
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut"),
        pytest.param(lambda data: b"garbage " * 50, id="garbage"),
        pytest.param(lambda data: bytes(len(data)), id="zeros"),
        pytest.param(lambda data: b"X" + data[1:], id="first_byte"),
        pytest.param(_flip, id="one_pixel"),
    ],
)
def test_damaged_cache_is_made_again(
    tmp_path: Path,
    pools: Callable[..., tuple[Pool, Pool]],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
) -> None:
    root = fill(tmp_path / "fruit")
    first = pools(root)
    (file,) = cached(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    file.with_suffix(".1.tmp").write_bytes(b"half")  # as a crash leaves it; and a lock that nobody holds
    file.with_suffix(".lock").write_text("4242\nanother-machine\n")
    again = pools(root)
    assert cached(tmp_path) == [file]
    forbid_decoding(monkeypatch)
    for mended in (again, pools(root)):
        assert all(torch.equal(a.patches, b.patches) for a, b in zip(first, mended, strict=True))


def test_failed_write_leaves_nothing(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "fruit")

    def half(data: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", half)
        with pytest.raises((UserError, OSError), match="No space left"):
            pools(root)
    assert cached(tmp_path) == []
    pools(root)
    assert len(cached(tmp_path)) == 1


def test_two_jobs_at_once_decode_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here two threads; `tests/core/test_files.py` shows that the lock holds between processes, too."""
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
        found = [job.result(timeout=55) for job in [threads.submit(load) for _ in range(2)]]
    wanted = b"".join(np.asarray(Image.open(path)).tobytes() for path in paths)
    assert found == [wanted, wanted]
    assert len(decoded) == 1
    assert len(cached(tmp_path)) == 1


def test_cache_that_cannot_be_written(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"paths\.cache: .*type paths\.cache=DIR"):
        pools(fill(tmp_path / "fruit"), cache_dir=tmp_path / "file" / "cache")


# ---- broken folders


def _none(root: Path) -> list[str]:
    return [str(root), "does not exist", "data.root=DIR"]


def _file(root: Path) -> list[str]:
    root.write_text("a file", encoding="utf-8")
    return [str(root), "is not a folder"]


def _no_classes(root: Path) -> list[str]:
    root.mkdir()
    Image.fromarray(picture(1)).save(root / "1.png")
    return [str(root), "holds no folders"]


def _empty_class(root: Path) -> list[str]:
    (fill(root) / "quince").mkdir()
    (root / "quince" / "notes.txt").write_text("none yet")
    return ["no images", str(root / "quince"), ".png"]


def _broken(root: Path) -> list[str]:
    path = fill(root) / "pear" / "2.png"
    path.write_bytes(b"no picture at all")
    return ["cannot decode", str(path)]


def _truncated(suffix: str) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        path = fill(root, suffix=suffix) / "pear" / f"2.{suffix}"
        Image.fromarray(picture(1).repeat(20, axis=0)[:5]).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
        return ["cannot decode", str(path)]

    return make


def _unequal(root: Path) -> list[str]:
    fill(root)
    Image.fromarray(picture(1, size=(9, 7))).save(root / "pear" / "2.png")
    first = root / "apple" / "0.png"
    return [str(first), "6 x 5", str(root / "pear" / "2.png"), "9 x 7", "data.image_size="]


def _other_classes(root: Path) -> list[str]:
    fill(root / "train")
    fill(root / "test", ("apple", "pear", "quince"))
    return [str(root / "train"), str(root / "test"), "plum", "quince"]


def _fewer_classes(root: Path) -> list[str]:
    fill(root / "train")
    fill(root / "test", CLASSES[:2])
    return [str(root / "train"), str(root / "test"), "plum"]


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
    return ["'plum' has 1 example", "at least 2"]


@pytest.mark.parametrize("spoil", [_broken, _unequal])
def test_an_image_that_fails_ends_the_threads_of_its_progress(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], spoil: Callable[[Path], list[str]]
) -> None:
    """As long as the error's trace is held: garbage collection in one of them would wait for itself."""
    root = tmp_path / "fruit"
    spoil(root)
    with pytest.raises(UserError) as held:
        pools(root)
    assert held.tb is not None
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("rich."):  # one may have been asked to end, and not have done so yet
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    "spoil",
    [
        _none,
        _file,
        _no_classes,
        _empty_class,
        _broken,
        pytest.param(_truncated("png"), id="_truncated_png"),
        pytest.param(_truncated("jpg"), id="_truncated_jpg"),
        _unequal,
        _other_classes,
        _fewer_classes,
        _other_size_in_test,
        _single_image,
    ],
)
def test_broken_folder(
    tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]], spoil: Callable[[Path], list[str]]
) -> None:
    root = tmp_path / "fruit"
    wanted = spoil(root)
    for _ in range(2):  # the second time it is no cache that answers
        with pytest.raises(UserError) as caught:
            pools(root)
        for words in wanted:
            assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unequal_images_can_be_resized(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    _unequal(tmp_path / "fruit")
    train, held_out = pools(tmp_path / "fruit", image_size=8)
    assert train.patch_shape == held_out.patch_shape == (3, 8, 8)


def test_mean_for_each_channel(tmp_path: Path, pools: Callable[..., tuple[Pool, Pool]]) -> None:
    root = fill(tmp_path / "fruit")
    assert pools(root, mean=[0.1, 0.2, 0.3])[0].mean == (0.1, 0.2, 0.3)
    with pytest.raises(UserError, match=r"data\.mean: got 3 values, needs one, or one for each of 1 channels"):
        pools(root, mean=[0.1, 0.2, 0.3], color=False)
