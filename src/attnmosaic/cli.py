"""What every command shares: a user's slip is one line and exit code 2, never a stack trace."""

import contextlib
import itertools
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from attnmosaic import __version__
from attnmosaic.commands import as_override, in_quotes, in_shell, parsed, to_type
from attnmosaic.config import conf_dir
from attnmosaic.errors import (
    BusyError,
    DiskError,
    JobError,
    RunError,
    UserError,
    gpu_memory_trouble,
    nearest,
    not_among,
    one_line,
)
from attnmosaic.files import disk_trouble, write_atomically
from attnmosaic.runs import CONFIG, ERROR, SWEEP
from attnmosaic.stopping import in_order, listen, told_stop
from attnmosaic.streams import use_substitutes

_TRACES = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
"""Whether the user wants stack traces; read before `run` sets the variable for Hydra."""


def run(job: Callable[[], Any]) -> None:
    """Runs a Hydra main function as a command.

    Exits with 2 after a user's slip, with 1 after a run that failed and with 128 + signal after one of
    `attnmosaic.stopping.SIGNALS` (130 after Ctrl-C), each told in one line. With ``HYDRA_FULL_ERROR=1`` in the
    environment every error keeps its stack trace.
    """
    sys.argv[1:] = _arguments(sys.argv[1:])
    # These files of conf/hydra are ours; Hydra would hold them against the schemas that libraries have of their names.
    # submitit_local starts all jobs at once, whatever the machine: joblib is what there is instead.
    Plugins.instance()  # imports the libraries', if they are installed
    for group, name in (
        ("launcher", "joblib.yaml"),
        ("launcher", "submitit_slurm.yaml"),
        ("launcher", "submitit_local.yaml"),
        ("sweeper", "optuna.yaml"),
    ):
        ConfigStore.instance().repo["hydra"][group].pop(name, None)
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
        timed = "${now:" in str(section._get_node("dir")._value())
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


def advice(error: Exception, overrides: list[str]) -> str:
    """Says in one line what Hydra or OmegaConf found wrong, and what to type instead.

    Args:
        error: what they raised.
        overrides: the command line.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _unknown_option(error.missing_cfg_file, error.options, overrides)
    text = str(error)
    if swept := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        instead = _as_text(swept[1], overrides)
        return f"{text.splitlines()[0]}; add -m to run one job for each value{instead}"
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"{error.override}: an override is key=value, {to_type(_FIRST_KEYS[_door()], error.override)} say"
    if isinstance(error, OverrideParseException):
        return _not_parsed(error, overrides)
    if "UserError raised while resolving interpolation: " in text:  # a resolver's own
        return text.splitlines()[0].partition(": ")[2]
    if key := re.search(r"Could not override '([\w./@]+)'", text):
        return _unknown_key(key[1], overrides)
    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException):
        return " ".join(map(str.strip, text.splitlines()[:2]))
    where, what = text.splitlines()[0], str(cause).splitlines()[0]
    if cause.full_key in _SECTIONS:
        return f"{cause.full_key}: is a section of keys; type {_SECTIONS[cause.full_key]}"
    message = f"{cause.full_key}: {what}" if cause.full_key else f"{where} {what}"
    return message + _key_as_text(cause.full_key, overrides)


_FIRST_KEYS = {"train": "experiment", "evaluate": "ckpt_path", "explain": "images", "predict": "image"}
"""What a word without a key is probably meant for, by command."""


def _not_parsed(error: OverrideParseException, overrides: list[str]) -> str:
    key, _, value = error.override.partition("=")
    lists = f"; quote lists: '{key}=[a,b]'" if value.lstrip().startswith("[") else ""
    why = str(error).splitlines()[0]
    why = "a character that needs quotes" if why.startswith("LexerNoViableAlt") else why
    return f"{error.override}: is not a valid override ({why}){lists}{_as_text(error.override, overrides)}"


def _key_as_text(key: str | None, overrides: list[str]) -> str:
    given = [each for each in overrides if key and each.lstrip("+").startswith(f"{key}=")]
    return _as_text(given[-1], overrides) if given else ""


def _as_text(given: str, overrides: list[str]) -> str:
    """Returns the advice to give an override's value as text, or nothing where Hydra would not take that either."""
    key, _, value = given.partition("=")
    instead = f"{key}={in_quotes(value)}"  # in which an interpolation stays one
    others = [each for each in _plain(overrides) if each != given]
    useless = as_override(key, value) == given or parsed(instead) is None
    if useless or (_composed(others) and not _composed([*others, instead])):
        return ""
    return f"; as text: {in_shell(instead)}"


_SECTIONS = {
    "seed": "seed.all=1",
    "lr": "lr.what=0.01 lr.where=0.01",
    "compute": "compute.threads=1",
    "paths": "paths.data=DIR",
}


def _unknown_option(path: str, options: Iterable[str], overrides: list[str]) -> str:
    groups = (override.partition("=")[0] for override in overrides)
    group = max((g for g in groups if path.startswith(f"{g}/")), key=len, default=path.rpartition("/")[0])
    folder = Path(conf_dir(), "experiment")  # the only group with choices in folders of their own
    nested = (file.relative_to(folder).with_suffix("").as_posix() for file in sorted(folder.glob("*/*.yaml")))
    allowed = [*options, *(nested if group == "experiment" else ())]
    return str(not_among(group, path.removeprefix(f"{group}/"), allowed))


def _unknown_key(key: str, overrides: list[str]) -> str:
    known = [*_known_keys(key, overrides)]
    close = nearest(key, known)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    node = key.rpartition(".")[0]
    adds = f"; +{key}=... adds an argument of its _target_" if f"{node}._target_" in known else ""
    return f"{key}: there is no such config key{hint} (--cfg job shows them all{adds})"


def _door() -> str:
    """Returns the name of the command's config, which is that of its module."""
    command = Path(sys.argv[0]).stem
    return next((door for door in ("evaluate", "explain", "predict") if command.endswith(door)), "train")


def _known_keys(bad: str, overrides: list[str]) -> Iterable[str]:
    """Returns every key and group that the config would have had without the bad override."""
    config = _composed([each for each in _plain(overrides) if not each.startswith(bad)])
    if config is None:  # another override is wrong too; then there is nothing to suggest from
        return []
    groups = [group for group in map(str, config.hydra.runtime.choices) if "/" not in group]
    return [*groups, *_keys(config)]


def _plain(words: list[str]) -> list[str]:
    """Returns those words of a command line that are overrides of a key that is there, by one value."""
    given = ((each, parsed(each)) for each in words if re.match(r"[\w./@]+=", each))
    return [each for each, read in given if read is not None and not read.is_sweep_override()]


def _composed(overrides: list[str]) -> DictConfig | None:
    """Returns the command's config with some overrides, None where Hydra does not take them."""
    at_work = GlobalHydra.instance().hydra  # of a sweep, which may have further jobs
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=conf_dir(), version_base="1.3"):
            return compose(_door(), overrides, return_hydra_config=True)
    except Exception:
        return None
    finally:
        GlobalHydra.instance().hydra = at_work


def _keys(node: DictConfig, prefix: str = "") -> Iterable[str]:
    for name in map(str, node):
        if name == "hydra" and not prefix:
            continue
        yield f"{prefix}{name}"
        if isinstance(child := node._get_node(name), DictConfig):
            yield from _keys(child, f"{prefix}{name}.")
