"""A run's line on TensorBoard's HParams page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from attnmosaic.config import networks_of

FIRST = (
    "test/accuracy", "held_out/accuracy", "train/accuracy", "held_out/focus", "test/ftpt",
    *(f"{split}/{output}_accuracy" for split in ("held_out", "train") for output in ("digit", "sum", "product")),
)  # fmt: skip
"""The page shows the first five metrics, if not told otherwise."""

_OF_DATA = ("patches", "train_mosaics", "operation", "train_images", "redraw", "batch_size")


def hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what a sweep is likely to vary, under the names it is set by."""
    data, schedule, seed = config["data"], config["schedule"], config["seed"]
    one = len({seed[key] for key in ("data", "init", "order")}) == 1
    return {
        "experiment": config["name"],
        "scale": config["scale"],
        "data": data["_target_"].rsplit(".", 1)[-1],
        **{f"lr.{name}": config["lr"][name] for name in networks_of(config)},
        **{f"schedule.{key}": value for key, value in schedule.items()},
        **{f"data.{key}": data[key] for key in _OF_DATA if key in data},
        "precision": config["precision"],
        **({"seed.all": seed["data"]} if one else {f"seed.{key}": seed[key] for key in ("data", "init", "order")}),
    }


def hparams_summaries(params: Mapping[str, Any], metrics: Mapping[str, float], given: set[str]) -> tuple[Any, ...]:
    """Returns what a writer is to be given for a run to have its line.

    Args:
        params: hyperparameters by name.
        metrics: final metrics, under the tags of scalars.
        given: keys that the command gave. The page puts hyperparameters that are known to differ first.
    """
    ordered = {name: metrics[name] for name in (*(n for n in FIRST if n in metrics), *metrics)}
    experiment, *session = hparams(dict(params), ordered)
    content = experiment.value[0].metadata.plugin_data
    held = HParamsPluginData.FromString(content.content)
    for info in held.experiment.hparam_infos:
        info.differs = info.name in given
    content.content = held.SerializeToString()
    return (experiment, *session)


def given_keys(run_dir: Path) -> set[str]:
    """Returns the keys that a run's command gave; none if it was not started by one."""
    try:
        overrides = yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text()) or []
        return {str(override).partition("=")[0].lstrip("+~") for override in overrides}
    except (OSError, yaml.YAMLError):
        return set()
