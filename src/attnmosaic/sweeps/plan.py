"""The jobs that a sweep is to have and the folder it is to have, known before any of them begins."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf, open_dict

from attnmosaic.config.groups import group_options
from attnmosaic.config.paths import with_absolute_paths
from attnmosaic.config.resolution import scaled
from attnmosaic.config.schedule import ORDERS, Schedule
from attnmosaic.config.schema import PAIR, metrics_of, networks_of
from attnmosaic.core.errors import UserError, nearest
from attnmosaic.core.quoting import as_override, in_shell, literal
from attnmosaic.sweeps.monitor import Job
from attnmosaic.tables.varied import comparable, key_of


@dataclass(frozen=True)
class Planned:
    """A job that there is to be.

    Attributes:
        folder: its run's, relative to the sweep's.
        overrides: its own.
        config: its config, cut to its scale.
        plan: what the sweep's plan has of it: name, scale, schedule, its own overrides, and what they come to.
        data: its data section.
    """

    folder: str
    overrides: tuple[str, ...]
    config: DictConfig
    plan: dict[str, Any]
    data: Any


def write_out_sweeps(config: DictConfig) -> None:
    """Replaces the globs and shuffled sweeps among a sweep's overrides by their values.

    Hydra's own glob finds the files of a group's folder, but not those of the folders in it
    (``experiment=gradients/joint``); and it shuffles whenever it is asked.

    Args:
        config: the sweep's config, with Hydra's own section.

    Raises:
        UserError: a glob matches nothing.
    """
    params: Any = config.hydra.sweeper.get("params") or {}
    for key, values in params.items():
        params[key] = _written_out(f"{key}={values}").partition("=")[2]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task)  # as it was typed, ${...} and all
    config.hydra.overrides.task = [_written_out(text) for text in typed]


def _written_out(text: str) -> str:
    override = _parsed([text])[0]
    sweep = override.value() if override.is_sweep_override() else None
    if isinstance(sweep, Glob):
        values = _matching(override, sweep)
    elif getattr(sweep, "shuffle", False):
        values = _values(override)
    else:
        return text
    return f"{override.get_key_element()}={','.join(_some(override, values))}"


def _parsed(overrides: Sequence[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides([*overrides])


def _matching(override: Override, glob: Glob) -> list[str]:
    """Returns the options of a group that a glob matches; a ``*`` in it stops at a ``/``, as in a shell."""

    def matches(name: str, pattern: str) -> bool:
        return name.count("/") == pattern.count("/") and fnmatch(name, pattern)

    group = override.key_or_group
    names = [*group_options(group)]
    if not names:
        raise UserError(f"{group}: glob() takes the name of a group, a folder of conf/; type values: {group}=A,B")
    for pattern in glob.include:
        if not any(matches(name, pattern) for name in names):
            folders = dict.fromkeys(f"{name.rpartition('/')[0]}/*" for name in names if "/" in name)
            close = nearest(pattern, [*folders, *names], n=1)
            hint = f"; did you mean {in_shell(f'{group}=glob({close[0]})')}?" if close else ""
            raise UserError(f"{group}: got glob({pattern}), which matches none of {', '.join(names)}{hint}")
    return [
        name
        for name in names
        if any(matches(name, pattern) for pattern in glob.include)
        and not any(matches(name, pattern) for pattern in glob.exclude)
    ]


def job_overrides(config: DictConfig) -> dict[str, list[str]]:
    """Returns the overrides of a sweep's jobs by their keys: one for all jobs, or each that a job may have.

    Of an interval, which a search draws from, these are both ends.

    Args:
        config: the sweep's config, with Hydra's own section.

    Raises:
        UserError: a key is swept over no value at all, or over an interval where nothing draws from it.
    """
    params = [f"{key}={values}" for key, values in (config.hydra.sweeper.get("params") or {}).items()]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task)
    found = {}
    for override in _parsed([*params, *typed]):
        key = override.get_key_element()
        if override.is_interval_sweep() and is_own(config.hydra):
            raise UserError(f"{key}: an interval is for a search; type {key}=A,B, or hydra/sweeper=optuna")
        found[key] = [f"{key}={value}" for value in _some(override, _values(override))]
    return found


def _values(override: Override) -> list[str]:
    if override.is_interval_sweep():
        interval: Any = override.value()
        return [str(interval.start), str(interval.end)]
    if override.is_sweep_override():
        return [*override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def _some(override: Override, values: list[str]) -> list[str]:
    if not values:
        key, _, given = str(override.input_line).partition("=")
        raise UserError(f"{key}: got {given}, which has no values; type for example {key}=A,B")
    return values


def is_own(hydra: DictConfig) -> bool:
    """Returns whether the sweeper is Hydra's own, which knows all jobs beforehand and needs no answer of theirs."""
    return str(hydra.sweeper._target_).endswith("BasicSweeper")


