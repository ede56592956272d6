"""Which settings decide a run's numbers, and the hash of them."""

import hashlib
import json
from typing import Any

from attnmosaic.config.schema import other_networks


def config_hash(config: dict[str, Any]) -> str:
    """Returns a hash of what decides a run's numbers; where it writes, and how it logs, is left out."""
    return hashlib.sha256(json.dumps(decisive(config), sort_keys=True).encode()).hexdigest()[:16]


def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """Returns those settings that decide a run's numbers."""
    beside = {"run_dir", "paths", "logger", "callbacks", "ckpt_path", "optimized_metric", "name", "at_most", "progress"}
    kept = {key: value for key, value in config.items() if key not in beside}
    for key in ("lr", "model", "optimizer", "scheduler"):
        kept[key] = _without(config[key], other_networks(config))
    kept["data"] = _without(config["data"], {"cache_dir", "lock_dir", "download"})
    for source in ("train_set", "test_set"):  # a named data set is the same wherever it lies
        if isinstance(kept["data"].get(source), dict):
            kept["data"][source].pop("root", None)
    kept["compute"] = _without(config["compute"], {"pool"})  # the same numbers wherever it is, bit for bit
    kept["trainer"] = _without(config["trainer"], {"default_root_dir", "profiler", "log_every_n_steps"})
    if deciding := {name: node for name, node in (config["callbacks"] or {}).items() if _decides(node)}:
        kept["callbacks"] = json.loads(json.dumps(deciding).replace(str(config["run_dir"]), "RUN_DIR"))
    return kept


def _decides(callback: Any) -> bool:
    """Whether a callback is one of Lightning's that change how a run goes; others only write down or look on."""
    if not isinstance(callback, dict):
        return False
    return callback["_target_"].rpartition(".")[2] in _DECIDING or callback.get("duration") is not None  # a Timer's


_DECIDING = (
    "EarlyStopping", "StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging",
    "GradientAccumulationScheduler",
)  # fmt: skip


def _without(node: Any, names: set[str]) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: _without(value, names) for key, value in node.items() if key not in names}
