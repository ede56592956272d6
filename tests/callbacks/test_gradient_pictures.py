"""The pictures of the gradient study: there, not blank, and showing what they say."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli import Cli
from conftest import SMALL
from matplotlib.colors import to_rgb
from matplotlib.patches import Polygon, Rectangle
from omegaconf import DictConfig
from PIL import Image
from small import fit

from attnmosaic.callbacks import gradient_pictures
from attnmosaic.callbacks.gradient_pictures import CLASS_STYLES, draw_gradients, draw_loss, draw_regions

Config = Callable[..., DictConfig]
SHORT = ("schedule.k=2", "schedule.epochs=8", "lr.what=0.1", "lr.where=0.1")
PICTURES = {"gradients.png", "loss.png", "regions.png"}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def pictures(folder: Path) -> set[str]:
    """Returns the names of the pictures in a folder, having seen that none is blank."""
    found = {path.name for path in folder.glob("*.png")}
    for name in found:
        assert np.asarray(Image.open(folder / name).convert("L")).std() > 5, name
    return found


def test_a_run_draws_them(cli: Cli, tmp_path: Path) -> None:
    """By name, into folders that follow from it: a single run and a sweep."""
    assert cli("train", *SMALL, *SHORT, "experiment=gradients/joint")[0] == 0
    (folder,) = (tmp_path / "outputs" / "gradients" / "joint").iterdir()
    assert pictures(folder) == {*PICTURES, "mosaics.png", "focus_vs_pred.png"}
    assert cli("train", *SMALL, *SHORT, "experiment=gradients/type5", "schedule.epochs=1,2", "-m")[0] == 0
    (sweep,) = (tmp_path / "outputs" / "sweeps" / "gradients" / "type5").iterdir()
    for job in ("0", "1"):
        assert pictures(sweep / job) >= PICTURES


@pytest.mark.parametrize(
    ("overrides", "drawn"),
    [
        (("experiment=stagewise", "data=digits"), {"gradients.png", "loss.png"}),
        (("callbacks.gradients=null",), {"loss.png", "regions.png"}),
        (("callbacks.tables=null",), {"gradients.png", "regions.png"}),
    ],
    ids=str,
)
def test_what_is_not_there_is_left_out(
    train: Callable[..., dict[str, float]], tmp_path: Path, overrides: tuple[str, ...], drawn: set[str]
) -> None:
    train("callbacks=gradients", "callbacks.pictures=null", *overrides, *SHORT)
    assert pictures(tmp_path / "run") == drawn


def test_a_picture_that_fails_costs_nothing(
    train: Callable[..., dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(gradient_pictures, "draw_gradients", lambda folder: 1 / 0)
    train("callbacks=gradients", "callbacks.pictures=null", *SHORT)
    assert pictures(tmp_path / "run") == {"loss.png", "regions.png"}
    assert "gradients.png could not be drawn" in caplog.text
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(("order", "shaded"), [("what_then_where", [3, 4, 7, 8]), ("joint", [])])
def test_curves_are_the_tables(config: Config, tmp_path: Path, order: str, shaded: list[int]) -> None:
    fit(config(f"schedule={order}", *SHORT, "callbacks=gradients", "logger=none", "trainer.check_val_every_n_epoch=3"))
    folder = tmp_path / "run"
    gradients, metrics = rows(folder / "gradients.csv"), rows(folder / "metrics.csv")
    axes, sizes = (figure := draw_gradients(folder)).axes
    for side, label in (("foreground", "foreground patch"), ("background", "background patches, their sum")):
        (line,) = [line for line in axes.lines if line.get_label() == label]
        wanted = [float(row[side]) for row in gradients]
        assert line.get_xdata().tolist() == list(range(9))
        assert line.get_ydata().tolist() == wanted
        assert any(other.get_ydata().tolist() == [abs(value) for value in wanted] for other in sizes.lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "foreground patch", "background patches, their sum", *["Where learns"] * bool(shaded),
    ]  # fmt: skip

    (axes,) = draw_loss(folder).axes
    running, evaluated = axes.lines
    assert running.get_xdata().tolist() == list(range(1, 9))
    assert running.get_ydata().tolist() == [float(row["running/loss"]) for row in metrics]
    assert evaluated.get_xdata().tolist() == [3, 6]
    assert evaluated.get_ydata().tolist() == [float(metrics[epoch - 1]["train/loss"]) for epoch in (3, 6)]
    for panel in (axes, sizes):
        spans = [patch for patch in panel.patches if isinstance(patch, (Rectangle, Polygon))]
        right = sorted(round(span.get_extents().transformed(panel.transData.inverted()).x1) for span in spans)
        assert right == shaded


def test_regions_are_whats(config: Config) -> None:
    """The tint at a place is that of What's prediction there; markers are the aggregates, by their true class."""
    overrides = ("schedule=joint", "schedule.epochs=30", "lr.what=0.1", "callbacks=default", "logger=none")
    module = fit(config(*overrides, "callbacks.pictures=null", "data.train_mosaics=300"))
    module.pair.what.train()
    figure = draw_regions(module, 40)
    assert module.pair.what.training
    module.pair.eval()
    for axes, split in zip(figure.axes, ("train", "held_out"), strict=True):
        (image,) = axes.images
        left, right, bottom, top = image.get_extent()
        points = torch.cat([module.mosaics[name].pool.patches for name in ("train", "held_out")])
        low, high = points.min(dim=0).values, points.max(dim=0).values
        assert [left, bottom] == pytest.approx((low - 0.05 * (high - low)).tolist(), abs=1e-4)
        assert [right, top] == pytest.approx((high + 0.05 * (high - low)).tolist(), abs=1e-4)
        assert axes.get_xlim() == (left, right)
        assert axes.get_ylim() == (bottom, top)

        cells = image.get_array()
        assert image.origin == "lower"
        assert len(np.unique(cells)) > 1
        chance = np.random.default_rng(0)
        for row, column in chance.integers(400, size=(200, 2)):
            x = left + (right - left) * (column + 0.5) / 400
            y = bottom + (top - bottom) * (row + 0.5) / 400
            predicted = int(module.pair.what(torch.tensor([[x, y]], dtype=points.dtype)).argmax())
            assert cells[row, column] == predicted
            color = np.array(to_rgb(CLASS_STYLES[predicted][0]))
            assert image.to_rgba(cells)[row, column, :3] == pytest.approx(0.75 + 0.25 * color)

        data = module.mosaics[split]
        alpha = module.pair.weigh(module.pair.where(data.pool.patches)[data.index[:40], 0])
        sums = (alpha[..., None] * data.pool.patches[data.index[:40]]).sum(dim=1)
        n = min(40, len(data))
        assert axes.get_title() == f"{n} {split.replace('_', '-').replace('train', 'training')} mosaics"
        drawn = [
            (tuple(found.get_facecolor()[0, :3]), tuple(np.round(point, 4)))
            for found in axes.collections[4:]
            for point in found.get_offsets().data
        ]
        wanted = [
            (to_rgb(CLASS_STYLES[label][0]), tuple(np.round(point.detach().double().numpy(), 4)))
            for label, point in zip(data.label[:n].tolist(), sums[:n], strict=True)
        ]
        assert sorted(color for color, _ in drawn) == sorted(color for color, _ in wanted)
        ours, theirs = (np.array(sorted((*color, *point) for color, point in all_)) for all_ in (drawn, wanted))
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
