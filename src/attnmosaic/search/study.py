"""The study of a search, kept on disk so that it outlives whatever kills the search."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from attnmosaic.core.errors import UserError

# Trials are told by the sweep's own display.
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


class JournalLock(JournalFileOpenLock):
    """Keeps writers of a journal apart, by a lock that ends with its process.

    Optuna's own stays when its process is killed, and the next one waits half a minute for it. A line that was being
    written then would spoil the journal for ever as soon as another is appended: whoever comes next takes it away.

    Args:
        path: the journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        with self._path.open("rb+") as journal:
            written = journal.read()
            whole = written.rfind(b"\n") + 1
            if whole < len(written):
                journal.truncate(whole)
        return True

    def release(self) -> None:
        self._lock.release()


def open_storage(where: str) -> BaseStorage:
    """Opens what keeps studies.

    Args:
        where: a file for a journal of Optuna's, or a URL for a database.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        if "://" in where:
            return RDBStorage(where)
        path = Path(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(where, JournalLock(path)))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"hydra.sweeper.storage: '{where}' cannot be opened ({reason}); choose another") from error


def open_study(where: str, name: str, direction: str, pruner: Any) -> optuna.Study:
    """Opens a study, or begins it; one that was begun keeps its direction.

    Raises:
        UserError: it cannot be opened.
    """
    return optuna.create_study(
        storage=open_storage(where),
        study_name=name,
        direction=StudyDirection[direction.upper()],
        pruner=pruner,
        sampler=RandomSampler(),  # draws nothing: see `draw`
        load_if_exists=True,
    )


def draw(study: optuna.Study, sampler: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what to try next; the study itself stays as it is.

    (Optuna would write a trial first and then one value after the other. A search killed between them would leave a
    trial that nobody could finish as it was meant.)
    """
    rehearsal = optuna.create_study(
        direction=study.direction, study_name=study.study_name, sampler=sampler, pruner=study.pruner
    )
    rehearsal.add_trials(study.get_trials(deepcopy=False))
    return rehearsal.ask({**space}).params


def begin_trial(study: optuna.Study, drawn: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    """Writes the next trial down as one that has begun, all at once."""
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, params={**drawn}, distributions={**space}))
