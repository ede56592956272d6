"""Where a pair looks in a picture, and what it takes it for; by Pillow alone."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from attnmosaic.data.image_files import printable
from attnmosaic.inference.explanation import Explained
from attnmosaic.inference.user_images import LONGEST, OwnMosaic, cut
from attnmosaic.plotting.palette import BLUE, GREY, SKY, SMOKE, SMOKE_COLOR
from attnmosaic.plotting.tiles import INK, PAPER, SHADE, columns, font, picture

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

Box = tuple[int, int, int, int]


def draw_explained(mosaic: OwnMosaic, seen: Explained, smoke: bool = False) -> Image.Image:
    """Draws a mosaic lit by weight, its weighted sum beside it, and the probabilities of the classes below.

    Args:
        mosaic: what was looked at.
        seen: what the pair made of it.
        smoke: the pair is of a run that is no result; a banner says so.
    """
    weights = seen.weights
    lit = draw_lit(mosaic, weights)
    summed = picture(np.tensordot(weights, mosaic.patches.astype(np.float64), axes=1), SIDE)
    bars = _bars(seen.probabilities, seen.classes, lit.width + SIDE + 2 * MARGIN)
    banner = BANNER if smoke else 0
    right = lit.width + 3 * MARGIN
    height = max(lit.height, summed.height + 5 * LINE)
    image = Image.new("RGB", (right + SIDE + MARGIN, banner + height + bars.height + 3 * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    if smoke:
        _stamp(image)
    top = banner + MARGIN
    image.paste(lit, (MARGIN, top))
    draw.text((right, top), "aggregate, as What sees it", fill=INK, font=font(15))
    image.paste(summed, (right, top + LINE))
    told = top + LINE + summed.height + MARGIN
    draw.text((right, told), f"looks at patch {seen.looks_at} of {len(weights)}", fill=INK, font=font(15))
    draw.text((right, told + LINE), f"its weight {weights.max():.2f}", fill=INK, font=font(15))
    even = math.log(len(weights))
    draw.text((right, told + 2 * LINE), f"entropy {seen.entropy:.2f} of {even:.2f} nats", fill=INK, font=font(15))
    image.paste(bars, (MARGIN, top + height + MARGIN))
    return image


def _stamp(image: Image.Image) -> None:
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, image.width, BANNER - 1), fill=SMOKE_COLOR)
    draw.text((image.width // 2, BANNER // 2), SMOKE, fill=PAPER, font=font(18), anchor="mm")


def draw_lit(mosaic: OwnMosaic, weights: np.ndarray, numbers: bool = True) -> Image.Image:
    """Draws a mosaic with light falling on its patches by weight, the most looked at framed.

    Args:
        mosaic: what was looked at.
        weights: of each patch, ``[P]``.
        numbers: write each weight into its patch, where there is room; the picture is not to be reduced then.
    """
    image, boxes = _tiles(mosaic.patches) if mosaic.picture is None else _cells(mosaic)
    draw = ImageDraw.Draw(image)
    for box, weight in zip(boxes, weights, strict=True):
        # As in a run's pictures of nine patches; among many, an even share of the weight is as light as among nine.
        light = math.sqrt(min(1.0, float(weight) * max(1.0, len(weights) / 9)))
        patch = image.crop(box)
        image.paste(Image.blend(patch, Image.new("RGB", patch.size, "#000000"), SHADE * (1 - light)), box)
    left, top, right, bottom = boxes[int(weights.argmax())]
    width = max(2, min(6, min(right - left, bottom - top) // (48 if numbers else 24)))
    draw.rectangle((left, top, right - 1, bottom - 1), outline=LOOKED_AT, width=width)
    # Smaller ones they would hide.
    if numbers and min(min((box[2] - box[0]) / 2, box[3] - box[1]) for box in boxes) >= 24:
        for box, weight in zip(boxes, weights, strict=True):
            _number(draw, box, f"{weight:.2f}", width)
    return image


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
    across = columns(len(patches))
    cell = max(4, min(SIDE, LONGEST // across - GAP))
    width, height = picture(patches[0], cell).size
    down = -(-len(patches) // across)
    image = Image.new("RGB", (across * (width + GAP) - GAP, down * (height + GAP) - GAP), PAPER)
    boxes = []
    for i, pixels in enumerate(patches):
        x, y = i % across * (width + GAP), i // across * (height + GAP)
        image.paste(picture(pixels, cell), (x, y))
        boxes.append((x, y, x + width, y + height))
    return image, boxes


def _number(draw: ImageDraw.ImageDraw, box: Box, text: str, frame: int) -> None:
    """Writes a weight into the corner of its patch, clear of the frame."""
    left, top, right, bottom = box
    size = max(11, min(22, min(right - left, bottom - top) // 6))
    corner = (right - frame - 4, bottom - frame - 3)
    x0, y0, x1, y1 = draw.textbbox(corner, text, font=font(size), anchor="rb")
    draw.rectangle((x0 - 4, y0 - 3, x1 + 3, y1 + 2), fill="#000000")
    draw.text(corner, text, fill="#FFFFFF", font=font(size), anchor="rb")


def _bars(probabilities: np.ndarray, classes: Sequence[str], width: int) -> Image.Image:
    """Draws the probabilities of the likeliest classes, that of the predicted one first."""
    order = [int(i) for i in (-probabilities).argsort(kind="stable")[:MOST_CLASSES]]
    lines = [(_shortened(printable(classes[i]), width // 3), float(probabilities[i])) for i in order]
    more = len(classes) - len(order)
    image = Image.new("RGB", (width, LINE * (len(lines) + (more > 0))), PAPER)
    draw = ImageDraw.Draw(image)
    names = max(math.ceil(draw.textlength(name, font=font(16))) for name, _ in lines) + 10
    longest = width - names - 56
    for i, (name, share) in enumerate(lines):
        middle = i * LINE + LINE // 2
        color = BLUE if i == 0 else GREY
        draw.text((names - 10, middle), name, fill=INK, font=font(16), anchor="rm")
        draw.rectangle((names, middle - 7, names + longest, middle + 7), fill=TRACK)
        draw.rectangle((names, middle - 7, names + max(1, round(longest * share)), middle + 7), fill=color)
        draw.text((names + longest + 8, middle), f"{share:.2f}", fill=INK, font=font(15), anchor="lm")
    if more > 0:
        rest = max(0.0, 1 - sum(share for _, share in lines))
        text = f"{more} other class{'es' if more > 1 else ''}: {rest:.2f}"
        draw.text((names, len(lines) * LINE + LINE // 2), text, fill=INK, font=font(15), anchor="lm")
    return image


def _shortened(text: str, width: int, size: int = 16) -> str:
    """Cuts a text to so many pixels."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


