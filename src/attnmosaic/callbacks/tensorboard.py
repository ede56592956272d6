"""Fills TensorBoard's dashboards in addition to the scalars."""

import io
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from PIL.Image import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from torch import Tensor

from attnmosaic.callbacks.nonfatal import check_count, log_errors
from attnmosaic.callbacks.snapshots import plane_of, predict, predicted_mosaics
from attnmosaic.config.schedule import Stage
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.plotting import point_tiles, tiles
from attnmosaic.plotting.palette import FOCUS_PREDICTION, LARGEST_WEIGHT
from attnmosaic.training.base import RunModule
from attnmosaic.training.stagewise import StagewiseModule

IMAGES = 10
"""Number of pictures per tag that TensorBoard keeps by default."""

SECONDS = 10
"""Least time between two pictures of a tag unless the user chooses the epochs; small runs end before that."""

BINS = 50
"""Number of bins of a histogram of weights from 0 to 1."""

SHOWN = ("train", "held_out")
"""Splits with pictures of mosaics."""

STRIP, BASE = "stage/strip", "stage/base"
"""Tags of two scalars. A chart fills the area between them, which marks the epochs in which only Where trains."""

ABOVE, HEIGHT = 1.05, 0.08
"""Lower edge and height of the strip. The strip is above the curves, as the shades of many runs would hide them."""


class Dashboards(pl.Callback):
    """Fills TensorBoard's dashboards if the run has a `TensorBoardLogger`.

    - Custom Scalars: for a pair, the published plots of each split, which are the four focus/prediction fractions and
      the fractions of mosaics whose largest weight is above and below one half; for two outputs, both accuracies. A
      strip above the curves marks the epochs in which only Where trains.
    - Histograms, at each evaluation: the attention weight of the foreground, and the largest attention weight.
    - Images, at chosen epochs: the same mosaics with their weights; for 2-D points also the networks' outputs over the
      plane.
    - Text: the config.

    The callback does not change the results of training in any bit.

    Args:
        mosaics: number of mosaics to show of each split of `SHOWN`.
        every_n_epochs: number of epochs between pictures; None for ends of cycles, at most as many as TensorBoard
            keeps, and at most every `SECONDS`. The first and the last epoch always have pictures.

    Raises:
        UserError: an argument is not a whole number of at least 1.
    """

    def __init__(self, mosaics: int = 6, every_n_epochs: int | None = None) -> None:
        check_count("dashboards.mosaics", mosaics)
        if every_n_epochs is not None:
            check_count("dashboards.every_n_epochs", every_n_epochs)
        self.mosaics = mosaics
        self.every_n_epochs = every_n_epochs
        self._histograms: dict[str, Tensor] = {}
        self._drawn_epoch = self._measured_epoch = 0
        self._drawn_at = 0.0

    # ---- at the start

    @log_errors
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        for writer in _writers(trainer):
            # The START event makes TensorBoard drop events that an earlier process wrote after the resumed checkpoint.
            start = trainer.current_epoch + 1 if trainer.current_epoch else 0
            writer.file_writer.add_event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))
            writer.file_writer.add_summary(_layout_summary(layout(pl_module)))
            config = yaml.safe_dump(pl_module.config, sort_keys=False)
            writer.add_text("config", "".join(f"    {line}\n" for line in config.splitlines()), start)
        self._draw(trainer, pl_module, trainer.current_epoch)

    # ---- at evaluations

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._histograms = {}

    @log_errors
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        active = trainer.state.fn == TrainerFn.FITTING and any(_writers(trainer))
        if not active or not isinstance(pl_module, StagewiseModule):
            return
        split = list(pl_module.evaluations)[dataloader_idx]
        alpha = outputs["alpha"].float()
        foreground = pl_module.mosaics[split].foreground[batch].unsqueeze(1)
        for name, values in (("foreground", alpha.gather(1, foreground)), ("largest", alpha.amax(dim=1))):
            # Counts are summed on the device and fetched once per evaluation. (`histc` is not deterministic on GPUs.)
            # `RunModule.check_finite` ends the run if a weight is not finite, so NaN is replaced here.
            bins = (values.flatten().nan_to_num() * BINS).long().clamp(0, BINS - 1)
            counts = torch.bincount(bins, minlength=BINS)
            sums = torch.stack([values.sum(), values.square().sum()])
            tag = f"{split}/alpha_{name}"
            self._histograms[tag] = self._histograms.get(tag, 0) + torch.cat([counts, sums])

    @log_errors
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, StagewiseModule):
            return
        if self._measured_epoch != pl_module.epochs_done:  # the final pass can repeat the last evaluation
            self._measured_epoch = pl_module.epochs_done
            below = {f"{split}/not_confident": 1 - pl_module.epoch_metrics[f"{split}/confident"] for split in SPLITS}
            for logger in _loggers(trainer):
                logger.log_metrics(below, pl_module.epochs_done)
        if not self._histograms:
            return
        fetched = torch.stack([*self._histograms.values()]).cpu().double().tolist()
        limits = np.linspace(0, 1, BINS + 1)[1:].tolist()
        histograms = Summary()
        for tag, (*counts, total, squares) in zip(self._histograms, fetched, strict=True):
            content = HistogramProto(
                min=0, max=1, num=sum(counts), sum=total, sum_squares=squares, bucket_limit=limits, bucket=counts
            )
            histograms.value.add(tag=tag, histo=content)
        for writer in _writers(trainer):
            writer.file_writer.add_summary(histograms, pl_module.epochs_done)
        self._histograms = {}

    # ---- at chosen epochs

    @log_errors
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        schedule = pl_module.schedule
        only_where = schedule.stage(trainer.current_epoch) is Stage.WHERE
        for logger in _loggers(trainer):
            logger.log_metrics({STRIP: ABOVE + HEIGHT * only_where, BASE: ABOVE}, pl_module.epochs_done)
        epochs, done = trainer.max_epochs or schedule.epochs, pl_module.epochs_done
        soon = self.every_n_epochs is None and time.monotonic() - self._drawn_at < SECONDS and done < epochs
        if done in chosen_epochs(epochs, schedule.cycle, self.every_n_epochs) and not soon:
            self._draw(trainer, pl_module, done)

    @log_errors
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if self._drawn_epoch != trainer.current_epoch:  # the run ended before its schedule
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: pl.Trainer, module: RunModule, epochs: int) -> None:
        self._drawn_epoch, self._drawn_at = epochs, time.monotonic()
        writers = list(_writers(trainer))
        if not writers or not isinstance(module, StagewiseModule):
            return
        with trainer.precision_plugin.val_step_context():
            pictures = dict(_pictures(module, self.mosaics))
        images = Summary(value=[Summary.Value(tag=tag, image=_encoded(picture)) for tag, picture in pictures.items()])
        for writer in writers:
            writer.file_writer.add_summary(images, epochs)


