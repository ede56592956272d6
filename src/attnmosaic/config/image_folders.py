"""Lists folders of images: the splits, classes and files they hold, and what is skipped. Light."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from attnmosaic.core.errors import UserError, one_line
from attnmosaic.core.quoting import typed_override

log = logging.getLogger(__name__)

# Pillow's, of the formats in `attnmosaic.data.image_files.FORMATS`; without .pfm, whose pixels are floats.
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg",
    ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})  # fmt: skip
TEST_NAMES = ("test", "val", "valid")

HIDDEN = "hidden"
BESIDE = "beside the folders that are read"
LINKED = "links to a folder that is read elsewhere"
"""Why a file or folder is skipped, where that is not its ending."""


@dataclass(frozen=True)
class Listing:
    """The images in a folder of classes.

    Attributes:
        folder: the folder.
        classes: their names, sorted.
        files: each class's image files, sorted.
        skipped: how many files and folders are no images of a class, by reason.
    """

    folder: Path
    classes: list[str]
    files: list[list[Path]]
    skipped: Counter[str]


def root_folder(root: Any) -> Path:
    """Returns the folder that ``data.root`` names.

    Raises:
        UserError: the value is no text: Hydra has read it as a number, a list or null.
    """
    if not isinstance(root, str):
        raise UserError(
            f"data.root: got {'null' if root is None else root}, needs the path of a folder, in quotes where it reads "
            "as something else; type 'data.root=\"DIR\"'"
        )
    return Path(root).expanduser()


def find_splits(root: Path) -> tuple[Path, Path | None]:
    """Returns the folder of training images and that of test images, None where there is none.

    Raises:
        UserError: the folder is missing.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.root: '{root}' {what}; type data.root=DIR, where DIR holds one folder a class")
    train = root / "train"
    # A class may be called "train"; a split holds folders, a class images.
    if not train.is_dir() or not any(p.is_dir() for p in train.iterdir()):
        return root, None
    tests = [root / name for name in TEST_NAMES if (root / name).is_dir()]
    return train, tests[0] if tests else None


def class_names(folder: Path) -> list[str]:
    """Returns the class folders' names, sorted.

    Raises:
        UserError: there are none.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"data.root: '{folder}' holds no folders; it needs one folder of images a class")
    for name in names:
        if not name.isprintable():  # it will be shown in tables, pictures and pages
            raise UserError(f"data.root: the folder {name!a} in '{folder}' has no name to print; rename it")
    return names


def check_folder(root: Path) -> list[str]:
    """Checks the folders and file names in a folder of images and returns its classes.

    Raises:
        UserError: a folder is missing or empty, or training and test folders hold different classes.
    """
    train, test = find_splits(root)
    names = class_names(train)
    _check_filled(train, names)
    if test is not None:
        if differ := ", ".join(sorted({*names} ^ {*class_names(test)})):
            raise UserError(
                f"data.root: '{train}' and '{test}' hold different classes ({differ}); give both the same class folders"
            )
        _check_filled(test, names)
    return names


def foreground_missing(root: Any) -> UserError:
    """Returns the error for a config whose foreground classes are missing, with the classes in its folder of images."""
    names = check_folder(root_folder(root))
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return UserError(
        f"data.foreground: has no value and needs two or more of the classes in '{root}' ({shown}); "
        f"type for example {typed_override('data.foreground', names[:2])}"
    )


def list_images(folder: Path) -> Listing:
    """Returns the classes of a folder and their images.

    Raises:
        UserError: there is no class folder.
    """
    names = class_names(folder)
    skipped = beside(folder, names)
    # Sorted as paths are, part by part, and fifty times as fast as by `Path`.
    files = [sorted(_images(folder / name, skipped), key=lambda path: path.split(os.sep)) for name in names]
    return Listing(folder, names, [[Path(file) for file in group] for group in files], skipped)


def beside(folder: Path, read: Collection[str]) -> Counter[str]:
    """Counts what a folder holds beside the entries that are read, by reason."""
    others = [path.name for path in folder.iterdir() if path.name not in read]
    return Counter(HIDDEN if name.startswith(".") else BESIDE for name in others)


def why_skipped(name: str) -> str | None:
    """Returns why a file of this name is skipped, or None if it is read as an image."""
    if name.startswith("."):
        return HIDDEN
    ending = os.path.splitext(name)[1].lower()
    return None if ending in IMAGE_SUFFIXES else ending or "no ending"


def reasons(skipped: Counter[str]) -> str:
    """Returns how many files were skipped for each reason, the eight most frequent ones first."""
    most = skipped.most_common(8)
    if others := skipped.total() - sum(count for _, count in most):
        most.append(("others", others))
    return one_line(", ".join(f"{why}: {count}" for why, count in most))


def report_skipped(key: str, folder: Path, skipped: Counter[str]) -> None:
    """Logs what was skipped in a folder, in one line; a warning if there is more of it than hidden files.

    Args:
        key: the config key that names the folder.
        folder: the folder.
        skipped: how many files and folders were skipped, by reason.
    """
    if skipped:
        level = logging.WARNING if {*skipped} - {HIDDEN} else logging.INFO
        what = f"skipped {skipped.total()} files or folders in '{folder}'"
        log.log(level, "%s", one_line(f"{key}: {what} ({reasons(skipped)})"))


def _images(folder: Path, skipped: Counter[str]) -> Iterator[str]:
    """Yields the images in a folder and below it, no folder twice where links lead there again; counts the skipped."""
    read = {*map(str, Path(os.path.realpath(folder)).parents), os.path.realpath(folder.parent)}
    for path, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(path)) in read:
            skipped[LINKED] += 1
            folders.clear()
            continue
        read.add(real)
        skipped.update(HIDDEN for name in folders if name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if (why := why_skipped(name)) is None:
                yield os.path.join(path, name)
            else:
                skipped[why] += 1


def _raise(error: OSError) -> NoReturn:
    raise error


def _check_filled(folder: Path, names: list[str]) -> None:
    for name in names:
        skipped: Counter[str] = Counter()
        if not any(_images(folder / name, skipped)):
            found = f"skipped {reasons(skipped)}; " if skipped else ""
            raise UserError(
                f"data.root: no images in '{folder / name}' ({found}looked for {', '.join(sorted(IMAGE_SUFFIXES))}); "
                "add or convert some, or remove the folder"
            )
