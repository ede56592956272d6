"""Lists the splits, classes and files of image folders, and counts skipped files. Imports nothing heavy."""

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

# Pillow's suffixes for the formats in `attnmosaic.data.image_files.FORMATS`, except .pfm, whose pixels are floats.
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg",
    ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})  # fmt: skip
TEST_NAMES = ("test", "val", "valid")

HIDDEN = "hidden"
NOT_A_CLASS = "not in a class folder"
LINKED = "links to a folder that is already read"
"""Reasons to skip a file or folder, other than the ending of its name."""


@dataclass(frozen=True)
class Listing:
    """The image files below a folder that has one sub-folder per class.

    Attributes:
        folder: the folder.
        classes: names of the classes, sorted.
        files: image files of each class, sorted.
        skipped: number of skipped files and folders by reason.
    """

    folder: Path
    classes: list[str]
    files: list[list[Path]]
    skipped: Counter[str]


def root_folder(root: Any) -> Path:
    """Returns the folder that ``data.root`` names.

    Raises:
        UserError: the value is not text, because Hydra has read it as a number, a list or null.
    """
    if not isinstance(root, str):
        raise UserError(
            f"data.root: got {'null' if root is None else root}, needs the path of a folder as text, in quotes; "
            "type 'data.root=\"DIR\"'"
        )
    return Path(root).expanduser()


def find_splits(root: Path) -> tuple[Path, Path | None]:
    """Returns the folder of training images, and the folder of test images or None.

    Raises:
        UserError: the folder is missing.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"data.root: '{root}' {problem}; type data.root=DIR, a folder with one subfolder for each class"
        )
    train = root / "train"
    # A folder "train" without subfolders is a class.
    if not train.is_dir() or not any(p.is_dir() for p in train.iterdir()):
        return root, None
    tests = [root / name for name in TEST_NAMES if (root / name).is_dir()]
    return train, tests[0] if tests else None


def class_names(folder: Path) -> list[str]:
    """Returns the names of the class folders, sorted.

    Raises:
        UserError: there is no class folder, or its name cannot be printed.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"data.root: '{folder}' has no folders, needs one folder of images for each class")
    for name in names:
        if not name.isprintable():  # the name is shown in tables, figures and reports
            raise UserError(f"data.root: the folder name {name!a} in '{folder}' cannot be printed; rename the folder")
    return names


def check_folder(root: Path) -> list[str]:
    """Checks that each class folder has image files, and returns the names of the classes.

    Raises:
        UserError: a folder is missing or has no images, or the training and test folders have different classes.
    """
    train, test = find_splits(root)
    names = class_names(train)
    _check_images_exist(train, names)
    if test is not None:
        if different := ", ".join(sorted({*names} ^ {*class_names(test)})):
            raise UserError(
                f"data.root: '{train}' and '{test}' have different class folders ({different}); give both the same "
                "class folders"
            )
        _check_images_exist(test, names)
    return names


def foreground_missing(root: Any) -> UserError:
    """Returns the user error for missing foreground classes; its message lists the classes in the image folder."""
    names = check_folder(root_folder(root))
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return UserError(
        f"data.foreground: required; needs at least two of the classes in '{root}' ({shown}); "
        f"type for example {typed_override('data.foreground', names[:2])}"
    )


def list_images(folder: Path) -> Listing:
    """Returns the classes of a folder and their image files.

    Raises:
        UserError: there is no class folder.
    """
    names = class_names(folder)
    skipped = count_other_entries(folder, names)
    # Sorts texts by the parts of the path, in the order of `Path` objects but fifty times as fast.
    files = [sorted(_image_files(folder / name, skipped), key=lambda path: path.split(os.sep)) for name in names]
    return Listing(folder, names, [[Path(file) for file in group] for group in files], skipped)


def count_other_entries(folder: Path, read: Collection[str]) -> Counter[str]:
    """Counts the entries of a folder that are not read, by the reason why they are skipped."""
    others = [path.name for path in folder.iterdir() if path.name not in read]
    return Counter(HIDDEN if name.startswith(".") else NOT_A_CLASS for name in others)


def why_skipped(name: str) -> str | None:
    """Returns the reason to skip a file of this name, or None if the file is read as an image."""
    if name.startswith("."):
        return HIDDEN
    ending = os.path.splitext(name)[1].lower()
    return None if ending in IMAGE_SUFFIXES else ending or "no ending"


def reasons(skipped: Counter[str]) -> str:
    """Returns the reasons for skipped files with their counts: the eight most frequent reasons, then the rest."""
    counts = skipped.most_common(8)
    if others := skipped.total() - sum(count for _, count in counts):
        counts.append(("others", others))
    return one_line(", ".join(f"{reason}: {count}" for reason, count in counts))


def report_skipped(key: str, folder: Path, skipped: Counter[str]) -> None:
    """Logs the number of skipped files in one line; the line is a warning unless all of them are hidden files.

    Args:
        key: the config key of the folder.
        folder: the folder.
        skipped: number of skipped files and folders by reason.
    """
    if skipped:
        level = logging.WARNING if {*skipped} - {HIDDEN} else logging.INFO
        text = f"skipped {skipped.total()} files or folders in '{folder}'"
        log.log(level, "%s", one_line(f"{key}: {text} ({reasons(skipped)})"))


def _image_files(folder: Path, skipped: Counter[str]) -> Iterator[str]:
    """Yields the image files in a folder and its subfolders, and adds the skipped files to ``skipped``.

    Links are followed, but each folder is read only once.
    """
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
            if (reason := why_skipped(name)) is None:
                yield os.path.join(path, name)
            else:
                skipped[reason] += 1


def _raise(error: OSError) -> NoReturn:
    raise error


def _check_images_exist(folder: Path, names: list[str]) -> None:
    for name in names:
        skipped: Counter[str] = Counter()
        if not any(_image_files(folder / name, skipped)):
            skip_reasons = f"skipped {reasons(skipped)}; " if skipped else ""
            raise UserError(
                f"data.root: no images in '{folder / name}' ({skip_reasons}allowed endings: "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}); add or convert images, or remove the folder"
            )
