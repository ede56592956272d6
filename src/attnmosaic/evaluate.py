"""Evaluates a trained pair or network again: ``python -m attnmosaic.evaluate ckpt_path=.../last.ckpt``."""

import json
import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli.command import guard, run
from attnmosaic.config.keys import check_keys
from attnmosaic.config.paths import absolute, where_started, with_absolute_paths
from attnmosaic.config.resolution import resolve
from attnmosaic.config.schema import PRECISIONS, EvaluateConfig, conf_dir, register
from attnmosaic.config.trusted import check_trusted
from attnmosaic.config.validation import check, check_ckpt_path
from attnmosaic.core.errors import UserError
from attnmosaic.core.files import write_atomically
from attnmosaic.core.library_internals import import_lightning

log = logging.getLogger(__name__)
register()

TARGET_KEYS = ("data", "model", "objective", "optimizer", "scheduler")
"""Sections of a saved config whose nodes are instantiated."""


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluates a checkpoint on the data of its own run.

    Args:
        config: a composition of ``conf/evaluate.yaml``. Its ``data`` and ``compute`` sections replace settings of the
            run, for example ``data.root=DIR`` for images that were moved.

    Returns:
        ``{"<split>/<metric>": value}``; equal to the run's ``result.json`` if no setting was replaced.

    Raises:
        UserError: the checkpoint or its data are unusable, or the checkpoint uses a class that is not trusted.
    """
    check_keys(config, EvaluateConfig)
    if OmegaConf.is_missing(config, "ckpt_path"):
        raise UserError("ckpt_path: required; type ckpt_path=outputs/.../checkpoints/last.ckpt")
    with where_started():
        check_ckpt_path(config.ckpt_path)
    ckpt_path = absolute(config.ckpt_path)
    import_lightning()
    from attnmosaic.training.checkpointing import CONVOLUTIONS, check_weights_fit, read_saved
    from attnmosaic.training.factory import build_module
    from attnmosaic.training.instantiation import build_object, check_targets
    from attnmosaic.training.results import evaluation_of, final_table
    from attnmosaic.training.runtime import job_globals, threads_for
    from attnmosaic.training.trainer import build_trainer, interruptible

    checkpoint = read_saved(ckpt_path)
    check_trusted(checkpoint["hyper_parameters"]["config"], TARGET_KEYS, ckpt_path, config.trust)
    saved = OmegaConf.create(checkpoint["hyper_parameters"]["config"])
    trained = OmegaConf.merge(
        saved, {"data": config.data, "compute": config.compute, "ckpt_path": None, "run_dir": config.run_dir}
    )
    assert isinstance(trained, DictConfig)
    trained.trainer = config.trainer
    trained.logger = trained.callbacks = None
    trained.paths.cache = config.paths.cache  # code is compiled and loaded there, so never take it from a file
    for key in ("cache_dir", "lock_dir"):  # these folders are written to
        if key in trained.data and key not in config.data:
            trained.data[key] = config.paths.cache
    for part in ("train_set", "test_set"):
        if config.paths.data is not None and "root" in (trained.data.get(part) or {}):
            trained.data[part].root = config.paths.data
    with where_started():
        check(trained)
    run = resolve(with_absolute_paths(trained))
    check_targets(run)
    threads = threads_for(run["compute"]["threads"], checkpoint)
    with job_globals(run["seed"]["init"], threads, run["compute"]["matmul_precision"]):
        trainer = build_trainer(run, PRECISIONS[run["precision"]])
        data = build_object("data", run["data"])
        data.setup()
        module = build_module(run, data)
        check_weights_fit(checkpoint, module, ckpt_path)
        module.load_state_dict(checkpoint["state_dict"])
        module.convolutions = checkpoint.get(CONVOLUTIONS)
        with interruptible():
            trainer.validate(module, datamodule=data, verbose=False)
        metrics = evaluation_of(module)
    stamp = {"scale": "smoke"} if module.scale == "smoke" else {}
    folder = Path(run["run_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "evaluation.json", json.dumps({**metrics, **stamp}, indent=2))
    log.info("%s", final_table(metrics, module))
    log.info("metrics written to %s", folder / "evaluation.json")
    return metrics


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="evaluate")
def _job(config: DictConfig) -> None:
    guard(evaluate, config)


def main() -> None:
    """Runs the command line."""
    run(_job)


if __name__ == "__main__":
    main()
