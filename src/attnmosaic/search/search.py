"""A search: trials drawn by ask-and-tell, run by whatever launcher is chosen, and remembered on disk."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli.command import blames_disk, reason, told
from attnmosaic.config.resolution import resolve
from attnmosaic.config.schedule import ORDERS, Schedule
from attnmosaic.config.schema import other_networks
from attnmosaic.config.validation import check
from attnmosaic.core.errors import RunError, UserError
from attnmosaic.core.quoting import as_override
from attnmosaic.core.text import short_number
from attnmosaic.runs.run import Run, earlier_result
from attnmosaic.search.options import Options
from attnmosaic.search.space import Space, parse_space
from attnmosaic.search.summary import search_told
from attnmosaic.sweeps.callback import add_to_plan, begin_sweep, typed
from attnmosaic.sweeps.display import Display
from attnmosaic.sweeps.job import error_of
from attnmosaic.sweeps.monitor import FAILED, PRUNED, Job
from attnmosaic.sweeps.plan import Planned, alone, measures, planned_job, with_override

JOURNAL = "study.journal"

SECONDS = 0.5
"""Between two looks whether a job that an earlier start left at work has ended."""


class Search:
    """A search for settings.

    What is known of it lies on disk: what was drawn and told in the study, what became of a trial in its run's folder,
    whose name is the trial's number. Trials are drawn in rounds of ``n_jobs``; the next round is drawn when all of one
    have been told. So a search that was killed finds the trials of its last round in the study, and goes on with them.

    Args:
        options: how to search.
        config: the sweep's config, with Hydra's own section.
        loader: Hydra's config loader.
        launcher: runs the trials.
        arguments: the command line's overrides.

    Raises:
        UserError: what is asked for will not do.
    """

    def __init__(
        self, options: Options, config: DictConfig, loader: Any, launcher: Launcher, arguments: Sequence[str]
    ) -> None:
        self.config = config
        self.launcher = launcher
        self.folder = Path(config.hydra.sweep.dir)
        self.space: Space = parse_space(options.params, arguments, loader, self._useless)
        self.metric, schedules = self._check()
        self.options = options = options.directed(self.metric)
        self.longest = max(schedule.epochs for schedule in schedules)
        # Hyperband keeps a list of who came how far: all must be looked at after the same epochs.
        self.every = self._common_cycle(schedules) if options.compares_all else None
        self.pruner = options.make_pruner(self.longest, self.every)
        options.sampler_for(0)  # its arguments, before anything is written
        self.storage = options.storage or str(self.folder.absolute() / JOURNAL)
        self.name = options.study_name or (str(self.folder) if options.storage else "search")  # alone in its journal

    def run(self) -> float:
        """Searches, and returns the best value.

        Raises:
            UserError: a trial was refused for a slip; or the folder holds another search, or one that is at work.
            RunError: no trial was finished; or the disk, or whoever stops jobs, has ended one.
        """
        from attnmosaic.search.study import open_study

        with self._claimed():
            self.study = open_study(self.storage, self.name, str(self.options.direction), self.pruner)
            self._check_same()
            self.display = self._begin()
            self._find_ended()
            while numbers := self._round():
                for first, last in _stretches(numbers):
                    self._launch(range(first, last + 1))
        if not any(trial.state.name == "COMPLETE" for trial in self._trials()):
            raise RunError(f"none of {len(self._trials())} trials was finished: see above for what each said")
        return self.study.best_value

    # ---- before the first trial

    def _useless(self, fixed: list[str]) -> dict[str, str]:
        """Returns the keys that decide nothing in these runs, and why."""
        config = planned_job(self.config, 0, fixed).config
        plain: Any = OmegaConf.to_container(config, resolve=False)
        idle = {f"lr.{name}": f"as these runs train no network '{name}'" for name in other_networks(plain)}
        order = config.schedule.order
        if order == "what_only":
            idle["lr.where"] = "as Where never learns"
        if len(ORDERS.get(order, (0, 0))) == 1:
            idle["schedule.k"] = f"as there are no stages in schedule.order={order}"
        return idle

    def _check(self) -> tuple[str, list[Schedule]]:
        """Checks trials from all over the space; returns the metric and the schedules there are."""
        first, *others = self.space.corners()
        self.any = self._planned(0, first)
        configs = [alone(self.any.config, str(self.folder))]
        for drawn in others:
            ((key, value),) = drawn.items() - first.items()
            smoke = configs[0].scale == "smoke"  # its counts were cut when it was composed
            other = None if smoke else with_override(configs[0], f"{key}={value}")
            configs.append(other or alone(self._planned(0, drawn).config, str(self.folder)))
        schedules = []
        for config in configs:
            check(config)
            schedules.append(Schedule(**config.schedule))
        metric, *different = dict.fromkeys(str(config.optimized_metric) for config in configs)
        if different:
            raise UserError(
                f"optimized_metric: differs between trials ({metric}, {different[0]}), and a search has one; "
                f"type optimized_metric={metric}"
            )
        if metric.startswith("held_out/"):
            raise UserError(
                f"optimized_metric: got {metric}, but what a search selects on is no held-out result any more; "
                f"type optimized_metric=test/{metric.partition('/')[2]}"
            )
        return metric, schedules

    def _common_cycle(self, schedules: Sequence[Schedule]) -> int:
        """Returns the epochs after which every trial there can be has come to the end of a cycle."""
        stages = [schedule.cycle // schedule.k for schedule in schedules]
        every_k = [*(schedule.k for schedule in schedules), *self.space.values("schedule.k")]
        return math.lcm(*stages) * math.lcm(*every_k)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """Keeps other searches out of the folder; the lock ends with the process."""
        lock = FileLock(self.folder / ".search.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"hydra.sweep.dir: another search is at work in '{self.folder}'; wait for it, or choose another"
            ) from error
        except OSError as error:
            raise UserError(
                f"hydra.sweep.dir: cannot write to '{self.folder}' ({error.strerror}); choose another"
            ) from error
        with lock:
            yield

    def _check_same(self) -> None:
        """Checks that the trials there are of this search.

        Raises:
            UserError: it searches another space, for something else, or with other settings.
        """
        now = {"optimized_metric": self.metric, **{key: str(space) for key, space in self.space.searched.items()}}
        direction = "hydra.sweeper.direction"
        before = {**self.study.user_attrs.get("search", now), direction: self.study.direction.name.lower()}
        wanted = {**now, direction: self.options.direction}
        for key in [*wanted, *before]:
            if before.get(key) != wanted.get(key):
                raise UserError(
                    f"hydra.sweep.dir: '{self.folder}' holds another search ({key}: {before.get(key)} before, "
                    f"{wanted.get(key)} now); choose another folder"
                )
        if "search" not in self.study.user_attrs:
            self.study.set_user_attr("search", now)
        for trial in self._trials():
            folder = self._folder(trial.number)
            if (folder / "checkpoints").exists():
                earlier_result(folder, resolve(alone(self._planned(trial.number, trial.params).config, str(folder))))
                break

    def _begin(self) -> Display:
        """Begins to watch all trials, of which most have not been drawn yet."""
        states = {"FAIL": FAILED, "PRUNED": PRUNED}
        trials = self._trials()
        jobs = []
        for number in range(max(self.options.n_trials, len(trials))):
            job = Job(self.any.plan["name"], f"trial {number}", self._folder(number), **measures(self.any))
            if number < len(trials):
                job.state = states.get(trials[number].state.name, job.state)
            jobs.append(job)
        add_to_plan(self.folder, {"commands": [typed()], "jobs": {}})
        display = begin_sweep(self.config, jobs, lambda: search_told(self))
        display.watch.begun = True
        return display

    # ---- trials

    def _trials(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    def _folder(self, number: int) -> Path:
        return self.folder.absolute() / str(number)

    def _round(self) -> list[int]:
        """Returns the trials to run next, after drawing those that the round still lacks."""
        trials = self._trials()
        whole = -(-len(trials) // self.options.n_jobs) * self.options.n_jobs
        if not any(trial.state.name == "RUNNING" for trial in trials) and whole == len(trials):
            whole += self.options.n_jobs
        for number in range(len(trials), min(whole, self.options.n_trials)):
            self._draw(number)
        return self._begun()

    def _begun(self) -> list[int]:
        return [trial.number for trial in self._trials() if trial.state.name == "RUNNING"]

    def _draw(self, number: int) -> None:
        from attnmosaic.search.study import begin_trial, draw

        drawn = draw(self.study, self.options.sampler_for(number), self.space.searched)
        begin_trial(self.study, drawn, self.space.searched)

    def _find_ended(self) -> None:
        """Waits for jobs that an earlier start has left at work; tells of trials that were pruned then."""
        for number in self._begun():
            while (state := Run(self._folder(number)).state) == "running":
                time.sleep(SECONDS)
            if state == "pruned":
                self._tell(number)

    def _launch(self, numbers: range) -> None:
        trials = self._trials()
        overrides = []
        for number in numbers:
            planned = self._planned(number, trials[number].params)
            self._watch(number, planned)
            overrides.append([*planned.overrides, *self._pruning(number)])
        done: Sequence[JobReturn] = self.launcher.launch(overrides, initial_job_idx=numbers[0])
        _leave_log()
        left: list[Exception] = []  # of trials that are as good as any, and stay to be gone on with
        for number, job in zip(numbers, done, strict=True):
            error = error_of(job)
            said = None if error is None else told(error)
            if said is not None and said[1] == 2:
                left.append(UserError(said[0]))
            elif error is not None and (blames_disk(error) or Run(self._folder(number)).state == "stopped"):
                left.append(RunError(f"trial {number}: {reason(error)}"))
            else:
                self._tell(number)
        if left:
            raise left[0]

    def _tell(self, number: int) -> None:
        """Tells the study what became of a trial, as its run's folder has it."""
        from optuna.trial import TrialState

        run = Run(self._folder(number))
        if run.result is not None:
            self.study.tell(number, run.result["metrics"][self.metric])
        else:
            self.study.tell(number, state=TrialState.PRUNED if run.state == "pruned" else TrialState.FAIL)

    def _planned(self, number: int, drawn: Mapping[str, Any]) -> Planned:
        subdir = f"hydra.sweep.subdir={number}"  # also where a table's rows have folders of their own
        return planned_job(self.config, number, [*self.space.overrides(drawn), subdir])

    def _watch(self, number: int, planned: Planned) -> None:
        plan = {**planned.plan, "swept": [*self.space.searched]}
        add_to_plan(self.folder, {"commands": [], "jobs": {str(number): plan}})
        job = self.display.watch.jobs[number]
        job.schedule = measures(planned)["schedule"]
        drawn = self._trials()[number].params
        values = (f"{key}={short_number(value)}" for key, value in drawn.items())
        self.display.rename(number, " ".join([f"trial {number}", *values]))

    def _pruning(self, number: int) -> list[str]:
        """Returns the overrides by which a trial's run knows its study; none where no trial is ended early."""
        if not self.options.prunes:
            return []
        given: dict[str, Any] = {
            "_target_": "attnmosaic.search.pruning.Pruning",
            "_recursive_": False,  # the pruner is instantiated where it is asked
            "storage": self.storage,
            "study": self.name,
            "trial": number,
            "metric": self.metric,
            "pruner": self.options.pruner,
            "longest": self.longest,
            "every": self.every,
        }
        return [as_override("+callbacks.pruning", given)]


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the first and last of numbers that follow each other: a launcher numbers its jobs so."""
    first = before = numbers[0]
    for number in numbers[1:]:
        if number != before + 1:
            yield first, before
            first = number
        before = number
    yield first, before


def _leave_log() -> None:
    """Leaves the log of a job that has ended: what comes next in this process is none of its."""
    root = logging.getLogger()
    for handler in [*root.handlers]:
        if isinstance(handler, logging.FileHandler) or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
            handler.close()
