"""Draws ``animation.gif``, the attention weights of a few mosaics during training, with Pillow."""

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
    columns,
    disc,
    mosaic,
    picture,
    prediction_text,
    stamp,
    write,
)
from attnmosaic.runs.rows import Span
from attnmosaic.runs.snapshots import PredictedMosaics, Record

NAME = "animation.gif"

MAX_FRAMES, SECONDS, PAUSE = 40, 7.0, 2.0
"""Largest number of frames; seconds that all frames take together; extra seconds of the last frame."""

SUPERSAMPLING = 2
"""Points are drawn this many times larger and then reduced, because Pillow draws circles with jagged edges."""

TEXT_COLORS = (INK, BLUE, ORANGE, GREEN, RED)
"""Colours that must be in the palette of the GIF."""


def weights_change(record: Record, split: str = "held_out") -> bool:
    """Returns whether mosaics that can be drawn have attention weights that change during training."""
    followed = record.followed.get(split)
    if followed is None or not (followed.is_image or record.plane is not None):
        return False
    return bool(np.ptp(followed.alpha, axis=0).max(initial=0) > 0)


def frame_times(record: Record, most: int = MAX_FRAMES) -> list[int]:
    """Returns the indices into ``record.epochs`` that get a frame: first, last, and evenly spaced ones between."""
    count = len(record.epochs)
    return sorted({round(t) for t in np.linspace(0, count - 1, min(count, most))})


def frames(
    record: Record, stages: Sequence[Span], split: str = "held_out", n: int = 4, smoke: bool = False
) -> list[Image.Image]:
    """Draws a few mosaics with their attention weights, one frame for each of several epochs.

    Image patches with small weights are drawn dark, and the aggregate is below the patches. Points are circles on the
    plane, whose area grows with the weight, and the aggregate is a star. The true foreground has a frame. A strip at
    the bottom shows the schedule.

    Args:
        record: the snapshots of a run.
        stages: the run's stages; empty if they are unknown.
        split: the split that the mosaics are from.
        n: largest number of mosaics.
        smoke: whether each frame gets the banner of smoke runs.
    """
    followed = record.followed[split]
    shown = range(min(n, len(followed)))
    plane = _PlaneImage(record) if record.plane is not None else None
    drawn = []
    for t in frame_times(record):
        mosaics = followed.at(t)
        parts = [_draw_points(plane, mosaics, i) if plane else _draw_images(mosaics, i) for i in shown]
        captions = [_caption(mosaics, i, record.classes) for i in shown]
        frame = _frame(parts, captions, int(record.epochs[t]), int(record.epochs[-1]), stages)
        drawn.append(stamp(frame, 24, 15) if smoke else frame)
    return drawn


def draw_animation(path: Path, record: Record, stages: Sequence[Span], smoke: bool = False) -> Path:
    """Writes `frames` as a GIF that repeats after a pause."""
    drawn = frames(record, stages, smoke=smoke)
    # All frames share one palette, sampled from a few frames: with separate palettes, parts that do not change would
    # flicker and the file would be larger.
    sampled = [drawn[t] for t in sorted({0, len(drawn) // 3, 2 * len(drawn) // 3, len(drawn) - 1})]
    swatch = 24
    sample = Image.new("RGB", (drawn[0].width, drawn[0].height * len(sampled) + swatch * len(TEXT_COLORS)))
    for i, frame in enumerate(sampled):
        sample.paste(frame, (0, i * frame.height))
    for i, color in enumerate(TEXT_COLORS):  # so that the many colours of photos do not displace those of the text
        sample.paste(color, (0, sample.height - (i + 1) * swatch, sample.width, sample.height - i * swatch))
    palette = sample.quantize(96, Image.Quantize.MEDIANCUT)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in drawn)
    each = int(min(400.0, 1000 * SECONDS / len(drawn)) / 10) * 10  # GIF durations are multiples of 10 ms
    durations = [each] * len(rest) + [each + int(1000 * PAUSE)]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return path


def _caption(mosaics: PredictedMosaics, i: int, classes: Sequence[str]) -> tuple[str, str]:
    """Returns the text below a mosaic and its colour."""
    text, truth = prediction_text(mosaics, i, classes, 8), int(mosaics.label[i])
    return (text, GREEN) if mosaics.predicted[i] == truth else (f"{text}, true: {truncate(classes[truth], 8)}", RED)


def _draw_images(mosaics: PredictedMosaics, i: int) -> Image.Image:
    """Draws a mosaic of images with its weights, and the aggregate below."""
    cell = min(CELL, 3 * CELL // columns(mosaics.patches.shape[1]))
    patches = mosaic(mosaics.patches[i], mosaics.alpha[i], int(mosaics.foreground[i]), cell)
    aggregate = picture(mosaics.aggregates[i], 72)
    image = Image.new("RGB", (patches.width, patches.height + MARGIN + aggregate.height), PAPER)
    image.paste(patches, (0, 0))
    image.paste(aggregate, ((patches.width - aggregate.width) // 2, patches.height + MARGIN))
    return image


class _PlaneImage:
    """Image of the plane with the base points, drawn once for all frames."""

    def __init__(self, record: Record, side: int = 200) -> None:
        plane: Any = record.plane
        self.side = SUPERSAMPLING * side
        self.to_pixels = Transform(plane.extent, self.side)
        self.image = Image.new("RGB", (self.side, self.side), "#F4F4F4")
        draw, colors = ImageDraw.Draw(self.image), colors_of(record.all_classes, record.classes, "#AAAAAA")
        base_points(draw, self.to_pixels, plane, colors, 1.5 * SUPERSAMPLING)
        draw.rectangle((0, 0, self.side - 1, self.side - 1), outline="#BBBBBB", width=SUPERSAMPLING)


def _draw_points(plane: _PlaneImage, mosaics: PredictedMosaics, i: int) -> Image.Image:
    """Draws a mosaic of points on the plane."""
    image = plane.image.copy()
    draw = ImageDraw.Draw(image)
    centers = plane.to_pixels(mosaics.patches[i])
    for (x, y), weight in zip(centers, mosaics.alpha[i], strict=True):
        radius = SUPERSAMPLING * (2.5 + 13 * float(weight) ** 0.5)
        disc(draw, x, y, radius, outline="black", width=SUPERSAMPLING + 1)
    x, y = centers[mosaics.foreground[i]]
    half = SUPERSAMPLING * 18
    draw.rectangle((x - half, y - half, x + half, y + half), outline=FRAME, width=2 * SUPERSAMPLING)
    x, y = plane.to_pixels(mosaics.aggregates[i])
    draw.polygon(_star(x, y, SUPERSAMPLING * 7), fill=RED, outline="white", width=SUPERSAMPLING)
    return image.reduce(SUPERSAMPLING)


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Returns the corners of a five-pointed star."""
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
    """Puts mosaics side by side, with epoch and stage above them, and predictions and schedule below."""
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
    """Draws a strip of the stages, `scale` pixels per epoch; later epochs are pale."""
    first, bottom = 2 * MARGIN, top + 9
    for stage, start, end in stages:
        for done, begin, stop in ((True, start, min(end, epoch)), (False, max(start, epoch), end)):
            if begin < stop:
                fill = ImageColor.getrgb(STAGES[stage][1]) if done else _pale(STAGES[stage][1])
                draw.rectangle((first + scale * begin, top, first + scale * stop - 1, bottom), fill=fill)


def _pale(color: str) -> tuple[int, ...]:
    """Returns a colour mixed with three parts of white."""
    return tuple(255 - (255 - part) // 4 for part in ImageColor.getrgb(color)[:3])
