"""Trains a where/what pair, or a network with two outputs: ``python -m attnmosaic.train experiment=stagewise``."""

if __name__ == "__main__":  # before the imports below, which take a second
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
from attnmosaic.core.quoting import command, in_shell, path_word
from attnmosaic.runs.run import CONFIG, ERROR, PRUNED, earlier_result, lock_run
from attnmosaic.sweeps.hydra_callback import SKIPPED_JOBS, can_skip_job, end_sweep
from attnmosaic.training.ranks import Ranks, follow, leading

log = logging.getLogger("attnmosaic.train")  # the same name if this module is __main__
register()


def train(config: DictConfig) -> dict[str, float]:
    """Trains a run, writes all its files to ``config.run_dir`` and returns the final metrics.

    If the folder has a finished run of the same config, returns its metrics without training. If the folder has an
    unfinished run of the same config, resumes from its newest checkpoint. Without a command (in a notebook), each call
    uses a new folder, ``outputs/NAME/TIME``, unless ``run_dir`` is set; ``config.run_dir`` is then the path.

    Args:
        config: the composed config ``conf/train.yaml``.

    Returns:
        ``{"<split>/<metric>": value}`` for the splits train, test and held_out, measured with the final
        weights in a full pass.

    Raises:
        UserError: the config, its data or its checkpoint are not usable, or the folder has another run.
        RunError: the loss became infinite or not a number, or the folder was deleted.
        Pruned: a search ended the run early; the folder then has ``pruned.txt`` and no result.
    """
    without_command = not HydraConfig.initialized()
    try:
        run_config = _checked(config, without_command)
    except OmegaConfBaseException as error:
        raise UserError(explain_error(error, [])) from error
    folder = Path(run_config["run_dir"])
    with lock_run(folder):
        if (result := earlier_result(folder, run_config)) is not None:
            log.info("already finished, not run again: %s", folder)
            return result["metrics"]
        try:
            logging_set_up = (
                run_logging(folder, run_config["progress"]) if without_command else contextlib.nullcontext()
            )
            with logging_set_up, Ranks(run_config) as ranks:
                return _train(run_config, ranks)
        except Pruned as end:
            write_atomically(folder / PRUNED, str(end))
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the error may be a disk error
                write_atomically(folder / ERROR, describe(error))
            if isinstance(error, OSError) and not folder.is_dir():
                raise RunError(f"run_dir: '{folder}' was deleted; run the same command to start again") from error
            raise


def _checked(config: DictConfig, without_command: bool) -> dict[str, Any]:
    """Returns a run's config in the form in which it is saved: checked, resolved and with absolute paths.

    Args:
        config: the composed config.
        without_command: whether Python code has called `train`, so that no command has chosen a folder.
    """
    check_parts(config)
    if without_command and Path(config.run_dir).exists():
        OmegaConf.clear_cache(config)  # the folder's name contains the time: a new time gives a new folder
    str(config.run_dir)  # resolves the time now, so that all copies of the config have the same time
    scaled = with_scale(config)
    with where_started():
        check(scaled)
    check_keys(config, TrainConfig)
    return resolve(with_absolute_paths(scaled))


def _train(config: dict[str, Any], ranks: Ranks) -> dict[str, float]:
    # These imports take seconds, so they follow the checks of the config.
    import_lightning()
    from attnmosaic.callbacks.figures import some_figures_missing
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
    folder = path_word(config["run_dir"])
    more = f"all figures: {command('draw', folder)}\n" if some_figures_missing(trainer) else ""
    dashboards = in_shell("tensorboard", "--logdir", folder)
    log.info("plots, tables, checkpoints: %s\n%sTensorBoard: %s", config["run_dir"], more, dashboards)
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
    """Returns the metric of a run that a sweeper optimizes, or None if a search pruned the run."""
    try:
        return train(config)[config.optimized_metric]
    except Pruned as end:
        log.info("pruned: %s", end)
        return None


def _command() -> None:
    skipped, stopped = 0, False
    try:
        _job()
    except KeyboardInterrupt:
        stopped = True
        raise
    finally:
        skipped = end_sweep(plot=not stopped)
    if skipped:
        sys.exit(SKIPPED_JOBS)


def main() -> None:
    """Runs the command line, or for a rank above 0 (torchrun, srun) trains with the config from rank 0."""
    info = launched_rank(os.environ)
    if info is not None and info.rank > 0:
        follow(info)
    with leading(info):
        run(_command)


if __name__ == "__main__":
    main()
