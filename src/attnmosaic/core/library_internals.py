"""Every use of a name that a library does not document, each behind a function; tests fail when a library changes one.

Imports none of these libraries by itself.
"""

from typing import Any


def import_lightning() -> None:
    """Imports Lightning and torchmetrics, but not matplotlib with them.

    torchmetrics imports it wherever it is installed, for plots of its own; a run whose pictures are switched off needs
    none, and starts half a second sooner. To be called before anything else imports Lightning.
    """
    from lightning_utilities.core.imports import RequirementCache

    there = RequirementCache.__bool__

    def but_matplotlib(self: RequirementCache) -> bool:
        return not str(self.requirement).startswith("matplotlib") and there(self)

    RequirementCache.__bool__ = but_matplotlib  # type: ignore[method-assign]
    try:
        import pytorch_lightning  # noqa: F401
    finally:
        RequirementCache.__bool__ = there  # type: ignore[method-assign]


def keep_signal_handlers(trainer: Any) -> None:
    """Keeps a Lightning trainer from installing signal handlers.

    Its handler of SIGTERM asks the other processes of a run, which do not listen just then.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def forget_library_configs(group: str, *names: str) -> None:
    """Removes configs that installed plugins have registered with Hydra under names of files in ``conf/hydra/GROUP``.

    Hydra would validate the files against them.
    """
    from hydra.core.config_store import ConfigStore

    registered = ConfigStore.instance().repo.get("hydra", {}).get(group, {})
    for name in names:
        registered.pop(f"{name}.yaml", None)


def forkserver_pid() -> int | None:
    """Returns the process id of multiprocessing's fork server; None if none was started."""
    from multiprocessing import forkserver

    return getattr(forkserver._forkserver, "_forkserver_pid", None)
