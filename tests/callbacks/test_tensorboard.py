"""TensorBoard's charts, histograms, pictures and texts equal the run's own files."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.settings import ALL_CHECKPOINTS, SMALL
from helpers.small_runs import train_in
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from attnmosaic.callbacks.tensorboard import ABOVE, HEIGHT, chosen_epochs
from attnmosaic.cli.command import line_and_code
from attnmosaic.core.errors import RunError
from attnmosaic.runs.snapshots import read_record
from attnmosaic.training.tensorboard import EventLogger, hparams_summaries

pytestmark = pytest.mark.runs

Train = Callable[..., dict[str, float]]

SPLITS = ("train", "test", "held_out")
EIGHT = (
    "schedule.k=2", "schedule.epochs=8", "lr.what=0.1", "lr.where=0.1", "trainer.check_val_every_n_epoch=4",
    "callbacks.dashboards.every_n_epochs=4", *ALL_CHECKPOINTS,
)  # fmt: skip
PLAIN = ("callbacks.progress=null", "callbacks.pictures=null")


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "histograms": 0}).Reload()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of an uninterrupted run of a pair."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train_in(folder, *SMALL, *EIGHT, *PLAIN, "logger=tensorboard")
    return folder


def test_dashboards_of_a_pair(uninterrupted: Path) -> None:
    folder = uninterrupted
    events = events_of(folder)

    # The charts of the published plots use existing scalars only.
    (layout,) = (
        layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
        for event in events.Tensors("custom_scalars__config__")
    )
    tags = {
        (category.title, chart.title): [series.value for series in chart.margin.series]
        for category in layout.category
        for chart in category.chart
    }
    for split in SPLITS:
        assert tags["focus against prediction", split.replace("_", " ")] == [
            *(f"{split}/{cell}" for cell in ("ftpt", "ffpt", "ftpf", "ffpf")), "stage/base",
        ]  # fmt: skip
        assert tags["largest weight above or below one half", split.replace("_", " ")] == [
            f"{split}/confident", f"{split}/not_confident", "stage/base",
        ]  # fmt: skip
    assert {tag for chart in tags.values() for tag in chart} <= set(events.Tags()["scalars"])
    strip = events.Scalars("stage/strip")
    assert [event.step for event in strip] == list(range(1, 9))
    assert [event.value for event in strip] == pytest.approx([ABOVE, ABOVE, ABOVE + HEIGHT, ABOVE + HEIGHT] * 2)
    for split in SPLITS:
        published = rows(folder / f"focus_vs_pred_{split}.csv")
        assert [event.value for event in events.Scalars(f"{split}/not_confident")] == pytest.approx(
            [int(row["argmax < 0.5"]) / (int(row["argmax < 0.5"]) + int(row["argmax > 0.5"])) for row in published]
        )

    # The sums of the histograms over all mosaics equal the metrics.
    table = [row for row in rows(folder / "metrics.csv") if row["epoch"] in ("4", "8")]
    for split, n in zip(SPLITS, (60, 30, 30), strict=True):
        largest, foreground = (events.Histograms(f"{split}/alpha_{name}") for name in ("largest", "foreground"))
        assert [event.step for event in foreground] == [4, 8]
        for event, row in zip(foreground, table, strict=True):
            value = event.histogram_value
            assert value.num == sum(value.bucket) == n
            assert value.sum / n == pytest.approx(float(row[f"{split}/foreground_weight"]), rel=1e-5)
        for event, row in zip(largest, table, strict=True):
            value = event.histogram_value
            above = sum(c for limit, c in zip(value.bucket_limit, value.bucket, strict=True) if limit > 0.5 + 1e-9)
            assert above / n == pytest.approx(float(row[f"{split}/confident"]))

    assert b"check_val_every_n_epoch: 4" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    for tag in ("mosaics/train", "mosaics/held_out", "networks"):
        pictures = events.Images(tag)
        assert [event.step for event in pictures] == [0, 4, 8]
        first, *_, last = (np.array(Image.open(io.BytesIO(event.encoded_image_string))) for event in pictures)
        assert first.shape == last.shape
        assert (first != last).any()  # the networks changed, so the pictures differ


def test_picture_of_the_last_epoch_equals_the_record(train: Train, tmp_path: Path) -> None:
    from attnmosaic.plotting import tiles

    train("experiment=stagewise", "data=digits", *EIGHT, *PLAIN, "logger=tensorboard", "callbacks.dashboards.mosaics=3")
    events = events_of(tmp_path / "run")
    record = read_record(tmp_path / "run" / "mosaics.npz")
    followed = record.followed["held_out"].at(-1)
    expected = tiles.sheet([tiles.card(followed, i, record.classes) for i in range(3)], 1)
    shown = Image.open(io.BytesIO(events.Images("mosaics/held_out")[-1].encoded_image_string))
    assert np.array_equal(np.array(shown), np.array(expected))
    assert "networks" not in events.Tags()["images"]


@pytest.mark.parametrize(("seconds", "epochs"), [(10, [0, 8]), (0, [0, 4, 8])])
def test_pictures_are_at_least_some_seconds_apart(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, epochs: list[int]
) -> None:
    """Unless the user chooses the epochs; the first and the last epoch always have pictures."""
    monkeypatch.setattr("attnmosaic.callbacks.tensorboard.SECONDS", seconds)
    train(*EIGHT, *PLAIN, "logger=tensorboard", "callbacks.dashboards.every_n_epochs=null")
    events = events_of(tmp_path / "run")
    assert all([image.step for image in events.Images(tag)] == epochs for tag in events.Tags()["images"])


def test_scalars_of_an_epoch_are_one_event(train: Train, tmp_path: Path) -> None:
    """In a single file, to which the final metrics are added."""
    train(*EIGHT, *PLAIN, "logger=tensorboard", "callbacks.last=null")
    (file,) = (tmp_path / "run").glob("events.out.tfevents.*")
    tags: dict[int, list[set[str]]] = {}
    for raw in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(raw)
        scalars = {value.tag for value in event.summary.value if value.HasField("simple_value")}
        if scalars:
            tags.setdefault(event.step, []).append(scalars)
    assert all(len(tags[step]) == 1 for step in range(9) if step not in (4, 8))  # those two have pictures as well
    assert {"running/loss", "stage", "stage/strip", "gradient/foreground"} <= tags[3][0]


def test_logger_takes_what_lightning_logs(tmp_path: Path) -> None:
    """Tensors, scalars of several calls for a step, and nested metrics; nothing is lost when it ends."""
    logger = EventLogger(str(tmp_path))
    logger.log_metrics({"a": torch.tensor(1.5)}, 1)
    logger.log_metrics({"b": 2}, 1)
    logger.log_metrics({"a": 2.5, "pair": {"x": 1.0, "y": 2.0}}, 2)
    logger.log_metrics({"a": 3.5}, 3)
    logger.finalize("success")
    logger.log_metrics({"last": 1.0}, 3)
    logger.experiment.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 1.5), (2, 2.5), (3, 3.5)]
    assert [(event.step, event.value) for event in events.Scalars("b")] == [(1, 2.0)]
    assert events.Scalars("last")[0].value == 1


def test_training_is_the_same_without_dashboards(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    train(*EIGHT, *PLAIN, "logger=none", "callbacks.dashboards=null")
    assert (uninterrupted / "metrics.csv").read_text() == (tmp_path / "run" / "metrics.csv").read_text()


def test_dashboards_of_two_outputs(train: Train, tmp_path: Path) -> None:
    train("experiment=mnist_product", "schedule.epochs=1", *PLAIN, "logger=tensorboard")
    events = events_of(tmp_path / "run")
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (category,) = layout.category
    tags = [series.value for series in category.chart[0].margin.series]
    assert tags[:2] == ["train/digit_accuracy", "train/product_accuracy"]
    assert {tag for chart in category.chart for series in chart.margin.series for tag in [series.value]} <= set(
        events.Tags()["scalars"]
    )
    assert events.Tags()["histograms"] == events.Tags()["images"] == []


def test_restarted_run_shows_each_epoch_once(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    """Events after the last checkpoint are written again, and shown once."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    for name in ("result.json", "checkpoints/last.ckpt", "checkpoints/epoch-0008.ckpt"):  # as if killed in epoch 8
        (tmp_path / "run" / name).unlink()
    train(*EIGHT, *PLAIN, "logger=tensorboard")
    events = events_of(tmp_path / "run")
    for tag in ("running/loss", "stage/strip", "gradient/foreground"):
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
    assert [event.step for event in events.Scalars("running/loss")] == list(range(1, 9))


