"""Functions that use undocumented names of libraries; the tests fail if a library changes one of these names.

The libraries are imported inside the functions.
"""

from typing import Any


def import_lightning() -> None:
    """Imports Lightning and torchmetrics without matplotlib and scipy.

    If they are installed, torchmetrics imports matplotlib for its own plots, and scipy for another package. A run that
    plots no figures needs neither and starts earlier without them. Call this before any other import of Lightning.
    """
    from lightning_utilities.core import imports

    hidden = ("matplotlib", "scipy")
    is_installed, package_available = imports.RequirementCache.__bool__, imports.package_available

    def is_installed_and_not_hidden(self: imports.RequirementCache) -> bool:
        return not str(self.requirement).startswith(hidden) and is_installed(self)

    imports.RequirementCache.__bool__ = is_installed_and_not_hidden  # type: ignore[method-assign]
    imports.package_available = lambda name: name not in hidden and package_available(name)  # type: ignore[assignment]
    try:
        import pytorch_lightning  # noqa: F401
    finally:
        imports.RequirementCache.__bool__ = is_installed  # type: ignore[method-assign]
        imports.package_available = package_available


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
