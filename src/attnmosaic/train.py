"""Trains a where/what pair, or a network with two outputs: ``python -m attnmosaic.train experiment=stagewise``."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from attnmosaic.checks import check
from attnmosaic.cli import describe, guard, run
from attnmosaic.config import PRECISIONS, conf_dir, register, resolve, scaled
from attnmosaic.files import write_atomically
from attnmosaic.lean import import_lightning
from attnmosaic.nodes import check_parts
from attnmosaic.progress import hush
from attnmosaic.runs import CONFIG, ERROR, claimed, earlier_result
from attnmosaic.sweep import end_sweep

log = logging.getLogger("attnmosaic.train")  # also where this is __main__
register()


def train(config: DictConfig) -> dict[str, float]:
    """Trains as a config says, writes everything into ``config.run_dir`` and returns the final metrics.

    A folder that holds the finished run of this config gives its metrics at once; one that holds the beginning of it,
    stopped for whatever reason, goes on from its newest checkpoint.

    Args:
        config: a composition of ``conf/train.yaml``.

    Returns:
        ``{"<split>/<metric>": value}`` for the splits train, test and held_out, measured with the final
        weights in a full pass.

    Raises:
        UserError: the config, the data or the checkpoint named in it will not do; or the folder holds another run.
        RunError: the loss became infinite or not a number.
    """
    check_parts(config)
    config = scaled(config)
    check(config)
    config = resolve(config)
    folder = Path(config.run_dir)
    with claimed(folder):
        settings: Any = OmegaConf.to_container(config)
        if (result := earlier_result(folder, settings)) is not None:
            log.info("finished before: %s", folder)
            return result["metrics"]
        try:
            return _train(config)
        except Exception as error:
            with contextlib.suppress(OSError):  # what went wrong may be the disk
                (folder / ERROR).write_text(describe(error) + "\n")
            raise


def _train(config: DictConfig) -> dict[str, float]:
    # Heavy imports (seconds) only once the config is known to be good.
    import_lightning()
    from attnmosaic.training.build import build_module
    from attnmosaic.training.globals import job_globals
    from attnmosaic.training.make import check_targets, make
    from attnmosaic.training.outcome import final_table, finish_run
    from attnmosaic.training.resume import began_otherwise, check_resume, newest_checkpoint
    from attnmosaic.training.trainer import build_trainer, interruptible

    check_targets(config)
    if config.ckpt_path is None:
        config.ckpt_path = newest_checkpoint(config)
    elif departed := began_otherwise(config):
        config.began_otherwise = departed
    write_atomically(Path(config.run_dir) / CONFIG, OmegaConf.to_yaml(config))
    with job_globals(config.seed.init, config.compute.threads, config.compute.matmul_precision):
        trainer = build_trainer(config, PRECISIONS[config.precision])
        data = make("data", config.data)
        data.prepare_data()
        data.setup()
        module = build_module(config, data)
        if config.ckpt_path is not None:
            check_resume(config, module)
        with interruptible():
            trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
            trainer.validate(module, datamodule=data, verbose=False)
        metrics = finish_run(config, trainer, module)
    log.info("%s", final_table(metrics, module))
    log.info("plots, tables, checkpoints: %s\nTensorBoard: tensorboard --logdir %s", config.run_dir, config.run_dir)
    return metrics


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="train")
def _job(config: DictConfig) -> float:
    hush(config.get("progress", "auto"))
    return guard(train, config)[config.optimized_metric]


def _command() -> None:
    try:
        _job()
    finally:
        end_sweep()


def main() -> None:
    """Runs the command line."""
    run(_command)


if __name__ == "__main__":
    main()
