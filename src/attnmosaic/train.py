"""Trains a where/what pair, or a network with two outputs: ``python -m attnmosaic.train experiment=stagewise``."""

if __name__ == "__main__":  # before the imports, which take a second
    from attnmosaic.core.signals import listen

    listen()

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.cli.command import describe, guard, run
from attnmosaic.cli.hydra_errors import explain_error
from attnmosaic.cli.progress import filter_console, finding_level, run_logging
from attnmosaic.config.keys import check_keys, check_parts
from attnmosaic.config.paths import where_started, with_absolute_paths
from attnmosaic.config.resolution import resolve, with_scale
from attnmosaic.config.schema import TrainConfig, conf_dir, register
from attnmosaic.config.validation import check
from attnmosaic.core.errors import BusyError, Pruned, RunError, UserError
from attnmosaic.core.files import write_atomically
from attnmosaic.core.library_internals import import_lightning
from attnmosaic.core.processes import launched_rank
from attnmosaic.core.quoting import in_shell, path_word
from attnmosaic.runs.run import CONFIG, ERROR, PRUNED, earlier_result, lock_run
from attnmosaic.sweeps.hydra_callback import SKIPPED_JOBS, can_skip_job, end_sweep
from attnmosaic.training.ranks import Ranks, follow, leading

log = logging.getLogger("attnmosaic.train")  # also where this is __main__
register()


def train(config: DictConfig) -> dict[str, float]:
    """Trains as a config says, writes everything into ``config.run_dir`` and returns the final metrics.

    A folder that holds the finished run of this config gives its metrics at once; one that holds the beginning of it,
    stopped for whatever reason, resumes from its newest checkpoint. Without a command, from a notebook say, each call
    has a folder of its own, ``outputs/NAME/TIME``, unless ``run_dir`` was given; ``config.run_dir`` then names it.

    Args:
        config: a composition of ``conf/train.yaml``.

    Returns:
        ``{"<split>/<metric>": value}`` for the splits train, test and held_out, measured with the final
        weights in a full pass.

    Raises:
        UserError: the config, the data or the checkpoint named in it will not do; or the folder holds another run.
        RunError: the loss became infinite or not a number; or the folder has vanished.
        Pruned: a search ended the run early; its folder says so, and has no result.
    """
    alone = not HydraConfig.initialized()
    try:
        run_config = _checked(config, alone)
    except OmegaConfBaseException as error:
        raise UserError(explain_error(error, [])) from error
    folder = Path(run_config["run_dir"])
    with lock_run(folder):
        if (result := earlier_result(folder, run_config)) is not None:
            log.info("finished before: %s", folder)
            return result["metrics"]
        try:
            to_log = run_logging(folder, run_config["progress"]) if alone else contextlib.nullcontext()
            with to_log, Ranks(run_config) as ranks:
                return _train(run_config, ranks)
        except Pruned as end:
            write_atomically(folder / PRUNED, str(end))
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # what went wrong may be the disk
                write_atomically(folder / ERROR, describe(error))
            if isinstance(error, OSError) and not folder.is_dir():
                raise RunError(f"run_dir: '{folder}' has vanished; give the command again, to begin anew") from error
            raise


def _checked(config: DictConfig, alone: bool) -> dict[str, Any]:
    """Returns a run's config as it is saved: checked, resolved, with absolute paths.

    Args:
        config: as composed.
        alone: no command has given the run a folder.
    """
    check_parts(config)
    if alone and Path(config.run_dir).exists():
        OmegaConf.clear_cache(config)  # its time is another now, and so is the folder that is named by it
    str(config.run_dir)  # before copies are made of it, which then have the same time
    taken = with_scale(config)
    with where_started():
        check(taken)
    check_keys(config, TrainConfig)
    return resolve(with_absolute_paths(taken))


def _train(config: dict[str, Any], ranks: Ranks) -> dict[str, float]:
    # Heavy imports (seconds) only once the config is known to be good.
    import_lightning()
    from attnmosaic.training.fit import fit
    from attnmosaic.training.instantiation import check_targets
    from attnmosaic.training.results import final_table, finish_run
    from attnmosaic.training.resume import find_checkpoint
    from attnmosaic.training.runtime import job_globals, threads_for
    from attnmosaic.training.trainer import reason_of_end

    check_targets(config)
    checkpoint = find_checkpoint(config)
    write_atomically(Path(config["run_dir"]) / CONFIG, OmegaConf.to_yaml(config))
    threads = threads_for(config["compute"]["threads"], checkpoint)
    processes = 1 if ranks.info is None else ranks.info.local_count
    with job_globals(config["seed"]["init"], threads, config["compute"]["matmul_precision"], processes):
        with ranks.joined():
            trainer, module = fit(config, checkpoint, ranks.info)
        metrics = finish_run(config, trainer, module)
    log.info("%s", final_table(metrics, module))
    for finding in module.findings:
        log.log(finding_level(), "%s", finding)
    if reason := reason_of_end(trainer, epochs := config["schedule"]["epochs"]):
        log.info("ended after epoch %d of %d: %s", trainer.current_epoch, epochs, reason)
    dashboards = in_shell("tensorboard", "--logdir", path_word(config["run_dir"]))
    log.info("plots, tables, checkpoints: %s\nTensorBoard: %s", config["run_dir"], dashboards)
    return metrics


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="train")
def _job(config: DictConfig) -> float | None:
    filter_console(config.get("progress", "auto"))
    try:
        return guard(_measure, config)
    except BusyError:
        if can_skip_job():
            return None
        raise


def _measure(config: DictConfig) -> float | None:
    """Returns what a sweeper gets of a run; None of one that it ended early."""
    try:
        return train(config)[config.optimized_metric]
    except Pruned as end:
        log.info("pruned: %s", end)
        return None


def _command() -> None:
    skipped = 0
    try:
        _job()
    finally:
        skipped = end_sweep()
    if skipped:
        sys.exit(SKIPPED_JOBS)


def main() -> None:
    """Runs the command line; a process that torchrun or srun has started beside rank 0 trains along instead."""
    info = launched_rank(os.environ)
    if info is not None and info.rank > 0:
        follow(info)
    with leading(info):
        run(_command)


if __name__ == "__main__":
    main()
