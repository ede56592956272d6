"""Reads and writes ``mosaics.npz``: mosaics with their attention weights and predictions, for figures and reports."""

import io
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import write_atomically

RECORD = "mosaics.npz"

KINDS = ("ffpt", "ffpf", "ftpf", "ftpt")
"""Focus true or false (FT, FF) combined with prediction true or false (PT, PF), the most interesting first."""


@dataclass(frozen=True, eq=False)
class PredictedMosaics:
    """M mosaics with a pair's attention weights and predictions.

    Attributes:
        rows: index of each mosaic in its split, ``[M]``.
        patches: images as uint8 ``[M, P, H, W, C]``, C 1 or 3, large images scaled down; or points ``[M, P, 2]``.
        foreground: index of the foreground patch, ``[M]``.
        label: index of the foreground class, ``[M]``.
        alpha: attention weights, ``[M, P]``; ``[T, M, P]`` for mosaics that are followed through training.
        probabilities: What's probability of each foreground class, ``[M, F]`` or ``[T, M, F]``.
    """

    rows: np.ndarray
    patches: np.ndarray
    foreground: np.ndarray
    label: np.ndarray
    alpha: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_image(self) -> bool:
        return self.patches.dtype == np.uint8

    def at(self, t: int) -> "PredictedMosaics":
        """Returns followed mosaics with the weights and predictions of time index `t`; -1 for the last time."""
        return PredictedMosaics(
            self.rows, self.patches, self.foreground, self.label, self.alpha[t], self.probabilities[t]
        )

    @cached_property
    def predicted(self) -> np.ndarray:
        """Index of the class with the largest probability, ``[M]`` or ``[T, M]``."""
        return self.probabilities.argmax(axis=-1)

    @cached_property
    def focus(self) -> np.ndarray:
        """Whether the foreground patch is the first patch with the largest weight, ``[M]`` or ``[T, M]``."""
        return self.alpha.argmax(axis=-1) == self.foreground

    @cached_property
    def kinds(self) -> list[str]:
        """The kind of each mosaic, one of `KINDS`, ``[M]``."""
        correct = self.predicted == self.label
        return [f"f{'ft'[int(f)]}p{'ft'[int(p)]}" for f, p in zip(self.focus, correct, strict=True)]

    @property
    def aggregates(self) -> np.ndarray:
        """The weighted sums: pixels from 0 to 255 ``[M, H, W, C]``, or points ``[M, 2]``; float32."""
        return np.einsum("mp,mp...->m...", self.alpha.astype(np.float32), self.patches.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Plane:
    """Outputs of 2-D networks on a grid of the plane, and points to plot there, at the end of a run.

    Attributes:
        extent: left, right, bottom and top of the grid.
        regions: What's predicted class in each of S x S cells, ``[y, x]``, from the bottom.
        scores: Where's score in each cell (a mosaic's weights are the softmax of its patches' scores), ``[y, x]``;
            all 0 for fixed attention weights.
        points: points of the training pool, ``[U, 2]``.
        point_classes: each point's index in `Record.all_classes`, ``[U]``.
        aggregates: weighted sums of the first training mosaics, ``[N, 2]``.
        label: true foreground classes of these mosaics, ``[N]``.
        held_out_aggregates: weighted sums of the first held-out mosaics.
        held_out_label: true foreground classes of these mosaics.
    """

    extent: np.ndarray
    regions: np.ndarray
    scores: np.ndarray
    points: np.ndarray
    point_classes: np.ndarray
    aggregates: np.ndarray
    label: np.ndarray
    held_out_aggregates: np.ndarray
    held_out_label: np.ndarray


@dataclass(frozen=True, eq=False)
class Record:
    """The mosaics that a run keeps, with attention weights and predictions: the content of ``mosaics.npz``.

    Attributes:
        classes: names of the F foreground classes, in label order.
        all_classes: names of all classes of the pool.
        epochs: number of finished epochs at each of the T times at which mosaics were followed, from 0.
        followed: by split, the same few mosaics at all these times.
        final: by split, mosaics with the final weights: for each of `KINDS` those with the least weight on the
            foreground. They are sorted by kind, in the order of `KINDS`, then by increasing weight on the foreground.
        counts: by split, the number of all mosaics of each of `KINDS`.
        plane: outputs on the plane, for 2-D patches only.
        scale: ``full`` or ``smoke``.
    """

    classes: tuple[str, ...]
    all_classes: tuple[str, ...]
    epochs: np.ndarray
    followed: dict[str, PredictedMosaics]
    final: dict[str, PredictedMosaics]
    counts: dict[str, dict[str, int]]
    plane: Plane | None = None
    scale: str = "full"

    def save(self, path: Path) -> None:
        """Writes the content as ``mosaics.npz``, atomically."""
        arrays: dict[str, Any] = {
            "classes": np.array(self.classes),
            "all_classes": np.array(self.all_classes),
            "epochs": self.epochs,
            "scale": np.array(self.scale),
        }
        for part, groups in (("followed", self.followed), ("final", self.final)):
            for split, mosaics in groups.items():
                arrays |= {f"{part}.{split}.{f.name}": getattr(mosaics, f.name) for f in fields(PredictedMosaics)}
        for split, counts in self.counts.items():
            arrays[f"counts.{split}"] = np.array([counts[kind] for kind in KINDS])
        if self.plane is not None:
            arrays |= {f"plane.{f.name}": getattr(self.plane, f.name) for f in fields(Plane)}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(path, content.getvalue())


def read_record(path: Path) -> Record:
    """Reads the mosaics, attention weights and predictions in ``mosaics.npz``.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        plane = _with_prefix("plane", arrays)
        return Record(
            classes=tuple(map(str, arrays["classes"])),
            all_classes=tuple(map(str, arrays["all_classes"])),
            epochs=arrays["epochs"],
            followed=_by_split("followed", arrays),
            final=_by_split("final", arrays),
            counts={
                split: dict(zip(KINDS, n.tolist(), strict=True)) for split, n in _with_prefix("counts", arrays).items()
            },
            plane=Plane(**plane) if plane else None,
            scale=str(arrays["scale"]),
        )
    except Exception as error:  # An incomplete file fails in numpy, zipfile or zlib.
        raise UserError(f"cannot read '{path}' ({type(error).__name__})") from error


def _with_prefix(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays whose names begin with a prefix and a dot, by the rest of their names."""
    return {name.removeprefix(f"{prefix}."): array for name, array in arrays.items() if name.startswith(f"{prefix}.")}


def _by_split(part: str, arrays: dict[str, np.ndarray]) -> dict[str, PredictedMosaics]:
    arrays = _with_prefix(part, arrays)
    splits = sorted({name.partition(".")[0] for name in arrays})
    return {split: PredictedMosaics(**_with_prefix(split, arrays)) for split in splits}
