"""A run's event files, and its line on TensorBoard's HParams page."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from attnmosaic.config.identity import Kind, identity_settings, kind_of, often_varied
from attnmosaic.config.resolution import flat
from attnmosaic.runs.run import Run
from attnmosaic.tables.varied import GroupSettings, comparable, key_of, path_of


class EventLogger(TensorBoardLogger):
    """Writes event files straight into a run's folder, so that TensorBoard calls the run by its name.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def save(self, *_: Any) -> None:
        """Writes no ``hparams.yaml``: ``config.yaml`` has the settings."""


FIRST = (
    "test/accuracy", "held_out/accuracy", "train/accuracy", "held_out/focus", "test/ftpt",
    *(f"{split}/{output}_accuracy" for split in ("held_out", "train") for output in ("digit", "sum", "product")),
)  # fmt: skip
"""The page shows the first five metrics at first."""


def hyperparameters(config: dict[str, Any], run: Run) -> tuple[dict[str, Any], set[str], set[str]]:
    """Returns a run's hyperparameters, under the names they are set by, in the order in which to show them.

    Args:
        config: the run's.
        run: its folder, which has its overrides, and its sweep's plan.

    Returns:
        Values by key: the swept ones, others that were typed, and those that are often varied. Then the keys known to
        differ from run to run: the swept ones, or of a lone run the typed ones. Then the keys to show: a job of a sweep
        leaves out what nobody typed, a lone run does not know which others it will stand beside.
    """
    one = GroupSettings(comparable(config), run.choices)
    swept = [str(key) for key in run.from_plan("swept") or ()]
    typed = [key for key in map(key_of, run.overrides or ()) if one.decides(key) or kind_of(key) is Kind.SEED]
    usual = _usual(config)
    values = {key: _value(config, one, key) for key in [*swept, *typed]}
    values |= {key: value for key, value in usual.items() if key not in values}
    return values, {*(swept or typed)}, {*swept, *typed, *(() if swept else usual)}


def _value(config: dict[str, Any], one: GroupSettings, key: str) -> Any:
    """Returns the value of a key as TensorBoard takes it: a number, or text."""
    node: Any = config
    for part in path_of(key).split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, (int, float)) and key not in one.choices else one.value(key)


def _usual(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what is often varied."""
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
    """Returns the summaries that give a run its line on the page.

    Args:
        params: hyperparameters by name, in the order in which to show them.
        metrics: final metrics, under the tags of scalars.
        differ: those that are known to differ from run to run. The page puts them first.
        shown: those that the page is to list.
    """
    ordered = {name: metrics[name] for name in (*(n for n in FIRST if n in metrics), *metrics)}
    experiment, *session = hparams(dict(params), ordered)
    content = experiment.value[0].metadata.plugin_data
    held = HParamsPluginData.FromString(content.content)
    listed = [info for info in held.experiment.hparam_infos if info.name in shown]
    for info in listed:
        info.differs = info.name in differ
    del held.experiment.hparam_infos[:]
    held.experiment.hparam_infos.extend(listed)
    content.content = held.SerializeToString()
    return (experiment, *session)
