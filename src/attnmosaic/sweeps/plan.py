"""Determines the folder and the jobs of a sweep before its first job begins.

Unless stated otherwise, a config here is the config of a sweep, with Hydra's section ``hydra``.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from attnmosaic.config.paths import with_absolute_paths
from attnmosaic.config.resolution import with_scale
from attnmosaic.config.schedule import ORDERS, Schedule
from attnmosaic.config.schema import PAIR, metrics_of, networks_of
from attnmosaic.core.errors import UserError
from attnmosaic.core.quoting import as_override, literal
from attnmosaic.sweeps.job_configs import JobConfigs
from attnmosaic.sweeps.monitor import Job
from attnmosaic.sweeps.overrides import job_overrides
from attnmosaic.tables.varied import comparable, key_of


@dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep before it starts: its folder, overrides and composed config.

    Attributes:
        folder: folder of the job's run, relative to the sweep's folder.
        overrides: overrides of the job.
        config: config of the job, with the limits of its ``scale`` applied.
        plan: the job's entry in ``sweep.json``: name, scale, schedule, seed, overrides, choices and settings.
    """

    folder: str
    overrides: tuple[str, ...]
    config: DictConfig
    plan: dict[str, Any]


def set_sweep_folder(config: DictConfig) -> str:
    """Sets ``hydra.sweep.dir`` to one folder for a sweep and all its jobs, and returns this folder.

    ``hydra.sweep.dir`` can depend on a swept key; its default depends on the experiment. The sweep's folder then
    consists of the parts that are the same for all jobs: ``outputs/sweeps/gradients/TIME`` for
    ``outputs/sweeps/gradients/joint/TIME`` and ``outputs/sweeps/gradients/type1/TIME``.

    Raises:
        UserError: the jobs' folders have no first parts in common.
    """
    folders = [*dict.fromkeys(_folders(config))]
    folder = os.path.expanduser(folders[0] if len(folders) == 1 else _common_parts(folders))
    config.hydra.sweep.dir = literal(folder)
    config.hydra.overrides.hydra.append(as_override("hydra.sweep.dir", folder))
    return folder


def check_one_folder(config: DictConfig) -> None:
    """Checks that all runs of a sweep of ``attnmosaic.train`` are written into the sweep's folder.

    Raises:
        UserError: the command sets another folder for the runs, or the runs belong to several published tables.
    """
    overrides = {key.lstrip("+"): texts for key, texts in job_overrides(config).items()}
    if "run_dir" in overrides:
        raise UserError("run_dir: a sweep writes its runs into the sweep's folder; type hydra.sweep.dir=DIR instead")
    if len(tables := overrides.get("reproduce", [])) > 1:
        names = ",".join(table.partition("=")[2] for table in tables)
        raise UserError(f"reproduce: got {names}, needs one table; type one command for each table")


def _folders(config: DictConfig) -> Iterator[str]:
    """Yields ``hydra.sweep.dir`` of enough jobs to include each value of each swept key at least once."""
    configs = JobConfigs(GlobalHydra.instance().config_loader(), config)
    swept = job_overrides(config)
    first = {key: texts[0] for key, texts in swept.items()}
    base = _numbered(configs([*first.values()]), 0)
    yield str(base.hydra.sweep.dir)
    OmegaConf.copy_cache(from_config=base, to_config=config)  # all jobs must have the same time in their folders
    for key, texts in swept.items():
        for text in texts[1:]:
            yield str(_numbered(configs([*{**first, key: text}.values()]), 1).hydra.sweep.dir)


def _numbered(job: DictConfig, number: int) -> DictConfig:
    with open_dict(job):
        job.hydra.job.num = number
    return job


def _common_parts(folders: Sequence[str]) -> str:
    """Returns a path of the first parts that all folders share, followed by the last parts that all folders share."""
    parts = [Path(folder).parts for folder in folders]
    begin = _common_prefix(parts)
    end = _common_prefix([folder[len(begin) :][::-1] for folder in parts])[::-1]
    if not Path(*begin).name:
        raise UserError(
            f"hydra.sweep.dir: got '{folders[0]}' and '{folders[1]}', needs one folder for the whole sweep; "
            "type hydra.sweep.dir=DIR"
        )
    return str(Path(*begin, *end))


