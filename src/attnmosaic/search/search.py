"""Searches for settings: Optuna samples trials, any of Hydra's launchers runs them, and files keep their results."""

import itertools
import logging.config
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli.command import error_line, is_disk_error, line_and_code
from attnmosaic.config.resolution import resolve
from attnmosaic.config.schedule import ORDERS, Schedule, Stage
from attnmosaic.config.schema import untrained_networks
from attnmosaic.config.validation import check
from attnmosaic.core.errors import RunError, UserError
from attnmosaic.core.files import locked
from attnmosaic.core.quoting import as_override
from attnmosaic.core.text import short_number
from attnmosaic.runs.run import CHECKPOINTS, Run, earlier_result
from attnmosaic.search.options import Options, instantiate_node
from attnmosaic.search.space import parse_space
from attnmosaic.search.summary import summarize
from attnmosaic.sweeps.display import Display
from attnmosaic.sweeps.hydra_callback import add_to_plan, begin_sweep, typed_command
from attnmosaic.sweeps.job_configs import JobConfigs, with_overrides
from attnmosaic.sweeps.monitor import FAILED, PRUNED, Job
from attnmosaic.sweeps.packed_job import error_of
from attnmosaic.sweeps.plan import PlannedJob, display_settings, job_config, planned_job

JOURNAL = "study.journal"

POLL_SECONDS = 0.5
"""Seconds between two polls of a job that an earlier command left running."""


