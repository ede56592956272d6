"""Builds the LightningModule of a run, and its networks, from a checked config."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from hydra.utils import get_object, instantiate
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from attnmosaic.config.schedule import Schedule
from attnmosaic.config.schema import PAIR, processes_of
from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.numbers import NumbersDataModule
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training.attention_cache import eval_mode
from attnmosaic.training.base import RunModule, step_scheduler
from attnmosaic.training.instantiation import build_object, first_line, refused, remedy
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.two_outputs import TwoOutputModule

Network = TypeVar("Network", bound=nn.Module)


def build_network(config: dict[str, Any], name: str, in_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """Builds one network; its first weights follow from (seed, name) alone.

    ``in_shape`` and ``outputs`` are passed to a target that takes them.

    Args:
        config: ``_target_`` and its arguments.
        name: "where" or "what".
        in_shape: shape of a patch, ``(C, H, W)`` or ``(D,)``.
        outputs: outputs the network must have.
        seed: init seed.

    Raises:
        UserError: the target cannot be built with its arguments, does not take such patches, or gives another number
            of outputs.
    """
    given = _derived(config, in_shape=in_shape, outputs=outputs)
    network, got = _make_network(config, f"model.{name}", given, 2 * seed + PAIR.index(name), torch.zeros(2, *in_shape))
    if tuple(got.shape) != (2, outputs):
        raise UserError(
            f"model.{name}: {config['_target_']} gives {tuple(got.shape[1:])} outputs a patch, needs ({outputs},)"
        )
    return network


def build_two_outputs(config: dict[str, Any], in_shape: tuple[int, ...], results: int, seed: int) -> nn.Module:
    """Builds a network that takes images and numbers; its first weights follow from the seed alone.

    ``in_shape`` and ``outputs``, the number of results, are passed to a target that takes them.

    Args:
        config: ``_target_`` and its arguments.
        in_shape: ``(C, H, W)`` of an image.
        results: number of classes that the second output must have; the first must have 10.
        seed: init seed.

    Raises:
        UserError: the target cannot be built with its arguments, does not take such images, or gives other outputs.
    """
    given = _derived(config, in_shape=in_shape, outputs=results)
    tried = torch.zeros(2, *in_shape), torch.zeros(2, dtype=torch.int64)
    network, got = _make_network(config, "model.network", given, 2 * seed, *tried)
    if not isinstance(got, tuple) or [tuple(logits.shape) for logits in got] != [(2, 10), (2, results)]:
        raise UserError(f"model.network: {config['_target_']} must give two outputs, of 10 and of {results} logits")
    return network


def _derived(config: dict[str, Any], **derived: Any) -> dict[str, Any]:
    """Returns those of the derived arguments that a target takes and the config does not give."""
    accepted = inspect.signature(get_object(config["_target_"])).parameters
    return {key: value for key, value in derived.items() if key in accepted and key not in config}


def _make_network(
    config: dict[str, Any], key: str, given: dict[str, Any], seed: int, *tried: torch.Tensor
) -> tuple[nn.Module, Any]:
    """Builds a network and returns it with its outputs in eval mode for some zeros."""
    instead = "; choose another model for these data"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = instantiate(config, **given)
        except Exception as error:
            cause = error.__cause__ or error
            arguments = {**config, **given}
            del arguments["_target_"]
            shown = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "no arguments"
            what = remedy(key, config, cause) or instead
            raise UserError(
                f"{key}: {config['_target_']} cannot be built with {shown} ({first_line(cause)}){what}"
            ) from error
        kind = "patches" if len(tried) == 1 else "images"
        takes = f"{key}: {config['_target_']} does not take {kind} of shape {tuple(tried[0].shape[1:])}"
        with refused(takes, instead), eval_mode(network), torch.no_grad():
            return network, network(*tried)


def build_module(config: dict[str, Any], data: MosaicDataModule | NumbersDataModule) -> RunModule:
    """Builds the LightningModule of a run for data that are set up.

    Raises:
        UserError: a network, optimizer, scheduler or objective does not take its arguments or the data.
    """
    if isinstance(data, NumbersDataModule):
        return _two_output_module(config, data)
    return _stagewise_module(config, data)


def build_pair(
    config: dict[str, Any], patch_shape: tuple[int, ...], n_labels: int, *, fixed_weights: bool = False
) -> WhereWhat:
    """Builds the networks of a run on mosaics; their first weights follow from its init seed.

    Args:
        config: the run's.
        patch_shape: ``(C, H, W)`` or ``(D,)``.
        n_labels: number of foreground classes, F.
        fixed_weights: the data give the attention weights, so there is no where network.

    Raises:
        UserError: see `build_network`.
    """
    seed = config["seed"]["init"]
    pair = WhereWhat(
        where=None if fixed_weights else build_network(config["model"]["where"], "where", patch_shape, 1, seed),
        what=build_network(config["model"]["what"], "what", patch_shape, n_labels, seed),
    )
    return _in_precision(config, pair)


def _in_precision(config: dict[str, Any], network: Network) -> Network:
    # Lightning would do so too, but only after a checkpoint's weights were rounded to float32.
    return network.double() if config["precision"] == "float64" else network


def _stagewise_module(config: dict[str, Any], data: MosaicDataModule) -> StagewiseModule:
    pair = build_pair(config, data.patch_shape, data.n_labels, fixed_weights=data.weights is not None)
    mosaics = data.mosaics["train"]
    dtype = next(pair.parameters()).dtype
    one = torch.zeros(1, *data.patch_shape, dtype=dtype)
    _check_smallest_part(config, "what", len(mosaics), lambda: copy.deepcopy(pair.what).train()(one))
    label = torch.arange(2) % data.n_labels
    alpha = torch.full((2, data.patches), 1 / data.patches, dtype=dtype)
    logits = torch.zeros(2, data.n_labels, dtype=dtype)
    networks = {name: network for name in PAIR if (network := getattr(pair, name)) is not None}
    return StagewiseModule(
        config,
        pair,
        _objective(config, logits=logits, alpha=alpha, label=label),
        *_optimizers(config, networks),
        patch_shape=data.patch_shape,
        foreground_classes=mosaics.foreground_classes,
    )


def _two_output_module(config: dict[str, Any], data: NumbersDataModule) -> TwoOutputModule:
    results, seed = len(data.operation.values), config["seed"]["init"]
    network = build_two_outputs(config["model"]["network"], data.image_shape, results, seed)
    network = _in_precision(config, network)
    dtype, train = next(network.parameters()).dtype, data.examples["train"]
    two = train.take(torch.zeros(2, dtype=torch.int64), dtype)
    attempt = partial(copy.deepcopy(network).train(), two.image[:1], two.number[:1])
    _check_smallest_part(config, "network", len(train), attempt)
    logits = {"digit_logits": torch.zeros(2, 10), "result_logits": torch.zeros(2, results)}
    given = {name: value.to(dtype) for name, value in logits.items()}
    optimizers, schedulers = _optimizers(config, {"network": network})
    return TwoOutputModule(
        config,
        network,
        _objective(config, **given, digit=two.digit, result=two.result),
        optimizers["network"],
        schedulers.get("network"),
        operation=data.operation,
        image_shape=data.image_shape,
    )


def _check_smallest_part(config: dict[str, Any], name: str, n: int, attempt: Callable[[], object]) -> None:
    """Checks that the network takes a minibatch of one, if there is one; batch normalisation does not.

    Args:
        config: the run's.
        name: of the network.
        n: training examples.
        attempt: computes one example with the network in training mode.

    Raises:
        UserError: it does not.
    """
    size, pieces = config["data"]["batch_size"], config["optimizer"]["microbatches"] or 1
    smallest = partial(_smallest_part, n, processes=processes_of(config))
    if smallest(size, pieces=pieces) > 1:
        return
    fits = next((other for other in range(size, n) if smallest(other, pieces=1) > 1), n)
    advice = "optimizer.microbatches=null" if fits == size else f"data.batch_size={fits}"
    what = f"data.batch_size: got {size}, which leaves of {n} training examples a part of one, and "
    what += f"{config['model'][name]['_target_']} does not take it"
    with refused(what, f"; type {advice}"), torch.random.fork_rng(devices=[]), torch.no_grad():
        attempt()


def _smallest_part(n: int, batch_size: int, *, processes: int, pieces: int) -> int:
    """Returns how many of n examples are in the smallest part of a minibatch that a process computes by itself."""
    shards = [max(1, size // processes) for size in (min(n, batch_size), n % batch_size or batch_size)]
    return min(len(part) for shard in shards for part in torch.arange(shard).chunk(pieces))


def _objective(config: dict[str, Any], **arguments: torch.Tensor) -> Any:
    """Builds the objective and checks that it gives one number for such arguments, in this order."""
    objective, target = build_object("objective", config["objective"]), config["objective"]["_target_"]
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in arguments.items())
    instead = "; fix it, or type objective=cross_entropy for a pair, objective=two_outputs for one network"
    with refused(f"objective: {target} fails for {shapes}", instead), torch.random.fork_rng(devices=[]):
        loss = copy.deepcopy(objective)(*arguments.values())
    if not isinstance(loss, torch.Tensor) or loss.shape != ():
        got = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UserError(f"objective: {target} gives {got} for {shapes}, needs their mean, a scalar")
    return objective


def _optimizers(config: dict[str, Any], networks: Mapping[str, nn.Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns for each network what builds its optimizer, and its scheduler if there is one; tries both on a copy."""
    optimizers, schedulers = {}, {}
    schedule = Schedule(**config["schedule"])
    for name, network in networks.items():
        node = config["optimizer"][name]
        optimizers[name] = build_object(
            f"optimizer.{name}", node, _partial_=True, lr=config["lr"][name], **_fused(node)
        )
        optimizer = _tried_optimizer(
            name, node["_target_"], partial(optimizers[name], copy.deepcopy(network).parameters())
        )
        if config["scheduler"][name] is not None:
            schedulers[name] = build_object(f"scheduler.{name}", config["scheduler"][name], _partial_=True)
            epochs = sum(name in (*schedule.stage(e).learners, "network") for e in range(schedule.epochs))
            _try_scheduler(name, partial(schedulers[name], optimizer), epochs)
    return optimizers, schedulers