def settle_folder(config: DictConfig) -> str:
    """Gives a sweep and all its jobs one folder, and returns it.

    ``hydra.sweep.dir`` may depend on what is swept, as its default does on the experiment; each job would then have
    another. The sweep gets the parts that are the same in all of them: ``outputs/sweeps/gradients/TIME`` for
    ``outputs/sweeps/gradients/joint/TIME`` and ``outputs/sweeps/gradients/type1/TIME``.

    Args:
        config: the sweep's config, with Hydra's own section.

    Raises:
        UserError: the jobs' folders have no beginning in common.
    """
    folders = [*dict.fromkeys(_folders(config))]
    folder = folders[0] if len(folders) == 1 else _shared(folders)
    folder = os.path.expanduser(folder)
    config.hydra.sweep.dir = literal(folder)
    config.hydra.overrides.hydra.append(as_override("hydra.sweep.dir", folder))
    return folder


def check_one_folder(config: DictConfig) -> None:
    """Checks that the runs of a sweep of trainings write into the sweep's folder.

    Args:
        config: the sweep's config, with Hydra's own section.

    Raises:
        UserError: their folder is another, or their tables are.
    """
    overrides = {key.lstrip("+"): texts for key, texts in job_overrides(config).items()}
    if "run_dir" in overrides:
        raise UserError("run_dir: a sweep's runs write into the sweep's folder; type hydra.sweep.dir=DIR instead")
    if len(tables := overrides.get("reproduce", [])) > 1:
        names = ",".join(table.partition("=")[2] for table in tables)
        raise UserError(f"reproduce: got {names}, and a table is a sweep; type a command for each table")


def _folders(config: DictConfig) -> Iterator[str]:
    """Yields ``hydra.sweep.dir`` of jobs that have, between them, every value that is swept."""
    loader = GlobalHydra.instance().config_loader()
    swept = job_overrides(config)
    first = {key: texts[0] for key, texts in swept.items()}
    base = loader.load_sweep_config(config, [*first.values()])
    yield _folder(base, 0)
    OmegaConf.copy_cache(from_config=base, to_config=config)  # so that all jobs have its time
    for key, texts in swept.items():
        for text in texts[1:]:
            job = with_override(base, text) or loader.load_sweep_config(config, [*{**first, key: text}.values()])
            yield _folder(job, 1)


def _folder(job: DictConfig, number: int) -> str:
    with open_dict(job):
        job.hydra.job.num = number
    return str(job.hydra.sweep.dir)


def with_override(config: DictConfig, text: str) -> DictConfig | None:
    """Returns a config with one more override; None where it takes a composition, which is slow, to know it."""
    override = OverridesParser.create().parse_override(text)
    key = override.get_key_element()
    before = OmegaConf.select(config, key) if key[0] not in "+~" and "@" not in key else None
    group = before is not None and GlobalHydra.instance().config_loader().get_group_options(key)  # scale is also a key
    if before is None or group or OmegaConf.is_config(before):
        return None
    other = config.copy()
    OmegaConf.update(other, key, override.value())
    return other


def _shared(folders: Sequence[str]) -> str:
    parts = [Path(folder).parts for folder in folders]
    ahead = _same(parts)
    behind = _same([each[len(ahead) :][::-1] for each in parts])[::-1]
    if not Path(*ahead).name:
        raise UserError(
            f"hydra.sweep.dir: a sweep has one folder, and its jobs would have '{folders[0]}', '{folders[1]}'; "
            "type hydra.sweep.dir=DIR"
        )
    return str(Path(*ahead, *behind))