class Index:
    """A sheet of the first mosaics, small: what was looked at, and what it was taken for.

    Args:
        most: how many mosaics to show.
    """

    def __init__(self, most: int = 24) -> None:
        self.most = most
        self.shown: list[tuple[Image.Image, str, str]] = []

    def add(self, mosaic: OwnMosaic, seen: Explained) -> None:
        """Takes one more mosaic, unless the sheet is full."""
        if len(self.shown) < self.most:
            lit = draw_lit(mosaic, seen.weights, numbers=False)
            lit.thumbnail((THUMBNAIL, THUMBNAIL))
            said = f"{printable(seen.predicted)} {seen.probabilities.max():.2f}"
            self.shown.append((lit, said, printable(seen.name)))

    def draw(self, smoke: bool = False) -> Image.Image:
        """Returns the sheet of at least one mosaic, with a banner if the pair is of a run that is no result."""
        across = min(ACROSS, len(self.shown))
        width, text = THUMBNAIL + MARGIN, 2 * LINE + 4
        rows = list(_rows(self.shown, across))
        heights = [max(lit.height for lit, _, _ in row) + text + MARGIN for row in rows]
        banner = BANNER if smoke else 0
        image = Image.new("RGB", (across * width + MARGIN, banner + sum(heights) + MARGIN), PAPER)
        draw = ImageDraw.Draw(image)
        if smoke:
            _stamp(image)
        y = banner + MARGIN
        for row, height in zip(rows, heights, strict=True):
            for i, (lit, said, name) in enumerate(row):
                x = MARGIN + i * width
                image.paste(lit, (x, y))
                draw.text((x, y + lit.height + 4), _shortened(said, THUMBNAIL), fill=INK, font=font(16))
                draw.text(
                    (x, y + lit.height + 4 + LINE), _shortened(name, THUMBNAIL, 13), fill="#666666", font=font(13)
                )
            y += height
        return image


def _rows(items: list[tuple[Image.Image, str, str]], across: int) -> Iterator[list[tuple[Image.Image, str, str]]]:
    for i in range(0, len(items), across):
        yield items[i : i + across]
