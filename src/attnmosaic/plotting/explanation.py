"""Draws a pair's attention weights and predictions on a user's images, by Pillow alone."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from attnmosaic.core.errors import one_line
from attnmosaic.inference.explanation import Explained
from attnmosaic.inference.user_images import LONGEST, OwnMosaic, cut
from attnmosaic.plotting.palette import BLUE, GREY, SKY
from attnmosaic.plotting.tiles import (
    PAPER,
    Box,
    columns,
    font,
    frame,
    grid,
    number,
    picture,
    shaded_patch,
    stamp,
    truncate_to_width,
    write,
)

LOOKED_AT = SKY
"""Frames the patch with the largest weight. (Which one is the true foreground is not known here.)"""

MARGIN, GAP, LINE, BANNER = 16, 4, 22, 44
SIDE = 224
"""Pixels of the aggregate's longer side."""

ENLARGED = 576
"""Pixels that the longer side of a small picture is enlarged to, about."""

TRACK = "#EEEEEE"
"""Shows how long a bar can be."""

MOST_CLASSES = 6
THUMBNAIL, ACROSS = 208, 6


def draw_explained(mosaic: OwnMosaic, seen: Explained, smoke: bool = False) -> Image.Image:
    """Draws a mosaic lit by weight, its weighted sum beside it, and the probabilities of the classes below.

    Args:
        mosaic: the user's images.
        seen: the pair's weights and predictions.
        smoke: whether the pair is of a smoke run; a banner says so.
    """
    weights = seen.weights
    shown = draw_lit(mosaic, weights)
    summed = picture(np.tensordot(weights, mosaic.patches.astype(np.float64), axes=1), SIDE)
    bars = _bars(seen.probabilities, seen.classes, shown.width + SIDE + 2 * MARGIN)
    right = shown.width + 3 * MARGIN
    height = max(shown.height, summed.height + 5 * LINE)
    image = Image.new("RGB", (right + SIDE + MARGIN, height + bars.height + 3 * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    image.paste(shown, (MARGIN, MARGIN))
    write(draw, (right, MARGIN), "aggregate, as What sees it", 15)
    image.paste(summed, (right, MARGIN + LINE))
    below = MARGIN + LINE + summed.height + MARGIN
    even = math.log(len(weights))
    write(draw, (right, below), f"looks at patch {seen.looks_at} of {len(weights)}", 15)
    write(draw, (right, below + LINE), f"its weight {weights.max():.2f}", 15)
    write(draw, (right, below + 2 * LINE), f"entropy {seen.entropy:.2f} of {even:.2f} nats", 15)
    image.paste(bars, (MARGIN, height + 2 * MARGIN))
    return stamp(image, BANNER, 18) if smoke else image


def draw_lit(mosaic: OwnMosaic, weights: np.ndarray, numbers: bool = True) -> Image.Image:
    """Draws a mosaic with its patches lit by weight, the one with the largest weight framed.

    Args:
        mosaic: the user's images.
        weights: of each patch, ``[P]``.
        numbers: write each weight into its patch, where there is room; the picture is not to be reduced then.
    """
    image, boxes = _tiles(mosaic.patches) if mosaic.picture is None else _cells(mosaic)
    draw = ImageDraw.Draw(image)
    for box, weight in zip(boxes, weights, strict=True):
        # As in a run's pictures of nine patches; among many, an even share of the weight is as light as among nine.
        image.paste(shaded_patch(image.crop(box), float(weight) * max(1.0, len(weights) / 9)), box)
    most = boxes[int(weights.argmax())]
    width = max(2, min(6, _shorter(most) // (48 if numbers else 24)))
    frame(draw, most, LOOKED_AT, width)
    # Smaller ones they would hide.
    if numbers and min(min((box[2] - box[0]) / 2, box[3] - box[1]) for box in boxes) >= 24:
        for box, weight in zip(boxes, weights, strict=True):
            corner = box[2] - width - 4, box[3] - width - 3  # clear of the frame
            number(draw, corner, f"{weight:.2f}", max(11, min(22, _shorter(box) // 6)), (4, 3, 3, 2))
    return image


def _shorter(box: Box) -> int:
    """Returns the shorter side of a place."""
    left, top, right, bottom = box
    return min(right - left, bottom - top)


def _cells(mosaic: OwnMosaic) -> tuple[Image.Image, list[Box]]:
    """Returns a picture with white lines between its cells, and where these are."""
    assert mosaic.picture is not None
    assert mosaic.grid is not None
    whole = mosaic.picture
    side = max(whole.size) * max(1, ENLARGED // max(whole.size))
    pixels = np.asarray(whole)
    drawn = picture(pixels if pixels.ndim == 3 else pixels[..., None], side)
    # A picture that is hardly more than a line gets wider, so that each of its cells is to be seen.
    drawn = drawn.resize((max(drawn.width, 4 * mosaic.grid), max(drawn.height, 4 * mosaic.grid)))
    boxes = list(cut(drawn.size, mosaic.grid))
    gap = max(1, min(GAP, side // mosaic.grid // 16))
    gaps = gap * (mosaic.grid - 1)
    image = Image.new("RGB", (drawn.width + gaps, drawn.height + gaps), PAPER)
    moved = []
    for i, (left, top, right, bottom) in enumerate(boxes):
        x, y = i % mosaic.grid * gap, i // mosaic.grid * gap
        image.paste(drawn.crop((left, top, right, bottom)), (left + x, top + y))
        moved.append((left + x, top + y, right + x, bottom + y))
    return image, moved


def _tiles(patches: np.ndarray) -> tuple[Image.Image, list[Box]]:
    """Returns the patches of a folder row by row, and where they are."""
    cell = max(4, min(SIDE, LONGEST // columns(len(patches)) - GAP))
    images = [picture(pixels, cell) for pixels in patches]
    return grid(images, images[0].size, GAP)


def _bars(probabilities: np.ndarray, classes: Sequence[str], width: int) -> Image.Image:
    """Draws the probabilities of the likeliest classes, that of the predicted one first."""
    order = [int(i) for i in (-probabilities).argsort(kind="stable")[:MOST_CLASSES]]
    lines = [(truncate_to_width(one_line(classes[i]), width // 3, 16), float(probabilities[i])) for i in order]
    more = len(classes) - len(order)
    image = Image.new("RGB", (width, LINE * (len(lines) + (more > 0))), PAPER)
    draw = ImageDraw.Draw(image)
    names = max(math.ceil(draw.textlength(name, font=font(16))) for name, _ in lines) + 10
    longest = width - names - 56
    for i, (name, share) in enumerate(lines):
        middle = i * LINE + LINE // 2
        color = BLUE if i == 0 else GREY
        write(draw, (names - 10, middle), name, 16, anchor="rm")
        draw.rectangle((names, middle - 7, names + longest, middle + 7), fill=TRACK)
        draw.rectangle((names, middle - 7, names + max(1, round(longest * share)), middle + 7), fill=color)
        write(draw, (names + longest + 8, middle), f"{share:.2f}", 15, anchor="lm")
    if more > 0:
        rest = max(0.0, 1 - sum(share for _, share in lines))
        text = f"{more} other class{'es' if more > 1 else ''}: {rest:.2f}"
        write(draw, (names, len(lines) * LINE + LINE // 2), text, 15, anchor="lm")
    return image


class Index:
    """A sheet of the first mosaics, small, with their predictions.

    Args:
        most: how many mosaics to show.
    """

    def __init__(self, most: int = 24) -> None:
        self.most = most
        self.shown: list[tuple[Image.Image, str, str]] = []

    def add(self, mosaic: OwnMosaic, seen: Explained) -> None:
        """Takes one more mosaic, unless the sheet is full."""
        if len(self.shown) < self.most:
            shown = draw_lit(mosaic, seen.weights, numbers=False)
            shown.thumbnail((THUMBNAIL, THUMBNAIL))
            said = f"{one_line(seen.predicted)} {seen.probabilities.max():.2f}"
            self.shown.append((shown, said, one_line(seen.name)))

    def draw(self, smoke: bool = False) -> Image.Image:
        """Returns the sheet of at least one mosaic, with a banner if the pair is of a smoke run."""
        across = min(ACROSS, len(self.shown))
        width, text = THUMBNAIL + MARGIN, 2 * LINE + 4
        rows = [self.shown[i : i + across] for i in range(0, len(self.shown), across)]
        heights = [max(shown.height for shown, _, _ in row) + text + MARGIN for row in rows]
        image = Image.new("RGB", (across * width + MARGIN, sum(heights) + MARGIN), PAPER)
        draw = ImageDraw.Draw(image)
        y = MARGIN
        for row, height in zip(rows, heights, strict=True):
            for i, (shown, said, name) in enumerate(row):
                x, below = MARGIN + i * width, y + shown.height + 4
                image.paste(shown, (x, y))
                write(draw, (x, below), truncate_to_width(said, THUMBNAIL, 16), 16)
                write(draw, (x, below + LINE), truncate_to_width(name, THUMBNAIL, 13), 13, "#666666")
            y += height
        return stamp(image, BANNER, 18) if smoke else image
