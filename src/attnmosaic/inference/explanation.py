"""Predicts with a trained pair on a user's images: attention weights and class probabilities."""

import itertools
import logging
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnmosaic.config.validation import check_ckpt_path
from attnmosaic.core.errors import UserError, not_among, one_line
from attnmosaic.core.library_internals import import_lightning
from attnmosaic.data.image_files import UnreadableError
from attnmosaic.inference.user_images import MOST_CELLS, Source, UserMosaic, find_sources, read_mosaic

if TYPE_CHECKING:
    from attnmosaic.inference.restore import RestoredPair

log = logging.getLogger(__name__)

TABLE, INDEX = "explained.csv", "index.png"
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, eq=False)
class Explanation:
    """A trained pair's prediction and attention weights for a mosaic of a user's images.

    Attributes:
        name: name of the image or folder.
        classes: names of the F foreground classes.
        probabilities: What's probability of each class, ``[F]``, float64.
        weights: Where's attention weight of each patch, row by row, ``[P]``, float64.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: np.ndarray
    weights: np.ndarray

    @property
    def predicted(self) -> str:
        """The class with the largest probability."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def attended_patch(self) -> int:
        """Number of the patch with the largest weight, from 1, row by row (on a tie, of the first such patch)."""
        return int(self.weights.argmax()) + 1

    @property
    def entropy(self) -> float:
        """Entropy of the weights, in nats."""
        positive = self.weights[self.weights > 0]
        return max(0.0, -float((positive * np.log(positive)).sum()))

    def row(self) -> dict[str, Any]:
        """Returns the mosaic's row of ``explained.csv``, by column."""
        return {
            "image": self.name,
            "predicted": self.predicted,
            **{f"p({name})": float(p) for name, p in zip(self.classes, self.probabilities, strict=True)},
            "looks_at": self.attended_patch,
            "weight": float(self.weights.max()),
            "entropy": self.entropy,
            **{f"weight_{i}": float(weight) for i, weight in enumerate(self.weights, start=1)},
        }


def table_columns(classes: Sequence[str], patches: int) -> list[str]:
    """Returns the column names of ``explained.csv`` for these classes and this number of patches.

    Args:
        classes: names of the foreground classes.
        patches: largest number of patches of a mosaic.
    """
    probabilities, weights = (f"p({name})" for name in classes), (f"weight_{i + 1}" for i in range(patches))
    return ["image", "predicted", *probabilities, "looks_at", "weight", "entropy", *weights]


def picture_names(sources: Sequence[Source]) -> list[str]:
    """Returns the file name of each mosaic's picture: the name of the image, with a number if this name is taken.

    Names that differ only in upper and lower case count as taken, because some file systems do not distinguish them.
    Path separators are replaced.
    """
    taken = {INDEX}
    names = []
    for source in sources:
        stem = _safe(source.path.name if source.files else source.path.stem)
        numbered = (f"{stem}.png" if i == 1 else f"{stem}_{i}.png" for i in itertools.count(1))
        names.append(next(name for name in numbered if name.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def _safe(name: str) -> str:
    """Returns a name with all unsafe characters replaced, short enough for a file name."""
    letters = "".join(letter if letter.isalnum() or letter in " -_.()+," else "_" for letter in name)
    # File names have at most 255 bytes, including a number and a suffix.
    return letters.encode()[:200].decode(errors="ignore").strip(" .") or "_"


def explain(
    ckpt_path: str | Path, images: str | Path, grid: int | None = None, *, device: str = "auto", trust: Any = ()
) -> list[Explanation]:
    """Returns a trained pair's attention weights and predictions for a user's images.

    Args:
        ckpt_path: a checkpoint of a where/what pair that was trained on images. The training data are not needed.
        images: a folder or one image. Each image in the folder is cut into a mosaic of grid x grid cells. Each
            sub-folder is one mosaic, whose patches are its images, in any number. Images and sub-folders are sorted by
            name. Images that cannot be read are logged and skipped.
        grid: number of cells along each side of an image; None for as many patches as in training.
        device: "auto" for a GPU if available, "cpu" or "cuda".
        trust: packages, modules or classes that the checkpoint can use in addition to those of this program, for
            example ``["my_package"]``; or "all".

    Raises:
        UserError: an argument is invalid, or none of the images can be read.
    """
    return [explanation for _, explanation in predictions(*prepare(ckpt_path, images, grid, device, trust))]


def prepare(
    ckpt_path: str | Path, images: str | Path, grid: int | None, device: str, trust: Any
) -> tuple["RestoredPair", list[Source], int]:
    """Checks the arguments of `explain`, most of them before torch is imported.

    Returns:
        The pair on its device, the files of the mosaics, and the number of cells along each side of an image.

    Raises:
        UserError: an argument is invalid.
    """
    check_ckpt_path(ckpt_path)
    if grid is not None and grid not in range(1, MOST_CELLS + 1):
        raise UserError(f"grid: got {grid}, needs a whole number from 1 to {MOST_CELLS}; type for example grid=3")
    if device not in DEVICES:
        raise not_among("device", device, DEVICES)
    sources = find_sources(Path(images).expanduser())
    pair = _restore(ckpt_path, device, trust)
    patches = pair.config["data"]["patches"]
    root = math.isqrt(patches)
    if grid is None and root**2 != patches and not all(source.files for source in sources):
        raise UserError(
            f"grid: required, because training used {patches} patches, which do not form a square; "
            f"type for example grid={max(2, root)}"
        )
    return pair, sources, grid or root


def _restore(ckpt_path: str | Path, device: str, trust: Any) -> "RestoredPair":
    """Returns the pair of a checkpoint, on its device."""
    import_lightning()
    import torch

    from attnmosaic.inference.restore import restore_pair

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got cuda, but PyTorch finds no GPU on this machine; type device=cpu or device=auto")
    pair = restore_pair(ckpt_path, trust)
    pair.pair.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    return pair


def predictions(
    pair: "RestoredPair", sources: Sequence[Source], grid: int
) -> Generator[tuple[UserMosaic, Explanation], None, None]:
    """Yields each mosaic with the pair's prediction; logs and skips mosaics that cannot be read.

    Raises:
        UserError: no mosaic can be read.
    """
    import torch

    from attnmosaic.training.runtime import job_globals

    device = next(pair.pair.parameters()).device
    unreadable: list[str] = []
    with job_globals(seed=0, threads=None, matmul_precision=pair.config["compute"]["matmul_precision"]):
        for source in sources:
            try:
                mosaic = read_mosaic(source, grid, pair.patch_shape)
            except UnreadableError as error:
                unreadable.append(f"'{one_line(source.name)}' {error}")
                log.warning("%s; skipped", unreadable[-1])
                continue
            predicted = pair.predict(torch.from_numpy(mosaic.patches).to(device))
            weights, probabilities = (values.double().cpu().numpy() for values in predicted)
            yield mosaic, Explanation(source.name, pair.classes, probabilities, weights)
    if (n := len(unreadable)) == len(sources):
        reason = unreadable[0] if n == 1 else f"none of {n} mosaics can be read, first error: {unreadable[0]}"
        raise UserError(f"images: {reason}; use other images, for example PNG or JPEG files")
