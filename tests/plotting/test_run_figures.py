"""Figures of a run: which figures there are, that they equal the run's files, and failures."""

import csv
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from helpers.commands import Cli
from helpers.run_folders import config_of, write_config
from helpers.settings import SMALL
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from omegaconf import DictConfig
from PIL import Image

from attnmosaic.callbacks.figures import RunPictures
from attnmosaic.config.schema import conf_dir, register
from attnmosaic.core.errors import UserError
from attnmosaic.plotting import curves, run
from attnmosaic.plotting.curves import draw_gradients, draw_loss, draw_outputs
from attnmosaic.plotting.focus import PLOTS, draw_accuracy_vs_focus, draw_focus, heading
from attnmosaic.plotting.heatmaps import draw_confusion
from attnmosaic.plotting.run import draw_run, up_to_date
from attnmosaic.plotting.style import styled
from attnmosaic.runs.rows import spans
from attnmosaic.runs.run import Run
from attnmosaic.train import train as train_run

pytestmark = [pytest.mark.pictures, pytest.mark.runs]

SPLITS = ("train", "test", "held_out")
FIGURES = {"focus_vs_pred", "accuracy_vs_focus", "loss", "gradients", "mosaics", "regions"}
MAIN_FIGURES = {"focus_vs_pred", "mosaics"}
ORANGE = (0xD5, 0x5E, 0x00)
PLOT_ALL = ("callbacks.pictures.figures=all", "callbacks.pictures.formats=[png,pdf]")