class Search:
    """A search for good settings with Optuna: samples trials, launches their runs and records the results.

    The complete state of a search is on disk. The study has the parameters and outcomes of trials; the folder of a
    trial's run, which is named by the trial's number, has its metrics. Trials are sampled in rounds of ``n_jobs``; the
    next round is sampled when the study has all outcomes of the round before. After a kill, the trials of the last
    round are still marked as running in the study; the same command launches them again, and their runs resume.

    Args:
        options: the options of the search.
        config: the sweep's config, with Hydra's own section.
        loader: Hydra's config loader.
        launcher: launcher that runs the trials.
        arguments: the overrides of the command line.

    Raises:
        UserError: an option, the search space or a config in the space is invalid.
    """

    def __init__(
        self, options: Options, config: DictConfig, loader: Any, launcher: Launcher, arguments: Sequence[str]
    ) -> None:
        self.config = config
        self.configs = JobConfigs(loader, config)
        self.launcher = launcher
        self.folder = Path(config.hydra.sweep.dir)
        self.space = parse_space(options.params, arguments, loader, self._unused)
        self.example = self._planned(0, next(self.space.at_limits()))
        self.metric, schedules = self._check()
        self.options = options.with_direction(self.metric)
        self.common_cycle = self._common_cycle(schedules)
        self.pruner_node = options.pruner_node(max(schedule.epochs for schedule in schedules), self.common_cycle)
        self.pruner = instantiate_node("pruner", self.pruner_node)
        options.sampler_for(0)  # Raises an error for invalid arguments before anything is written.
        self.storage = options.storage or str(self.folder.absolute() / JOURNAL)
        self.name = options.study_name or (str(self.folder) if options.storage else "search")

    def run(self) -> float:
        """Runs the search and returns the best value of the optimized metric.

        Raises:
            UserError: a trial ended with a user error; or the folder holds another search, or a running search.
            RunError: no trial has finished; or a disk error or a signal ended a trial.
        """
        from attnmosaic.search.study import open_study

        with locked(self.folder / ".search.lock", "hydra.sweep.dir", timeout=0):
            self.study = open_study(self.storage, self.name, str(self.options.direction), self.pruner)
            self._check_earlier_trials()
            self.display = self._begin_display()
            self._wait_for_running_jobs()
            while numbers := self._next_round():
                # A launcher numbers its jobs consecutively.
                for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
                    self._launch([number for _, number in group])
        if not any(trial.state.name == "COMPLETE" for trial in self._trials()):
            raise RunError(f"none of {len(self._trials())} trials has finished; see the error of each trial above")
        return self.study.best_value

    # ---- before the first trial

    def _unused(self, fixed: list[str]) -> dict[str, str]:
        """Returns the keys that runs with these fixed overrides do not use, with the reasons."""
        config = planned_job(self.configs, 0, fixed).config
        plain: Any = OmegaConf.to_container(config, resolve=False)
        reasons = {f"lr.{name}": f"as these runs train no network '{name}'" for name in untrained_networks(plain)}
        stages = ORDERS.get(config.schedule.order, ())
        if stages == (Stage.WHAT,):
            reasons["lr.where"] = "as Where never trains"
        if len(stages) == 1:
            reasons["schedule.k"] = f"as schedule.order={config.schedule.order} has a single stage"
        return reasons

    def _check(self) -> tuple[str, list[Schedule]]:
        """Checks the configs at the limits of the space; returns the metric that they share, and their schedules."""
        configs = [*self._configs_at_limits()]
        for config in configs:
            check(config)
        metric, *others = dict.fromkeys(str(config.optimized_metric) for config in configs)
        if others:
            raise UserError(
                f"optimized_metric: differs between trials ({metric}, {others[0]}), and a search needs a single "
                f"metric; type optimized_metric={metric}"
            )
        if metric.startswith("held_out/"):
            raise UserError(
                f"optimized_metric: got {metric}, but a search must not select settings by a held_out metric; "
                f"type optimized_metric=test/{metric.partition('/')[2]}"
            )
        return metric, [Schedule(**config.schedule) for config in configs]

    def _configs_at_limits(self) -> Iterator[DictConfig]:
        """Yields the configs of trials at the limits of the space."""
        first, *others = self.space.at_limits()
        base = job_config(self.example.config, str(self.folder))
        yield base
        for params in others:
            ((key, value),) = params.items() - first.items()
            # Composing a config is slow, so overrides are applied to a composed config where possible. In a smoke run
            # only composition applies the smaller counts.
            other = None if base.scale == "smoke" else with_overrides(base, [f"{key}={value}"])
            yield other or job_config(self._planned(0, params).config, str(self.folder))

    def _common_cycle(self, schedules: Sequence[Schedule]) -> int:
        """Returns the number of epochs after which any trial of the space is at the end of a cycle."""
        stages = [schedule.cycle // schedule.k for schedule in schedules]
        every_k = [*(schedule.k for schedule in schedules), *self.space.integers("schedule.k")]
        return math.lcm(*stages) * math.lcm(*every_k)

    def _check_earlier_trials(self) -> None:
        """Checks that earlier trials in the folder have the same space, metric, direction and other settings."""
        current = {key: str(distribution) for key, distribution in self.space.searched.items()}
        current |= {"optimized_metric": self.metric, "hydra.sweeper.direction": str(self.options.direction)}
        earlier = self.study.user_attrs.get("search")
        if earlier is None:
            self.study.set_user_attr("search", earlier := current)
        for key in [*current, *earlier]:
            if earlier.get(key) != current.get(key):
                raise UserError(
                    f"hydra.sweep.dir: '{self.folder}' holds another search ({key} was {earlier.get(key)}, now "
                    f"{current.get(key)}); choose another folder"
                )
        for trial in self._trials():
            folder = self._folder(trial.number)
            if (folder / CHECKPOINTS).exists():
                earlier_result(
                    folder, resolve(job_config(self._planned(trial.number, trial.params).config, str(folder)))
                )
                break

    def _begin_display(self) -> Display:
        """Starts the display with all trials, including trials that are not sampled yet."""
        states = {"FAIL": FAILED, "PRUNED": PRUNED}
        trials = self._trials()
        jobs = []
        for number in range(max(self.options.n_trials, len(trials))):
            job = Job(
                self.example.plan["name"], f"trial {number}", self._folder(number), **display_settings(self.example)
            )
            if number < len(trials):
                job.state = states.get(trials[number].state.name, job.state)
            jobs.append(job)
        add_to_plan(self.folder, {"commands": [typed_command()], "jobs": {}})
        display = begin_sweep(self.config, jobs, lambda: summarize(self))
        display.monitor.begun = True
        return display

    # ---- trials

    def _trials(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    def _running(self) -> list[int]:
        return [trial.number for trial in self._trials() if trial.state.name == "RUNNING"]

    def _folder(self, number: int) -> Path:
        return self.folder.absolute() / str(number)

    def _wait_for_running_jobs(self) -> None:
        """Waits for jobs that an earlier command left running, and records trials that were pruned meanwhile."""
        for number in self._running():
            while (state := Run(self._folder(number)).state) == "running":
                time.sleep(POLL_SECONDS)
            if state == "pruned":
                self._record(number)

    def _next_round(self) -> list[int]:
        """Samples the missing trials of the current round; returns the numbers of the trials to run."""
        from attnmosaic.search.study import sample_trial

        n_jobs, count = self.options.n_jobs, len(self._trials())
        missing = -count % n_jobs or (0 if self._running() else n_jobs)
        for number in range(count, min(count + missing, self.options.n_trials)):
            sample_trial(self.study, self.options.sampler_for(number), self.space.searched)
        return self._running()

    def _launch(self, numbers: Sequence[int]) -> None:
        """Runs trials and records their outcomes; a trial whose error ends the search stays running in the study."""
        trials = self._trials()
        overrides = []
        for number in numbers:
            planned = self._planned(number, trials[number].params)
            self._announce(number, planned, trials[number].params)
            overrides.append([*planned.overrides, *self._pruning_override(number)])
        jobs: Sequence[JobReturn] = self.launcher.launch(overrides, initial_job_idx=numbers[0])
        _close_log()
        errors = []
        for number, job in zip(numbers, jobs, strict=True):
            error = error_of(job)
            fatal = None if error is None else self._fatal_error(number, error)
            if fatal is None:
                self._record(number)
            else:
                errors.append(fatal)
        if errors:
            raise errors[0]

    def _fatal_error(self, number: int, error: Exception) -> Exception | None:
        """Returns the error that ends the search; None if only the trial failed.

        A user error, a disk error and a signal end the search.
        """
        line = line_and_code(error)
        if line is not None and line[1] == 2:
            return UserError(line[0])
        if is_disk_error(error) or Run(self._folder(number)).state == "stopped":
            return RunError(f"trial {number}: {error_line(error)}")
        return None

    def _record(self, number: int) -> None:
        """Copies a trial's outcome from its run's folder into the study."""
        from optuna.trial import TrialState

        run = Run(self._folder(number))
        if run.result is not None:
            self.study.tell(number, run.result["metrics"][self.metric])
        else:
            self.study.tell(number, state=TrialState.PRUNED if run.state == "pruned" else TrialState.FAIL)

    def _planned(self, number: int, params: Mapping[str, Any]) -> PlannedJob:
        # Set explicitly, as the sweep of a published table would name the folder by the table's row.
        subdir = f"hydra.sweep.subdir={number}"
        return planned_job(self.configs, number, [*self.space.overrides(params), subdir])

    def _announce(self, number: int, planned: PlannedJob, params: Mapping[str, Any]) -> None:
        """Adds a trial to the sweep's plan, and its parameters to the display."""
        add_to_plan(
            self.folder, {"commands": [], "jobs": {str(number): {**planned.plan, "swept": [*self.space.searched]}}}
        )
        self.display.monitor.jobs[number].schedule = display_settings(planned)["schedule"]
        values = (f"{key}={short_number(value)}" for key, value in params.items())
        self.display.rename(number, " ".join([f"trial {number}", *values]))

    def _pruning_override(self, number: int) -> list[str]:
        """Returns the override that adds the callback `Pruning` to a trial's run; empty if trials are not pruned."""
        if self.options.pruner_class == "NopPruner":
            return []
        node: dict[str, Any] = {
            "_target_": "attnmosaic.search.pruning.Pruning",
            "_recursive_": False,  # The callback instantiates the pruner.
            "storage": self.storage,
            "study": self.name,
            "trial": number,
            "metric": self.metric,
            "pruner": self.pruner_node,
            "every": self.common_cycle if self.options.pruner_class == "HyperbandPruner" else None,
        }
        return [as_override("+callbacks.pruning", node)]


def _close_log() -> None:
    """Closes the log that Hydra opened for a job in this process, as later messages do not belong to the job."""
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})
