"""Draws ``animation.gif``: attention weights through training, by Pillow alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from attnmosaic.core.text import truncate
from attnmosaic.plotting.palette import BLUE, FRAME, GREEN, ORANGE, RED, STAGES
from attnmosaic.plotting.point_tiles import Transform, base_points, colors_of
from attnmosaic.plotting.tiles import (
    CELL,
    GAP,
    INK,
    MARGIN,
    PAPER,
    answer_of,
    columns,
    disc,
    mosaic,
    picture,
    stamp,
    write,
)
from attnmosaic.runs.rows import Span
from attnmosaic.runs.snapshots import PredictedMosaics, Record

NAME = "animation.gif"

MOST, SECONDS, PAUSE = 40, 7.0, 2.0
"""Frames at most; how long they last together, and the last one besides."""

FINE = 2
"""Points are drawn so many times larger than shown: Pillow's circles have jagged edges."""

INKS = (INK, BLUE, ORANGE, GREEN, RED)


def moves(record: Record, split: str = "held_out") -> bool:
    """Whether there is a weight to see that changes through training; fixed weights do not."""
    followed = record.followed.get(split)
    if followed is None or not (followed.is_image or record.plane is not None):
        return False
    return bool(np.ptp(followed.alpha, axis=0).max(initial=0) > 0)


def times_of(record: Record, most: int = MOST) -> list[int]:
    """Returns which of the times that mosaics were followed at have a frame: the first, the last, and even steps."""
    count = len(record.epochs)
    return sorted({round(t) for t in np.linspace(0, count - 1, min(count, most))})


def frames(
    record: Record, stages: Sequence[Span], split: str = "held_out", mosaics: int = 4, smoke: bool = False
) -> list[Image.Image]:
    """Draws the same few mosaics with their weights after each of some epochs.

    Images stand as their patches, lit by their weights, the aggregate below; points as circles over the plane, their
    area the weight, the aggregate a star. The true foreground is framed. Below runs the schedule.

    Args:
        record: holds mosaics that were followed.
        stages: of the run; none if it is not known.
        split: which mosaics.
        mosaics: how many, at most.
        smoke: puts a banner over each.
    """
    followed = record.followed[split]
    shown = range(min(mosaics, len(followed)))
    below = _Plane(record) if record.plane is not None else None
    drawn = []
    for t in times_of(record):
        looked = followed.at(t)
        parts = [_points(below, looked, i) if below else _image(looked, i) for i in shown]
        captions = [_caption(looked, i, record.classes) for i in shown]
        frame = _frame(parts, captions, int(record.epochs[t]), int(record.epochs[-1]), stages)
        drawn.append(stamp(frame, 24, 15) if smoke else frame)
    return drawn


