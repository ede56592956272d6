"""The sweeper behind ``hydra/sweeper=optuna``. Hydra imports every plugin at every start, so this one is light."""

from importlib.util import find_spec
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class AttnmosaicSweeper(Sweeper):
    """Searches for settings; see ``conf/hydra/sweeper/optuna.yaml``.

    Args:
        **options: see `attnmosaic.search.options.Options`.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from attnmosaic.core.errors import UserError
        from attnmosaic.core.extras import missing_packages

        if find_spec("optuna") is None:
            raise missing_packages("hydra/sweeper=optuna", "search")
        if config.hydra.job.config_name != "train":
            raise UserError("hydra/sweeper=optuna: searches for settings of attnmosaic.train, and of no other command")
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Searches; returns the best value."""
        from attnmosaic.search.options import Options
        from attnmosaic.search.search import Search

        loader = self.hydra_context.config_loader
        return Search(Options.of(self.options), self.config, loader, self.launcher, arguments).run()
