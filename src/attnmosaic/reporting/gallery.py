"""Chooses the mosaics of a run that the report shows, and prepares their pictures and texts."""

import base64
import io
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from attnmosaic.plotting.palette import FOCUS_PREDICTION, SPLITS
from attnmosaic.plotting.point_tiles import Transform, backdrop, base_points, class_colors
from attnmosaic.plotting.tiles import columns, darkness, grid, picture
from attnmosaic.runs.snapshots import KINDS, Plane, PredictedMosaics, Record

HELD_OUT_FIRST = tuple(reversed(SPLITS))
"""The splits in the order of the report: held_out, test, train."""

SIDE = 200
"""Width and height of a plane, in units of the SVG's view box."""

LONGEST = 48
"""Pixels of the longer side of a patch in the page; larger patches are scaled down."""

MOST_CLASSES = 5
"""The most classes whose probabilities a card shows."""

SHADE = 0.72
"""Opacity of the black layer over a patch without weight, which can still be recognized."""


class Picture(NamedTuple):
    """A picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


class Weight(NamedTuple):
    """A patch's attention weight, whether the patch is the true foreground, and the opacity of its black layer."""

    value: float
    foreground: bool
    dark: float


class ClassProbability(NamedTuple):
    """What's probability of a class, and whether the class is the true or the predicted one."""

    name: str
    value: float
    true: bool
    predicted: bool


class PlaneMosaic(NamedTuple):
    """A mosaic of 2-D points on the plane: (x, y, radius) of each patch, and (x, y) of their weighted sum."""

    circles: list[tuple[float, ...]]
    aggregate: tuple[float, ...]


@dataclass(frozen=True)
class Card:
    """A mosaic as the report shows it: images have `picture` and `aggregate`, 2-D points have `plane`."""

    split: str
    row: int
    kind: str
    across: int
    weights: list[Weight]
    probabilities: list[ClassProbability]
    predicted: str
    truth: str
    picture: Picture | None = None
    aggregate: Picture | None = None
    plane: PlaneMosaic | None = None

    @property
    def correct(self) -> bool:
        return self.kind.endswith("pt")


@dataclass(frozen=True)
class Gallery:
    """A run's mosaics: the cards, the number of all mosaics by split and kind, and the plane behind 2-D mosaics."""

    cards: list[Card]
    counts: dict[str, dict[str, int]]
    classes: tuple[str, ...]
    plane: Picture | None

    @property
    def splits(self) -> list[str]:
        return [split for split in HELD_OUT_FIRST if any(card.split == split for card in self.cards)]

    @property
    def kinds(self) -> dict[str, str]:
        return {kind: FOCUS_PREDICTION[kind].label for kind in KINDS}


def choose_mosaics(record: Record, most: int) -> list[tuple[str, int]]:
    """Returns (split, index) of the mosaics to show: the worst of each kind in turn.

    If `most` is below 24, only held_out mosaics are shown.
    """
    splits = [split for split in HELD_OUT_FIRST if split in record.final]
    turns: list[tuple[int, int, int, int]] = []
    for s, split in enumerate(splits if most >= 24 else splits[:1]):
        turn = {kind: itertools.count() for kind in KINDS}
        turns += [(next(turn[kind]), s, KINDS.index(kind), i) for i, kind in enumerate(record.final[split].kinds)]
    kept = sorted(turns)[:most]
    return [(splits[s], i) for _, s, _, i in sorted(kept, key=lambda turn: (turn[1], turn[2], turn[0]))]


def gallery(record: Record, most: int) -> Gallery:
    """Prepares the mosaics of a run for the report.

    Args:
        record: the run's ``mosaics.npz``.
        most: the most mosaics to show.
    """
    aggregates = {split: mosaics.aggregates for split, mosaics in record.final.items()}
    cards = [_card(record, split, i, aggregates[split][i]) for split, i in choose_mosaics(record, most)]
    plane = _plane_picture(record, record.plane) if record.plane is not None and cards else None
    return Gallery(cards, record.counts, record.classes, plane)


