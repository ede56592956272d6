"""Runs a command and reports an error in one line: exit code 2 for a user error, 1 for a failed run."""

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
"""Whether the user requests stack traces; read before `run` changes the variable."""


def run(job: Callable[[], Any]) -> None:
    """Runs a Hydra main function as a command: reports errors in one line and exits with their code.

    The exit code is 2 after a user error, 1 after a failed run, and 128 + signal number after a signal of
    `attnmosaic.core.signals.SIGNALS` (130 after Ctrl-C); each is reported in one line. With the environment variable
    ``HYDRA_FULL_ERROR=1`` errors are reported with their stack traces.
    """
    if "--version" in sys.argv[1:]:  # Hydra would print only its own version
        print(f"attnmosaic {__version__} (Hydra {hydra.__version__})")
        sys.exit()
    Plugins.instance()  # imports the installed plugins, which register configs
    forget_library_configs("launcher", "joblib", "submitit_slurm")
    forget_library_configs("sweeper", "optuna")
    listen()
    use_substitutes()
    if _TRACES:
        job()
    else:
        _run_without_traces(job)


def _run_without_traces(job: Callable[[], Any]) -> None:
    logging.raiseExceptions = False  # otherwise a full disk is reported for each lost line of the log
    threading.excepthook = _report_thread
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them
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
    """Prints the stack trace of an error in a thread, except for disk errors, which the main thread reports."""
    if failed.exc_value is None or disk_message(failed.exc_value) is None:
        threading.__excepthook__(failed)


def guard(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Runs the task of one job; a user error ends the command for a single run, but only the job in a sweep."""
    hydra_config = HydraConfig.get()
    single = hydra_config.mode == RunMode.RUN
    if hydra_config.job.config_name == "train" and single:
        section: Any = hydra_config.run
        timed = "${now:" in str(unresolved(section, "dir"))
        folder = hydra_config.runtime.output_dir if hydra_config.job.chdir else section.dir
        end_in_order(False, lambda: how_to_resume("hydra.run.dir", folder, timed))
    try:
        return task(config)
    except Exception as error:
        if not isinstance(error, BusyError):  # the busy folder and its log belong to the other process
            _log_error(describe(error))
        if single and not _TRACES and line_and_code(error) is not None:
            _fail(error)
        raise


def guard_sweep(task: Callable[[DictConfig], Any], config: DictConfig) -> None:
    """Runs the preparation of a sweep; an error ends the command, while Hydra alone would only print a warning."""
    try:
        task(config)
    except Exception as error:
        if _TRACES:
            traceback.print_exc()
            sys.exit(1)
        _fail(error)


def how_to_resume(key: str, folder: str, timed: bool) -> str:
    """Returns the advice to resume a run or sweep, which is added to the line that reports a signal.

    Empty if no run or sweep has begun in the folder.

    Args:
        key: the key that sets the folder on the command line.
        folder: folder of the run or sweep.
        timed: whether the folder's name contains the time, so that the same command would use another folder.
    """
    if not any(Path(folder, name).exists() for name in (CONFIG, SWEEP)):
        return ""
    return f"; to resume, run the same command {f'with {typed_override(key, folder)}' if timed else 'again'}"


def _log_error(message: str) -> None:
    """Writes an error to the job's log file, and to ``error.txt`` if the run has not begun; prints nothing."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().job.config_name == "train" and not (folder / CONFIG).exists():
        with contextlib.suppress(OSError):
            write_atomically(folder / ERROR, message)
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def describe(error: BaseException) -> str:
    """Returns the text of an error for a log: its line if it has one, otherwise its stack trace."""
    line = line_and_code(error)
    return line[0] if line is not None else "".join(traceback.format_exception(error)).rstrip()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes, because Hydra wraps errors of constructors in its own exception."""
    while error is not None:
        yield error
        error = error.__cause__


def is_disk_error(error: BaseException) -> bool:
    """Whether a disk error caused an error."""
    return any(isinstance(link, DiskError) or disk_message(link) is not None for link in _causes(error))


def line_and_code(error: BaseException) -> tuple[str, int] | None:
    """Returns an error's line and the exit code, or None for an unexpected error, which needs its stack trace."""
    for link in _causes(error):
        if isinstance(link, (UserError, RunError)):
            return str(link), 2 if isinstance(link, UserError) else 1
        if (line := disk_message(link) or gpu_memory_message(link)) is not None:
            return line, 1
    if isinstance(error, (ConfigCompositionException, OverrideParseException, OmegaConfBaseException)):
        return explain_error(error, sys.argv[1:]), 2
    if isinstance(error, ValueError) and "Config group override" in str(error):
        overrides = [override for override in sys.argv[1:] if override.endswith("=null")]
        return (
            f"{' '.join(overrides)}: a config group needs the name of a file in conf/; type for example logger=none",
            2,
        )
    if isinstance(error, SearchPathException) or _raised_by_hydra(error):
        return f"{str(error).strip()} (--hydra-help explains the flags)", 2
    return None


def _raised_by_hydra(error: BaseException) -> bool:
    """Whether Hydra itself refuses the flags of a command, for example ``--cfg job -m``."""
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(hydra.__file__).parent)


def error_line(error: BaseException) -> str:
    """Returns the line that reports an error of a job in a sweep."""
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
