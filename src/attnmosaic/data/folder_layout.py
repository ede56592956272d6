"""What a folder of images holds. Light: looked at before torch is imported."""

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
    return names


def check_folder(root: Path) -> list[str]:
    """Checks what a look at the names can tell of a folder of images and returns its classes.

    Raises:
        UserError: a folder is missing or empty, or training and test folders hold different classes.
    """
    train, test = find_splits(root)
    names, _ = list_images(train)
    if test is not None and (test_names := list_images(test)[0]) != names:
        differ = ", ".join(sorted({*names} ^ {*test_names}))
        raise UserError(
            f"data.root: '{train}' and '{test}' hold different classes ({differ}); give both the same class folders"
        )
    return names


def list_images(folder: Path) -> tuple[list[str], list[list[Path]]]:
    """Returns the class names and each class's image files, both sorted.

    Raises:
        UserError: there is no class folder, or one holds no image.
    """
    names = class_names(folder)
    files = [
        sorted(p for p in (folder / name).rglob("[!.]*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        for name in names
    ]
    empty = [name for name, found in zip(names, files, strict=True) if not found]
    if empty:
        raise UserError(
            f"data.root: no images in '{folder / empty[0]}' (looked for {', '.join(sorted(IMAGE_SUFFIXES))}); "
            "add some or remove the folder"
        )
    return names, files
