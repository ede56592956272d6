"""Trains a where/what pair, or a network with two outputs: ``python -m attnmosaic.train experiment=stagewise``."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli import guard, run
from attnmosaic.config import PRECISIONS, check, conf_dir, register

log = logging.getLogger(__name__)
register()


def train(config: DictConfig) -> dict[str, float]:
    """Trains as a config says, writes everything into ``config.run_dir`` and returns the final metrics.

    Args:
        config: a composition of ``conf/train.yaml``.

    Returns:
        ``{"<split>/<metric>": value}`` for the splits train, test and held_out, measured with the final
        weights in a full pass.

    Raises:
        UserError: the config, the data or the checkpoint named in it will not do.
        RunError: the loss became infinite or not a number.
    """
    check(config)
    # Heavy imports (seconds) only once the config is known to be good.
    from attnmosaic.training.build import build_module
    from attnmosaic.training.globals import job_globals
    from attnmosaic.training.make import check_targets, make
    from attnmosaic.training.outcome import final_table, finish_run, resolve
    from attnmosaic.training.resume import check_resume
    from attnmosaic.training.trainer import build_trainer

    config = resolve(config)
    check_targets(config)
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, Path(config.run_dir) / "config.yaml")
    with job_globals(config.seed.init, config.compute.threads, config.compute.matmul_precision):
        trainer = build_trainer(config, PRECISIONS[config.precision])
        data = make("data", config.data)
        data.prepare_data()
        data.setup()
        module = build_module(config, data)
        if config.ckpt_path is not None:
            check_resume(config, module)
        trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
        trainer.validate(module, datamodule=data, verbose=False)
        metrics = finish_run(config, trainer, module)
    log.info("%s", final_table(metrics, module))
    log.info("plots, tables, checkpoints: %s\nTensorBoard: tensorboard --logdir %s", config.run_dir, config.run_dir)
    return metrics


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="train")
def _job(config: DictConfig) -> float:
    return guard(train, config)[config.optimized_metric]


def main() -> None:
    """Runs the command line."""
    run(_job)


if __name__ == "__main__":
    main()
