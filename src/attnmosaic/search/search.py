"""A search: trials sampled by Optuna, run by any of Hydra's launchers, and kept on disk."""

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
from attnmosaic.sweeps.monitor import FAILED, PRUNED, Job
from attnmosaic.sweeps.packed_job import error_of
from attnmosaic.sweeps.plan import PlannedJob, display_settings, job_config, planned_job, with_override

JOURNAL = "study.journal"

POLL_SECONDS = 0.5
"""Between two checks whether a job that an earlier command left running has ended."""


class Search:
    """A search for settings.

    All it knows is on disk: the sampled parameters and outcomes in the study, what a trial's run measured in the run's
    folder, which is named by the trial's number. Trials are sampled in rounds of ``n_jobs``, the next round when every
    outcome of one is in the study. A killed search leaves the trials of its last round running in the study, and the
    same command runs them: their runs resume.

    Args:
        options: how to search.
        config: the sweep's config, with Hydra's own section.
        loader: Hydra's config loader.
        launcher: runs the trials.
        arguments: the overrides of the command line.

    Raises:
        UserError: an option, the space or a config in it is invalid.
    """

    def __init__(
        self, options: Options, config: DictConfig, loader: Any, launcher: Launcher, arguments: Sequence[str]
    ) -> None:
        self.config = config
        self.launcher = launcher
        self.folder = Path(config.hydra.sweep.dir)
        self.space = parse_space(options.params, arguments, loader, self._unused)
        self.example = self._planned(0, next(self.space.corners()))
        self.metric, schedules = self._check()
        self.options = options.with_direction(self.metric)
        self.common_cycle = self._common_cycle(schedules)
        self.pruner_node = options.pruner_node(max(schedule.epochs for schedule in schedules), self.common_cycle)
        self.pruner = instantiate_node("pruner", self.pruner_node)
        options.sampler_for(0)  # reports invalid arguments before anything is written
        self.storage = options.storage or str(self.folder.absolute() / JOURNAL)
        self.name = options.study_name or (str(self.folder) if options.storage else "search")

    def run(self) -> float:
        """Searches, and returns the best value.

        Raises:
            UserError: a trial ended with a user error; or the folder holds another search, or one that is running.
            RunError: no trial has finished; or the disk or a signal has ended one.
        """
        from attnmosaic.search.study import open_study

        with locked(self.folder / ".search.lock", "hydra.sweep.dir", timeout=0):
            self.study = open_study(self.storage, self.name, str(self.options.direction), self.pruner)
            self._check_same()
            self.display = self._begin()
            self._await_running()
            while numbers := self._round():
                # A launcher numbers its jobs consecutively.
                for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
                    self._launch([number for _, number in group])
        if not any(trial.state.name == "COMPLETE" for trial in self._trials()):
            raise RunError(f"none of {len(self._trials())} trials has finished: see above for the error of each")
        return self.study.best_value

    # ---- before the first trial

    def _unused(self, fixed: list[str]) -> dict[str, str]:
        """Returns the keys that decide nothing in these runs, with the reason."""
        config = planned_job(self.config, 0, fixed).config
        plain: Any = OmegaConf.to_container(config, resolve=False)
        reasons = {f"lr.{name}": f"as these runs train no network '{name}'" for name in untrained_networks(plain)}
        stages = ORDERS.get(config.schedule.order, ())
        if stages == (Stage.WHAT,):
            reasons["lr.where"] = "as Where never learns"
        if len(stages) == 1:
            reasons["schedule.k"] = f"as there are no stages in schedule.order={config.schedule.order}"
        return reasons

    def _check(self) -> tuple[str, list[Schedule]]:
        """Checks the configs at the corners of the space; returns the metric that they share, and their schedules."""
        configs = [*self._corner_configs()]
        for config in configs:
            check(config)
        metric, *others = dict.fromkeys(str(config.optimized_metric) for config in configs)
        if others:
            raise UserError(
                f"optimized_metric: differs between trials ({metric}, {others[0]}), and a search has one; "
                f"type optimized_metric={metric}"
            )
        if metric.startswith("held_out/"):
            raise UserError(
                f"optimized_metric: got {metric}, but what a search selects on is no held-out result any more; "
                f"type optimized_metric=test/{metric.partition('/')[2]}"
            )
        return metric, [Schedule(**config.schedule) for config in configs]

    def _corner_configs(self) -> Iterator[DictConfig]:
        first, *others = self.space.corners()
        base = job_config(self.example.config, str(self.folder))
        yield base
        for params in others:
            ((key, value),) = params.items() - first.items()
            # Composing a config is slow. The counts of a smoke run are cut by the composition.
            other = None if base.scale == "smoke" else with_override(base, f"{key}={value}")
            yield other or job_config(self._planned(0, params).config, str(self.folder))

    def _common_cycle(self, schedules: Sequence[Schedule]) -> int:
        """Returns the epochs after which every possible trial is at the end of a cycle."""
        stages = [schedule.cycle // schedule.k for schedule in schedules]
        every_k = [*(schedule.k for schedule in schedules), *self.space.integers("schedule.k")]
        return math.lcm(*stages) * math.lcm(*every_k)

    def _check_same(self) -> None:
        """Checks that the existing trials are of this space, metric, direction and other settings."""
        own = {key: str(distribution) for key, distribution in self.space.searched.items()}
        own |= {"optimized_metric": self.metric, "hydra.sweeper.direction": str(self.options.direction)}
        before = self.study.user_attrs.get("search")
        if before is None:
            self.study.set_user_attr("search", before := own)
        for key in [*own, *before]:
            if before.get(key) != own.get(key):
                raise UserError(
                    f"hydra.sweep.dir: '{self.folder}' holds another search ({key}: {before.get(key)} before, "
                    f"{own.get(key)} now); choose another folder"
                )
        for trial in self._trials():
            folder = self._folder(trial.number)
            if (folder / CHECKPOINTS).exists():
                earlier_result(
                    folder, resolve(job_config(self._planned(trial.number, trial.params).config, str(folder)))
                )
                break

    def _begin(self) -> Display:
        """Begins to display all trials, most of which are not sampled yet."""
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
        display.watch.begun = True
        return display

    # ---- trials

    def _trials(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    def _running(self) -> list[int]:
        return [trial.number for trial in self._trials() if trial.state.name == "RUNNING"]

    def _folder(self, number: int) -> Path:
        return self.folder.absolute() / str(number)

    def _await_running(self) -> None:
        """Waits for jobs that an earlier command left running; records trials that were pruned meanwhile."""
        for number in self._running():
            while (state := Run(self._folder(number)).state) == "running":
                time.sleep(POLL_SECONDS)
            if state == "pruned":
                self._record(number)

    def _round(self) -> list[int]:
        """Returns the trials to run next, after sampling those that the round lacks."""
        from attnmosaic.search.study import sample_trial

        n_jobs, count = self.options.n_jobs, len(self._trials())
        lacking = -count % n_jobs or (0 if self._running() else n_jobs)
        for number in range(count, min(count + lacking, self.options.n_trials)):
            sample_trial(self.study, self.options.sampler_for(number), self.space.searched)
        return self._running()

    def _launch(self, numbers: Sequence[int]) -> None:
        """Runs trials and records their outcomes; a trial that ends the search stays running in the study."""
        trials = self._trials()
        overrides = []
        for number in numbers:
            planned = self._planned(number, trials[number].params)
            self._show(number, planned, trials[number].params)
            overrides.append([*planned.overrides, *self._pruning(number)])
        done: Sequence[JobReturn] = self.launcher.launch(overrides, initial_job_idx=numbers[0])
        _close_log()
        errors = []
        for number, job in zip(numbers, done, strict=True):
            error = error_of(job)
            ending = None if error is None else self._ending(number, error)
            if ending is None:
                self._record(number)
            else:
                errors.append(ending)
        if errors:
            raise errors[0]

    def _ending(self, number: int, error: Exception) -> Exception | None:
        """Returns the error that ends the search: of a user, the disk or a signal; None if the trial itself failed."""
        line = line_and_code(error)
        if line is not None and line[1] == 2:
            return UserError(line[0])
        if is_disk_error(error) or Run(self._folder(number)).state == "stopped":
            return RunError(f"trial {number}: {error_line(error)}")
        return None

    def _record(self, number: int) -> None:
        """Writes a trial's outcome, which its run's folder holds, into the study."""
        from optuna.trial import TrialState

        run = Run(self._folder(number))
        if run.result is not None:
            self.study.tell(number, run.result["metrics"][self.metric])
        else:
            self.study.tell(number, state=TrialState.PRUNED if run.state == "pruned" else TrialState.FAIL)

    def _planned(self, number: int, params: Mapping[str, Any]) -> PlannedJob:
        subdir = f"hydra.sweep.subdir={number}"  # also where the rows of a table have folders of their own
        return planned_job(self.config, number, [*self.space.overrides(params), subdir])

    def _show(self, number: int, planned: PlannedJob, params: Mapping[str, Any]) -> None:
        """Adds a trial to the sweep's plan, and its parameters to the display."""
        add_to_plan(
            self.folder, {"commands": [], "jobs": {str(number): {**planned.plan, "swept": [*self.space.searched]}}}
        )
        self.display.watch.jobs[number].schedule = display_settings(planned)["schedule"]
        values = (f"{key}={short_number(value)}" for key, value in params.items())
        self.display.rename(number, " ".join([f"trial {number}", *values]))

    def _pruning(self, number: int) -> list[str]:
        """Returns the override that adds the callback `Pruning` to a trial's run; none if trials are not pruned."""
        if self.options.pruner_class == "NopPruner":
            return []
        node: dict[str, Any] = {
            "_target_": "attnmosaic.search.pruning.Pruning",
            "_recursive_": False,  # the callback instantiates the pruner
            "storage": self.storage,
            "study": self.name,
            "trial": number,
            "metric": self.metric,
            "pruner": self.pruner_node,
            "every": self.common_cycle if self.options.pruner_class == "HyperbandPruner" else None,
        }
        return [as_override("+callbacks.pruning", node)]


def _close_log() -> None:
    """Closes the log that Hydra has opened for a job in this process: later messages are not the job's."""
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})