def _common_prefix(parts: Sequence[Sequence[str]]) -> list[str]:
    return [column[0] for column in itertools.takewhile(lambda column: len({*column}) == 1, zip(*parts, strict=False))]


def planned_jobs(config: DictConfig) -> list[PlannedJob]:
    """Returns all jobs of a sweep with Hydra's basic sweeper."""
    configs = JobConfigs(GlobalHydra.instance().config_loader(), config)
    products = itertools.product(*job_overrides(config).values())
    return [planned_job(configs, number, overrides) for number, overrides in enumerate(products)]


def planned_job(configs: JobConfigs, number: int, overrides: Sequence[str]) -> PlannedJob:
    """Returns one planned job of a sweep, given its number and its overrides."""
    job = _numbered(configs(overrides), number)
    folder = str(job.hydra.sweep.subdir)
    scaled = with_scale(job)
    plan = {
        "name": job.name,
        "scale": job.scale,
        "schedule": OmegaConf.to_container(scaled.schedule, resolve=True),
        "seed": OmegaConf.to_container(scaled.seed, resolve=True),
        "overrides": [text for text in overrides if not text.startswith("hydra.")],
        "choices": OmegaConf.to_container(job.hydra.runtime.choices),
        "settings": _settings(job_config(scaled, "RUN_DIR")),
    }
    return PlannedJob(folder, tuple(overrides), scaled, plan)


def job_config(config: DictConfig, run_dir: str) -> DictConfig:
    """Returns a job's config as its run gets it, except for values that Hydra sets only when the job begins."""
    run_config = config.copy()
    with open_dict(run_config):
        run_config.pop("hydra", None)
        run_config.run_dir = run_dir
    return with_absolute_paths(run_config)


def _settings(config: DictConfig) -> dict[str, Any]:
    """Returns the settings that distinguish rows of a table; empty if the config is invalid, which the job reports."""
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        return comparable(plain)
    except Exception:
        return {}


def swept_keys(planned: Sequence[PlannedJob]) -> list[str]:
    """Returns the keys whose overrides differ between the jobs of a sweep, in the order in which they were typed."""
    jobs = [_by_key(job) for job in planned]
    keys = dict.fromkeys(key for overrides in jobs for key in overrides)
    return [key for key in keys if len({overrides.get(key) for overrides in jobs}) > 1]


def _by_key(job: PlannedJob) -> dict[str, str]:
    return {key_of(override): override.partition("=")[2] for override in job.overrides}


def monitored_jobs(planned: Sequence[PlannedJob], sweep: Path) -> list[Job]:
    """Returns the jobs of a sweep for its display, each with a unique label."""
    # Every label has the experiment and the seed.
    varied = [key for key in swept_keys(planned) if key not in ("experiment", "seed.all")]
    jobs = []
    for job in planned:
        overrides = _by_key(job)
        others = [f"{key}={overrides[key]}" for key in varied if key in overrides]
        label = " ".join([job.plan["name"], f"seed {job.config.seed.all}", *others])
        jobs.append(Job(job.plan["name"], label, sweep / job.folder, **display_settings(job)))
    return jobs


def display_settings(job: PlannedJob) -> dict[str, Any]:
    """Returns a job's schedule and metrics for its display; if the job's config is invalid, a placeholder schedule."""
    try:
        schedule = Schedule(**job.plan["schedule"])
        if schedule.order not in ORDERS or min(schedule.k, schedule.epochs) < 1:
            raise ValueError("invalid schedule")
        network = networks_of(job.config) != PAIR
        return {
            "schedule": schedule,
            "metric": str(job.config.optimized_metric).rpartition("/")[2],
            "headline": metrics_of(job.config)[1:] if network else ("accuracy", "focus"),
            "network": network,
        }
    except Exception:  # the job reports its user error itself
        return {"schedule": Schedule("joint", 1, 1)}
