"""Reads and writes the study of a search: an Optuna study on disk, from which a killed search resumes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from attnmosaic.core.errors import UserError

if TYPE_CHECKING:
    import optuna


class JournalLock:
    """A lock for the writers of a journal: it ends with its process, and `acquire` removes an incomplete last line.

    Optuna's own locks remain after their process was killed, and delay the next process by half a minute. A kill or a
    full disk can leave an incomplete line; another line written after it would make the journal unreadable.

    Args:
        journal: path of the journal.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        content = self._journal.read_bytes()
        if (complete := content.rfind(b"\n") + 1) < len(content):
            os.truncate(self._journal, complete)
        return True

    def release(self) -> None:
        self._lock.release()


def open_storage(where: str) -> "optuna.storages.BaseStorage":
    """Opens Optuna's storage: the journal file in the sweep's folder, or a database.

    Args:
        where: path of an Optuna journal, or the URL of a database.

    Raises:
        UserError: the storage cannot be opened.
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
        raise UserError(
            f"hydra.sweeper.storage: cannot open '{where}' ({reason}); type another file or database URL"
        ) from error


def open_study(where: str, name: str, direction: str, pruner: Any) -> "optuna.Study":
    """Opens a study, or creates it if it does not exist; an existing study keeps its direction.

    Raises:
        UserError: the study's storage cannot be opened.
    """
    import optuna
    from optuna.study import StudyDirection

    return optuna.create_study(
        storage=open_storage(where),
        study_name=name,
        direction=StudyDirection[direction.upper()],
        pruner=pruner,
        sampler=optuna.samplers.RandomSampler(),  # not used, as `sample_trial` samples
        load_if_exists=True,
    )


def sample_trial(study: "optuna.Study", sampler: Any, space: Mapping[str, Any]) -> None:
    """Adds a running trial with sampled parameters to a study, in one write.

    `study.ask` writes a trial first and then each parameter, so a search killed in between would leave a trial whose
    missing parameters could not be sampled with the same values again. The trial is therefore sampled in a copy of the
    study in memory.
    """
    import optuna

    copy = optuna.create_study(
        direction=study.direction, study_name=study.study_name, sampler=sampler, pruner=study.pruner
    )
    copy.add_trials(study.get_trials(deepcopy=False))
    copy.ask({**space})
    study.add_trial(copy.get_trials(deepcopy=False)[-1])


def open_trial(where: str, name: str, number: int, pruner: Any) -> "optuna.Trial":
    """Opens a running trial, so that the process that trains it can report to its study."""
    import optuna

    storage = open_storage(where)
    study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    study_id = storage.get_study_id_from_name(name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))