def _pictures(module: StagewiseModule, n: int) -> Iterator[tuple[str, Image]]:
    """Yields tag and picture of each picture of an epoch; `n` is the number of mosaics of each split."""
    train = module.mosaics["train"]
    classes, shape = train.foreground_classes, train.pool.patch_shape
    if shape != (2,) and len(shape) != 3:
        return
    plane = plane_of(module) if shape == (2,) else None
    for split in SHOWN:
        data = module.mosaics[split]
        rows = torch.arange(min(n, len(data)), device=data.index.device)
        alpha, probabilities = predict(module, data, rows)
        mosaics = predicted_mosaics(data, rows, alpha.float().cpu(), probabilities.float().cpu())
        if plane is None:
            sheet = tiles.sheet([tiles.card(mosaics, i, classes) for i in range(len(mosaics))], 1)
        else:
            sheet = tiles.sheet(point_tiles.cards(mosaics, plane, classes), 2)
        yield f"mosaics/{split}", sheet
    if plane is not None:
        yield "networks", point_tiles.networks(plane, classes, train.pool.classes)


def _encoded(picture: Image) -> Summary.Image:
    """Returns a picture in TensorBoard's form, without the conversions of `SummaryWriter.add_image`."""
    png = io.BytesIO()
    picture.convert("RGB").save(png, format="png", compress_level=1)
    return Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=png.getvalue())


def chosen_epochs(epochs: int, cycle: int, every: int | None = None) -> set[int]:
    """Returns the epochs, from 1, that end with pictures; at most `IMAGES` - 1 epochs if `every` is None."""
    if every is None:
        cycles = max(1, epochs // cycle)
        every = cycle * -(-cycles // (IMAGES - 2))
    return {*range(every, epochs + 1, every), epochs}


def layout(module: RunModule) -> layout_pb2.Layout:
    """Returns the layout of TensorBoard's Custom Scalars page: its charts and the curves in each."""
    if isinstance(module, StagewiseModule):
        charts = {
            "focus against prediction": tuple(FOCUS_PREDICTION),
            "largest weight above or below one half": tuple(LARGEST_WEIGHT),
        }
    else:
        charts = {"accuracy of both outputs": module.metric_names[1:]}
    return layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=[_chart(split, metrics) for split in SPLITS])
            for title, metrics in charts.items()
        ]
    )


def _chart(split: str, metrics: Iterable[str]) -> layout_pb2.Chart:
    """Returns the chart of some metrics of a split, with the strip of stages."""
    # Charts with margins are not smoothed and can fill areas. A plain line has its own values as margins.
    line = layout_pb2.MarginChartContent.Series
    series = [line(value=tag, lower=tag, upper=tag) for tag in (f"{split}/{metric}" for metric in metrics)]
    series.append(line(value=BASE, lower=BASE, upper=STRIP))
    content = layout_pb2.MarginChartContent(series=series)
    return layout_pb2.Chart(title=split.replace("_", " "), margin=content)


def _layout_summary(content: layout_pb2.Layout) -> Summary:
    """Returns the summary of a layout; TensorBoard's function for this purpose needs TensorFlow."""
    packed = TensorProto(dtype="DT_STRING", string_val=[content.SerializeToString()], tensor_shape=TensorShapeProto())
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, tensor=packed, metadata=SummaryMetadata(plugin_data=plugin))
    return Summary(value=[value])


def _loggers(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """Returns the TensorBoard loggers; none in processes of rank above 0."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero]


def _writers(trainer: pl.Trainer) -> Iterator[Any]:
    """Yields the `SummaryWriter` of each TensorBoard logger; nothing in processes of rank above 0."""
    yield from (logger.experiment for logger in _loggers(trainer))
