"""Draws a pair's attention weights and predictions on a user's images, with Pillow."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from attnmosaic.core.errors import one_line
from attnmosaic.inference.explanation import Explanation
from attnmosaic.inference.user_images import LONGEST, UserMosaic, cut
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

ATTENDED = SKY
"""Colour of the frame around the patch with the largest weight. (The true foreground is unknown here.)"""

MARGIN, GAP, LINE, BANNER = 16, 4, 22, 44
"""Pixels around parts, between patches, of a line of text, and of the banner of smoke runs."""

SIDE = 224
"""Pixels of the aggregate's longer side."""

ENLARGED = 576
"""Approximate pixels that the longer side of a small picture is enlarged to."""

TRACK = "#EEEEEE"
"""Colour of the background of a bar, which is as long as a bar of probability 1."""

MOST_CLASSES = 6
"""Largest number of classes with a bar."""

THUMBNAIL, ACROSS = 208, 6
"""Pixels of a thumbnail's longer side, and thumbnails in a row of ``index.png``."""


def draw_explained(mosaic: UserMosaic, explanation: Explanation, smoke: bool = False) -> Image.Image:
    """Draws a mosaic with its attention weights, the aggregate to its right, and the class probabilities below.

    Args:
        mosaic: the user's images.
        explanation: the pair's attention weights and prediction.
        smoke: whether the pair was trained in a smoke run; the picture then has a banner.
    """
    weights = explanation.weights
    shown = draw_weighted(mosaic, weights)
    aggregate = picture(np.tensordot(weights, mosaic.patches.astype(np.float64), axes=1), SIDE)
    bars = _bars(explanation.probabilities, explanation.classes, shown.width + SIDE + 2 * MARGIN)
    right = shown.width + 3 * MARGIN
    height = max(shown.height, aggregate.height + 5 * LINE)
    image = Image.new("RGB", (right + SIDE + MARGIN, height + bars.height + 3 * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    image.paste(shown, (MARGIN, MARGIN))
    write(draw, (right, MARGIN), "aggregate: What's input", 15)
    image.paste(aggregate, (right, MARGIN + LINE))
    below = MARGIN + LINE + aggregate.height + MARGIN
    largest_entropy = math.log(len(weights))
    write(draw, (right, below), f"attends to patch {explanation.attended_patch} of {len(weights)}", 15)
    write(draw, (right, below + LINE), f"weight of this patch {weights.max():.2f}", 15)
    write(draw, (right, below + 2 * LINE), f"entropy {explanation.entropy:.2f} nats, max {largest_entropy:.2f}", 15)
    image.paste(bars, (MARGIN, height + 2 * MARGIN))
    return stamp(image, BANNER, 18) if smoke else image


def draw_weighted(mosaic: UserMosaic, weights: np.ndarray, numbers: bool = True) -> Image.Image:
    """Draws a mosaic with patches darkened by small weights, and a frame around the patch with the largest weight.

    Args:
        mosaic: the user's images.
        weights: attention weight of each patch, ``[P]``.
        numbers: whether to write each weight into its patch if the patch is large enough. The picture must not be
            reduced afterwards.
    """
    image, boxes = _tiles(mosaic.patches) if mosaic.picture is None else _cells(mosaic)
    draw = ImageDraw.Draw(image)
    for box, weight in zip(boxes, weights, strict=True):
        # Same brightness as in a run's pictures of nine patches: a weight of 1 / P is as bright for any P above nine.
        image.paste(shaded_patch(image.crop(box), float(weight) * max(1.0, len(weights) / 9)), box)
    attended = boxes[int(weights.argmax())]
    width = max(2, min(6, _shorter_side(attended) // (48 if numbers else 24)))
    frame(draw, attended, ATTENDED, width)
    # Numbers would hide smaller patches.
    if numbers and min(min((box[2] - box[0]) / 2, box[3] - box[1]) for box in boxes) >= 24:
        for box, weight in zip(boxes, weights, strict=True):
            corner = box[2] - width - 4, box[3] - width - 3  # inside the frame
            number(draw, corner, f"{weight:.2f}", max(11, min(22, _shorter_side(box) // 6)), (4, 3, 3, 2))
    return image


def _shorter_side(box: Box) -> int:
    """Returns the shorter side of a box."""
    left, top, right, bottom = box
    return min(right - left, bottom - top)


def _cells(mosaic: UserMosaic) -> tuple[Image.Image, list[Box]]:
    """Returns a picture with white lines between its cells, and the boxes of the cells."""
    assert mosaic.picture is not None
    assert mosaic.grid is not None
    original = mosaic.picture
    side = max(original.size) * max(1, ENLARGED // max(original.size))
    pixels = np.asarray(original)
    drawn = picture(pixels if pixels.ndim == 3 else pixels[..., None], side)
    # A very narrow picture is widened, so that each cell is visible.
    drawn = drawn.resize((max(drawn.width, 4 * mosaic.grid), max(drawn.height, 4 * mosaic.grid)))
    boxes = list(cut(drawn.size, mosaic.grid))
    gap = max(1, min(GAP, side // mosaic.grid // 16))
    gaps = gap * (mosaic.grid - 1)
    image = Image.new("RGB", (drawn.width + gaps, drawn.height + gaps), PAPER)
    spaced = []
    for i, (left, top, right, bottom) in enumerate(boxes):
        x, y = i % mosaic.grid * gap, i // mosaic.grid * gap
        image.paste(drawn.crop((left, top, right, bottom)), (left + x, top + y))
        spaced.append((left + x, top + y, right + x, bottom + y))
    return image, spaced


def _tiles(patches: np.ndarray) -> tuple[Image.Image, list[Box]]:
    """Returns a picture of a folder's patches, row by row, and the boxes of the patches."""
    cell = max(4, min(SIDE, LONGEST // columns(len(patches)) - GAP))
    images = [picture(pixels, cell) for pixels in patches]
    return grid(images, images[0].size, GAP)


def _bars(probabilities: np.ndarray, classes: Sequence[str], width: int) -> Image.Image:
    """Draws bars of the largest class probabilities, in descending order."""
    largest = [int(i) for i in (-probabilities).argsort(kind="stable")[:MOST_CLASSES]]
    lines = [(truncate_to_width(one_line(classes[i]), width // 3, 16), float(probabilities[i])) for i in largest]
    others = len(classes) - len(largest)
    image = Image.new("RGB", (width, LINE * (len(lines) + (others > 0))), PAPER)
    draw = ImageDraw.Draw(image)
    names_width = max(math.ceil(draw.textlength(name, font=font(16))) for name, _ in lines) + 10
    longest = width - names_width - 56
    for i, (name, probability) in enumerate(lines):
        middle = i * LINE + LINE // 2
        color = BLUE if i == 0 else GREY
        length = max(1, round(longest * probability))
        write(draw, (names_width - 10, middle), name, 16, anchor="rm")
        draw.rectangle((names_width, middle - 7, names_width + longest, middle + 7), fill=TRACK)
        draw.rectangle((names_width, middle - 7, names_width + length, middle + 7), fill=color)
        write(draw, (names_width + longest + 8, middle), f"{probability:.2f}", 15, anchor="lm")
    if others > 0:
        rest = max(0.0, 1 - sum(probability for _, probability in lines))
        text = f"{others} other class{'es' if others > 1 else ''}: {rest:.2f}"
        write(draw, (names_width, len(lines) * LINE + LINE // 2), text, 15, anchor="lm")
    return image


class Index:
    """Overview of the first mosaics: thumbnails with their predictions.

    Args:
        most: largest number of mosaics.
    """

    def __init__(self, most: int = 24) -> None:
        self.most = most
        self.shown: list[tuple[Image.Image, str, str]] = []

    def add(self, mosaic: UserMosaic, explanation: Explanation) -> None:
        """Adds a mosaic, unless the overview is full."""
        if len(self.shown) < self.most:
            shown = draw_weighted(mosaic, explanation.weights, numbers=False)
            shown.thumbnail((THUMBNAIL, THUMBNAIL))
            prediction = f"{one_line(explanation.predicted)} {explanation.probabilities.max():.2f}"
            self.shown.append((shown, prediction, one_line(explanation.name)))

    def draw(self, smoke: bool = False) -> Image.Image:
        """Returns the picture of at least one mosaic, with a banner if the pair was trained in a smoke run."""
        across = min(ACROSS, len(self.shown))
        width, text_height = THUMBNAIL + MARGIN, 2 * LINE + 4
        rows = [self.shown[i : i + across] for i in range(0, len(self.shown), across)]
        heights = [max(shown.height for shown, _, _ in row) + text_height + MARGIN for row in rows]
        image = Image.new("RGB", (across * width + MARGIN, sum(heights) + MARGIN), PAPER)
        draw = ImageDraw.Draw(image)
        y = MARGIN
        for row, height in zip(rows, heights, strict=True):
            for i, (shown, prediction, name) in enumerate(row):
                x, below = MARGIN + i * width, y + shown.height + 4
                image.paste(shown, (x, y))
                write(draw, (x, below), truncate_to_width(prediction, THUMBNAIL, 16), 16)
                write(draw, (x, below + LINE), truncate_to_width(name, THUMBNAIL, 13), 13, "#666666")
            y += height
        return stamp(image, BANNER, 18) if smoke else image