def draw_animation(path: Path, record: Record, stages: Sequence[Span], smoke: bool = False) -> Path:
    """Writes `frames` as a GIF that repeats, a pause after the last."""
    drawn = frames(record, stages, smoke=smoke)
    # One palette for all, from some of them: a palette each would make still parts flicker, and the file grow.
    some = [drawn[t] for t in sorted({0, len(drawn) // 3, 2 * len(drawn) // 3, len(drawn) - 1})]
    swatch = 24
    sample = Image.new("RGB", (drawn[0].width, drawn[0].height * len(some) + swatch * len(INKS)))
    for i, frame in enumerate(some):
        sample.paste(frame, (0, i * frame.height))
    for i, color in enumerate(INKS):  # otherwise a photo's many colours push out those of a few letters
        sample.paste(color, (0, sample.height - (i + 1) * swatch, sample.width, sample.height - i * swatch))
    palette = sample.quantize(96, Image.Quantize.MEDIANCUT)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in drawn)
    each = int(min(400.0, 1000 * SECONDS / len(drawn)) / 10) * 10  # a GIF counts in hundredths of a second
    durations = [each] * len(rest) + [each + int(1000 * PAUSE)]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return path


def _caption(looked: PredictedMosaics, i: int, classes: Sequence[str]) -> tuple[str, str]:
    text, truth = answer_of(looked, i, classes, 8), int(looked.label[i])
    return (text, GREEN) if looked.predicted[i] == truth else (f"{text}, true: {truncate(classes[truth], 8)}", RED)


def _image(looked: PredictedMosaics, i: int) -> Image.Image:
    cell = min(CELL, 3 * CELL // columns(looked.patches.shape[1]))
    lit = mosaic(looked.patches[i], looked.alpha[i], int(looked.foreground[i]), cell)
    summed = picture(looked.aggregates[i], 72)
    whole = Image.new("RGB", (lit.width, lit.height + MARGIN + summed.height), PAPER)
    whole.paste(lit, (0, 0))
    whole.paste(summed, ((lit.width - summed.width) // 2, lit.height + MARGIN))
    return whole


class _Plane:
    """The base points, drawn once for all frames."""

    def __init__(self, record: Record, side: int = 200) -> None:
        plane: Any = record.plane
        self.side = FINE * side
        self.to_pixels = Transform(plane.extent, self.side)
        self.still = Image.new("RGB", (self.side, self.side), "#F4F4F4")
        draw = ImageDraw.Draw(self.still)
        base_points(draw, self.to_pixels, plane, colors_of(record.all_classes, record.classes, "#AAAAAA"), 1.5 * FINE)
        draw.rectangle((0, 0, self.side - 1, self.side - 1), outline="#BBBBBB", width=FINE)


def _points(below: _Plane, looked: PredictedMosaics, i: int) -> Image.Image:
    image = below.still.copy()
    draw = ImageDraw.Draw(image)
    places = below.to_pixels(looked.patches[i])
    for (x, y), weight in zip(places, looked.alpha[i], strict=True):
        radius = FINE * (2.5 + 13 * float(weight) ** 0.5)
        disc(draw, x, y, radius, outline="black", width=FINE + 1)
    x, y = places[looked.foreground[i]]
    half = FINE * 18
    draw.rectangle((x - half, y - half, x + half, y + half), outline=FRAME, width=2 * FINE)
    x, y = below.to_pixels(looked.aggregates[i])
    draw.polygon(_star(x, y, FINE * 7), fill=RED, outline="white", width=FINE)
    return image.reduce(FINE)


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    angles = np.pi * (np.arange(10) / 5 - 0.5)
    radii = radius * np.where(np.arange(10) % 2 == 0, 1, 0.45)
    return [(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _frame(
    parts: Sequence[Image.Image],
    captions: Sequence[tuple[str, str]],
    epoch: int,
    epochs: int,
    stages: Sequence[Span],
) -> Image.Image:
    """Puts mosaics beside each other, epoch and stage above, predictions and schedule below."""
    head, below, strip = 28, 22, 14
    width = sum(part.width for part in parts) + (len(parts) + 1) * 2 * MARGIN
    tall = max(part.height for part in parts)
    frame = Image.new("RGB", (width, head + tall + below + strip + MARGIN), PAPER)
    draw = ImageDraw.Draw(frame)

    stage = next((span.stage for span in stages if span.start < epoch <= span.end), None)
    write(draw, (2 * MARGIN, head / 2), f"epoch {epoch} of {epochs}", 15, anchor="lm")
    if epoch == 0 or stage is not None:
        text, color = ("before training", INK) if stage is None else STAGES[stage]
        write(draw, (width - 2 * MARGIN, head / 2), text, 15, color, "rm")

    left = 2 * MARGIN
    for part, (text, color) in zip(parts, captions, strict=True):
        frame.paste(part, (left, head))
        write(draw, (left + part.width / 2, head + tall + below / 2), text, 12, color, "mm")
        left += part.width + 2 * MARGIN
    _draw_schedule(draw, stages, epoch, (width - 4 * MARGIN) / max(1, epochs), frame.height - strip - MARGIN + GAP)
    return frame


def _draw_schedule(draw: ImageDraw.ImageDraw, stages: Sequence[Span], epoch: int, scale: float, top: int) -> None:
    """Draws a strip of the stages, `scale` pixels an epoch, those to come pale."""
    first, bottom = 2 * MARGIN, top + 9
    for stage, start, end in stages:
        for done, begin, stop in ((True, start, min(end, epoch)), (False, max(start, epoch), end)):
            if begin < stop:
                fill = ImageColor.getrgb(STAGES[stage][1]) if done else _pale(STAGES[stage][1])
                draw.rectangle((first + scale * begin, top, first + scale * stop - 1, bottom), fill=fill)


def _pale(color: str) -> tuple[int, ...]:
    return tuple(255 - (255 - part) // 4 for part in ImageColor.getrgb(color)[:3])