@pytest.fixture(autouse=True)
def _styled() -> Iterator[None]:
    with styled():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run on 2-D mosaics: eight epochs, stages of two, evaluated after every third epoch."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    few = ("schedule.k=2", "schedule.epochs=8", "lr.what=0.1", "lr.where=0.1", "trainer.check_val_every_n_epoch=3")
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        train_run(
            compose("train", [*SMALL, *few, "callbacks=gradients", "logger=none", *PLOT_ALL, f"run_dir={folder}"])
        )
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """Returns a copy of the run's folder, without pictures, that a test can change."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("*.png", "*.pdf", "*.gif", "checkpoints"))
    return folder


def plotted(folder: Path) -> set[str]:
    return {path.name for pattern in ("*.png", "*.pdf", "*.gif") for path in folder.glob(pattern)}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def shaded(axes: Axes) -> list[tuple[int, int]]:
    """Returns the first and last epoch of each shaded area of a panel."""
    boxes = (path.get_extents() for collection in axes.collections for path in collection.get_paths())
    return sorted((round(box.x0), round(box.x1)) for box in boxes)


def test_run_plots_all_figures(finished: Path) -> None:
    pngs, pdfs = ({path.stem for path in finished.glob(f"*.{form}")} for form in ("png", "pdf"))
    assert pngs == pdfs == FIGURES
    assert (finished / "animation.gif").exists()
    for name in FIGURES:
        picture = Image.open(finished / f"{name}.png").convert("RGB")
        assert np.asarray(picture).std() > 5, name
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        pdf = (finished / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/FontFile2" in pdf  # embedded TrueType fonts keep text as text
        assert b"/Type3" not in pdf


IMAGE_FIGURES = {"accuracy_vs_focus", "focus_vs_pred", "loss", "gradients", "mosaics", "classes"}


@pytest.mark.parametrize(
    ("overrides", "figures", "main", "animated"),
    [
        (("experiment=where_then_what", "data=digits"), IMAGE_FIGURES, MAIN_FIGURES, True),
        (("experiment=mnist_product",), {"accuracy", "confusion", "loss"}, {"accuracy"}, False),
    ],
    ids=["images", "two outputs"],
)
def test_figures_of_each_kind_of_run(
    train: Callable[..., dict[str, float]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    overrides: tuple[str, ...],
    figures: set[str],
    main: set[str],
    animated: bool,
) -> None:
    """A run plots its main figures, and `draw_run` all of them."""
    often = ("schedule.k=1", "schedule.epochs=2", "trainer.check_val_every_n_epoch=1", "logger=none")
    with caplog.at_level("INFO", "attnmosaic.train"):
        train(*overrides, *often)
    folder = tmp_path / "run"
    assert plotted(folder) == {f"{name}.png" for name in main}
    assert f"all figures: python -m attnmosaic.draw {folder}\n" in caplog.text
    draw_run(folder, ["png"])
    assert plotted(folder) == {f"{name}.png" for name in figures} | ({"animation.gif"} if animated else set())
    assert "could not be" not in caplog.text


@pytest.mark.parametrize(("figures", "files"), [("main", MAIN_FIGURES), ("all", FIGURES)])
def test_figures_are_up_to_date_until_the_run_writes_its_files(copy: Path, figures: str, files: set[str]) -> None:
    assert not up_to_date(Run(copy), ["svg"], figures)
    draw_run(copy, ["svg"], figures)
    assert {path.stem for path in copy.glob("*.svg")} == files
    assert up_to_date(Run(copy), ["svg"], figures)
    assert not up_to_date(Run(copy), ["svg", "pdf"], figures)
    for written in ("metrics.csv", "mosaics.npz"):
        later = (copy / "mosaics.svg").stat().st_mtime + 10
        times = (copy / written).stat()
        os.utime(copy / written, (later, later))
        assert not up_to_date(Run(copy), ["svg"], figures)
        os.utime(copy / written, (times.st_atime, times.st_mtime))
    (copy / "mosaics.svg").unlink()
    assert not up_to_date(Run(copy), ["svg"], figures)


def test_focus_figure_equals_the_tables(finished: Path) -> None:
    figure = draw_focus(Run(finished))
    assert len(figure.axes) == 6
    for split, panels in zip(SPLITS, np.reshape(figure.axes, (3, 2)), strict=True):
        table = rows(finished / f"focus_vs_pred_{split}.csv")
        epochs = [int(row["epochs"]) for row in table]
        assert epochs == [3, 6, 8]
        for axes, plot in zip(panels, PLOTS, strict=True):
            columns = [curve.column for curve in plot.values()]
            assert lines(axes) == {name: (epochs, [float(row[name]) for row in table]) for name in columns}
            assert shaded(axes) == [(2, 4), (6, 8)]
            assert axes.get_ylim() == (0, 60 if split == "train" else 30)
            assert axes.get_xlim() == (0, 8)
        left, right = ([panel.yaxis.get_major_formatter()(n) for n in (0, 15, 30)] for panel in panels)
        assert left == ["0", "15", "30"]
        assert right == (["0.00", "0.25", "0.50"] if split == "train" else ["0.00", "0.50", "1.00"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "largest weight ≥ 0.5", "largest weight < 0.5", "FTPT: focus, right", "FFPT: no focus, right",
        "FTPF: focus, wrong", "FFPF: no focus, wrong", "What network trains", "Where network trains",
    ]  # fmt: skip
    assert figure.get_suptitle() == "gaussian, seed 0: 8 epochs, What lr 0.1, Where lr 0.1, k = 2"
    styles = {(line.get_linestyle(), line.get_marker()) for line in figure.axes[1].lines}
    assert len(styles) == 4  # distinguishable in grey


def test_heading_has_trained_networks_and_seeds(copy: Path) -> None:
    config = copy / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("order: what_then_where", "order: what_only"))
    assert heading(Run(copy)) == "gaussian, seed 0: 8 epochs, What lr 0.1, k = 2"
    config.write_text(text.replace("  init: 0\n", "  init: 3\n"))
    assert heading(Run(copy)).startswith("gaussian, seed data 0, init 3, order 0: 8 epochs")


def test_stages_of_a_table_that_begins_after_the_first_epoch(copy: Path) -> None:
    header, *lines = (copy / "metrics.csv").read_text().splitlines(keepends=True)
    (copy / "metrics.csv").write_text(header + "".join(lines[2:]))
    begun = Run(copy)
    assert begun.epochs_done == 8
    assert begun.stages == [("where", 2, 4), ("what", 4, 6), ("where", 6, 8)]


def test_figures_are_not_cut_off_with_large_counts(copy: Path) -> None:
    for split in SPLITS:
        table = copy / f"focus_vs_pred_{split}.csv"
        header, *lines = table.read_text().splitlines()
        many = [",".join([e, *(str(10_000 * int(n)) for n in counts)]) for e, *counts in (x.split(",") for x in lines)]
        table.write_text("\n".join([header, *many]) + "\n")
    draw_run(copy, ["png"])
    for path in copy.glob("*.png"):
        edges = np.asarray(Image.open(path).convert("L")).astype(int)
        for edge in (edges[:, 0], edges[:, -1], edges[0], edges[-1]):
            assert edge.min() > 200, path.name


def test_ticks_are_powers_of_ten(finished: Path) -> None:
    figure = draw_gradients(Run(finished))
    figure.draw_without_rendering()
    width = figure.axes[1].get_yticklabels()[0].get_window_extent().width
    assert width < 0.5 * figure.dpi  # "10" and its exponent, not the longer source text of the formula


def test_wide_stages_are_named(finished: Path) -> None:
    axes = draw_focus(Run(finished)).axes[0]
    assert [(text.get_text(), text.xy[0]) for text in axes.texts] == [
        ("What", 1), ("Where", 3), ("What", 5), ("Where", 7),
    ]  # fmt: skip
    assert spans([*enumerate(["what"] * 2 + ["where"] * 3, start=11)]) == [("what", 10, 12), ("where", 12, 15)]
    assert spans([(1, "joint"), (2, "joint"), (5, "joint")]) == [("joint", 0, 2), ("joint", 4, 5)]
    assert spans([]) == []


def test_loss_and_gradients_equal_the_tables(finished: Path) -> None:
    metrics, gradients = rows(finished / "metrics.csv"), rows(finished / "gradients.csv")
    (axes,) = draw_loss(Run(finished)).axes
    running, evaluated = lines(axes).values()
    assert running == (list(range(1, 9)), [float(row["running/loss"]) for row in metrics])
    assert evaluated == ([3, 6, 8], [float(metrics[epoch - 1]["train/loss"]) for epoch in (3, 6, 8)])
    assert shaded(axes) == [(2, 4), (6, 8)]

    figure = draw_gradients(Run(finished))
    signed, absolute = figure.axes
    assert signed.get_ylabel().startswith("mean over 60 training mosaics\n")
    for side, label in (("foreground", "foreground patch"), ("background", "background patches, summed")):
        expected = [float(row[side]) for row in gradients]
        assert lines(signed)[label] == (list(range(9)), expected)
        assert (list(range(9)), [abs(value) for value in expected]) in lines(absolute).values()
    assert shaded(absolute) == [(2, 4), (6, 8)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "foreground patch", "background patches, summed", "What network trains", "Where network trains",
    ]  # fmt: skip


def test_single_stage_is_not_shaded(copy: Path) -> None:
    for name in ("metrics.csv", "gradients.csv"):
        table = (copy / name).read_text().replace("what", "joint").replace("where", "joint")
        (copy / name).write_text(table)
    figure = draw_gradients(Run(copy))
    assert [shaded(axes) for axes in figure.axes] == [[], []]
    assert len(figure.legends[0].get_texts()) == 2


def test_accuracy_against_focus(finished: Path) -> None:
    measured = [row for row in rows(finished / "metrics.csv") if row["train/focus"]]
    path, accuracy, focus = draw_accuracy_vs_focus(Run(finished)).axes
    for split, label in zip(SPLITS, ("train", "test", "held out"), strict=True):
        x, y = ([float(row[f"{split}/{metric}"]) for row in measured] for metric in ("focus", "accuracy"))
        assert lines(path)[label] == (x, y)
        assert lines(accuracy)[label] == ([3, 6, 8], y)
        assert lines(focus)[label] == ([3, 6, 8], x)
        markers = [line for line in path.lines if len(line.get_xdata()) == 1]
        ends = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in markers}
        assert {(x[0], y[0]), (x[-1], y[-1])} <= ends
    assert {"3", "8"} & {text.get_text() for text in path.texts}


def test_figures_plotted_again_are_the_same_files(finished: Path, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Does not depend on the user's matplotlib settings, and does not change them."""
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 40, "pdf.fonttype": 3}):
        with caplog.at_level("INFO"):
            drawn = draw_run(copy)
        assert mpl.rcParams["font.size"] == 30
    assert caplog.records == []  # fontTools would log each letter of a PDF
    assert not drawn.failed
    assert {path.name for path in drawn.paths} == {
        "animation.gif", *(f"{name}.{form}" for name in FIGURES for form in ("png", "pdf")),
    }  # fmt: skip
    for path in drawn.paths:
        assert path.read_bytes() == (finished / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("absent", "without"),
    [
        (["gradients.csv"], {"gradients"}),
        (["mosaics.npz"], {"mosaics", "regions"}),
        (["metrics.csv", "mosaics.npz"], {"loss", "accuracy_vs_focus", "mosaics", "regions"}),
        ([f"focus_vs_pred_{split}.csv" for split in SPLITS], {"focus_vs_pred"}),
    ],
    ids=["gradients", "record", "metrics and record", "focus"],
)
def test_figures_without_their_files_are_skipped(copy: Path, absent: list[str], without: set[str]) -> None:
    for name in absent:
        (copy / name).unlink()
    begun = Run(copy)
    assert run.figures_of(begun).keys() == FIGURES - without
    assert (begun.snapshots is None) == ("mosaics.npz" in absent)


