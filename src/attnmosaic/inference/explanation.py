"""Predicts with a trained pair on a user's images: attention weights and class probabilities."""

import itertools
import logging
import math
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnmosaic.config.validation import check_ckpt_path
from attnmosaic.core.errors import UserError, not_among
from attnmosaic.core.internals import import_lightning
from attnmosaic.data.image_files import UnreadableError, printable
from attnmosaic.inference.user_images import MOST_CELLS, OwnMosaic, Source, find_sources, read_mosaic

if TYPE_CHECKING:
    from attnmosaic.inference.restore import RestoredPair

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Explained:
    """A mosaic of one's own images as a trained pair sees it.

    Attributes:
        name: the image's or the folder's path, relative to the folder that was given.
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
            **{f"p({name})": float(share) for name, share in zip(self.classes, self.probabilities, strict=True)},
            "looks_at": self.looks_at,
            "weight": float(self.weights.max()),
            "entropy": self.entropy,
            **{f"weight_{i + 1}": float(weight) for i, weight in enumerate(self.weights)},
        }


def table_columns(classes: Sequence[str], patches: int, smoke: bool) -> list[str]:
    """Returns the columns of ``explained.csv``.

    Args:
        classes: names of the foreground classes.
        patches: of the mosaic that has most.
        smoke: the pair is of a run that is no result; each row says so.
    """
    probabilities, weights = (f"p({name})" for name in classes), (f"weight_{i + 1}" for i in range(patches))
    return ["image", "predicted", *probabilities, "looks_at", "weight", "entropy", *weights, *["scale"] * smoke]


def picture_names(sources: Sequence[Source]) -> list[str]:
    """Returns a file name for the picture of each mosaic: its image's with another suffix, where that is unique.

    Names are told apart as systems do that know no capitals, and hold nothing that leads out of a folder.
    """
    stems = [_safe(source.path.name if source.files else source.path.stem) for source in sources]
    folded = [stem.casefold() for stem in stems]
    once = {stem for stem, group in itertools.groupby(sorted(folded)) if len([*group]) == 1}
    taken = {INDEX}
    names = []
    for source, stem in zip(sources, stems, strict=True):
        base = stem if stem.casefold() in once else _safe(source.path.name)
        numbered = (f"{base}.png" if i == 1 else f"{base}_{i}.png" for i in itertools.count(1))
        names.append(next(name for name in numbered if name.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def _safe(name: str) -> str:
    letters = (letter if letter.isalnum() or letter in " -_.()+," else "_" for letter in printable(name))
    # A file's name has 255 bytes at most, a number and a suffix among them.
    return os.fsencode("".join(letters))[:200].decode("utf-8", "ignore").strip(" .") or "_"


DEVICES = ("auto", "cpu", "cuda")


def explain(
    ckpt_path: str | Path, images: str | Path, grid: int | None = None, *, device: str = "auto", trust: Any = ()
) -> list[Explained]:
    """Asks a trained pair where it looks in one's own images, and what it takes them for.

    Args:
        ckpt_path: a checkpoint of a where/what pair that was trained on images. Its data are not needed.
        images: a folder, or one image. Each image in the folder is cut into a mosaic of grid x grid cells; each
            sub-folder is one mosaic, whose patches, any number of them, are the images in it. All in the order of their
            names. What cannot be read is logged and left out.
        grid: cells along each side of an image that is cut; None for as many patches as the pair was trained on.
        device: "auto" for a GPU if there is one, "cpu" or "cuda".
        trust: what the checkpoint may name beside what comes with this program, ``["my_package"]`` say, or "all".

    Returns:
        What the pair makes of each mosaic.

    Raises:
        UserError: one of the arguments will not do, or none of the images can be read.
    """
    sources = check_arguments(ckpt_path, images, grid, device)
    pair = restore_on_device(ckpt_path, device, trust)
    return [seen for _, seen in predictions(pair, sources, cells_per_side(grid, pair, sources))]


def check_arguments(ckpt_path: str | Path, images: str | Path, grid: Any, device: str) -> list[Source]:
    """Checks what can be before torch is imported; returns where the mosaics come from."""
    check_ckpt_path(ckpt_path)
    whole = isinstance(grid, int) and not isinstance(grid, bool)
    if grid is not None and not (whole and 1 <= grid <= MOST_CELLS):
        raise UserError(f"grid: got {grid}, needs a whole number from 1 to {MOST_CELLS}; type for example grid=3")
    if device not in DEVICES:
        raise not_among("device", device, DEVICES)
    return find_sources(Path(images).expanduser())


def restore_on_device(ckpt_path: str | Path, device: str, trust: Any) -> "RestoredPair":
    """Returns the pair on its device."""
    import_lightning()
    import torch

    from attnmosaic.inference.restore import restore_pair

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got cuda, but PyTorch finds no GPU on this machine; type device=cpu (or auto)")
    pair = restore_pair(ckpt_path, trust)
    pair.pair.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    return pair


def cells_per_side(grid: int | None, pair: "RestoredPair", sources: Sequence[Source]) -> int:
    """Returns the cells along each side of an image that is cut."""
    root = math.isqrt(pair.patches)
    if grid is None and root**2 != pair.patches and not all(source.files for source in sources):
        raise UserError(
            f"grid: has no value and needs one, as the {pair.patches} patches of training make no square; "
            f"type for example grid={max(2, root)}"
        )
    return grid or root


def predictions(
    pair: "RestoredPair", sources: Sequence[Source], grid: int
) -> Generator[tuple[OwnMosaic, Explained], None, None]:
    """Yields one mosaic after the other, and what the pair makes of it; says what cannot be read."""
    import torch

    from attnmosaic.training.runtime import job_globals

    device = next(pair.pair.parameters()).device
    unread: list[str] = []
    with job_globals(seed=0, threads=None, matmul_precision=pair.matmul_precision):
        for source in sources:
            try:
                mosaic = read_mosaic(source, grid, pair.patch_shape)
            except UnreadableError as error:
                unread.append(f"'{printable(source.name)}' {error}")
                log.warning("%s; left out", unread[-1])
                continue
            for line in mosaic.unread:
                log.warning("%s; left out", line)
            weights, probabilities = (
                part.double().cpu().numpy() for part in pair.look(torch.from_numpy(mosaic.patches).to(device))
            )
            yield mosaic, Explained(source.name, pair.classes, probabilities, weights)
    if len(unread) == len(sources):
        what = unread[0] if len(unread) == 1 else f"none of {len(unread)} mosaics can be read, the first: {unread[0]}"
        raise UserError(f"images: {what}; give other images, PNG or JPEG files say")


TABLE, INDEX = "explained.csv", "index.png"
