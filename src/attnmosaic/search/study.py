"""The study of a search, on disk, so that a killed search resumes from it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from attnmosaic.core.errors import UserError

if TYPE_CHECKING:
    import optuna


class JournalLock:
    """A lock for the writers of a journal that ends with its process; whoever acquires it repairs the journal.

    Optuna's own locks outlive a killed process, and delay the next one by half a minute. An incomplete line, which a
    kill or a full disk leaves, would make the journal unreadable once another line followed.

    Args:
        journal: the file.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        written = self._journal.read_bytes()
        if (complete := written.rfind(b"\n") + 1) < len(written):
            os.truncate(self._journal, complete)
        return True

    def release(self) -> None:
        self._lock.release()


def open_storage(where: str) -> "optuna.storages.BaseStorage":
    """Opens the storage of studies.

    Args:
        where: the file of an Optuna journal, or the URL of a database.

    Raises:
        UserError: it cannot be opened.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the sweep's display reports the trials
    try:
        if "://" in where:
            return optuna.storages.RDBStorage(where)
        path = Path(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: Any = JournalLock(path)
        return optuna.storages.JournalStorage(JournalFileBackend(where, lock))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"hydra.sweeper.storage: '{where}' cannot be opened ({reason}); choose another") from error


def open_study(where: str, name: str, direction: str, pruner: Any) -> "optuna.Study":
    """Opens a study, or creates it; an existing study keeps its direction.

    Raises:
        UserError: its storage cannot be opened.
    """
    import optuna
    from optuna.study import StudyDirection

    return optuna.create_study(
        storage=open_storage(where),
        study_name=name,
        direction=StudyDirection[direction.upper()],
        pruner=pruner,
        sampler=optuna.samplers.RandomSampler(),  # samples nothing: see `sample_trial`
        load_if_exists=True,
    )


def sample_trial(study: "optuna.Study", sampler: Any, space: Mapping[str, Any]) -> None:
    """Adds a running trial with sampled parameters to a study, in one write.

    `study.ask` writes a trial first and then each parameter: a search killed in between would leave a trial that no
    sampler could complete with the same values. So a copy of the study in memory is asked.
    """
    import optuna

    copy = optuna.create_study(
        direction=study.direction, study_name=study.study_name, sampler=sampler, pruner=study.pruner
    )
    copy.add_trials(study.get_trials(deepcopy=False))
    copy.ask({**space})
    study.add_trial(copy.get_trials(deepcopy=False)[-1])


def open_trial(where: str, name: str, number: int, pruner: Any) -> "optuna.Trial":
    """Opens a running trial, to report to its study from the trial's own process."""
    import optuna

    storage = open_storage(where)
    study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    study_id = storage.get_study_id_from_name(name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))
