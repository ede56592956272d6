"""What happens once for a whole sweep: its plan is written down, and its data are looked for, before any job begins."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from attnmosaic.cli import guard_sweep, told
from attnmosaic.config import scaled
from attnmosaic.data.available import check_available
from attnmosaic.files import write_atomically
from attnmosaic.runs import SWEEP, read_plan


class SweepPlan(Callback):
    """Ends a sweep whose data cannot be had, and writes ``sweep.json``, which says what jobs there are to be.

    Works with Hydra's own sweeper, which knows all jobs beforehand. A sweep started again in the same folder adds to
    its plan.
    """

    def __init__(self) -> None:
        self._plan: dict[str, Any] | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Composes every job and looks for its data."""
        if str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
            guard_sweep(self._look, config)

    def _look(self, config: DictConfig) -> None:
        command = " ".join(["python -m attnmosaic.train", *map(_quoted, sys.argv[1:])])
        jobs = {}
        for folder, job in planned_jobs(config):
            check_available(job.pop("data"))
            jobs[folder] = job
        self._plan = {"commands": [command], "jobs": jobs}

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Writes the plan: only now is it known that there are to be jobs at all."""
        if self._plan is None:
            return
        sweep = Path(config.hydra.sweep.dir)
        with FileLock(sweep / ".sweep.lock"):
            before = read_plan(sweep)
            plan = {
                "commands": list(dict.fromkeys([*before["commands"], *self._plan["commands"]])),
                "jobs": before["jobs"] | self._plan["jobs"],
            }
            if plan != before:
                write_atomically(sweep / SWEEP, json.dumps(plan, indent=1))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Tells of each job that failed, when it does."""
        if job_return.status == JobStatus.FAILED and config.hydra.mode.name == "MULTIRUN":
            error = job_return._return_value
            line = told(error)
            said = line[0] if line is not None else f"{type(error).__name__}: {error}"
            job = " ".join(job_return.overrides or [])
            print(f"failed: {job}: {' '.join(said.split())}", file=sys.stderr)


def planned_jobs(config: DictConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each job's folder, relative to the sweep's, and its name, scale, data and schedule.

    Args:
        config: the sweep's config, with Hydra's own section.
    """
    loader = GlobalHydra.instance().config_loader()
    given = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task)  # as it was typed, ${...} and all
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*given, *typed])
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    for number, overrides in enumerate(batch):
        job = loader.load_sweep_config(config, list(overrides))
        with open_dict(job):
            job.hydra.job.num = number
        folder = str(job.hydra.sweep.subdir)
        scale = scaled(job)
        sections = {key: OmegaConf.to_container(scale[key], resolve=True) for key in ("data", "schedule")}
        yield folder, {"name": job.name, "scale": job.scale, **sections}


def _quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set('[]{}()*?$&;| "') else word
