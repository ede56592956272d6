"""Others' libraries, without what they bring along and nobody here needs. Imports nothing heavy by itself."""


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