def test_run_without_rows_has_no_figures(copy: Path) -> None:
    """The tables have headings only, as after the start of a run."""
    for file in copy.glob("*.csv"):
        file.write_text(file.read_text().splitlines()[0] + "\n")
    (copy / "mosaics.npz").unlink()
    assert draw_run(copy) == ([], [])


@pytest.fixture
def small(copy: Path) -> Path:
    """Returns the copied folder without the tables of the figures that take longest."""
    for name in ("gradients.csv", *(f"focus_vs_pred_{split}.csv" for split in SPLITS)):
        (copy / name).unlink()
    return copy


def test_other_figures_are_plotted_if_one_fails(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(curves, "draw_loss", lambda source: 1 / 0)
    monkeypatch.setattr(run.animation, "draw_animation", lambda *_: 1 / 0)
    drawn = draw_run(small, ["png"])
    assert drawn.failed == ["loss", "animation"]
    assert {path.stem for path in drawn.paths} == {"accuracy_vs_focus", "mosaics", "regions"}
    assert "loss could not be plotted" in caplog.text


def test_run_ends_normally_if_figures_fail(
    train: Callable[..., dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "draw_run", lambda *_: 1 / 0)
    train("schedule.epochs=1", "logger=none")
    assert (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run").glob("*.png"))


def test_formats_of_figures(config: Callable[..., DictConfig]) -> None:
    assert RunPictures("x").formats == tuple(config().callbacks.pictures.formats) == ("png",)
    assert RunPictures("x").figures == config().callbacks.pictures.figures == "main"
    assert RunPictures("x", "svg").formats == ("svg",)
    with pytest.raises(UserError, match=r"callbacks\.pictures\.figures: .*some.*all"):
        RunPictures("x", figures="some")
    with pytest.raises(UserError, match=r"callbacks\.pictures\.formats: .*jpg.*svg"):
        RunPictures("x", ["png", "jpg"])


def test_pictures_of_a_smoke_run_have_a_banner(finished: Path, small: Path) -> None:
    """Also after a stop, without ``result.json``: the config has the scale."""
    config = small / "config.yaml"
    config.write_text(config.read_text().replace("scale: full", "scale: smoke"))
    (small / "mosaics.npz").unlink()
    (small / "result.json").unlink()
    drawn = draw_run(small)
    assert len(drawn.paths) == 4
    for path in drawn.paths:
        if path.suffix == ".png":
            with Image.open(path) as stamped, Image.open(finished / path.name) as plain:
                banner = stamped.height - plain.height
                assert banner == round(0.3 * 200)
                assert stamped.convert("RGB").getpixel((0, 0)) == ORANGE
                below = stamped.convert("RGB").crop((0, banner, *stamped.size))
                different = np.abs(np.asarray(below, dtype=int) - np.asarray(plain.convert("RGB"), dtype=int)).max(
                    axis=-1
                )
                assert (different > 40).mean() < 0.01  # the figure below is the same, except for rounding
        else:
            assert path.stat().st_size > (finished / path.name).stat().st_size


def write_confusion(folder: Path, output: str, counts: np.ndarray, values: list[int], smoke: bool = False) -> None:
    with (folder / f"confusion_{output}_held_out.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"true {output}", *values, *["scale"] * smoke])
        writer.writerows([value, *row, *["smoke"] * smoke] for value, row in zip(values, counts.tolist(), strict=True))


@pytest.mark.parametrize("smoke", [False, True])
def test_figures_of_two_outputs_equal_the_tables(tmp_path: Path, smoke: bool) -> None:
    names = [f"{p}/{m}" for p in ("running", *SPLITS) for m in ("loss", "digit_accuracy", "product_accuracy")]
    table = [[1, *range(12)], [2, *(value / 100 for value in range(12))]]
    (tmp_path / "metrics.csv").write_text(
        "\n".join(",".join(map(str, row)) for row in (["epoch", *names], *table)) + "\n"
    )
    digit, product = np.diag([5, 0, 7]), np.array([[1, 3], [0, 4]])
    write_config(tmp_path, config_of("mnist_product"))
    write_confusion(tmp_path, "digit", digit, [0, 1, 2], smoke)
    write_confusion(tmp_path, "product", product, [0, 9], smoke)
    assert run.figures_of(Run(tmp_path)).keys() == {"accuracy", "confusion", "loss"}

    first, second = draw_outputs(Run(tmp_path)).axes
    for axes, output in ((first, "digit"), (second, "product")):
        for split, label in zip(SPLITS, ("train", "test", "held out"), strict=True):
            i = names.index(f"{split}/{output}_accuracy")
            assert lines(axes)[label] == ([1, 2], [float(i), i / 100])

    first, second, _ = draw_confusion(Run(tmp_path)).axes
    np.testing.assert_allclose(first.images[0].get_array(), [[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(second.images[0].get_array(), [[0.25, 0.75], [0, 1]])
    assert second.get_title(loc="left") == "product: 62.50% right (8 held-out images)"
    assert [label.get_text() for label in second.get_xticklabels()] == ["0", "9"]
    assert {(text.get_text(), text.get_position()) for text in second.texts} == {
        ("25", (0, 0)), ("75", (1, 0)), ("100", (1, 1)),
    }  # fmt: skip


def test_draw_command(cli: Cli, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, out, _ = cli("draw", str(small.parent), "--formats", "svg")
    assert code == 0
    assert out.startswith(f"{small}: ")
    assert {path.stem for path in small.glob("*.svg")} == {"loss", "accuracy_vs_focus", "mosaics", "regions"}
    assert ">epoch</text>" in (small / "loss.svg").read_text()  # text is kept as text
    assert not [*small.glob("*.png"), *small.glob("*.pdf")]
    (small / "mosaics.npz").write_bytes(b"half of a")
    code, _, err = cli("draw", str(small))
    assert code == 1
    assert f"{small}: could not plot mosaics" in err
    assert "cannot read" in caplog.text
    assert {path.name for path in small.glob("*.p*")} == {
        f"{name}.{form}" for name in ("loss", "accuracy_vs_focus") for form in ("png", "pdf")
    }
    (tmp_path / "empty").mkdir()
    code, _, err = cli("draw", str(tmp_path / "empty"))
    assert (code, err.count("\n")) == (2, 1)
    assert "no runs" in err
    assert cli("draw", str(tmp_path / "absent"))[0] == 2
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned" / "sweep.json").write_text('{"commands": [], "jobs": {"0": {}}}')
    code, _, err = cli("draw", str(tmp_path / "planned"))
    assert (code, "begun" in err) == (2, True)
