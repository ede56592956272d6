"""Where scalars and pictures of a run go."""

from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger


class EventLogger(TensorBoardLogger):
    """Writes TensorBoard's event files straight into a run's folder, so that TensorBoard calls the run by its name.

    Lightning's would put them two folders deeper, and an empty ``hparams.yaml`` beside them.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)  # real metrics come at the end

    def save(self, *_: Any) -> None:
        """Leaves it to ``config.yaml`` to tell the settings."""
