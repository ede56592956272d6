"""Functions that use undocumented names of libraries; the tests fail if a library changes one of these names.

The libraries are imported inside the functions.
"""

from typing import Any


def import_lightning() -> None:
    """Imports Lightning and torchmetrics without matplotlib.

    torchmetrics imports matplotlib if it is installed, for its own plots. A run that plots no figures does not need it
    and starts half a second earlier without it. Call this before any other import of Lightning.
    """
    from lightning_utilities.core.imports import RequirementCache

    is_installed = RequirementCache.__bool__

    def is_installed_and_not_matplotlib(self: RequirementCache) -> bool:
        return not str(self.requirement).startswith("matplotlib") and is_installed(self)

    RequirementCache.__bool__ = is_installed_and_not_matplotlib  # type: ignore[method-assign]
    try:
        import pytorch_lightning  # noqa: F401
    finally:
        RequirementCache.__bool__ = is_installed  # type: ignore[method-assign]


def keep_signal_handlers(trainer: Any) -> None:
    """Prevents a Lightning trainer from installing signal handlers.

    Its SIGTERM handler communicates with the other processes of the run, which do not answer at that moment.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def forget_library_configs(group: str, *names: str) -> None:
    """Removes plugin configs from Hydra's store if their names are those of files in ``conf/hydra/GROUP``.

    Otherwise Hydra would use the plugin config as the schema of the file with the same name.
    """
    from hydra.core.config_store import ConfigStore

    registered = ConfigStore.instance().repo.get("hydra", {}).get(group, {})
    for name in names:
        registered.pop(f"{name}.yaml", None)


def forkserver_pid() -> int | None:
    """Returns the process id of multiprocessing's fork server, or None if it is not running."""
    from multiprocessing import forkserver

    return getattr(forkserver._forkserver, "_forkserver_pid", None)
