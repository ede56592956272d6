"""From a checked config to the objects it describes."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.errors import UserError, nearest
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training.module import NETWORKS, StagewiseModule
from attnmosaic.training.schedule import Schedule


def build_network(config: DictConfig, name: str, in_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """Makes one network, its first weights following from (seed, name) alone.

    ``in_shape`` and ``outputs`` are passed to a target that takes them, so that sizes stand in one place.

    Args:
        config: ``_target_`` and its arguments.
        name: "where" or "what".
        in_shape: shape of a patch.
        outputs: outputs the network must have.
        seed: init seed.

    Raises:
        UserError: the target does not take such patches or gives another number of outputs.
    """
    accepted = inspect.signature(get_object(config._target_)).parameters
    derived = {"in_shape": in_shape, "outputs": outputs}
    given = {key: value for key, value in derived.items() if key in accepted and key not in config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2 * seed + NETWORKS.index(name))
        try:
            network: nn.Module = instantiate(config, **given)
            training = network.training
            with torch.no_grad():
                got = network.eval()(torch.zeros(2, *in_shape)).shape
            network.train(training)
        except Exception as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UserError(
                f"model.{name}: {config._target_} does not take patches of shape {in_shape} ({reason}); "
                "choose another model for these data"
            ) from error
    if tuple(got) != (2, outputs):
        raise UserError(
            f"model.{name}: {config._target_} gives {tuple(got[1:])} outputs for each patch, needs ({outputs},)"
        )
    return network


def build_module(config: DictConfig, data: MosaicDataModule) -> StagewiseModule:
    """Makes the LightningModule of a run for data that are set up."""
    seed = config.seed.init
    pair = WhereWhat(
        where=build_network(config.model.where, "where", data.patch_shape, 1, seed),
        what=build_network(config.model.what, "what", data.patch_shape, data.n_labels, seed),
    )
    # `lr` has its place at the top of the config, whatever the optimizer.
    optimizers = {n: instantiate(config.optimizer[n], _partial_=True, lr=config.lr[n]) for n in NETWORKS}
    schedulers = {n: instantiate(config.scheduler[n], _partial_=True) for n in NETWORKS if config.scheduler[n]}
    for name, make in optimizers.items():
        tried = _try(f"optimizer.{name}", make, getattr(pair, name).parameters())
        if name in schedulers:
            _try(f"scheduler.{name}", schedulers[name], tried)
    return StagewiseModule(
        pair,
        Schedule(**config.schedule),
        instantiate(config.objective),
        optimizers,
        schedulers,
        batch_size=config.data.batch_size,
        microbatches=config.optimizer.microbatches,
        clip_norm=config.optimizer.clip_norm,
        cache_gb=config.compute.cache_gb,
        config=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
    )


def _try(key: str, make: Callable[..., Any], argument: Any) -> Any:
    """Makes an optimizer or scheduler before any training, so that what it does not take is told now."""
    try:
        return make(argument)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {str(error).strip().splitlines()[0]}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint with ``weights_only=True``.

    Raises:
        UserError: it is missing, or no checkpoint of this program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"ckpt_path: '{path}' does not exist; checkpoints lie in a run's checkpoints folder")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["hyper_parameters"]["config"]["model"]
        checkpoint["state_dict"]
    except Exception as error:
        raise UserError(f"ckpt_path: '{path}' is no readable attnmosaic checkpoint ({type(error).__name__})") from error
    return checkpoint


def check_weights_fit(checkpoint: dict[str, Any], module: nn.Module, path: str | Path) -> None:
    """Checks that a checkpoint is of the module's architecture.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"ckpt_path: '{path}' is of another architecture: {name} is {saved.get(name, 'absent')} in it and "
                f"{wanted.get(name, 'absent')} in this config; give the model, patches and classes it was trained with"
            )


def check_targets(node: Any, key: str = "") -> None:
    """Checks that every ``_target_`` of a config can be imported.

    Raises:
        UserError: one cannot; names the nearest that could.
    """
    if isinstance(node, DictConfig):
        for name in map(str, node):
            check_targets(node[name], f"{key}.{name}" if key else name)
        return
    if not key.endswith("._target_"):
        return
    try:
        get_object(node)
    except Exception as error:
        module, _, name = node.rpartition(".")
        try:
            close = nearest(name, vars(get_object(module)), n=1)
        except Exception:
            close = []
        hint = f"; did you mean {module}.{close[0]}?" if close else ""
        raise UserError(f"{key}: cannot import '{node}' ({str(error).splitlines()[0]}){hint}") from error
