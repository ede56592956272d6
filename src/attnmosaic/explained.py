"""What a trained pair makes of one's own mosaics, and how that is written down. Light: imports no torch."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnmosaic.data.decode import printable
from attnmosaic.data.own_mosaics import Source

TABLE, INDEX = "explained.csv", "index.png"


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
