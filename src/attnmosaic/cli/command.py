"""Runs a command: a user error is reported in one line with exit code 2, never as a stack trace."""

import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, OverrideParseException, SearchPathException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from attnmosaic import __version__
from attnmosaic.cli.hints import advice
from attnmosaic.config.resolution import unresolved
from attnmosaic.core.errors import BusyError, DiskError, JobError, RunError, UserError, gpu_memory_trouble, one_line
from attnmosaic.core.files import disk_trouble, write_atomically
from attnmosaic.core.internals import forget_library_configs
from attnmosaic.core.quoting import to_type
from attnmosaic.core.signals import in_order, listen, told_stop
from attnmosaic.core.text import use_substitutes
from attnmosaic.runs.run import CONFIG, ERROR, SWEEP

_TRACES = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
"""Whether the user wants stack traces; read before `run` sets the variable for Hydra."""


def run(job: Callable[[], Any]) -> None:
    """Runs a Hydra main function as a command.

    Exits with 2 after a user's slip, with 1 after a run that failed and with 128 + signal after one of
    `attnmosaic.core.signals.SIGNALS` (130 after Ctrl-C), each told in one line. With ``HYDRA_FULL_ERROR=1`` in the
    environment every error keeps its stack trace.
    """
    sys.argv[1:] = _arguments(sys.argv[1:])
    Plugins.instance()  # imports those that are installed
    forget_library_configs("launcher", "joblib", "submitit_slurm")
    forget_library_configs("sweeper", "optuna")
    listen()
    use_substitutes()
    if _TRACES:
        job()
        return
    logging.raiseExceptions = False  # a disk that is full is told once, and not by each line that finds no room
    threading.excepthook = _unless_told
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand errors on instead of printing them
    try:
        job()
    except Exception as error:
        _fail(error)
    except KeyboardInterrupt as stop:
        signum = getattr(stop, "signum", signal.SIGINT)
        print(told_stop(signum), file=sys.stderr)
        sys.exit(128 + signum)
    finally:
        del os.environ["HYDRA_FULL_ERROR"]


def _arguments(given: list[str]) -> list[str]:
    """Returns the arguments for Hydra; answers ``--version`` by itself, as Hydra reports its own alone."""
    if "--version" in given:
        print(f"attnmosaic {__version__} (Hydra {hydra.__version__})")
        sys.exit()
    # Resolved, Hydra's section needs the rest of the config, which --cfg hydra removes first.
    shown = [*itertools.pairwise(given)]
    if "--resolve" in given and (("--cfg", "hydra") in shown or ("-c", "hydra") in shown or "--cfg=hydra" in given):
        rest = [word for word in given if word not in ("--cfg", "-c", "hydra", "--cfg=hydra")]
        part = [] if {"--package", "-p"} & {*rest} else ["--package", "hydra"]
        return [*rest, "--cfg", "all", *part]
    return given


def _unless_told(failed: threading.ExceptHookArgs) -> None:
    """Shows what a thread failed with, but for what the disk is to blame for: who waits for the thread tells that."""
    if failed.exc_value is None or disk_trouble(failed.exc_value) is None:
        threading.__excepthook__(failed)


def guard(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Runs the task of one job; a slip ends a single run at once, but only its own job of a sweep."""
    of = HydraConfig.get()
    if of.job.config_name == "train" and of.mode == RunMode.RUN:
        section: Any = of.run
        timed = "${now:" in str(unresolved(section, "dir"))
        folder = of.runtime.output_dir if of.job.chdir else section.dir
        in_order(False, lambda: how_to_go_on("hydra.run.dir", folder, timed))
    try:
        return task(config)
    except BusyError as error:  # what is in the folder, log and all, is the other process's
        if of.mode == RunMode.RUN:
            _fail(error)
        raise
    except Exception as error:
        _write_down(describe(error))
        if _TRACES or HydraConfig.get().mode == RunMode.MULTIRUN or told(error) is None:
            raise
        _fail(error)


def guard_sweep(task: Callable[[DictConfig], Any], config: DictConfig) -> None:
    """Runs what comes before a sweep's jobs; a slip ends the sweep: Hydra would make a warning of it."""
    try:
        task(config)
    except Exception as error:
        if _TRACES:
            traceback.print_exc()
            sys.exit(1)
        _fail(error)


def how_to_go_on(key: str, folder: str, timed: bool) -> str:
    """Returns what to add to the news of a stop: how to go on with what lies in a folder, if there is any of it.

    Args:
        key: the key that names the folder on the command line.
        folder: the folder.
        timed: whether its name has the time, so that the same command alone would have another.
    """
    if not any(Path(folder, name).exists() for name in (CONFIG, SWEEP)):
        return ""
    return f"; the same command{f' with {to_type(key, folder)}' if timed else ''} goes on"


def _write_down(message: str) -> None:
    """Writes an error into the job's log, and not also on the terminal, where it is told anyway.

    A run that never began has it in its folder, too; in a folder with a run the error is not that run's.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().job.config_name == "train" and not (folder / CONFIG).exists():
        with contextlib.suppress(OSError):
            write_atomically(folder / ERROR, message)
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def describe(error: BaseException) -> str:
    """Returns what to write down of an error: its line, or its trace if it needs one."""
    line = told(error)
    return line[0] if line is not None else "".join(traceback.format_exception(error)).rstrip()


def blames_disk(error: BaseException) -> bool:
    """Whether the disk is to blame for an error."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, DiskError) or disk_trouble(link) is not None:
            return True
        link = link.__cause__
    return False


def told(error: BaseException) -> tuple[str, int] | None:
    """Returns what to say of an error in one line and the exit code, or None for one that needs its trace."""
    link: BaseException | None = error
    while link is not None:  # Hydra wraps what a constructor raises
        if isinstance(link, UserError):
            return str(link), 2
        if isinstance(link, RunError):
            return str(link), 1
        if (line := disk_trouble(link) or gpu_memory_trouble(link)) is not None:
            return line, 1
        link = link.__cause__
    if isinstance(error, SearchPathException) or _about_flags(error):
        return f"{str(error).strip()} (--hydra-help explains the flags)", 2
    if isinstance(error, (ConfigCompositionException, OverrideParseException, OmegaConfBaseException)):
        return advice(error, sys.argv[1:]), 2
    if isinstance(error, ValueError) and "Config group override" in str(error):
        given = [override for override in sys.argv[1:] if override.endswith("=null")]
        return f"{' '.join(given)}: a group takes the name of a file in conf/; logger=none leaves the logger out", 2
    return None


def _about_flags(error: BaseException) -> bool:
    """Whether Hydra itself refuses a command's flags, ``--cfg job -m`` say."""
    if type(error) is not ValueError or error.__traceback__ is None or "Config group override" in str(error):
        return False
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(hydra.__file__).parent)


def reason(error: BaseException) -> str:
    """Returns what to say in one line of the error that a job of a sweep ended with."""
    line = told(error)
    said = line[0] if line is not None else f"{type(error).__name__}: {error}"
    return one_line(str(error) if isinstance(error, JobError) else said)


def _fail(error: Exception) -> NoReturn:
    line = told(error)
    if line is None:
        raise error
    print(f"error: {one_line(line[0])}", file=sys.stderr)
    sys.exit(line[1])
