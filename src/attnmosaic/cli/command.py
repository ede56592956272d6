"""Runs a command and reports its errors in one line each: exit code 2 for a user error, 1 for a run that failed."""

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
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
from attnmosaic.cli.hydra_errors import explain_error
from attnmosaic.config.resolution import unresolved
from attnmosaic.core.errors import BusyError, DiskError, JobError, RunError, UserError, gpu_memory_message, one_line
from attnmosaic.core.files import disk_message, write_atomically
from attnmosaic.core.library_internals import forget_library_configs
from attnmosaic.core.quoting import typed_override
from attnmosaic.core.signals import end_in_order, listen, stop_message
from attnmosaic.core.text import use_substitutes
from attnmosaic.runs.run import CONFIG, ERROR, SWEEP

_TRACES = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
"""Whether the user wants stack traces; read before `run` sets the variable for Hydra."""


def run(job: Callable[[], Any]) -> None:
    """Runs a Hydra main function as a command.

    Exits with 2 after a user error, with 1 after a run that failed and with 128 + signal after one of
    `attnmosaic.core.signals.SIGNALS` (130 after Ctrl-C), each reported in one line. With ``HYDRA_FULL_ERROR=1`` in the
    environment every error keeps its stack trace.
    """
    if "--version" in sys.argv[1:]:  # Hydra reports its own alone
        print(f"attnmosaic {__version__} (Hydra {hydra.__version__})")
        sys.exit()
    Plugins.instance()  # imports those that are installed
    forget_library_configs("launcher", "joblib", "submitit_slurm")
    forget_library_configs("sweeper", "optuna")
    listen()
    use_substitutes()
    if _TRACES:
        job()
    else:
        _run_without_traces(job)


def _run_without_traces(job: Callable[[], Any]) -> None:
    logging.raiseExceptions = False  # a full disk is reported once, and not for each line that cannot be logged
    threading.excepthook = _report_thread
    os.environ["HYDRA_FULL_ERROR"] = "1"  # has Hydra raise errors instead of printing them
    try:
        job()
    except Exception as error:
        _fail(error)
    except KeyboardInterrupt as stop:
        signum = getattr(stop, "signum", signal.SIGINT)
        print(stop_message(signum), file=sys.stderr)
        sys.exit(128 + signum)
    finally:
        del os.environ["HYDRA_FULL_ERROR"]


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Prints the trace of a thread's error, except for errors of the disk, which the main thread reports."""
    if failed.exc_value is None or disk_message(failed.exc_value) is None:
        threading.__excepthook__(failed)


def guard(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Runs the task of one job; a user error ends a single run at once, but only its own job of a sweep."""
    of = HydraConfig.get()
    alone = of.mode == RunMode.RUN
    if of.job.config_name == "train" and alone:
        section: Any = of.run
        timed = "${now:" in str(unresolved(section, "dir"))
        folder = of.runtime.output_dir if of.job.chdir else section.dir
        end_in_order(False, lambda: how_to_resume("hydra.run.dir", folder, timed))
    try:
        return task(config)
    except Exception as error:
        if not isinstance(error, BusyError):  # else the folder and its log are the other process's
            _log_error(describe(error))
        if alone and not _TRACES and line_and_code(error) is not None:
            _fail(error)
        raise


def guard_sweep(task: Callable[[DictConfig], Any], config: DictConfig) -> None:
    """Runs the preparation of a sweep; an error ends the sweep, which Hydra would reduce to a warning."""
    try:
        task(config)
    except Exception as error:
        if _TRACES:
            traceback.print_exc()
            sys.exit(1)
        _fail(error)


def how_to_resume(key: str, folder: str, timed: bool) -> str:
    """Returns how to resume what lies in a folder, as an addition to the report of a stop; empty if nothing does.

    Args:
        key: the key that names the folder on the command line.
        folder: the folder.
        timed: whether its name has the time, so that the same command alone would take another.
    """
    if not any(Path(folder, name).exists() for name in (CONFIG, SWEEP)):
        return ""
    return f"; the same command{f' with {typed_override(key, folder)}' if timed else ''} resumes"


def _log_error(message: str) -> None:
    """Writes an error into the job's log, and for a run that never began into its folder; not on the terminal."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().job.config_name == "train" and not (folder / CONFIG).exists():
        with contextlib.suppress(OSError):
            write_atomically(folder / ERROR, message)
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def describe(error: BaseException) -> str:
    """Returns the line of an error for a log, or its trace if no line reports it."""
    line = line_and_code(error)
    return line[0] if line is not None else "".join(traceback.format_exception(error)).rstrip()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what it was raised from: Hydra wraps the errors of constructors."""
    while error is not None:
        yield error
        error = error.__cause__


def is_disk_error(error: BaseException) -> bool:
    """Whether the disk is to blame for an error."""
    return any(isinstance(link, DiskError) or disk_message(link) is not None for link in _causes(error))


def line_and_code(error: BaseException) -> tuple[str, int] | None:
    """Returns the line that reports an error and the exit code, or None for an error that needs its trace."""
    for link in _causes(error):
        if isinstance(link, (UserError, RunError)):
            return str(link), 2 if isinstance(link, UserError) else 1
        if (line := disk_message(link) or gpu_memory_message(link)) is not None:
            return line, 1
    if isinstance(error, (ConfigCompositionException, OverrideParseException, OmegaConfBaseException)):
        return explain_error(error, sys.argv[1:]), 2
    if isinstance(error, ValueError) and "Config group override" in str(error):
        given = [override for override in sys.argv[1:] if override.endswith("=null")]
        return f"{' '.join(given)}: a group takes the name of a file in conf/; logger=none leaves the logger out", 2
    if isinstance(error, SearchPathException) or _is_hydras(error):
        return f"{str(error).strip()} (--hydra-help explains the flags)", 2
    return None


def _is_hydras(error: BaseException) -> bool:
    """Whether Hydra itself refuses a command's flags, ``--cfg job -m`` for example."""
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(hydra.__file__).parent)


def error_line(error: BaseException) -> str:
    """Returns the line that reports the error of a sweep's job."""
    if isinstance(error, JobError):
        return one_line(str(error))
    line = line_and_code(error)
    return one_line(line[0] if line is not None else f"{type(error).__name__}: {error}")


def _fail(error: Exception) -> NoReturn:
    line = line_and_code(error)
    if line is None:
        raise error
    print(f"error: {one_line(line[0])}", file=sys.stderr)
    sys.exit(line[1])
