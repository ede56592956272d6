"""Chooses the mosaics of a run that the report shows, and lays them out."""

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

UNSEEN_FIRST = tuple(reversed(SPLITS))
"""The splits, that of unseen patches first."""

SIDE = 200
"""Sides of a plane, in its own units."""

LONGEST = 48
"""Pixels of the longer side of a patch in the page; larger ones are reduced."""

MOST_CLASSES = 5

SHADE = 0.72
"""How dark a patch without weight is drawn; it can still be recognized."""


class Picture(NamedTuple):
    """A picture as an address that holds it, and its size in pixels."""

    uri: str
    width: int
    height: int


class Weight(NamedTuple):
    """A patch's weight, whether it is the true foreground, and how dark it is drawn."""

    value: float
    foreground: bool
    dark: float


class Chance(NamedTuple):
    """What's probability of a class."""

    name: str
    value: float
    true: bool
    predicted: bool


class OnPlane(NamedTuple):
    """A mosaic of 2-D points: (x, y, radius) of each patch, (x, y) of their weighted sum."""

    circles: list[tuple[float, ...]]
    aggregate: tuple[float, ...]


@dataclass(frozen=True)
class Card:
    """A mosaic to show; either its picture and its aggregate's, or its place on the plane."""

    split: str
    row: int
    kind: str
    across: int
    weights: list[Weight]
    chances: list[Chance]
    predicted: str
    truth: str
    picture: Picture | None = None
    aggregate: Picture | None = None
    plane: OnPlane | None = None

    @property
    def right(self) -> bool:
        return self.kind.endswith("pt")


@dataclass(frozen=True)
class Gallery:
    """A run's mosaics: the cards, how many mosaics of each kind a split has, and the plane that all of them lie on."""

    cards: list[Card]
    counts: dict[str, dict[str, int]]
    classes: tuple[str, ...]
    plane: Picture | None

    @property
    def splits(self) -> list[str]:
        return [split for split in UNSEEN_FIRST if any(card.split == split for card in self.cards)]

    @property
    def kinds(self) -> dict[str, str]:
        return {kind: FOCUS_PREDICTION[kind].label for kind in KINDS}


def chosen(record: Record, most: int) -> list[tuple[str, int]]:
    """Returns (split, place) of the mosaics to show: of each kind in turn the worst, held-out ones alone if few fit."""
    splits = [split for split in UNSEEN_FIRST if split in record.final]
    turns: list[tuple[int, int, int, int]] = []
    for s, split in enumerate(splits if most >= 24 else splits[:1]):
        turn = {kind: itertools.count() for kind in KINDS}
        turns += [(next(turn[kind]), s, KINDS.index(kind), i) for i, kind in enumerate(record.final[split].kinds)]
    kept = sorted(turns)[:most]
    return [(splits[s], i) for _, s, _, i in sorted(kept, key=lambda turn: (turn[1], turn[2], turn[0]))]


def gallery(record: Record, most: int) -> Gallery:
    """Lays out the mosaics of a run.

    Args:
        record: the run's.
        most: how many mosaics to show.
    """
    aggregates = {split: looked.aggregates for split, looked in record.final.items()}
    cards = [_card(record, split, i, aggregates[split][i]) for split, i in chosen(record, most)]
    plane = _plane_picture(record, record.plane) if record.plane is not None and cards else None
    return Gallery(cards, record.counts, record.classes, plane)


def _card(record: Record, split: str, i: int, aggregate: np.ndarray) -> Card:
    looked = record.final[split]
    true = int(looked.foreground[i])
    place: dict[str, Picture | OnPlane] = {}
    if looked.is_image:
        place = {"picture": _mosaic_picture(looked, i), "aggregate": _inlined(_small(aggregate))}
    elif record.plane is not None:
        place = {"plane": _on_plane(record.plane, looked, i, aggregate)}
    return Card(
        split=split,
        row=int(looked.rows[i]),
        kind=looked.kinds[i],
        across=columns(looked.alpha.shape[1]),
        weights=[Weight(w, j == true, round(darkness(w, SHADE), 3)) for j, w in enumerate(looked.alpha[i].tolist())],
        chances=_chances(record, looked, i),
        predicted=record.classes[looked.predicted[i]],
        truth=record.classes[looked.label[i]],
        **place,  # type: ignore[arg-type]
    )


def _chances(record: Record, looked: PredictedMosaics, i: int) -> list[Chance]:
    """Returns the probabilities of all classes in their order or, of many, of the likeliest and the true one."""
    truth, guess, values = int(looked.label[i]), int(looked.predicted[i]), looked.probabilities[i].tolist()
    shown = list(range(len(values)))
    if len(values) > MOST_CLASSES:
        likely = sorted(shown, key=lambda c: -values[c])[:MOST_CLASSES]
        shown = likely if truth in likely else [*likely[:-1], truth]
    return [Chance(record.classes[c], values[c], c == truth, c == guess) for c in shown]


def _on_plane(plane: Plane, looked: PredictedMosaics, i: int, aggregate: np.ndarray) -> OnPlane:
    place = Transform(plane.extent, SIDE)
    radii = 2.5 + 9 * np.sqrt(np.clip(looked.alpha[i], 0, 1))
    circles = np.column_stack([place(looked.patches[i]), radii]).round(1)
    return OnPlane([tuple(circle) for circle in circles.tolist()], tuple(place(aggregate).round(1).tolist()))


# ---- pictures inside the page


def _inlined(image: Image.Image) -> Picture:
    """Returns a picture for the page: PNG, or JPEG where that is smaller."""
    files = {"png": _encoded(image, format="PNG", optimize=True)}
    if image.mode in ("L", "RGB"):
        files["jpeg"] = _encoded(image, format="JPEG", quality=86, subsampling=0, optimize=True)
    kind = min(files, key=lambda kind: len(files[kind]))
    return Picture(f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}", *image.size)


def _encoded(image: Image.Image, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **how)  # type: ignore[arg-type]
    return file.getvalue()


def _small(pixels: np.ndarray) -> Image.Image:
    """Returns pixels ``[H, W, C]`` one to one, unless they are more than `LONGEST`; grey if they have one channel."""
    image = picture(np.nan_to_num(pixels), min(LONGEST, max(pixels.shape[:2])))
    return image.convert("L") if pixels.shape[-1] == 1 else image


def _mosaic_picture(looked: PredictedMosaics, i: int) -> Picture:
    """Returns the patches of a mosaic of images, row by row and without gaps."""
    patches = [_small(patch) for patch in looked.patches[i]]
    return _inlined(grid(patches, patches[0].size)[0])


def _plane_picture(record: Record, plane: Plane, side: int = 320) -> Picture:
    """Returns the plane, tinted by What's predictions, with the pool's base points; all else is transparent."""
    tints = np.insert(class_colors(len(record.classes)), 3, 70, axis=1)
    image = backdrop(tints[plane.regions], side, Image.Resampling.NEAREST)
    tints[:, 3] = 170
    colors = [
        tuple(tints[record.classes.index(name)]) if name in record.classes else (128, 128, 128, 150)
        for name in record.all_classes
    ]
    base_points(ImageDraw.Draw(image), Transform(plane.extent, side), plane, colors, 1.4)
    return _inlined(image.quantize(64, method=Image.Quantize.FASTOCTREE))
