"""Drawings of 2-D networks and mosaics: the pixels at known positions."""

import numpy as np
from PIL import ImageColor

from attnmosaic.plotting import point_tiles, tiles
from attnmosaic.plotting.palette import CLASS_STYLES, FRAME
from attnmosaic.runs.snapshots import Plane, PredictedMosaics

CLASSES, ALL_CLASSES = ("a", "b"), ("a", "b", "c")


def plane() -> Plane:
    """Returns a plane: What predicts b on the right; Where scores the top higher; a point per class at x = 1, 2, 3."""
    regions = np.zeros((10, 10), dtype=np.uint8)
    regions[:, 5:] = 1
    return Plane(
        extent=np.array([0.0, 4.0, 0.0, 4.0]),
        regions=regions,
        scores=np.repeat(np.linspace(-3, 5, 10)[:, None], 10, axis=1),
        points=np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]),
        point_classes=np.array([0, 1, 2]),
        aggregates=np.zeros((0, 2)),
        label=np.zeros(0, dtype=int),
        held_out_aggregates=np.array([[1.0, 3.0]]),
        held_out_label=np.array([0]),
    )


def test_plane_has_x_to_the_right_and_y_upwards() -> None:
    to_pixels = point_tiles.Transform(np.array([0.0, 4.0, 0.0, 2.0]), 100)
    assert to_pixels(np.array([[0, 0], [4, 2], [1, 2]])).tolist() == [[0, 100], [100, 0], [25, 0]]
    side = 200
    image = np.array(point_tiles.networks(plane(), CLASSES, ALL_CLASSES, side))
    gap, heading = 12, 24
    regions, scores = (image[heading : heading + side, x : x + side].astype(int) for x in (gap, 2 * gap + side))
    tints = point_tiles.region_colors(np.array([[0, 1]]))[0].astype(int)
    assert abs(regions[150, 20] - tints[0]).max() < 8
    assert abs(regions[150, 180] - tints[1]).max() < 8
    assert regions[50, 50].tolist() == list(ImageColor.getrgb(CLASS_STYLES[0][0]))  # the aggregate at (1, 3)
    assert scores[5, 10, 0] > scores[100, 10, 0] > scores[195, 10, 0]
    for x, color in ((50, CLASS_STYLES[0][0]), (100, CLASS_STYLES[1][0]), (150, "#444444")):
        assert scores[150, x].tolist() == list(ImageColor.getrgb(color))


def test_mosaic_shows_weights_foreground_and_aggregate() -> None:
    mosaics = PredictedMosaics(
        rows=np.array([0]),
        patches=np.array([[[1.0, 1.0], [3.0, 3.0]]], dtype=np.float32),
        foreground=np.array([1]),
        label=np.array([1]),
        alpha=np.array([[0.25, 0.75]], dtype=np.float32),
        probabilities=np.array([[0.1, 0.9]], dtype=np.float32),
    )
    side = 200
    image = np.array(point_tiles.cards(mosaics, plane(), CLASSES, side)[0])[tiles.MARGIN :, tiles.MARGIN :]

    def circle_radius(x: int, y: int, within: int) -> int:
        """Returns the radius of the circle around a patch, in pixels."""
        row = image[y, x : x + within].astype(int)
        return int(np.flatnonzero((row < 80).all(axis=1)).max())

    assert circle_radius(50, 150, 25) < circle_radius(150, 50, 25)  # the weights are 0.25 and 0.75
    frame = (image == ImageColor.getrgb(FRAME)).all(axis=-1)
    ys, xs = np.nonzero(frame)
    assert abs(xs.mean() - 150) < 2
    assert abs(ys.mean() - 50) < 2
    cross = (image == ImageColor.getrgb("#D55E00")).all(axis=-1)[:side]
    ys, xs = np.nonzero(cross)
    assert abs(xs.mean() - 125) < 2  # 0.25 * (1, 1) + 0.75 * (3, 3) is at (2.5, 2.5)
    assert abs(ys.mean() - 75) < 2


def test_class_colors() -> None:
    assert point_tiles.colors_of(ALL_CLASSES, CLASSES) == [
        CLASS_STYLES[0][0],
        CLASS_STYLES[1][0],
        point_tiles.BACKGROUND,
    ]
    assert point_tiles.colors_of("g", "abcdefgh") == [CLASS_STYLES[0][0]]