def test_run_restarted_without_checkpoints_shows_each_epoch_once(
    train: Train, tmp_path: Path, uninterrupted: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run", ignore=shutil.ignore_patterns("result.json", "checkpoints"))
    train(*EIGHT, *PLAIN, "logger=tensorboard")
    events = events_of(tmp_path / "run")
    assert [event.step for event in events.Scalars("running/loss")] == list(range(1, 9))
    assert [event.step for event in events.Images("networks")] == [0, 4, 8]


def test_run_resumed_in_another_folder_has_its_dashboards_there(
    train: Train, tmp_path: Path, uninterrupted: Path
) -> None:
    checkpoint = f"ckpt_path={uninterrupted / 'checkpoints' / 'epoch-0004.ckpt'}"
    train(*EIGHT, *PLAIN, "logger=tensorboard", checkpoint, run_dir="then")
    events = events_of(tmp_path / "then")
    assert {"custom_scalars__config__", "config/text_summary"} <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Images("networks")] == [4, 8]


def test_run_that_ends_early_has_pictures_of_its_end(train: Train, tmp_path: Path) -> None:
    stop = ("callbacks=stop_at_loss", "callbacks.stop.stopping_threshold=100")  # after the first epoch
    train(*EIGHT, *PLAIN, *stop, "logger=tensorboard")
    assert [event.step for event in events_of(tmp_path / "run").Images("networks")] == [0, 1]


