"""2-D mosaics and networks as pixels, by Pillow alone: fast enough to be drawn while a run trains."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from attnmosaic.plotting import tiles
from attnmosaic.plotting.palette import FRAME, class_style
from attnmosaic.runs.snapshots import Looked, Plane

FAINT, DARK = "#B0B0B0", "#222222"


def class_color(name: str, classes: Sequence[str], other: str = FAINT) -> str:
    """Returns the colour of a foreground class; background classes share one."""
    return class_style(classes.index(name))[0] if name in classes else other


def networks(plane: Plane, classes: Sequence[str], all_classes: Sequence[str], side: int = 380) -> Image.Image:
    """Draws What's decision regions with the aggregates in them, and Where's scores with the base points on them.

    Args:
        plane: what the networks make of the plane.
        classes: foreground classes, in label order.
        all_classes: of the pool.
        side: pixels of either panel's sides.
    """
    regions, to_pixels = tiles.plane(plane.extent, tiles.region_colors(plane.regions), np.zeros((0, 2)), [], side)
    draw = ImageDraw.Draw(regions)
    for (x, y), label in zip(to_pixels(plane.held_out_aggregates), plane.held_out_label, strict=True):
        color = class_style(label)[0]
        draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=color, outline=DARK)
    colors = [class_color(all_classes[i], classes, "#444444") for i in plane.point_classes]
    scores, _ = tiles.plane(plane.extent, tiles.score_colors(plane.scores), plane.points, colors, side)
    heading, gap = 24, 12
    image = Image.new("RGB", (2 * side + 3 * gap, side + heading + 28), tiles.PAPER)
    draw = ImageDraw.Draw(image)
    for column, (panel, title) in enumerate((
        (regions, "What sees: regions by class; weighted sums by true class"),
        (scores, "Where's score, from dark to light; base points by class"),
    )):  # fmt: skip
        left = gap + column * (side + gap)
        image.paste(panel, (left, heading))
        draw.text((left, 5), title, fill=tiles.INK, font=tiles.font(13))
    legend(draw, gap, side + heading + 8, classes)
    return image


def legend(draw: ImageDraw.ImageDraw, x: float, y: float, classes: Sequence[str]) -> None:
    """Names the colours of the foreground classes, and of the rest."""
    for i, name in enumerate([*classes, "background"]):
        color = class_style(i)[0] if i < len(classes) else "#444444"
        draw.ellipse((x, y + 1, x + 9, y + 10), fill=color)
        draw.text((x + 13, y - 2), name, fill=tiles.INK, font=tiles.font(12))
        x += 26 + draw.textlength(name, font=tiles.font(12))


def card(looked: Looked, i: int, plane: Plane, classes: Sequence[str], side: int = 230) -> Image.Image:
    """Draws a mosaic of points over What's regions: patches by weight, the foreground framed, the aggregate a cross."""
    panel, to_pixels = tiles.plane(plane.extent, tiles.region_colors(plane.regions), np.zeros((0, 2)), [], side)
    draw = ImageDraw.Draw(panel)
    for p, (x, y) in enumerate(to_pixels(looked.patches[i])):
        radius = 3 + 14 * float(looked.alpha[i, p]) ** 0.5
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=DARK, width=2)
        draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=DARK)
        if p == looked.foreground[i]:
            reach = radius + 4
            draw.rectangle((x - reach, y - reach, x + reach, y + reach), outline=FRAME, width=3)
    (x, y) = to_pixels(looked.aggregates[i])
    for width, color in ((6, "#FFFFFF"), (3, "#D55E00")):
        draw.line((x - 7, y - 7, x + 7, y + 7), fill=color, width=width)
        draw.line((x - 7, y + 7, x + 7, y - 7), fill=color, width=width)
    image = Image.new("RGB", (side + 2 * tiles.MARGIN, side + 2 * tiles.MARGIN + 18), tiles.PAPER)
    image.paste(panel, (tiles.MARGIN, tiles.MARGIN))
    text, color = tiles.verdict(looked, i, classes)
    ImageDraw.Draw(image).text((tiles.MARGIN, side + tiles.MARGIN + 3), text, fill=color, font=tiles.font(12))
    return image
