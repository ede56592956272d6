"""The sweeper ``hydra/sweeper=optuna``. Imports nothing heavy, because Hydra imports all plugins at every start."""

from functools import partial
from importlib.util import find_spec
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class AttnmosaicSweeper(Sweeper):
    """Searches for settings with Optuna; see ``conf/hydra/sweeper/optuna.yaml``.

    Args:
        **options: fields of `attnmosaic.search.options.Options`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from attnmosaic.core.errors import UserError
        from attnmosaic.core.optional_packages import missing_packages
        from attnmosaic.search.options import Options
        from attnmosaic.search.search import Search

        if find_spec("optuna") is None:
            raise missing_packages("hydra/sweeper=optuna", "search")
        if config.hydra.job.config_name != "train":
            raise UserError("hydra/sweeper=optuna: works only with attnmosaic.train; remove it from the command")
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.search = partial(Search, Options(**self.options), config, hydra_context.config_loader, launcher)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the search and returns the best value."""
        return self.search(arguments).run()
