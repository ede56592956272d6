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
from attnmosaic.errors import UserError
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training.make import first_line, make
from attnmosaic.training.module import NETWORKS, StagewiseModule
from attnmosaic.training.schedule import Schedule


def build_network(config: DictConfig, name: str, in_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """Makes one network, its first weights following from (seed, name) alone.

    ``in_shape`` and ``outputs`` are passed to a target that takes them, so that sizes stand in one place.

    Args:
        config: ``_target_`` and its arguments.
        name: "where" or "what".
        in_shape: shape of a patch, ``(C, H, W)`` or ``(D,)``.
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
            reason = first_line(error.__cause__ or error)
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
    """Makes the LightningModule of a run for data that are set up.

    Raises:
        UserError: a network, optimizer, scheduler or objective does not take its arguments or the patches.
    """
    seed = config.seed.init
    pair = WhereWhat(
        where=None if data.weights else build_network(config.model.where, "where", data.patch_shape, 1, seed),
        what=build_network(config.model.what, "what", data.patch_shape, data.n_labels, seed),
    )
    if config.precision == "float64":
        # Lightning would do so too, but only after a checkpoint's weights were rounded to float32.
        pair = pair.double()
    networks = [n for n in NETWORKS if getattr(pair, n) is not None]
    # `lr` has its place at the top of the config, whatever the optimizer.
    optimizers = {
        n: make(f"optimizer.{n}", config.optimizer[n], _partial_=True, lr=config.lr[n], **_fused(config.optimizer[n]))
        for n in networks
    }
    scheduled = [n for n in networks if config.scheduler[n] is not None]
    schedulers = {n: make(f"scheduler.{n}", config.scheduler[n], _partial_=True) for n in scheduled}
    for name, optimizer in optimizers.items():
        tried = _try(f"optimizer.{name}", optimizer, getattr(pair, name).parameters())
        if name in schedulers:
            _try(f"scheduler.{name}", schedulers[name], tried)
    return StagewiseModule(
        pair,
        Schedule(**config.schedule),
        make("objective", config.objective),
        optimizers,
        schedulers,
        batch_size=config.data.batch_size,
        seed=config.seed.order,
        microbatches=config.optimizer.microbatches,
        clip_norm=config.optimizer.clip_norm,
        cache_gb=config.compute.cache_gb,
        graphs=config.compute.engine == "auto",
        config=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
    )


def _fused(config: Any) -> dict[str, bool]:
    """Has torch's optimizers update all weights in one call, unless the config says how."""
    fused = isinstance(config, DictConfig) and config.get("_target_") in ("torch.optim.SGD", "torch.optim.Adam")
    return {"fused": True} if fused and not {"fused", "foreach", "differentiable"} & set(config) else {}


def _try(key: str, partial: Callable[..., Any], argument: Any) -> Any:
    """Makes an optimizer or scheduler before any training, so that what it does not take is told now."""
    try:
        return partial(argument)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {first_line(error)}") from error


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
