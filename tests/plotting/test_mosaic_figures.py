"""Figures and animation of mosaics have the patches, weights and aggregates of the record."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.snapshots import CLASSES, images, points
from matplotlib.colors import to_rgb
from PIL import Image

from attnmosaic.plotting.animation import MAX_FRAMES, draw_animation, frame_times, frames, weights_change
from attnmosaic.plotting.mosaics import draw_classes, draw_mosaics, pick
from attnmosaic.plotting.palette import CLASS_STYLES, FRAME, SMOKE_COLOR
from attnmosaic.plotting.point_tiles import TINT
from attnmosaic.plotting.points import draw_points, draw_regions
from attnmosaic.plotting.style import styled
from attnmosaic.plotting.tiles import mosaic
from attnmosaic.runs.rows import Span
from attnmosaic.runs.snapshots import Record

STAGES = [Span("what", 0, 3), Span("where", 3, 6)]


@pytest.fixture(autouse=True)
def _styled() -> Iterator[None]:
    with styled():
        yield


def test_mosaics_of_every_kind_are_picked() -> None:
    record = images()
    kinds = [mosaics.kinds[i] for mosaics, i in pick(record, n=6)]
    assert kinds == ["ftpt", "ftpt", "ffpt", "ffpt", "ftpf", "ffpf"]
    rows = [int(mosaics.rows[i]) for mosaics, i in pick(record, n=30)]
    assert len(rows) == len(set(rows)) == 30
    # If there is one kind only, followed mosaics come first, in their order.
    followed = record.followed["held_out"]
    same = replace(followed, label=followed.probabilities[-1].argmax(axis=-1), foreground=followed.alpha[-1].argmax(-1))
    alone = replace(record, followed={"held_out": same}, final={})
    assert [(mosaics.kinds[i], i) for mosaics, i in pick(alone, n=3)] == [("ftpt", 0), ("ftpt", 1), ("ftpt", 2)]


@pytest.mark.parametrize(("patches", "in_a_row"), [(9, 9), (4, 4), (16, 12)])
def test_row_shows_patches_weights_aggregate_and_texts(patches: int, in_a_row: int) -> None:
    record = images(patches=patches)
    (mosaics, i), *_ = pick(record, n=1)
    (axes,) = draw_mosaics(record, n=1).axes
    shown = [image.get_array() for image in axes.images]
    assert len(shown) == patches + in_a_row + 2
    for p in range(patches):
        np.testing.assert_array_equal(shown[p], mosaics.patches[i, p])
    true = int(mosaics.foreground[i])
    np.testing.assert_array_equal(shown[-1], mosaics.patches[i, true])
    aggregate = sum(a * x for a, x in zip(mosaics.alpha[i], mosaics.patches[i].astype(float), strict=True))
    np.testing.assert_allclose(shown[-2], aggregate, atol=0.51)

    framed = [patch for patch in axes.patches if patch.get_edgecolor()[:3] == to_rgb(FRAME) and not patch.get_fill()]
    assert len(framed) == 3  # in the mosaic, in the strip of patches, and alone
    texts = [text.get_text() for text in axes.texts]
    numbers = sorted(text for text in texts if text.startswith(("0.", "1.")))
    assert len(numbers) == in_a_row
    background = sorted(np.delete(mosaics.alpha[i], true), reverse=True)[: in_a_row - 1]  # the largest weights
    assert numbers == sorted(f"{alpha:.2f}" for alpha in [mosaics.alpha[i, true], *background])
    (bold,) = {text.get_text() for text in axes.texts if text.get_weight() == "bold" and text.get_text() in numbers}
    assert bold == f"{mosaics.alpha[i].max():.2f}"
    bars = [patch for patch in axes.patches if patch.get_facecolor()[:3] == to_rgb(FRAME) and patch.get_fill()]
    full = max(patch.get_height() for patch in axes.patches if patch.get_facecolor()[:3] == to_rgb("0.94"))
    assert [bar.get_height() / full for bar in bars] == pytest.approx([mosaics.alpha[i, true]])
    kind = mosaics.kinds[i]
    total = sum(record.counts["held_out"].values())
    assert f"{kind.upper()}: focus, right" in texts
    assert f"{record.counts['held_out'][kind]:,} of {total:,} held out" in texts
    assert f"true: {CLASSES[mosaics.label[i]]}" in texts


def test_class_figure_shows_training_patches_of_each_class() -> None:
    record = images()
    (axes,) = draw_classes(record, across=5, rows=2).axes
    assert [text.get_text() for text in axes.texts] == [*CLASSES, "background", ""]
    shown = {image.get_array().tobytes() for image in axes.images}
    assert len(shown) == len(axes.images) == 5 * 5
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    of_class: dict[str, set[bytes]] = {name: set() for name in (*CLASSES, "background", "")}
    for mosaics in (record.followed["train"], record.final["train"]):
        for patches, true, label in zip(mosaics.patches, mosaics.foreground, mosaics.label, strict=True):
            of_class[CLASSES[label]].add(patches[true].tobytes())
            for name in ("background", ""):
                of_class[name] |= {patch.tobytes() for patch in np.delete(patches, true, axis=0)}
    for image in axes.images:
        _, _, bottom, top = image.get_extent()
        name = min(heights, key=lambda name: abs(heights[name] - (bottom + top) / 2))
        assert image.get_array().tobytes() in of_class[name]


def test_class_names_are_escaped_and_shortened() -> None:
    record = replace(images(), classes=("$a_$", "an exceedingly long name of a class", "c"))
    with styled():
        for figure in (draw_classes(record), draw_mosaics(record, n=1)):
            figure.savefig(io.BytesIO(), format="png")
            assert all(len(text.get_text()) < 30 for text in figure.axes[0].texts if "exceedingly" in text.get_text())
    assert r"\$a_\$" in [text.get_text() for text in draw_classes(record).axes[0].texts]  # shown as "$a_$"


def test_points_are_plotted_at_their_coordinates() -> None:
    record = points()
    picks = pick(record)
    figure = draw_points(record)
    for axes, (mosaics, i) in zip(figure.axes, picks, strict=False):
        (circles,) = axes.collections
        np.testing.assert_allclose(circles.get_offsets(), mosaics.patches[i], rtol=1e-6)
        np.testing.assert_allclose(circles.get_sizes(), 10 + 220 * mosaics.alpha[i], rtol=1e-6)
        marked = {line.get_marker(): line.get_xydata()[0] for line in axes.lines if line.get_marker() in "s*"}
        np.testing.assert_allclose(marked["s"], mosaics.patches[i, mosaics.foreground[i]], rtol=1e-6)
        np.testing.assert_allclose(marked["*"], mosaics.aggregates[i], rtol=1e-6)
        assert axes.get_title(loc="left").startswith(mosaics.kinds[i].upper())
        assert axes.texts[0].get_text().endswith(f"true: {CLASSES[mosaics.label[i]]}")
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2


def test_regions_aggregates_and_scores_equal_the_plane() -> None:
    record = points()
    plane = record.plane
    assert plane is not None
    train, held_out, where, _ = draw_regions(record).axes
    for axes, aggregates, labels, title in (
        (train, plane.aggregates, plane.label, "What, 30 training mosaics"),
        (held_out, plane.held_out_aggregates, plane.held_out_label, "What, 12 held-out mosaics"),
    ):
        (image,) = axes.images
        assert image.origin == "lower"
        assert image.get_extent() == [-1, 1, -1, 1]
        tints = np.asarray(image.get_array()) / 255
        left, right = tints[0, 0], tints[-1, -1]
        assert left == pytest.approx(1 - TINT * (1 - np.array(to_rgb(CLASS_STYLES[0][0]))), abs=0.003)
        assert right == pytest.approx(1 - TINT * (1 - np.array(to_rgb(CLASS_STYLES[2][0]))), abs=0.003)
        drawn = [(line, xy) for line in axes.lines if line.get_markeredgecolor() == "black" for xy in line.get_xydata()]
        assert len(drawn) == len(labels)
        for label, (color, marker) in enumerate(CLASS_STYLES[:3]):
            plotted = [xy for line, xy in drawn if (line.get_color(), line.get_marker()) == (color, marker)]
            expected = aggregates[labels == label].astype(float)
            np.testing.assert_allclose(sorted(map(tuple, plotted)), sorted(map(tuple, expected)), rtol=1e-6)
        assert axes.get_title(loc="left") == title
    np.testing.assert_array_equal(where.images[0].get_array(), plane.scores)
    fixed_weights = replace(record, plane=replace(plane, scores=np.zeros_like(plane.scores)))
    assert len(draw_regions(fixed_weights).axes) == 2


def test_frames_are_evenly_spaced_from_first_to_last_epoch() -> None:
    assert frame_times(images(times=7)) == list(range(7))
    many = frame_times(images(times=101))
    assert (many[0], many[-1], len(many)) == (0, 100, MAX_FRAMES)
    assert set(np.diff(many)) <= {2, 3}


@pytest.mark.parametrize("record", [images(), points()], ids=["images", "points"])
def test_animation_shows_changing_weights(tmp_path: Path, record: Record) -> None:
    drawn = frames(record, STAGES)
    path = draw_animation(tmp_path / "animation.gif", record, STAGES)
    pictures = [np.asarray(frame, dtype=int) for frame in drawn]
    mosaics = [picture[28:-80] for picture in pictures]  # without epoch, prediction and schedule
    assert all((a != b).any() for a, b in itertools.pairwise(mosaics))
    durations = []
    with Image.open(path) as gif:
        assert gif.n_frames == len(drawn)
        assert gif.info["loop"] == 0
        for i, frame in enumerate(pictures):
            gif.seek(i)
            durations.append(gif.info["duration"])
            shown = np.asarray(gif.convert("RGB"), dtype=int)
            assert shown.shape == frame.shape
            assert np.abs(shown - frame).mean() < 12  # the GIF has 96 colours
    assert durations[-1] > 1500 > max(durations[:-1])
    assert sum(durations) < 12_000
    assert path.stat().st_size < 2_000_000


def test_frames_show_schedule_and_smoke_banner() -> None:
    record = images()
    plain, stamped = frames(record, STAGES), frames(record, STAGES, smoke=True)
    orange = tuple(int(SMOKE_COLOR[i : i + 2], 16) for i in (1, 3, 5))
    for without, with_banner in zip(plain, stamped, strict=True):
        assert without.getpixel((0, 0)) == (255, 255, 255)
        assert with_banner.getpixel((0, 0)) == orange
        banner = with_banner.height - without.height
        below = with_banner.crop((0, banner + 1, *with_banner.size))
        assert below.tobytes() == without.crop((0, 1, *without.size)).tobytes()
    # The fraction of the schedule in full colours grows from 0 to 1.
    strip = [np.asarray(frame)[-14, 20:-20].tolist() for frame in plain]
    done = [sum(pixel in ([0, 0x72, 0xB2], [0xE6, 0x9F, 0]) for pixel in line) / len(line) for line in strip]
    assert done == pytest.approx(np.arange(7) / 6, abs=0.03)
    assert frames(record, [])[0].size == plain[0].size  # of a run with unknown stages


def test_constant_weights_have_no_animation() -> None:
    record = images()
    followed = record.followed["held_out"]
    constant = replace(followed, alpha=np.repeat(followed.alpha[:1], 7, axis=0))
    assert weights_change(record)
    assert not weights_change(replace(record, followed={"held_out": constant}))
    assert not weights_change(replace(record, followed={}))


def test_patches_are_darkened_by_small_weights() -> None:
    """The patch with the largest weight is not darkened; a patch without weight is nearly black."""
    patches = np.full((4, 8, 8, 3), 200, dtype=np.uint8)
    drawn = np.asarray(mosaic(patches, np.array([0.5, 0.5, 0, 0]), cell=20), dtype=int)
    assert [int(drawn[y, x, 0]) for y, x in ((8, 8), (8, 30), (30, 8))] == [200, 200, 36]
    drawn = np.asarray(mosaic(patches, np.array([0.6, 0.3, 0.1, 0]), cell=20), dtype=int)
    assert 36 < drawn[30, 8, 0] < drawn[8, 30, 0] < 200
