"""Writes a run's TensorBoard event files and its row on TensorBoard's HParams page."""

from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from attnmosaic.config.identity import Kind, identity_settings, kind_of, often_varied
from attnmosaic.config.resolution import flat
from attnmosaic.runs.run import Run
from attnmosaic.tables.varied import GroupSettings, comparable, key_of, path_of


class EventLogger(TensorBoardLogger):
    """Writes event files directly into a run's folder, so that TensorBoard shows the run under the folder's name.

    All scalars of an epoch are written as one event, because an event costs more time than the values in it.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self._step: int | None = None
        self._scalars: dict[str, float] = {}
        """Scalars of ``_step`` that have not been written."""

    @property
    def experiment(self) -> Any:
        """The `SummaryWriter`; all scalars logged so far are passed to it before it is returned."""
        writer = super().experiment
        if self._scalars:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in self._scalars.items()]
            self._scalars = {}
            writer.file_writer.add_summary(Summary(value=values), self._step)
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if any(isinstance(value, Mapping) for value in metrics.values()):
            super().log_metrics(metrics, step)
            return
        if self._scalars and step != self._step:
            self.experiment  # noqa: B018  writes the scalars of the step before
        self._step = step
        self._scalars |= {tag: float(value) for tag, value in metrics.items()}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flushes the event file. It stays open after a success, as `finish_run` adds the final metrics to it."""
        self.experiment.flush()
        if status != "success":
            self.experiment.close()

    def save(self, *_: Any) -> None:
        """Does nothing, as Lightning would write ``hparams.yaml``; the settings are in ``config.yaml``."""


FIRST_METRICS = (
    "test/accuracy", "held_out/accuracy", "train/accuracy", "held_out/focus", "test/ftpt",
    *(f"{split}/{output}_accuracy" for split in ("held_out", "train") for output in ("digit", "sum", "product")),
)  # fmt: skip
"""Metrics in the order in which the page lists them, before all others; it initially shows the first five of a run."""


def hyperparameters(config: dict[str, Any], run: Run) -> tuple[dict[str, Any], set[str], set[str]]:
    """Returns a run's hyperparameters by config key, in the order in which TensorBoard shows them.

    Args:
        config: the run's resolved config.
        run: the run's folder, which holds its overrides and the plan of its sweep.

    Returns:
        Three collections:

        - values by key: swept keys, other keys set on the command line, and keys that are often varied;
        - the keys that differ between runs: the swept keys, or without a sweep the keys set on the command line;
        - the keys to show: in a sweep the swept keys and those set on the command line; without a sweep all keys, as
          the other runs on the page are not known.
    """
    settings = GroupSettings(comparable(config), run.choices)
    swept = [str(key) for key in run.from_plan("swept") or ()]
    typed = [key for key in map(key_of, run.overrides or ()) if settings.decides(key) or kind_of(key) is Kind.SEED]
    usual = _often_varied_settings(config)
    values = {key: _value(config, settings, key) for key in [*swept, *typed]}
    values |= {key: value for key, value in usual.items() if key not in values}
    return values, {*(swept or typed)}, {*swept, *typed, *(() if swept else usual)}


def _value(config: dict[str, Any], settings: GroupSettings, key: str) -> Any:
    """Returns the value of a key as a number or as text, the types that TensorBoard takes."""
    node: Any = config
    for part in path_of(key).split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, (int, float)) and key not in settings.choices else settings.value(key)


def _often_varied_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the experiment's name, the settings that are often varied, and the seeds, by the keys to show."""
    settings = flat(identity_settings(config))
    usual = {"experiment": config["name"], **{key: settings[key] for key in often_varied(settings)}}
    usual["data._target_"] = usual["data._target_"].rpartition(".")[2]
    seeds = {f"seed.{key}": config["seed"][key] for key in ("data", "init", "order")}
    if len({*seeds.values()}) == 1:
        seeds = {"seed.all": config["seed"]["data"]}
    return {key.removesuffix("._target_"): value for key, value in usual.items()} | seeds


def hparams_summaries(
    params: Mapping[str, Any], metrics: Mapping[str, float], differ: set[str], shown: set[str]
) -> tuple[Any, ...]:
    """Returns the TensorBoard summaries that add a run's row to the HParams page.

    Args:
        params: hyperparameters by name, in the order in which the page shows them.
        metrics: final metrics by the tags of their curves.
        differ: names of hyperparameters that differ between runs; the page lists them first.
        shown: names of the hyperparameters that the page lists.
    """
    ordered = {name: metrics[name] for name in (*(n for n in FIRST_METRICS if n in metrics), *metrics)}
    experiment, *session = hparams(dict(params), ordered)
    content = experiment.value[0].metadata.plugin_data
    plugin_data = HParamsPluginData.FromString(content.content)
    listed = [info for info in plugin_data.experiment.hparam_infos if info.name in shown]
    for info in listed:
        info.differs = info.name in differ
    del plugin_data.experiment.hparam_infos[:]
    plugin_data.experiment.hparam_infos.extend(listed)
    content.content = plugin_data.SerializeToString()
    return (experiment, *session)