def _tried_optimizer(name: str, target: str, build: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Builds an optimizer and takes a step: some need a closure for it, or gradients of another kind."""
    with refused(f"optimizer.{name}: {target} cannot be built"):
        optimizer = build()
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    with refused(
        f"optimizer.{name}: {target} cannot take the steps of a run", "; type optimizer=sgd or optimizer=adam"
    ):
        optimizer.step()
    return optimizer


def _try_scheduler(name: str, build: Callable[[], LRScheduler], epochs: int) -> None:
    """Builds a scheduler and steps it as often as a run will: some take so many steps and no more."""
    with refused(f"scheduler.{name}: cannot be built"):
        scheduler = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer has taken one step, and no more
        for epoch in range(epochs):
            fails = f"scheduler.{name}: fails after {epoch} of the {epochs} epochs in which its network learns"
            with refused(fails, "; it steps once after each of them"):
                step_scheduler(scheduler, 1.0)


def _fused(node: Any) -> dict[str, bool]:
    """Has torch's optimizers update all weights in one call, unless the config sets how."""
    fused = isinstance(node, Mapping) and node.get("_target_") in ("torch.optim.SGD", "torch.optim.Adam")
    return {"fused": True} if fused and not {"fused", "foreach", "differentiable"} & set(node) else {}