def test_run_ends_normally_if_callbacks_fail(
    train: Train, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("attnmosaic.plotting.point_tiles.networks", broken)
    monkeypatch.setattr("attnmosaic.runs.snapshots.Record.save", broken)
    monkeypatch.setattr("attnmosaic.callbacks.attention_gradients.mean_alpha_gradients", broken)
    assert (
        train(*EIGHT, *PLAIN, "logger=tensorboard")
        == json.loads((uninterrupted / "result.json").read_text())["metrics"]
    )
    for name in ("Dashboards", "MosaicRecord", "AlphaGradients"):
        assert sum(f"{name} failed" in record.message for record in caplog.records) == 1


def test_run_with_weights_that_are_not_finite_ends_with_its_own_error(train: Train) -> None:
    with pytest.raises(RunError, match=r"lr\.where"):
        train(*PLAIN, "schedule=where_then_what", "trainer.check_val_every_n_epoch=1", "lr.where=1e12")


@pytest.mark.parametrize(
    "override", ["dashboards.mosaics=0", "dashboards.every_n_epochs=0", "gradients.mosaics=-3", "record.followed=0"]
)
def test_counts_below_one_are_refused(train: Train, override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(Exception, match=rf"callbacks\.{key}: got .*at least 1") as error:
        train(f"callbacks.{override}")
    assert line_and_code(error.value) is not None


def test_chosen_epochs() -> None:
    assert chosen_epochs(180, 10) == {30, 60, 90, 120, 150, 180}
    assert chosen_epochs(8, 4) == {4, 8}
    assert chosen_epochs(10, 4) == {4, 8, 10}
    assert chosen_epochs(3, 10) == {3}
    assert chosen_epochs(10, 4, every=5) == {5, 10}
    for epochs in (1, 7, 50, 100, 1000):
        for cycle in (1, 2, 10, 100):
            chosen = chosen_epochs(epochs, cycle)
            assert epochs in chosen
            assert len(chosen) <= 9  # with the pictures before training as many as TensorBoard keeps


def test_hyperparameters_of_the_command_line_come_first() -> None:
    params = {"experiment": "gaussian", "lr.what": 0.01, "lr.where": 0.03, "seed.all": 1}
    metrics = {"train/loss": 0.5, "train/accuracy": 0.9, "test/accuracy": 0.8}
    overridden = {"lr.where", "data.weights", "seed.all"}
    experiment, start, _ = hparams_summaries(params, metrics, overridden, {*params} - {"experiment"})
    held = HParamsPluginData.FromString(experiment.value[0].metadata.plugin_data.content).experiment
    assert {info.name for info in held.hparam_infos if info.differs} == {"lr.where", "seed.all"}
    assert "experiment" not in {info.name for info in held.hparam_infos}
    assert [info.name.tag for info in held.metric_infos] == ["test/accuracy", "train/accuracy", "train/loss"]
    session = HParamsPluginData.FromString(start.value[0].metadata.plugin_data.content).session_start_info
    assert session.hparams["lr.where"].number_value == 0.03