def _card(record: Record, split: str, i: int, aggregate: np.ndarray) -> Card:
    mosaics = record.final[split]
    true = int(mosaics.foreground[i])
    pictures: dict[str, Picture | PlaneMosaic] = {}
    if mosaics.is_image:
        pictures = {"picture": _mosaic_picture(mosaics, i), "aggregate": _inlined(_small(aggregate))}
    elif record.plane is not None:
        pictures = {"plane": _plane_mosaic(record.plane, mosaics, i, aggregate)}
    return Card(
        split=split,
        row=int(mosaics.rows[i]),
        kind=mosaics.kinds[i],
        across=columns(mosaics.alpha.shape[1]),
        weights=[Weight(w, j == true, round(darkness(w, SHADE), 3)) for j, w in enumerate(mosaics.alpha[i].tolist())],
        probabilities=_probabilities(record, mosaics, i),
        predicted=record.classes[mosaics.predicted[i]],
        truth=record.classes[mosaics.label[i]],
        **pictures,  # type: ignore[arg-type]
    )


def _probabilities(record: Record, mosaics: PredictedMosaics, i: int) -> list[ClassProbability]:
    """Returns the probabilities of all classes or, of more than `MOST_CLASSES`, of the likeliest and the true class."""
    true, predicted = int(mosaics.label[i]), int(mosaics.predicted[i])
    values = mosaics.probabilities[i].tolist()
    shown = list(range(len(values)))
    if len(values) > MOST_CLASSES:
        likely = sorted(shown, key=lambda c: -values[c])[:MOST_CLASSES]
        shown = likely if true in likely else [*likely[:-1], true]
    return [ClassProbability(record.classes[c], values[c], c == true, c == predicted) for c in shown]


def _plane_mosaic(plane: Plane, mosaics: PredictedMosaics, i: int, aggregate: np.ndarray) -> PlaneMosaic:
    transform = Transform(plane.extent, SIDE)
    radii = 2.5 + 9 * np.sqrt(np.clip(mosaics.alpha[i], 0, 1))
    circles = np.column_stack([transform(mosaics.patches[i]), radii]).round(1)
    return PlaneMosaic([tuple(circle) for circle in circles.tolist()], tuple(transform(aggregate).round(1).tolist()))


# ---- pictures inside the page


def _inlined(image: Image.Image) -> Picture:
    """Returns a picture for the page: PNG or, if that is smaller, JPEG."""
    files = {"png": _encoded(image, format="PNG", optimize=True)}
    if image.mode in ("L", "RGB"):
        files["jpeg"] = _encoded(image, format="JPEG", quality=86, subsampling=0, optimize=True)
    kind = min(files, key=lambda kind: len(files[kind]))
    return Picture(f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}", *image.size)


def _encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _small(pixels: np.ndarray) -> Image.Image:
    """Returns pixels ``[H, W, C]`` as a picture, scaled down to `LONGEST` if larger, grey if C is 1."""
    image = picture(np.nan_to_num(pixels), min(LONGEST, max(pixels.shape[:2])))
    return image.convert("L") if pixels.shape[-1] == 1 else image


def _mosaic_picture(mosaics: PredictedMosaics, i: int) -> Picture:
    """Returns one picture of a mosaic's image patches, row by row and without gaps."""
    patches = [_small(patch) for patch in mosaics.patches[i]]
    return _inlined(grid(patches, patches[0].size)[0])


def _plane_picture(record: Record, plane: Plane, side: int = 320) -> Picture:
    """Returns a transparent picture of the plane: What's predicted classes as tints, and the pool's points."""
    tints = np.insert(class_colors(len(record.classes)), 3, 70, axis=1)
    image = backdrop(tints[plane.regions], side, Image.Resampling.NEAREST)
    tints[:, 3] = 170
    colors = [
        tuple(tints[record.classes.index(name)]) if name in record.classes else (128, 128, 128, 150)
        for name in record.all_classes
    ]
    base_points(ImageDraw.Draw(image), Transform(plane.extent, side), plane, colors, 1.4)
    return _inlined(image.quantize(64, method=Image.Quantize.FASTOCTREE))
