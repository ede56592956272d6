"""Reads and writes ``mosaics.npz``: attention weights and predictions that a run keeps, to be plotted and browsed."""

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
"""Focus true or false (F.) crossed with prediction true or false (P.), the most interesting first."""


@dataclass(frozen=True, eq=False)
class PredictedMosaics:
    """M mosaics as a pair saw them.

    Attributes:
        rows: their numbers in their split, ``[M]``.
        patches: images as uint8 ``[M, P, H, W, C]``, C 1 or 3, large ones reduced; or points ``[M, P, 2]``.
        foreground: position of the foreground patch, ``[M]``.
        label: which foreground class, ``[M]``.
        alpha: attention weights, ``[M, P]``; of mosaics followed through training ``[T, M, P]``.
        probabilities: What's, of each foreground class, ``[M, F]`` or ``[T, M, F]``.
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
        """Returns followed mosaics as they were at one of the times, -1 for the last."""
        return PredictedMosaics(
            self.rows, self.patches, self.foreground, self.label, self.alpha[t], self.probabilities[t]
        )

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class with the largest probability, ``[M]`` or ``[T, M]``."""
        return self.probabilities.argmax(axis=-1)

    @cached_property
    def focus(self) -> np.ndarray:
        """Whether the largest weight sits on the foreground patch (the first one on a tie), ``[M]`` or ``[T, M]``."""
        return self.alpha.argmax(axis=-1) == self.foreground

    @cached_property
    def kinds(self) -> list[str]:
        """The `KINDS` that mosaics are of, ``[M]``."""
        right = self.predicted == self.label
        return [f"f{'ft'[int(f)]}p{'ft'[int(p)]}" for f, p in zip(self.focus, right, strict=True)]

    @property
    def aggregates(self) -> np.ndarray:
        """The weighted sums: pixels from 0 to 255 ``[M, H, W, C]``, or points ``[M, 2]``; float32."""
        return np.einsum("mp,mp...->m...", self.alpha.astype(np.float32), self.patches.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Plane:
    """What 2-D networks make of the plane, when a run ends.

    Attributes:
        extent: left, right, bottom and top of the part that the networks were evaluated on.
        regions: the foreground class What sees in each of S x S cells, ``[y, x]``, from the bottom.
        scores: Where's score of each cell (a mosaic's weights are the softmax of its patches' scores), ``[y, x]``;
            all 0 if the data give the weights.
        points: base points of the training pool, ``[U, 2]``.
        point_classes: index in `Record.all_classes` of each, ``[U]``.
        aggregates: weighted sums of the first mosaics, ``[N, 2]``.
        label: their true foreground classes, ``[N]``.
        held_out_aggregates: the same of held-out mosaics.
        held_out_label: likewise.
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
    """All of ``mosaics.npz``.

    Attributes:
        classes: names of the F foreground classes, in label order.
        all_classes: names of all classes of the pool.
        epochs: epochs done at each of the T times that mosaics were followed at, from 0.
        followed: by split, the same few mosaics at all these times.
        final: by split, chosen mosaics with the final weights: of each of `KINDS` the worst. The order is that of
            `KINDS`, and within a kind from the least to the most weight on the foreground.
        counts: by split, how many mosaics of each of `KINDS` there were to choose from.
        plane: of 2-D patches.
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
        """Writes the record as ``mosaics.npz``, atomically."""
        arrays: dict[str, Any] = {
            "classes": np.array(self.classes),
            "all_classes": np.array(self.all_classes),
            "epochs": self.epochs,
            "scale": np.array(self.scale),
        }
        for part, groups in (("followed", self.followed), ("final", self.final)):
            for split, looked in groups.items():
                arrays |= {f"{part}.{split}.{f.name}": getattr(looked, f.name) for f in fields(PredictedMosaics)}
        for split, counts in self.counts.items():
            arrays[f"counts.{split}"] = np.array([counts[kind] for kind in KINDS])
        if self.plane is not None:
            arrays |= {f"plane.{f.name}": getattr(self.plane, f.name) for f in fields(Plane)}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(path, content.getvalue())


def read_record(path: Path) -> Record:
    """Reads ``mosaics.npz``.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        plane = _below("plane", arrays)
        return Record(
            classes=tuple(map(str, arrays["classes"])),
            all_classes=tuple(map(str, arrays["all_classes"])),
            epochs=arrays["epochs"],
            followed=_by_split("followed", arrays),
            final=_by_split("final", arrays),
            counts={split: dict(zip(KINDS, n.tolist(), strict=True)) for split, n in _below("counts", arrays).items()},
            plane=Plane(**plane) if plane else None,
            scale=str(arrays["scale"]),
        )
    except Exception as error:  # a torn file fails in numpy, in zipfile or in zlib
        raise UserError(f"'{path}' is no record of mosaics that can be read ({type(error).__name__})") from error


def _below(part: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of a part of the record, by the rest of their names."""
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}


def _by_split(part: str, arrays: dict[str, np.ndarray]) -> dict[str, PredictedMosaics]:
    found = _below(part, arrays)
    return {
        split: PredictedMosaics(**_below(split, found)) for split in sorted({name.partition(".")[0] for name in found})
    }
