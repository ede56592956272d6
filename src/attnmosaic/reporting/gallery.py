"""Mosaics to browse: which of a run's are shown, and what is told of each."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attnmosaic.plotting.palette import FOCUS_PREDICTION
from attnmosaic.plotting.point_tiles import Transform
from attnmosaic.plotting.tiles import columns, darkness
from attnmosaic.reporting.pictures import Picture, aggregate_picture, mosaic_picture, plane_picture
from attnmosaic.runs.snapshots import KINDS, Looked, Record

SPLITS = ("held_out", "test", "train")
"""Unseen patches first."""

SIDE = 200
"""Sides of a plane, in its own units."""

MOST_CLASSES = 5

SHADE = 0.72
"""How dark a patch without weight is drawn; not so dark that it cannot be made out."""


@dataclass(frozen=True)
class Weight:
    """A patch's weight, whether it is the true foreground, and how dark it is drawn."""

    value: float
    foreground: bool
    dark: float


@dataclass(frozen=True)
class Chance:
    """What's probability of a class."""

    name: str
    value: float
    true: bool
    predicted: bool


@dataclass(frozen=True)
class OnPlane:
    """A mosaic of 2-D points: (x, y, radius) of each patch, (x, y) of their weighted sum."""

    circles: list[tuple[float, float, float]]
    aggregate: tuple[float, float]


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
        return [split for split in SPLITS if any(card.split == split for card in self.cards)]

    @property
    def kinds(self) -> dict[str, str]:
        return {kind: FOCUS_PREDICTION[kind].label for kind in KINDS}


def share_out(have: Mapping[int, int], budget: int) -> dict[int, int]:
    """Returns how many mosaics each run shows, so that all together keep to the budget and none is left wanting."""
    given: dict[int, int] = {}
    for waiting, (run, n) in zip(range(len(have), 0, -1), sorted(have.items(), key=lambda item: item[1]), strict=True):
        given[run] = min(n, budget // waiting)
        budget -= given[run]
    return given


def chosen(record: Record, most: int) -> list[tuple[str, int]]:
    """Returns (split, place) of the mosaics to show: of each kind in turn the worst, held-out ones first if few fit."""
    splits = [split for split in SPLITS if split in record.final]
    splits += sorted(record.final.keys() - set(SPLITS))
    if most < 24:
        splits = splits[:1]
    turns: list[tuple[int, int, int, str, int]] = []
    for s, split in enumerate(splits):
        places: dict[str, itertools.count[int]] = {kind: itertools.count() for kind in KINDS}
        for i, kind in enumerate(record.final[split].kinds):
            turns.append((next(places[kind]), s, KINDS.index(kind), split, i))
    kept = sorted(turns)[:most]
    return [(split, i) for _, _, _, split, i in sorted(kept, key=lambda turn: (turn[1], turn[2], turn[0]))]


def gallery(record: Record, most: int) -> Gallery:
    """Lays out the mosaics of a run that are to be shown.

    Args:
        record: what the run kept.
        most: how many mosaics to show.
    """
    aggregates = {split: looked.aggregates for split, looked in record.final.items()}
    cards = [_card(record, split, i, aggregates[split]) for split, i in chosen(record, most)]
    plane = plane_picture(record) if record.plane is not None and cards else None
    return Gallery(cards, record.counts, record.classes, plane)


def _card(record: Record, split: str, i: int, aggregates: np.ndarray) -> Card:
    looked = record.final[split]
    alpha, probabilities = looked.alpha[i], looked.probabilities[i]
    true, guess, truth = int(looked.foreground[i]), int(looked.predicted[i]), int(looked.label[i])
    weights = [Weight(value, j == true, round(darkness(value, SHADE), 3)) for j, value in enumerate(map(float, alpha))]
    likely = sorted(range(len(probabilities)), key=lambda c: -probabilities[c])[:MOST_CLASSES]
    shown = likely if truth in likely or len(probabilities) <= MOST_CLASSES else [*likely[:-1], truth]
    order = sorted(shown) if len(probabilities) <= MOST_CLASSES else shown
    chances = [Chance(record.classes[c], float(probabilities[c]), c == truth, c == guess) for c in order]
    images = {}
    if looked.is_image:
        images = {"picture": mosaic_picture(looked, i), "aggregate": aggregate_picture(aggregates[i])}
    return Card(
        split=split,
        row=int(looked.rows[i]),
        kind=looked.kinds[i],
        across=columns(len(alpha)),
        weights=weights,
        chances=chances,
        predicted=record.classes[guess],
        truth=record.classes[truth],
        plane=None if looked.is_image else _on_plane(record, looked, i, aggregates[i]),
        **images,
    )


def _on_plane(record: Record, looked: Looked, i: int, aggregate: np.ndarray) -> OnPlane | None:
    if record.plane is None:
        return None
    place = Transform(record.plane.extent, SIDE)
    radii = 2.5 + 9 * np.sqrt(np.clip(looked.alpha[i], 0, 1))
    circles = [
        (round(float(x), 1), round(float(y), 1), round(float(r), 1))
        for (x, y), r in zip(place(looked.patches[i]), radii, strict=True)
    ]
    x, y = place(aggregate)
    return OnPlane(circles, (round(float(x), 1), round(float(y), 1)))