def _same(parts: Sequence[Sequence[str]]) -> list[str]:
    """Returns the parts that all begin with."""
    return [each[0] for each in itertools.takewhile(lambda each: len({*each}) == 1, zip(*parts, strict=False))]


def planned_jobs(config: DictConfig) -> Iterator[Planned]:
    """Yields every job of a sweep of Hydra's own.

    Args:
        config: the sweep's config, with Hydra's own section.
    """
    for number, overrides in enumerate(itertools.product(*job_overrides(config).values())):
        yield planned_job(config, number, overrides)


def planned_job(config: DictConfig, number: int, overrides: Sequence[str]) -> Planned:
    """Returns one job of a sweep.

    Args:
        config: the sweep's config, with Hydra's own section.
        number: the job's.
        overrides: its own.
    """
    job = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.num = number
    folder = str(job.hydra.sweep.subdir)
    scale = scaled(job)
    data, schedule = (OmegaConf.to_container(scale[key], resolve=True) for key in ("data", "schedule"))
    plan = {
        "name": job.name,
        "scale": job.scale,
        "schedule": schedule,
        "seed": OmegaConf.to_container(job.seed, resolve=True),
        "overrides": [text for text in overrides if not text.startswith("hydra.")],
        "choices": OmegaConf.to_container(job.hydra.runtime.choices),
        "settings": _settings(alone(scale, "RUN_DIR")),
    }
    return Planned(folder, tuple(overrides), scale, plan, data)


def alone(config: DictConfig, run_dir: str) -> DictConfig:
    """Returns a job's config as its run will see it, but for what Hydra knows only then."""
    own = config.copy()
    with open_dict(own):
        own.pop("hydra", None)
        own.run_dir = run_dir
    return with_absolute_paths(own)


def _settings(config: DictConfig) -> dict[str, Any]:
    """Returns what a job's rows of a table are told apart by; nothing if its config will not do."""
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        return comparable(plain)
    except Exception:  # its user error is the job's own to report
        return {}


def swept_keys(planned: Sequence[Planned]) -> list[str]:
    """Returns the keys whose overrides differ between the jobs of a sweep, in the order in which they were typed."""
    split = [_by_key(job) for job in planned]
    keys = dict.fromkeys(key for each in split for key in each)
    return [key for key in keys if len({each.get(key) for each in split}) > 1]


def _by_key(job: Planned) -> dict[str, str]:
    return {key_of(override): override.partition("=")[2] for override in job.overrides}


def watched(planned: Sequence[Planned], sweep: Path) -> list[Job]:
    """Returns the jobs of a sweep as they are to be watched and called.

    Args:
        planned: all of them.
        sweep: the sweep's folder.
    """
    varied = [key for key in swept_keys(planned) if key not in _IN_EVERY_LABEL]
    jobs = []
    for job in planned:
        overrides = _by_key(job)
        others = [f"{key}={overrides[key]}" for key in varied if key in overrides]
        label = " ".join([job.plan["name"], f"seed {job.config.seed.all}", *others])
        jobs.append(Job(job.plan["name"], label, sweep / job.folder, **measures(job)))
    return jobs


_IN_EVERY_LABEL = ("experiment", "seed.all")


def measures(job: Planned) -> dict[str, Any]:
    """Returns a job's schedule and what is told of it; something harmless if its config will not do."""
    try:
        schedule = Schedule(**job.plan["schedule"])
        if schedule.order not in ORDERS or min(schedule.k, schedule.epochs) < 1:
            raise ValueError("no run takes such a schedule")
        network = networks_of(job.config) != PAIR
        return {
            "schedule": schedule,
            "metric": str(job.config.optimized_metric).rpartition("/")[2],
            "headline": metrics_of(job.config)[1:] if network else ("accuracy", "focus"),
            "network": network,
        }
    except Exception:  # its slip is the job's own to tell
        return {"schedule": Schedule("joint", 1, 1)}
