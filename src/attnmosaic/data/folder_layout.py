"""What a folder of images holds. Light: looked at before torch is imported."""

import os
from collections.abc import Iterator
from pathlib import Path

from attnmosaic.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
TEST_NAMES = ("test", "val", "valid")


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
        if not name.isprintable():  # it is to stand in tables, pictures and pages
            raise UserError(f"data.root: the folder {name!a} in '{folder}' has no name to print; rename it")
    return names


def check_folder(root: Path) -> list[str]:
    """Checks what a look at the names can tell of a folder of images and returns its classes.

    Raises:
        UserError: a folder is missing or empty, or training and test folders hold different classes.
    """
    train, test = find_splits(root)
    names = class_names(train)
    _refuse_empty(train, names, {name: any(_images(train / name)) for name in names})
    if test is not None and (test_names := class_names(test)) != names:
        differ = ", ".join(sorted({*names} ^ {*test_names}))
        raise UserError(
            f"data.root: '{train}' and '{test}' hold different classes ({differ}); give both the same class folders"
        )
    if test is not None:
        _refuse_empty(test, names, {name: any(_images(test / name)) for name in names})
    return names


def list_images(folder: Path) -> tuple[list[str], list[list[Path]]]:
    """Returns the class names and each class's image files, both sorted.

    Raises:
        UserError: there is no class folder, or one holds no image.
    """
    names = class_names(folder)
    # Sorted as paths are, part by part, and fifty times as fast as by `Path`.
    files = [sorted(_images(folder / name), key=lambda path: path.split(os.sep)) for name in names]
    _refuse_empty(folder, names, dict(zip(names, map(bool, files), strict=True)))
    return names, [[Path(file) for file in group] for group in files]


def _images(folder: Path) -> Iterator[str]:
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield os.path.join(path, name)


def _refuse_empty(folder: Path, names: list[str], filled: dict[str, bool]) -> None:
    for name in names:
        if not filled[name]:
            raise UserError(
                f"data.root: no images in '{folder / name}' (looked for {', '.join(sorted(IMAGE_SUFFIXES))}); "
                "add some or remove the folder"
            )
