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
from attnmosaic.inference.user_images import MOST_CELLS, OwnMosaic, Source, find_sources, read_mosaic

if TYPE_CHECKING:
    from attnmosaic.inference.restore import RestoredPair

log = logging.getLogger(__name__)

TABLE, INDEX = "explained.csv", "index.png"
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, eq=False)
class Explained:
    """A trained pair's prediction on a mosaic of a user's images.

    Attributes:
        name: of the image or folder.
        classes: names of the F foreground classes.
        probabilities: What's, of each class, ``[F]``, float64.
        weights: Where's, of each patch in reading order, ``[P]``, float64.
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
    def looks_at(self) -> int:
        """Which patch has the largest weight, counted from 1 in reading order (the first one on a tie)."""
        return int(self.weights.argmax()) + 1

    @property
    def entropy(self) -> float:
        """Of the weights, in nats."""
        some = self.weights[self.weights > 0]
        return max(0.0, -float((some * np.log(some)).sum()))

    def row(self) -> dict[str, Any]:
        """Returns the mosaic's row of ``explained.csv``, by column."""
        return {
            "image": self.name,
            "predicted": self.predicted,
            **{f"p({name})": float(p) for name, p in zip(self.classes, self.probabilities, strict=True)},
            "looks_at": self.looks_at,
            "weight": float(self.weights.max()),
            "entropy": self.entropy,
            **{f"weight_{i}": float(weight) for i, weight in enumerate(self.weights, start=1)},
        }


def table_columns(classes: Sequence[str], patches: int) -> list[str]:
    """Returns the columns of ``explained.csv``.

    Args:
        classes: names of the foreground classes.
        patches: of the mosaic that has most.
    """
    probabilities, weights = (f"p({name})" for name in classes), (f"weight_{i + 1}" for i in range(patches))
    return ["image", "predicted", *probabilities, "looks_at", "weight", "entropy", *weights]


def picture_names(sources: Sequence[Source]) -> list[str]:
    """Returns a file name for the picture of each mosaic: its image's, with a number where another has that name.

    Names differ by more than capitals, which some systems ignore, and hold nothing that leads out of a folder.
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
    letters = "".join(letter if letter.isalnum() or letter in " -_.()+," else "_" for letter in name)
    # A file's name has 255 bytes at most, a number and a suffix among them.
    return letters.encode()[:200].decode(errors="ignore").strip(" .") or "_"


def explain(
    ckpt_path: str | Path, images: str | Path, grid: int | None = None, *, device: str = "auto", trust: Any = ()
) -> list[Explained]:
    """Returns where a trained pair attends in a user's images, and what it predicts.

    Args:
        ckpt_path: a checkpoint of a where/what pair that was trained on images. Its data are not needed.
        images: a folder, or one image. Each image in the folder is cut into a mosaic of grid x grid cells; each
            sub-folder is one mosaic, whose patches, any number of them, are the images in it. All in the order of their
            names. What cannot be read is logged and skipped.
        grid: cells along each side of an image that is cut; None for as many patches as the pair was trained on.
        device: "auto" for a GPU if there is one, "cpu" or "cuda".
        trust: what the checkpoint may name beside what comes with this program, ``["my_package"]`` say, or "all".

    Raises:
        UserError: an argument is not allowed, or none of the images can be read.
    """
    return [seen for _, seen in predictions(*prepare(ckpt_path, images, grid, device, trust))]


def prepare(
    ckpt_path: str | Path, images: str | Path, grid: int | None, device: str, trust: Any
) -> tuple["RestoredPair", list[Source], int]:
    """Checks the arguments of `explain`, as far as possible before torch is imported.

    Returns:
        The pair on its device, where the mosaics come from, and the cells along each side of an image that is cut.

    Raises:
        UserError: an argument is not allowed.
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
            f"grid: has no value and needs one, as the {patches} patches of training make no square; "
            f"type for example grid={max(2, root)}"
        )
    return pair, sources, grid or root


def _restore(ckpt_path: str | Path, device: str, trust: Any) -> "RestoredPair":
    """Returns the pair on its device."""
    import_lightning()
    import torch

    from attnmosaic.inference.restore import restore_pair

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got cuda, but PyTorch finds no GPU on this machine; type device=cpu (or auto)")
    pair = restore_pair(ckpt_path, trust)
    pair.pair.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    return pair


def predictions(
    pair: "RestoredPair", sources: Sequence[Source], grid: int
) -> Generator[tuple[OwnMosaic, Explained], None, None]:
    """Yields one mosaic after the other with the pair's prediction; logs what cannot be read.

    Raises:
        UserError: no mosaic can be read.
    """
    import torch

    from attnmosaic.training.runtime import job_globals

    device = next(pair.pair.parameters()).device
    unread: list[str] = []
    with job_globals(seed=0, threads=None, matmul_precision=pair.config["compute"]["matmul_precision"]):
        for source in sources:
            try:
                mosaic = read_mosaic(source, grid, pair.patch_shape)
            except UnreadableError as error:
                unread.append(f"'{one_line(source.name)}' {error}")
                log.warning("%s; skipped", unread[-1])
                continue
            predicted = pair.predict(torch.from_numpy(mosaic.patches).to(device))
            weights, probabilities = (values.double().cpu().numpy() for values in predicted)
            yield mosaic, Explained(source.name, pair.classes, probabilities, weights)
    if len(unread) == len(sources):
        what = unread[0] if len(unread) == 1 else f"none of {len(unread)} mosaics can be read, the first: {unread[0]}"
        raise UserError(f"images: {what}; give other images, PNG or JPEG files say")
