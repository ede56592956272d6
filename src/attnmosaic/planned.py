"""The jobs that a sweep is to have, known before any of them begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from attnmosaic.config import PAIR, metrics_of, networks_of, scaled
from attnmosaic.training.schedule import ORDERS, Schedule
from attnmosaic.watch import Job


@dataclass(frozen=True)
class Planned:
    """A job that there is to be.

    Attributes:
        folder: its run's, relative to the sweep's.
        overrides: its own.
        config: its config, cut to its scale.
        plan: what the sweep's plan has of it: name, scale and schedule.
        data: its data section.
    """

    folder: str
    overrides: tuple[str, ...]
    config: DictConfig
    plan: dict[str, Any]
    data: Any


def planned_jobs(config: DictConfig) -> Iterator[Planned]:
    """Yields every job of a sweep.

    Args:
        config: the sweep's config, with Hydra's own section.
    """
    loader = GlobalHydra.instance().config_loader()
    given = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task)  # as it was typed, ${...} and all
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*given, *typed])
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    for number, overrides in enumerate(batch):
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
    plan = {"name": job.name, "scale": job.scale, "schedule": schedule}
    return Planned(folder, tuple(overrides), scale, plan, data)


def watched(planned: Sequence[Planned], sweep: Path) -> list[Job]:
    """Returns the jobs of a sweep as they are to be watched and called.

    Args:
        planned: all of them.
        sweep: the sweep's folder.
    """
    split = [dict(override.lstrip("+~").partition("=")[::2] for override in job.overrides) for job in planned]
    varied = [
        key for key in dict.fromkeys(key for each in split for key in each) if len({e.get(key) for e in split}) > 1
    ]
    jobs = []
    for job, overrides in zip(planned, split, strict=True):
        others = [f"{key}={overrides[key]}" for key in varied if key in overrides and key not in _IN_EVERY_LABEL]
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
